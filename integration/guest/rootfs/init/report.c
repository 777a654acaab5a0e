// SPDX-License-Identifier: MIT OR Apache-2.0
#include "init.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

// One write per line: other processes print to the same console.
void report(const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    if ((size_t)length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    // There is nobody to tell if the console does not work.
    if (write(STDOUT_FILENO, line, length) < 0)
        return;
}
