#!/bin/bash
# A backtrace of gdb that ends in "previous frame inner to this frame (corrupt stack?)" need not have met a corrupt stack, nor wrong
# call frame information. gdb takes each ordinary frame for older than the one it called only while its address is higher; a function
# that goes over to another stack, as Linux does at an interrupt, breaks that wherever the new stack happens to lie above the old one.
# With the same code and the same information the backtrace is whole where it lies below. Which it is for an interrupt of a kernel is a
# matter of where the interrupted task's stack was allocated, so that one interrupt's backtrace is whole and the next one's is not. No
# setting takes the check away.
#
# Seen on 2026-11-29 with Debian 12's gdb 13.1 (gdb-minimal 13.1-3), programs by gcc 12.2.0-14+deb12u1.
#     the new stack is below: innermost handler on_stack caller on_stack main
#     the new stack is above: innermost handler on_stack ; Backtrace stopped: previous frame inner to this frame (corrupt stack?)
set -euo pipefail
version=13.1-3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download "gdb-minimal=$version" 2>/dev/null
dpkg-deb -x gdb-minimal_*.deb .

# on_stack(top, function): calls a function on another stack; the call frame information is right at each instruction.
cat >switch.S <<'END'
        .globl on_stack
        .type on_stack, @function
on_stack:
        .cfi_startproc
        push %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        mov %rsp, %rbp
        .cfi_def_cfa_register %rbp
        mov %rdi, %rsp
        call *%rsi
        leave
        .cfi_def_cfa %rsp, 8
        ret
        .cfi_endproc
        .size on_stack, .-on_stack
        .section .note.GNU-stack, "", @progbits
END
cat >stacks.c <<'END'
#include <sys/mman.h>
void on_stack(void *top, void (*function)(void));
static char *next;
void innermost(void) { __asm__ volatile(""); }
void handler(void) { innermost(); }
void caller(void) { on_stack(next, handler); }
int main(int argc, char **argv) {
    char *bottom = mmap(0, 131072, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *low = bottom + 65536, *high = bottom + 131072;
    int upwards = argc > 1;
    next = upwards ? high : low;
    on_stack(upwards ? low : high, caller);
    return 0;
}
END
gcc -g -O0 -o stacks switch.S stacks.c

backtrace() {
    usr/bin/gdb -q -batch -nx -ex 'set debuginfod enabled off' -ex 'break innermost' -ex run -ex backtrace --args ./stacks "$@" >said 2>&1 || true
    sed -n -E 's/^#[0-9]+ +(0x[0-9a-f]+ in )?([a-z_]+) .*/\2/p; s/^Backtrace stopped.*/; &/p' said | paste -s -d ' '
}
below=$(backtrace)
above=$(backtrace upwards)
echo "the new stack is below: $below"
echo "the new stack is above: $above"
if [ "$below" = "innermost handler on_stack caller on_stack main" ] &&
    [[ $above = "innermost handler on_stack ; Backtrace stopped: previous frame inner to this frame"* ]]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
