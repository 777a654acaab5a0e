// SPDX-License-Identifier: MIT OR Apache-2.0
// rdtsc3 [ROUNDS]: executes RDTSC and CPUID in ring 3, where some hosts cannot trap them, and stores what they give.
//
// On such hosts this makes replicas diverge, which is what it is for. It is the one program that the instruction check
// allows to do so.
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <x86intrin.h>

#define SLOTS 512

// In memory of its own, so that the divergence outlives the registers.
static volatile uint64_t stored[SLOTS];

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 1;
    uint64_t sum = 0;
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < SLOTS; i += 2) {
            unsigned a = 0, b = 0, c = 0, d = 0;
            __get_cpuid(1, &a, &b, &c, &d);
            stored[i] = __rdtsc();
            stored[i + 1] = (uint64_t)b << 32 | c;
            sum += stored[i] ^ stored[i + 1];
        }
    }
    printf("RDTSC3 rounds=%ld sum=%016llx\n", rounds, (unsigned long long)sum);
    return 0;
}
