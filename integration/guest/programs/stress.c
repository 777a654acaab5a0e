// SPDX-License-Identifier: MIT OR Apache-2.0
// stress [-n ROUNDS | -t SECONDS] [-w WORKER[+WORKER...]] [-s SEED]
//
// Uses what a guest kernel has to offer, and checks itself. Prints a line a round, and at the end
// `STRESS-OK rounds=N digest=...` or `STRESS-FAIL what`. The digest covers every result that follows from the seed and the
// number of rounds alone, so it is the same on every machine; what depends on time or chance is checked, not digested.
//
// Workers: threads signals float fork pipes files clocks maps random (the default is all of them, in this order).
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("STRESS-FAIL ");
    vprintf(format, arguments);
    printf(" (errno %d)\n", errno);
    fflush(stdout);
    // Not exit(): this may be a forked child or a thread.
    _exit(1);
}

#define CHECK(condition)                                             \
    do {                                                             \
        if (!(condition))                                            \
            fail("%s:%d: %s", __func__, __LINE__, #condition);       \
    } while (0)

// xorshift64*: the same numbers everywhere for the same seed.
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

static uint64_t mix(uint64_t digest, uint64_t value)
{
    digest = (digest ^ value) * 0x100000001b3;
    return digest ^ digest >> 29;
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    CHECK(clock_gettime(clock, &t) == 0);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

// --- threads: a mutex, a condition variable and an atomic counter shared by a few threads that take turns.

#define THREADS 4
#define TURNS 25

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    unsigned turn;
    uint64_t digest;
    atomic_ullong counter;
} ring = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0};

static void *ring_member(void *argument)
{
    unsigned self = (uintptr_t)argument;
    for (unsigned i = 0; i < TURNS; i++) {
        pthread_mutex_lock(&ring.mutex);
        while (ring.turn % THREADS != self)
            pthread_cond_wait(&ring.moved, &ring.mutex);
        ring.digest = mix(ring.digest, ring.turn);
        ring.turn++;
        pthread_cond_broadcast(&ring.moved);
        pthread_mutex_unlock(&ring.mutex);
        atomic_fetch_add(&ring.counter, self + 1);
    }
    return NULL;
}

static uint64_t stress_threads(uint64_t seed)
{
    pthread_t threads[THREADS];
    ring.turn = 0;
    ring.digest = seed;
    atomic_store(&ring.counter, 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, ring_member, (void *)i) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(ring.turn == THREADS * TURNS);
    CHECK(atomic_load(&ring.counter) == TURNS * THREADS * (THREADS + 1) / 2);
    return ring.digest;
}

// --- signals: an interval timer whose handler runs on its own stack and uses the FPU, under a computation that does too.

static volatile sig_atomic_t alarms;
static volatile int alarm_off_stack;
static volatile double alarm_float;
static char *signal_stack;
static const size_t signal_stack_size = 16 * PAGE;

static void on_alarm(int signal)
{
    (void)signal;
    char here;
    if (&here < signal_stack || &here >= signal_stack + signal_stack_size)
        alarm_off_stack = 1;
    alarm_float = alarm_float * 1.5 + 0.25;
    if (alarm_float > 1e100)
        alarm_float = 1;
    alarms++;
}

static double harmonic(unsigned terms)
{
    double sum = 0;
    for (unsigned i = 1; i <= terms; i++)
        sum += 1.0 / i;
    return sum;
}

static uint64_t stress_signals(uint64_t seed)
{
    if (!signal_stack)
        CHECK((signal_stack = malloc(signal_stack_size)));
    stack_t stack = {.ss_sp = signal_stack, .ss_size = signal_stack_size}, no_stack = {.ss_flags = SS_DISABLE};
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct itimerval often = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
    CHECK(sigaltstack(&stack, NULL) == 0);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);

    unsigned terms = 100000 + seed % 1000;
    double expected = harmonic(terms);
    alarms = 0;
    alarm_float = 1;
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    // Bounded by the clock: if no signal comes, this must fail, not hang.
    for (uint64_t end = now(CLOCK_MONOTONIC) + 20000000000ull; alarms < 5;) {
        double sum = harmonic(terms);
        CHECK(memcmp(&sum, &expected, sizeof sum) == 0);
        CHECK(now(CLOCK_MONOTONIC) < end);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(!alarm_off_stack);
    signal(SIGALRM, SIG_DFL);
    CHECK(sigaltstack(&no_stack, NULL) == 0);

    uint64_t bits;
    memcpy(&bits, &expected, sizeof bits);
    return mix(seed, bits);
}

// --- float: SSE doubles, x87 long doubles and their rounding, accumulated over several preemptions.

static uint64_t stress_float(uint64_t seed)
{
    uint64_t state = seed | 1, digest = seed;
    double product = 1;
    long double sum = 0;
    for (int i = 0; i < 300000; i++) {
        double x = 1 + (next_random(&state) >> 11) * 0x1p-53;
        product *= x;
        if (product > 1e200)
            product *= 1e-200;
        sum += sqrtl((long double)x) / 3.0L; // FSQRT and FDIV on the x87
        if (i % 10000 == 0) {
            uint64_t bits[2] = {0};
            memcpy(bits, &product, sizeof product);
            digest = mix(digest, bits[0]);
            memcpy(bits, &sum, 10); // the rest of a long double is padding
            digest = mix(mix(digest, bits[0]), bits[1]);
        }
    }
    return digest;
}

// --- fork: a storm of children that each write into memory shared copy-on-write, and must see only their own writes.

#define CHILDREN 4
#define COW_PAGES 16

static void fill(unsigned char *memory, size_t size, uint64_t seed)
{
    uint64_t state = seed | 1;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t value = next_random(&state);
        memcpy(memory + i, &value, 8);
    }
}

static uint64_t checksum(const unsigned char *memory, size_t size)
{
    uint64_t sum = 0;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t value;
        memcpy(&value, memory + i, 8);
        sum = mix(sum, value);
    }
    return sum;
}

static void cow_child(unsigned char *memory, uint64_t before, uint64_t seed)
{
    CHECK(checksum(memory, COW_PAGES * PAGE) == before);
    // Every other page, so that shared and private pages lie side by side.
    for (int page = seed & 1; page < COW_PAGES; page += 2)
        fill(memory + page * PAGE, PAGE, seed + page);
    sched_yield();
    for (int page = 0; page < COW_PAGES; page++) {
        unsigned char expected[PAGE];
        if (page % 2 == (int)(seed & 1)) {
            fill(expected, PAGE, seed + page);
            CHECK(memcmp(memory + page * PAGE, expected, PAGE) == 0);
        }
    }
}

static uint64_t stress_fork(uint64_t seed)
{
    unsigned char *memory = mmap(NULL, COW_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    fill(memory, COW_PAGES * PAGE, seed);
    uint64_t before = checksum(memory, COW_PAGES * PAGE);
    pid_t children[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            cow_child(memory, before, seed + i);
            _exit(40 + i);
        }
    }
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        CHECK(waitpid(children[i], &status, 0) == children[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + i);
    }
    CHECK(checksum(memory, COW_PAGES * PAGE) == before);
    CHECK(munmap(memory, COW_PAGES * PAGE) == 0);
    return before;
}

// --- pipes: a child sends more than a pipe holds, in odd sizes; both sides block and wake.

#define PIPE_BYTES (100 * 1024)

static void read_all(int fd, void *buffer, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)buffer + done, size - done);
        CHECK(n > 0);
        done += n;
    }
}

static uint64_t stress_pipes(uint64_t seed)
{
    static unsigned char data[PIPE_BYTES], copy[PIPE_BYTES];
    int fds[2];
    fill(data, sizeof data, seed);
    CHECK(pipe(fds) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint64_t state = seed | 1;
        for (size_t done = 0; done < sizeof data;) {
            size_t size = 1 + next_random(&state) % 9000;
            if (size > sizeof data - done)
                size = sizeof data - done;
            ssize_t n = write(fds[1], data + done, size);
            CHECK(n > 0);
            done += n;
        }
        _exit(0);
    }
    close(fds[1]);
    struct pollfd readable = {.fd = fds[0], .events = POLLIN};
    CHECK(poll(&readable, 1, 20000) == 1);
    read_all(fds[0], copy, sizeof copy);
    char end;
    CHECK(read(fds[0], &end, 1) == 0);
    close(fds[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(memcmp(data, copy, sizeof data) == 0);
    return checksum(copy, sizeof copy);
}

// --- files: create, write, map, rename and remove in /tmp (tmpfs in the guest).

#define FILES 8
#define FILE_BYTES (3 * PAGE)

static uint64_t stress_files(uint64_t seed)
{
    unsigned char data[FILE_BYTES];
    char directory[] = "/tmp/stress.XXXXXX", name[64], other[64];
    uint64_t digest = seed;
    CHECK(mkdtemp(directory));
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "%s/%d", directory, i);
        snprintf(other, sizeof other, "%s/renamed-%d", directory, i);
        fill(data, sizeof data, seed + i);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        CHECK(fd >= 0);
        CHECK(write(fd, data, PAGE) == PAGE);
        CHECK(ftruncate(fd, FILE_BYTES) == 0);
        // The first page was written by a system call, the rest is written through a mapping.
        unsigned char *map = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(map != MAP_FAILED);
        CHECK(memcmp(map, data, PAGE) == 0);
        memcpy(map + PAGE, data + PAGE, FILE_BYTES - PAGE);
        CHECK(munmap(map, FILE_BYTES) == 0);
        CHECK(close(fd) == 0);
        CHECK(rename(name, other) == 0);
        CHECK(open(name, O_RDONLY) < 0 && errno == ENOENT);
    }
    for (int i = 0; i < FILES; i++) {
        unsigned char read_back[FILE_BYTES];
        struct stat status;
        snprintf(other, sizeof other, "%s/renamed-%d", directory, i);
        fill(data, sizeof data, seed + i);
        int fd = open(other, O_RDONLY);
        CHECK(fd >= 0 && fstat(fd, &status) == 0 && status.st_size == FILE_BYTES);
        CHECK(unlink(other) == 0);
        read_all(fd, read_back, FILE_BYTES); // removed, but still open
        CHECK(memcmp(data, read_back, FILE_BYTES) == 0);
        CHECK(close(fd) == 0);
        digest = mix(digest, checksum(read_back, FILE_BYTES));
    }
    CHECK(rmdir(directory) == 0);
    return digest;
}

// --- clocks: no clock goes backwards, sleeps are not too short, timers count what has passed.

static uint64_t last_monotonic, last_realtime;

static void check_clocks(void)
{
    uint64_t monotonic = now(CLOCK_MONOTONIC), realtime = now(CLOCK_REALTIME);
    if (monotonic < last_monotonic)
        fail("CLOCK_MONOTONIC went back by %" PRIu64 " ns", last_monotonic - monotonic);
    if (realtime < last_realtime)
        fail("CLOCK_REALTIME went back by %" PRIu64 " ns", last_realtime - realtime);
    last_monotonic = monotonic;
    last_realtime = realtime;
}

static uint64_t stress_clocks(uint64_t seed)
{
    for (int i = 0; i < 50; i++)
        check_clocks();
    uint64_t start = now(CLOCK_MONOTONIC);
    struct timespec pause = {.tv_nsec = 3000000 + seed % 1000000};
    CHECK(nanosleep(&pause, NULL) == 0);
    CHECK(now(CLOCK_MONOTONIC) - start >= (uint64_t)pause.tv_nsec);
    check_clocks();

    const uint64_t period = 5000000;
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, period}, {0, period}};
    CHECK(fd >= 0);
    start = now(CLOCK_MONOTONIC);
    CHECK(timerfd_settime(fd, 0, &every, NULL) == 0);
    uint64_t ticks = 0, expirations;
    while (ticks < 4) {
        CHECK(read(fd, &expirations, sizeof expirations) == sizeof expirations);
        CHECK(expirations > 0);
        ticks += expirations;
        check_clocks();
    }
    CHECK(now(CLOCK_MONOTONIC) - start >= ticks * period);
    CHECK(close(fd) == 0);
    return seed;
}

// --- maps: mappings made, protected, split and removed, and the faults that must and must not happen.

#define MAPS 8
#define MAP_PAGES 8

static uint64_t stress_maps(uint64_t seed)
{
    unsigned char *maps[MAPS];
    uint64_t digest = seed;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MAPS; i++) {
            maps[i] = mmap(NULL, MAP_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(maps[i] != MAP_FAILED);
            for (int page = 0; page < MAP_PAGES; page++)
                CHECK(maps[i][page * PAGE] == 0); // never another's old contents
            fill(maps[i], MAP_PAGES * PAGE, seed + i);
        }
        for (int i = 0; i < MAPS; i++) {
            // A read-only page in the middle splits the mapping in three.
            unsigned char *middle = maps[i] + MAP_PAGES / 2 * PAGE;
            CHECK(mprotect(middle, PAGE, PROT_READ) == 0);
            // A system call that writes there reports the fault instead of raising a signal.
            int fd = open("/dev/zero", O_RDONLY);
            CHECK(fd >= 0);
            CHECK(read(fd, middle, 1) < 0 && errno == EFAULT);
            CHECK(mprotect(middle, PAGE, PROT_READ | PROT_WRITE) == 0);
            CHECK(read(fd, middle, 1) == 1 && middle[0] == 0);
            CHECK(close(fd) == 0);
            CHECK(munmap(maps[i], PAGE) == 0);
            digest = mix(digest, checksum(maps[i] + PAGE, (MAP_PAGES - 1) * PAGE));
            CHECK(munmap(maps[i] + PAGE, (MAP_PAGES - 1) * PAGE) == 0);
        }
    }
    return digest;
}

// --- random: the kernel's generator answers, and not twice the same.

static uint64_t stress_random(uint64_t seed)
{
    static unsigned char last[32];
    unsigned char bytes[32];
    CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes);
    CHECK(memcmp(bytes, last, sizeof bytes) != 0);
    memcpy(last, bytes, sizeof last);
    return seed;
}

static const struct {
    const char *name;
    uint64_t (*run)(uint64_t seed);
} workers[] = {
    {"threads", stress_threads}, {"signals", stress_signals}, {"float", stress_float},
    {"fork", stress_fork},       {"pipes", stress_pipes},     {"files", stress_files},
    {"clocks", stress_clocks},   {"maps", stress_maps},       {"random", stress_random},
};
#define WORKERS (sizeof workers / sizeof *workers)

// The workers named in `text`, as a bit mask.
static unsigned select_workers(char *text)
{
    unsigned selected = 0;
    for (char *name = strtok(text, "+"); name; name = strtok(NULL, "+")) {
        size_t i = 0;
        while (i < WORKERS && strcmp(workers[i].name, name) != 0)
            i++;
        if (i == WORKERS) {
            fprintf(stderr, "stress: no worker %s\n", name);
            exit(2);
        }
        selected |= 1u << i;
    }
    return selected;
}

int main(int argc, char **argv)
{
    uint64_t rounds = 10, seconds = 0, seed = 1;
    unsigned selected = (1u << WORKERS) - 1;
    for (int option; (option = getopt(argc, argv, "n:t:w:s:")) != -1;) {
        switch (option) {
        case 'n': rounds = strtoull(optarg, NULL, 0); break;
        case 't': seconds = strtoull(optarg, NULL, 0); break;
        case 'w': selected = select_workers(optarg); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        default:
            fputs("usage: stress [-n ROUNDS | -t SECONDS] [-w WORKER[+WORKER...]] [-s SEED]\n", stderr);
            return 2;
        }
    }

    setvbuf(stdout, NULL, _IOLBF, 0);
    uint64_t start = now(CLOCK_MONOTONIC), digest = seed, state = seed * 2 + 1, round = 0;
    for (; seconds ? now(CLOCK_MONOTONIC) - start < seconds * 1000000000 : round < rounds; round++) {
        for (size_t i = 0; i < WORKERS; i++) {
            // Drawn even for workers left out, so that a worker's seeds do not depend on the selection.
            uint64_t worker_seed = next_random(&state);
            if (!(selected & 1u << i))
                continue;
            check_clocks();
            digest = mix(digest, workers[i].run(worker_seed));
        }
        printf("STRESS round=%" PRIu64 " digest=%016" PRIx64 "\n", round, digest);
    }
    printf("STRESS-OK rounds=%" PRIu64 " digest=%016" PRIx64 "\n", round, digest);
    return 0;
}
