// user-mode Linux 6.1 saves and restores a process's floating-point state through a buffer that was large enough for
// AVX-512. The host's kernel takes such a state only whole (xstateregs_set in arch/x86/kernel/fpu/regset.c), and with
// AMX it is four times that size: the first process is then killed at once. Preloaded into linux.uml, this fills up
// what is missing with zeros. The components that the buffer has no room for are not in the state's header either, so
// nothing is lost.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <errno.h>

static size_t full;

long ptrace(enum __ptrace_request request, ...)
{
    va_list ap;
    va_start(ap, request);
    pid_t pid = va_arg(ap, pid_t);
    void *addr = va_arg(ap, void *);
    void *data = va_arg(ap, void *);
    va_end(ap);
    static unsigned char whole[65536] __attribute__((aligned(64)));
    if ((long)addr == NT_X86_XSTATE && request == PTRACE_GETREGSET && !full) {
        struct iovec all = { whole, sizeof whole };
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, addr, &all) == 0)
            full = all.iov_len;
    }
    if ((long)addr == NT_X86_XSTATE && request == PTRACE_SETREGSET) {
        struct iovec *given = data;
        if (given->iov_len < full) {
            memset(whole, 0, full);
            memcpy(whole, given->iov_base, given->iov_len);
            struct iovec all = { whole, full };
            return syscall(SYS_ptrace, request, pid, addr, &all);
        }
    }
    long peeked;
    switch (request) {
    case PTRACE_PEEKTEXT: case PTRACE_PEEKDATA: case PTRACE_PEEKUSER: {
        long r = syscall(SYS_ptrace, request, pid, addr, &peeked);
        if (r < 0) return r;
        errno = 0;
        return peeked;
    }
    default:
        return syscall(SYS_ptrace, request, pid, addr, data);
    }
}
