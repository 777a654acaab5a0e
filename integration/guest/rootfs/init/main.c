// SPDX-License-Identifier: MIT OR Apache-2.0
// The order of events: LOCKSTEP-INIT, mounts, network, disk, services, LOCKSTEP-READY, then what lockstep.run= says.
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define REDIS_PORT 6379
// Waiting for a service (not often: each look costs thousands of kernel instructions), and for processes to end.
static const struct timespec poll_interval = {.tv_nsec = 250 * 1000 * 1000};
static const int shutdown_polls = 40;

enum after { AFTER_REBOOT, AFTER_HALT, AFTER_SHELL };

static struct {
    pid_t service;    // runs in the background, 0 if none
    pid_t foreground; // the program or the shell on the console
    bool is_shell;    // which of the two
    bool ready;       // LOCKSTEP-READY was printed
    enum after after;
} state;

static void start_shell(void)
{
    struct command shell = {.argv = {"/bin/sh", "-l"}};
    state.foreground = start(&shell, true);
    state.is_shell = true;
}

static void ready(void)
{
    state.ready = true;
    report("LOCKSTEP-READY");
}

// The service answers, or never will. The shell comes after it, so that their output does not mix.
static void service_settled(void)
{
    ready();
    start_shell();
}

static void report_service(int status)
{
    report("LOCKSTEP-EXIT service %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

// The service goes first, while the terminal is there for what it says: the end of the shell's session takes it away.
static void stop_service(void)
{
    int status;
    kill(state.service, SIGTERM);
    for (int i = 0; i < shutdown_polls; i++) {
        if (waitpid(state.service, &status, WNOHANG) != 0) {
            report_service(status);
            return;
        }
        nanosleep(&poll_interval, NULL);
    }
}

// Lets every process finish, leaves a clean disk, and never comes back.
static void __attribute__((noreturn)) shut_down(int how)
{
    report("LOCKSTEP-SHUTDOWN");
    if (state.service > 0)
        stop_service();
    tcdrain(STDOUT_FILENO);
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    for (int i = 0; i < shutdown_polls; i++) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0 && errno == ECHILD)
            break;
        // An interactive shell ignores SIGTERM. It has nothing to save, so it is not waited for: the end of its
        // session's leader hangs up on it.
        if (state.is_shell && state.foreground > 0)
            kill(state.foreground, SIGKILL);
        nanosleep(&poll_interval, NULL);
    }
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    sync();
    unmount_data();
    tcdrain(STDOUT_FILENO);
    reboot(how);
    // Not reached, unless the kernel refuses; process 1 must not end.
    for (;;)
        pause();
}

static void foreground_ended(int status)
{
    state.foreground = 0;
    if (state.is_shell) {
        start_shell();
        return;
    }
    report("LOCKSTEP-EXIT %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    switch (state.after) {
    case AFTER_REBOOT:
        shut_down(RB_AUTOBOOT);
    case AFTER_HALT:
        shut_down(RB_HALT_SYSTEM);
    case AFTER_SHELL:
        start_shell();
    }
}

static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == state.foreground) {
            foreground_ended(status);
        } else if (pid == state.service) {
            state.service = 0;
            report_service(status);
            // Whoever waits for it must not wait for ever.
            if (!state.ready)
                service_settled();
        }
    }
}

static void on_signal(int signal)
{
    switch (signal) {
    case SIGCHLD:
        reap();
        break;
    // What busybox's reboot, halt and poweroff send to process 1; SIGINT is Ctrl-Alt-Del, SIGPWR a failing power supply.
    case SIGTERM:
    case SIGINT:
        shut_down(RB_AUTOBOOT);
    case SIGUSR1:
        shut_down(RB_HALT_SYSTEM);
    case SIGUSR2:
    case SIGPWR:
        shut_down(RB_POWER_OFF);
    }
}

static void run_what_was_asked(bool has_data)
{
    const char *run = cmdline_get("lockstep.run", "shell");
    const char *then = cmdline_get("lockstep.then", "reboot");
    state.after = strcmp(then, "halt") == 0 ? AFTER_HALT : strcmp(then, "shell") == 0 ? AFTER_SHELL : AFTER_REBOOT;

    if (strcmp(run, "redis") == 0) {
        struct command redis;
        command_redis(&redis, has_data);
        // Else Redis warns that it cannot fork to save, which it need not do here.
        write_file("/proc/sys/vm/overcommit_memory", "1");
        state.service = start(&redis, false);
        return; // ready once it answers: see main
    }
    ready();
    if (strcmp(run, "shell") == 0) {
        start_shell();
    } else {
        struct command program;
        command_parse(&program, run, cmdline_get("lockstep.args", NULL));
        state.foreground = start(&program, true);
    }
}

int main(void)
{
    report("LOCKSTEP-INIT");

    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    reboot(RB_DISABLE_CAD); // Ctrl-Alt-Del becomes a SIGINT to us

    umask(022);
    setenv("PATH", "/bin:/sbin", 1);
    setenv("HOME", "/", 1);
    setenv("TERM", "vt100", 1);
    mount_basics();
    cmdline_read();
    sethostname("lockstep", strlen("lockstep"));
    network_up();
    run_what_was_asked(mount_data());

    for (;;) {
        int signal = state.ready ? sigwaitinfo(&all, NULL) : sigtimedwait(&all, NULL, &poll_interval);
        if (signal > 0)
            on_signal(signal);
        else if (!state.ready && port_is_open(REDIS_PORT))
            service_settled();
    }
}
