"""The book of leases as a folder: one small file per box, changed under a lock that ends with whoever holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from envfarm.farm.leases import Conflict, Entry

_LOCK = ".lock"


class FolderBook:
    """See `leases.Book`. Any number of processes may use one folder. A file is replaced as a whole: who is killed in the
    middle leaves the old one."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def add(self, box: str) -> Entry:
        with self._locked():
            if self._path(box).exists():
                raise Conflict(box)
            return self._write(Entry(box, version="1"))

    async def get(self, box: str) -> Entry | None:
        return self._read(self._path(box))

    async def all(self) -> list[Entry]:
        found = [self._read(path) for path in sorted(self._folder.glob("*.json"))]
        return [entry for entry in found if entry is not None]

    async def change(self, entry: Entry, *, holder: str, beats: int) -> Entry:
        with self._locked():
            self._require(entry)
            return self._write(Entry(entry.box, holder, beats, str(int(entry.version) + 1)))

    async def remove(self, entry: Entry) -> None:
        with self._locked():
            self._require(entry)
            self._path(entry.box).unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held for a file's length, never while anything is awaited."""
        lock = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _require(self, entry: Entry) -> None:
        if self._read(self._path(entry.box)) != entry:
            raise Conflict(entry.box)

    def _path(self, box: str) -> Path:
        return self._folder / f"{box}.json"

    def _read(self, path: Path) -> Entry | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return None

    def _write(self, entry: Entry) -> Entry:
        path = self._path(entry.box)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(entry))
        fresh.replace(path)
        return entry
