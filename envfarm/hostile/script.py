"""The agent's side of an attempt on the kernel: Python text that runs in the box, on the standard library alone.

Each thing tried prints one line: `NO <what>: <errno>` where it was refused, `GOT <what>` where it worked. A script that
printed neither was not tried at all, which is an error of the panel's and never a success of the box's.
"""

from __future__ import annotations

from dataclasses import dataclass

PRELUDE = r"""
import ctypes, errno, os, platform, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # x86_64, aarch64
    "io_uring_setup": (425, 425), "add_key": (248, 217), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "mount": (165, 40), "umount2": (166, 39),
    "unshare": (272, 97), "setns": (308, 268), "pivot_root": (155, 41), "chroot": (161, 51), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "clock_settime": (227, 112), "settimeofday": (164, 170), "init_module": (175, 105),
    "kexec_load": (246, 104), "reboot": (169, 142), "sethostname": (170, 161), "swapon": (167, 224), "setuid": (105, 146),
    "clone3": (435, 435), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
}
COLUMN = ["x86_64", "aarch64"].index(platform.machine())

def got(what): print("GOT", what, flush=True)
def no(what, why): print(f"NO {what}: {why}", flush=True)

def system_call(name, *arguments):
    "Its result; -1 where it was refused, which is printed."
    result = libc.syscall(NUMBERS[name][COLUMN], *arguments)
    if result < 0:
        no(name, errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno()))
    return result

def calls(name, *arguments):
    if system_call(name, *arguments) >= 0:
        got(name)

def tries(what, function, *arguments):
    "Its result; None where it was refused."
    try:
        result = function(*arguments)
    except OSError as error:
        no(what, errno.errorcode.get(error.errno, error.errno or error))
        return None
    got(what)
    return result

def opens(path, flags=os.O_RDONLY):
    tries(path, lambda: os.close(os.open(path, flags | os.O_NONBLOCK)))

def others():
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
"""


@dataclass(frozen=True)
class Said:
    """What a script printed."""

    got: list[str]
    refused: list[str]

    @classmethod
    def of(cls, text: str) -> Said:
        lines = text.splitlines()
        return cls([s[4:] for s in lines if s.startswith("GOT ")], [s[3:] for s in lines if s.startswith("NO ")])
