// SPDX-License-Identifier: MIT OR Apache-2.0
// appendlog FILE [COUNT [MILLISECONDS]]: appends numbered, checksummed records to a file, and prints `ACK <number>` for
// each once fsync has returned. COUNT 0 (the default) means for ever; MILLISECONDS is a pause between records.
//
// appendlog --check FILE: prints `LOG-OK records=N` if the file is the records 0 .. N-1 and nothing else (an unfinished
// record at the end is cut off), `LOG-FAIL why` otherwise. After a crash N must be above every number acknowledged.
//
// It goes on where an existing file ends.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RECORD 64

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("LOG-FAIL ", stdout);
    vprintf(format, arguments);
    puts("");
    exit(1);
}

static uint64_t fnv1a(const char *data, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3;
    return hash;
}

// Text, so that people can read it; a fixed length, so that a torn end is easy to tell.
static void make_record(char record[RECORD + 1], uint64_t number)
{
    int length = snprintf(record, RECORD + 1, "record %020" PRIu64 " ", number);
    snprintf(record + length, RECORD + 1 - length, "check %016" PRIx64, fnv1a(record, length));
    length = strlen(record);
    memset(record + length, '.', RECORD - 1 - length);
    record[RECORD - 1] = '\n';
    record[RECORD] = '\0';
}

// The number of good records; `torn` is set if bytes follow that are not a whole one.
static uint64_t check(int fd, int *torn)
{
    char wanted[RECORD + 1], got[RECORD];
    uint64_t number = 0;
    for (;; number++) {
        ssize_t length = pread(fd, got, RECORD, number * RECORD);
        if (length < 0)
            fail("read: %s", strerror(errno));
        *torn = length > 0 && length < RECORD;
        if (length < RECORD)
            return number;
        make_record(wanted, number);
        if (memcmp(wanted, got, RECORD) != 0)
            fail("record %" PRIu64 " is wrong: %.*s", number, RECORD - 1, got);
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int only_check = argc > 1 && strcmp(argv[1], "--check") == 0;
    if (argc < 2 + only_check) {
        fputs("usage: appendlog FILE [COUNT [MILLISECONDS]] | appendlog --check FILE\n", stderr);
        return 2;
    }
    const char *path = argv[1 + only_check];
    int fd = open(path, O_RDWR | (only_check ? 0 : O_CREAT), 0644);
    if (fd < 0)
        fail("%s: %s", path, strerror(errno));

    int torn;
    uint64_t number = check(fd, &torn);
    if (only_check) {
        printf("LOG-OK records=%" PRIu64 "%s\n", number, torn ? " (and an unfinished one)" : "");
        return 0;
    }
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    long pause_ms = argc > 3 ? atol(argv[3]) : 0;
    if (torn && ftruncate(fd, number * RECORD) < 0)
        fail("truncate: %s", strerror(errno));
    for (uint64_t done = 0; count == 0 || done < count; done++, number++) {
        char record[RECORD + 1];
        make_record(record, number);
        if (pwrite(fd, record, RECORD, number * RECORD) != RECORD)
            fail("write: %s", strerror(errno));
        if (fsync(fd) < 0)
            fail("fsync: %s", strerror(errno));
        printf("ACK %" PRIu64 "\n", number);
        if (pause_ms > 0) {
            struct timespec t = {.tv_sec = pause_ms / 1000, .tv_nsec = pause_ms % 1000 * 1000000};
            nanosleep(&t, NULL);
        }
    }
    return 0;
}
