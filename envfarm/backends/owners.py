"""Who made a container or pod, and what removes it when its maker is gone.

Every box carries three labels: its name, its owner (a process, for ever: machine, pid, and when it started; or a farm in a
cluster, whose next keeper inherits) and its deadline. A second process per owner, the reaper, removes the boxes of an owner that
has ended, however that came, and those past their deadline, also those of owners whose own reaper is gone; and by name those that
their owner could not remove, as the engine was away. How boxes are found and removed is their backend module's matter: its
function `remove_left_over(owner, names)`.

Started as `python -m envfarm.backends.reaper MODULE OWNER PID` in a session of its own, so that neither Ctrl-C nor `kill -9` of
the owner ends it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Set
from contextlib import suppress

from envfarm.backends import processes

BOX, OWNER, DEADLINE = "envfarm.box", "envfarm.owner", "envfarm.deadline"
SLACK_S = 3600.0
"""Between the end of the longest episode that a box was made for and its deadline."""
_MACHINE_CHARS = 32


def labels(box: str, deadline_s: float, owner: str = "") -> dict[str, str]:
    """`owner`: one that is no process, and so never known to be gone; else this process."""
    return {BOX: box, OWNER: owner or owner_label(), DEADLINE: str(int(time.time() + deadline_s))}


def owner_label() -> str:
    """This process: `machine_pid_start`, within what Kubernetes takes as the value of a label."""
    return f"{_machine()}_{os.getpid()}_{processes.start_ticks(os.getpid()) if os.path.isdir('/proc/self') else 0}"


def pid_of(owner: str) -> int:
    return int(owner.rsplit("_", 2)[1])


def is_over(found: dict[str, str], owner: str | None, names: Set[str] = frozenset()) -> bool:
    """Whether what carries these labels is to be removed: one of `names`, `owner`'s, that of an owner known to be gone, or past
    its deadline."""
    late, of = float(found.get(DEADLINE) or "inf") < time.time(), found.get(OWNER, "")
    return late or found.get(BOX) in names or of == owner or _is_gone(of)


def _machine() -> str:
    """Also containers of one host name differ, by their process namespace."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:_MACHINE_CHARS].strip("-.") or "local"
    return f"{name}.{os.stat('/proc/self/ns/pid').st_ino}" if os.path.exists("/proc/self/ns/pid") else name


def _is_gone(owner: str) -> bool:
    """Whether an owner is known to have ended: nothing is known about other machines'."""
    machine, pid, ticks = ["", "", "", *owner.rsplit("_", 2)][-3:]
    if machine != _machine() or not pid.isdigit() or not os.path.isdir("/proc/self"):
        return False
    return str(processes.start_ticks(int(pid))) != ticks


class Reaper:
    """The second process of one backend."""

    def __init__(self, module: str):
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Idempotent. Call it before the first box is made."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "envfarm.backends.reaper", self._module, owner_label(), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def take(self, name: str) -> None:
        """A box to remove, as soon as that is possible. Never raises."""
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(OSError):  # it was killed: the deadline is left
                self._process.stdin.write(f"{name}\n".encode())
                self._process.stdin.flush()

    def end(self, *, work_left: bool) -> None:
        """`work_left`: let it remove what the backend could not; it ends by itself then. Idempotent."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        if not work_left:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process = None
