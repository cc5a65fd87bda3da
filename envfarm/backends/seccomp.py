"""The system calls that no command in a box may make, as a compiled filter.

Namespaces and missing capabilities already stop most of these; the filter takes away the kernel's attack surface and the
ways by which one process of the agent could alter another. It needs `libseccomp` (through pyseccomp); without it boxes
still start and `Backend.enforcement()` says that there is no filter.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

DENIED = (
    # mounting, other roots, other namespaces
    *("mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree"),
    *("mount_setattr", "unshare", "setns"),
    # looking into or steering other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise"),
    # kernel interfaces with a history, which no task needs
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("keyctl", "add_key", "request_key", "fanotify_init", "name_to_handle_at", "open_by_handle_at", "lookup_dcookie"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff"),
    *("acct", "quotactl", "quotactl_fd", "syslog", "nfsservctl", "personality", "vhangup", "iopl", "ioperm"),
    # the clock and the host's name
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "stime", "sethostname", "setdomainname"),
)
"""Answered with EPERM, as if the right were missing. `io_uring` hides file access from filters; keyrings are shared by uid."""

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET in the flags of `clone`."""

TERMINAL_REQUESTS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: typing into, or pasting from, somebody else's terminal."""


@functools.cache
def program() -> bytes | None:
    """The filter as `bwrap --seccomp` reads it, or None where libseccomp is not installed."""
    try:
        import pyseccomp as library  # needs the shared library at import
    except (ImportError, OSError, RuntimeError):
        return None
    rules: Any = library.SyscallFilter(library.ALLOW)
    refuse = library.ERRNO(errno.EPERM)
    for name in DENIED:
        _add(library, rules, refuse, name)
    for bit in range(32):
        if NEW_NAMESPACES >> bit & 1:
            flag = 1 << bit
            rules.add_rule(refuse, "clone", library.Arg(0, library.MASKED_EQ, flag, flag))
    # clone3 keeps its flags in memory, where a filter cannot look; libc falls back to clone on ENOSYS
    _add(library, rules, library.ERRNO(errno.ENOSYS), "clone3")
    for request in TERMINAL_REQUESTS:
        rules.add_rule(refuse, "ioctl", library.Arg(1, library.MASKED_EQ, 0xFFFFFFFF, request))
    fd = os.memfd_create("filter")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            rules.export_bpf(file)
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def _add(library: Any, rules: Any, action: Any, name: str) -> None:
    """One unconditional rule; a call that this architecture or library does not know needs none."""
    try:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
    except (ValueError, OSError):
        return
    if number >= 0:
        rules.add_rule(action, number)
