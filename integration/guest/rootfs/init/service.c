// SPDX-License-Identifier: MIT OR Apache-2.0
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

void command_parse(struct command *command, const char *program, const char *args)
{
    static char path[128], text[1024];
    int count = 0;
    // A name alone means /bin/NAME.
    snprintf(path, sizeof path, "%s%s", strchr(program, '/') ? "" : "/bin/", program);
    command->argv[count++] = path;
    snprintf(text, sizeof text, "%s", args ? args : "");
    for (char *word = strtok(text, ","); word && count < MAX_ARGS; word = strtok(NULL, ","))
        command->argv[count++] = word;
    command->argv[count] = NULL;
}

void command_redis(struct command *command, bool has_data)
{
    static char *durable[] = {"/bin/redis-server", "/etc/redis.conf", "--dir",         "/data",
                              "--appendonly",      "yes",             "--appendfsync", "everysec"};
    static char *fleeting[] = {"/bin/redis-server", "/etc/redis.conf", "--dir", "/tmp", "--appendonly", "no"};
    memset(command, 0, sizeof *command);
    if (has_data)
        memcpy(command->argv, durable, sizeof durable);
    else
        memcpy(command->argv, fleeting, sizeof fleeting);
}

static void __attribute__((noreturn)) execute(const struct command *command)
{
    execv(command->argv[0], command->argv);
    if (errno == ENOENT) {
        // Most of busybox's applets have no links.
        char *argv[MAX_ARGS + 1];
        memcpy(argv, command->argv, sizeof argv);
        argv[0] = strrchr(argv[0], '/') + 1;
        execv("/bin/busybox", argv);
    }
    report("init: cannot run %s: %s", command->argv[0], strerror(errno));
    _exit(127);
}

// Runs the command as a child of this process, which leads the terminal's session. When such a leader ends, the kernel
// throws away what the terminal has not sent yet, so it must outlive the command until all of that is out.
static void __attribute__((noreturn)) execute_and_drain(const struct command *command)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        execute(command);
    // Ctrl-C is meant for the command.
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            _exit(126);
    tcdrain(STDOUT_FILENO);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

pid_t start(const struct command *command, bool foreground)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;

    // Init blocks all signals and waits for them; its children must not inherit that.
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    // /dev/console cannot be a controlling terminal, and without one there is no job control.
    int terminal = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (terminal >= 0) {
        if (foreground)
            ioctl(terminal, TIOCSCTTY, 1);
        for (int fd = 0; fd < 3; fd++)
            dup2(terminal, fd);
        if (terminal > 2)
            close(terminal);
    }
    if (chdir("/") < 0)
        _exit(126);
    if (foreground)
        execute_and_drain(command);
    execute(command);
}

bool port_is_open(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    bool open = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return open;
}
