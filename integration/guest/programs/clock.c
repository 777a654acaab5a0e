// SPDX-License-Identifier: MIT OR Apache-2.0
// clock [MILLISECONDS [COUNT]]: prints `CLOCK <monotonic> <realtime>` at that interval, COUNT times (0: for ever).
//
// Ends with status 1 if either clock goes backwards.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int argc, char **argv)
{
    long interval = argc > 1 ? atol(argv[1]) : 1000;
    long count = argc > 2 ? atol(argv[2]) : 0;
    long long last_monotonic = 0, last_realtime = 0;
    struct timespec next;

    setvbuf(stdout, NULL, _IOLBF, 0);
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (long i = 0; count == 0 || i < count; i++) {
        long long monotonic = nanoseconds(CLOCK_MONOTONIC), realtime = nanoseconds(CLOCK_REALTIME);
        printf("CLOCK %lld.%09lld %lld.%09lld\n", monotonic / 1000000000, monotonic % 1000000000,
               realtime / 1000000000, realtime % 1000000000);
        if (monotonic < last_monotonic || realtime < last_realtime) {
            printf("CLOCK-FAIL went backwards\n");
            return 1;
        }
        last_monotonic = monotonic;
        last_realtime = realtime;

        // Absolute, so that late ticks do not add up.
        next.tv_nsec += interval % 1000 * 1000000;
        next.tv_sec += interval / 1000 + next.tv_nsec / 1000000000;
        next.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    return 0;
}
