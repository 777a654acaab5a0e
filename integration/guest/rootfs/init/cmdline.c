// SPDX-License-Identifier: MIT OR Apache-2.0
#include "init.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define MAX_WORDS 128

static char text[4096];
static char *words[MAX_WORDS];
static int word_count;

void cmdline_read(void)
{
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = '\0';
    for (char *word = strtok(text, " \n"); word && word_count < MAX_WORDS; word = strtok(NULL, " \n"))
        words[word_count++] = word;
}

const char *cmdline_get(const char *name, const char *fallback)
{
    size_t length = strlen(name);
    for (int i = word_count - 1; i >= 0; i--)
        if (strncmp(words[i], name, length) == 0 && words[i][length] == '=')
            return words[i] + length + 1;
    return fallback;
}
