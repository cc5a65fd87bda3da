"""Who owns a box that the kernel does not end with its owner: a label, and whether that owner is known to have ended."""

from __future__ import annotations

import os
import platform

from envfarm.backends import processes


def owner_label() -> str:
    """This process, for ever: machine, pid, and when it started."""
    return f"{platform.node()}:{os.getpid()}:{processes.start_ticks(os.getpid()) if os.path.isdir('/proc/self') else 0}"


def is_gone(owner: str) -> bool:
    """Whether an owner is known to have ended: nothing is known about other machines'."""
    machine, pid, ticks = [*owner.split(":"), "", "", ""][:3]
    if machine != platform.node() or not pid.isdigit() or not os.path.isdir("/proc/self"):
        return False
    return str(processes.start_ticks(int(pid))) != ticks
