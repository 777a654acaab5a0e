// SPDX-License-Identifier: MIT OR Apache-2.0
// The guest's first process. What it does is chosen on the kernel command line (see the README).
#ifndef LOCKSTEP_INIT_H
#define LOCKSTEP_INIT_H

#include <stdbool.h>
#include <sys/types.h>

// cmdline.c: words of the kernel command line.
void cmdline_read(void);
// The value of the last `name=value`, or `fallback` if there is none.
const char *cmdline_get(const char *name, const char *fallback);

// setup.c: file systems and the network.
void mount_basics(void);
// Mounts /dev/vda on /data if it holds an ext4 file system. Returns whether it did.
bool mount_data(void);
void unmount_data(void);
void network_up(void);
void write_file(const char *path, const char *text);

// service.c: the processes that init starts.
#define MAX_ARGS 32
struct command {
    char *argv[MAX_ARGS + 1];
};
// Fills `command` from a program name and comma-separated arguments (may be NULL).
void command_parse(struct command *command, const char *program, const char *args);
// Starts it on the console: in the foreground (a session of its own that controls the terminal) or in the background.
pid_t start(const struct command *command, bool foreground);
// The Redis server's command line: durable if there is a disk.
void command_redis(struct command *command, bool has_data);
// Whether something accepts connections on this local TCP port.
bool port_is_open(int port);

// report.c: lines on the console that tests wait for.
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
