"""Whoever was started ends with whoever started it, even after `kill -9`; what the dead left behind is swept.

A worker's standard input is a pipe that its owner holds and never closes: end of file means that the owner is gone.
A run's sockets lie in a directory with a locked file; a lock that can be taken belongs to nobody any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 5.0
"""How long a worker whose owner is gone may take to stop its boxes before it is killed."""

_PREFIX = "envfarm-workers-"
_MAX_BASE_BYTES = 70
"""The kernel takes socket paths of up to 107 bytes; our part of one needs some 30."""
_LOCK = "owner.lock"


def end_with(fd: int, stop: Callable[[], object]) -> None:
    """When `fd` reaches its end call `stop()` (from another thread), and kill this process where that does not help."""

    def watch() -> None:
        while os.read(fd, 4096):
            pass
        stop()
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="owner watch", daemon=True).start()


def kill_group_with(fd: int) -> None:
    """Have the kernel kill this process's group when the last writer of the pipe `fd` is gone.

    Works whatever the members do, a loop in C included. The caller leads the group; forks stay in it.
    """
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


F_SETSIG = 10  # Linux; the `fcntl` module does not name it


class PrivateDir:
    """A directory of mode 0700 for sockets and logs. Made by one process, removed by it, else by its workers or by
    the next one's sweep."""

    def __init__(self) -> None:
        sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if (self.path / _LOCK).exists():
                return
            os.close(self._lock)  # somebody's sweep came between making the lock and taking it

    def remove(self) -> None:
        """Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _base() -> Path:
    """Where directories for sockets are made: the temporary folder, or `/tmp` where its path leaves a socket's no room."""
    folder = tempfile.gettempdir()
    return Path(folder if len(os.fsencode(folder)) <= _MAX_BASE_BYTES else "/tmp")


def sweep() -> list[Path]:
    """Remove directories whose owner is dead; returns them. Leaves those of other users alone."""
    removed = []
    for path in _base().glob(f"{_PREFIX}*"):
        try:
            if path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # being made, or being removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        finally:
            os.close(lock)
    return removed
