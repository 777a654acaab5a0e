// SPDX-License-Identifier: MIT OR Apache-2.0
// bench NAME [WORK [SIZE]]: does a fixed amount of work and prints `BENCH name work=<units> ns=<guest time>`.
//
//   reg       WORK million steps in registers                              no memory, no system calls
//   cache     WORK million reads in a working set of SIZE KiB (default 16) stays in the first-level cache
//   memwrite  WORK passes of memset over SIZE MiB (default 24)             dirties many pages: large deltas
//   filewrite WORK blocks of 4 KiB to /data/bench, fsync after each SIZE (default 16)
//   syscall   WORK thousand getppid() calls                                how costly the way into the kernel is
//   clock     WORK thousand reads of the monotonic clock                   by the vDSO where there is one, else by system call
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// Results go here so that the compiler cannot leave the work out.
static volatile uint64_t sink;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void __attribute__((noreturn)) fail(const char *what)
{
    printf("BENCH-FAIL %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (!memory)
        fail("malloc");
    // Touched once before the clock starts: page faults are not what is measured.
    memset(memory, 1, size);
    return memory;
}

static uint64_t step(uint64_t x)
{
    x ^= x >> 12;
    x ^= x << 25;
    return x ^ x >> 27;
}

static uint64_t bench_reg(uint64_t work, uint64_t size)
{
    (void)size;
    uint64_t x = 88172645463325252, start = now();
    for (uint64_t i = 0; i < work * 1000000; i++)
        x = step(x);
    sink = x;
    return now() - start;
}

static uint64_t bench_cache(uint64_t work, uint64_t size)
{
    uint64_t words = 64, sum = 0, index = 1;
    while (words * 2 * sizeof(uint64_t) <= size * 1024) // a power of two: masking is not to dominate
        words *= 2;
    uint64_t *memory = allocate(words * sizeof *memory), start = now();
    for (uint64_t i = 0; i < work * 1000000; i++) {
        // The next index depends on what was read.
        sum += memory[index & (words - 1)];
        index = index * 5 + 1 + (sum & 1);
        // A few writes: all in the same page.
        if (i % 64 == 0)
            memory[0] = sum;
    }
    sink = sum;
    return now() - start;
}

static uint64_t bench_memwrite(uint64_t work, uint64_t size)
{
    size_t bytes = size * 1024 * 1024;
    unsigned char *memory = allocate(bytes);
    uint64_t start = now();
    for (uint64_t i = 0; i < work; i++) {
        memset(memory, (int)i, bytes);
        sink += memory[i % bytes];
    }
    return now() - start;
}

static uint64_t bench_filewrite(uint64_t work, uint64_t size)
{
    static char block[4096];
    int fd = open("/data/bench", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        fail("/data/bench");
    uint64_t start = now();
    for (uint64_t i = 0; i < work; i++) {
        memset(block, (int)i, sizeof block);
        if (write(fd, block, sizeof block) != sizeof block)
            fail("write");
        if ((i + 1) % size == 0 && fsync(fd) < 0)
            fail("fsync");
    }
    if (fsync(fd) < 0)
        fail("fsync");
    uint64_t took = now() - start;
    close(fd);
    unlink("/data/bench");
    return took;
}

static uint64_t bench_syscall(uint64_t work, uint64_t size)
{
    (void)size;
    uint64_t start = now();
    for (uint64_t i = 0; i < work * 1000; i++)
        sink += getppid();
    return now() - start;
}

static uint64_t bench_clock(uint64_t work, uint64_t size)
{
    (void)size;
    uint64_t start = now();
    for (uint64_t i = 0; i < work * 1000; i++)
        sink += now();
    return now() - start;
}

static const struct {
    const char *name;
    uint64_t (*run)(uint64_t work, uint64_t size);
    uint64_t work, size;
} benches[] = {
    {"reg", bench_reg, 2000, 1},           {"cache", bench_cache, 1000, 16}, {"memwrite", bench_memwrite, 100, 24},
    {"filewrite", bench_filewrite, 256, 16}, {"syscall", bench_syscall, 10, 1},
    {"clock", bench_clock, 5, 1},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof benches / sizeof *benches; i++) {
        if (strcmp(argv[1], benches[i].name) != 0)
            continue;
        uint64_t work = argc > 2 ? strtoull(argv[2], NULL, 0) : benches[i].work;
        uint64_t size = argc > 3 ? strtoull(argv[3], NULL, 0) : benches[i].size;
        uint64_t took = benches[i].run(work, size ? size : 1);
        printf("BENCH %s work=%" PRIu64 " ns=%" PRIu64 "\n", benches[i].name, work, took);
        return 0;
    }
    fputs("usage: bench reg|cache|memwrite|filewrite|syscall|clock [WORK [SIZE]]\n", stderr);
    return 2;
}
