// SPDX-License-Identifier: MIT OR Apache-2.0
// oopser [SEED [MAX_MILLISECONDS]]: at a pseudo-random time sets /proc/sys/kernel/panic_on_oops, and at a later one
// crashes the kernel through /proc/sysrq-trigger. It gives the debugger a write to look for and an end to come back from.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void write_to(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        printf("OOPSER-FAIL %s: %s\n", path, strerror(errno));
        exit(1);
    }
    close(fd);
}

static void sleep_ms(uint64_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t limit = argc > 2 ? strtoull(argv[2], NULL, 0) : 2000;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (limit == 0)
        limit = 1;
    // splitmix64's finisher: neighbouring seeds must not give neighbouring times.
    uint64_t random = (seed + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
    random = (random ^ random >> 27) * 0x94d049bb133111eb;
    random ^= random >> 31;
    uint64_t first = (random & 0xffffffff) % limit, second = (random >> 32) % limit;

    printf("OOPSER seed=%llu set after %llu ms, crash %llu ms later\n", (unsigned long long)seed,
           (unsigned long long)first, (unsigned long long)second);
    sleep_ms(first);
    write_to("/proc/sys/kernel/panic_on_oops", "1");
    printf("OOPSER panic_on_oops set\n");
    sleep_ms(second);
    printf("OOPSER crashing\n");
    write_to("/proc/sysrq-trigger", "c");
    return 1;
}
