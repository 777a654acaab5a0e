// SPDX-License-Identifier: MIT OR Apache-2.0
// spin [ITERATIONS]: computes in registers without any system call, then prints the result.
//
// While it runs, the guest makes no stop of its own: what interrupts it must come from outside.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    uint64_t iterations = argc > 1 ? strtoull(argv[1], NULL, 0) : 10 * 1000 * 1000 * 1000ull;
    uint64_t x = 0x9e3779b97f4a7c15;
    for (uint64_t i = 0; i < iterations; i++) {
        // xorshift64*: one long dependency chain, so that it cannot be vectorized or folded away.
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
    }
    printf("SPIN iterations=%" PRIu64 " result=%016" PRIx64 "\n", iterations, x * 0x2545f4914f6cdd1d);
    return 0;
}
