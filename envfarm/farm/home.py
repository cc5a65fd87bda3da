"""A farm on this machine, as files: who keeps it and how it is reached. `farms/NAME` below the user's state folder.

    keeper.json   address, token, pid: readable by the user alone
    keeper.log    what the keeper and its places said
    keeper.lock   locked as long as the keeper lives, however it ends

What a keeper needs while it runs (leases, logs of workers, bundles) lies in a private directory that is swept when it is gone.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from envfarm.errors import UserError, did_you_mean


class Running(msgspec.Struct, frozen=True):
    farm: str
    kind: str
    url: str
    token: str
    pid: int


class Home:
    def __init__(self, name: str):
        self.name, self.folder = name, farms() / name
        self._lock = -1

    @property
    def log(self) -> Path:
        return self.folder / "keeper.log"

    def take(self) -> None:
        """Be the keeper, until this process ends. Raises: UserError where somebody is."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.folder / "keeper.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _lock(self._lock)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f"a farm {self.name!r} is already up on this machine: use it, take it down with `envfarm farm down {self.name}`, "
                "or give yours another name (`farm:`)"
            ) from None
        self.leave()  # what one that was killed left

    def announce(self, running: Running) -> None:
        fresh = self.folder / ".keeper.json"
        fresh.touch(mode=0o600)
        fresh.write_bytes(msgspec.json.encode(running))
        fresh.replace(self.folder / "keeper.json")

    def leave(self) -> None:
        """The farm is down. Idempotent."""
        (self.folder / "keeper.json").unlink(missing_ok=True)

    def running(self) -> Running:
        """Raises: UserError where no keeper of that farm runs on this machine, with near matches."""
        try:
            found = msgspec.json.decode((self.folder / "keeper.json").read_bytes(), type=Running)
        except FileNotFoundError:
            up = [path.parent.name for path in farms().glob("*/keeper.json")]
            known = f"; up are {', '.join(up)}" if up else ""
            raise UserError(
                f"no farm {self.name!r} is up on this machine{did_you_mean(self.name, up)}{known}. Bring it up with "
                "`envfarm farm up FARM.yaml`, or give the URL of its keeper"
            ) from None
        if not self._is_kept():
            raise UserError(
                f"the keeper of farm {self.name!r} (pid {found.pid}) is gone without having taken the farm down; bring it up "
                f"again with `envfarm farm up FARM.yaml`. Its log: {self.log}"
            )
        return found

    def _is_kept(self) -> bool:
        try:
            lock = os.open(self.folder / "keeper.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


def _lock(file: int) -> None:
    """Whoever only looks shares the lock, for a moment, and is no keeper: that is waited for. Raises: BlockingIOError."""
    while True:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def farms() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "envfarm" / "farms"
