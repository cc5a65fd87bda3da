"""The store: finished episodes, each durable as soon as it is appended, sealed into Parquet segments by and by.

    manifest.json          schema version, tokenizer and template hashes, the segments
    segments/000001/       episodes, steps, nodes, branches, rewards, blobs .parquet
    journal/000002.log     what is not sealed yet, one frame per record (`rollout.store.journal`)

Sealing writes a segment, names it in the manifest, then drops the journal it replaces: killed at any point, the next
writer finds either the journal or the segment in force, never both. One writer at a time; any number of readers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Self

from envfarm.errors import StoreError
from rollout.made import missing, remove_made
from rollout.store.journal import Journal
from rollout.store.manifest import Manifest
from rollout.store.reader import StoreReader
from rollout.store.records import EpisodeRecord, Record, RewardRecord, encode
from rollout.store.segment import Segment, write_segment
from rollout.types import Episode, RewardEntry

SEAL_EVERY = 2048
"""Records in a journal before it is sealed by itself."""


class Store(StoreReader):
    """Made by `create` or `open`; a context manager that seals and closes a writer. One that an error leaves before anything
    was stored in what it made is gone again."""

    def __init__(self, path: Path, manifest: Manifest, *, lock: int = -1, salvage: bool = False):
        self._lock = lock  # a held descriptor where this store is written
        self._journal: Journal | None = None
        self._made: list[Path] = []
        """By `create`: its folder, and those above that were not there."""
        try:
            super().__init__(path, manifest, salvage=salvage)
            if lock >= 0:
                self._journal = self._open_journal()
        except BaseException:
            self._unlock()
            raise

    @classmethod
    def create(cls, path: str | Path, *, tokenizer_hash: str = "", template_hash: str = "") -> Store:
        """A new, empty store, open for writing. Raises: StoreError where something else is there, or the disk refuses."""
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not empty: a new store needs a directory of its own")
        made = missing(folder)
        manifest = Manifest(tokenizer_hash=tokenizer_hash, template_hash=template_hash)
        try:
            (folder / "journal").mkdir(parents=True)
            (folder / "segments").mkdir()
            manifest.write(folder)
        except OSError as error:
            raise _refused(folder, error) from error
        store = cls(folder, manifest, lock=lock_store(folder))
        store._made = made
        return store

    @classmethod
    def open(cls, path: str | Path, *, write: bool = False, salvage: bool = False) -> Store:
        """An existing store. With `salvage`, damaged parts are left out (and listed in `damages`) instead of refused.

        Raises: StoreError where it is no store, damaged (which part), of another schema version, or being written.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        if write:
            assert not salvage, "`envfarm store repair` sets damaged parts aside before anything is written"
            lock = lock_store(folder)
            return cls(folder, Manifest.read(folder), lock=lock)  # read again: now nobody changes it
        while True:
            store = cls(folder, manifest, salvage=salvage)
            manifest, before = Manifest.read(folder), manifest
            if manifest == before:
                return store  # else a writer sealed meanwhile, and this reader may have missed its journal

    @classmethod
    def open_or_create(cls, path: str | Path, **hashes: str) -> Store:
        folder = Path(path)
        if (folder / "manifest.json").exists():
            return cls.open(folder, write=True)
        return cls.create(folder, **hashes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self.index.by_id:
            remove_made(self._made)
        self.close()

    # Writing.

    def bind(self, *, tokenizer_hash: str, template_hash: str) -> None:
        """Say which tokenizer and template the tokens are of. Once said, it stays. Raises: StoreError on another one."""
        for name, value in (("tokenizer_hash", tokenizer_hash), ("template_hash", template_hash)):
            known = getattr(self.manifest, name)
            if known and known != value:
                raise StoreError(f"{self.path} holds tokens of {name} {known}, not {value}: use a store of its own")
            setattr(self.manifest, name, value)
        self._write_manifest()

    def append(self, episode: Episode) -> None:
        """Store a finished episode, once. It survives the death of this process from here on.

        Raises: StoreError where the disk refuses; ValueError where the id is taken.
        """
        if episode.id in self.index.by_id:
            raise ValueError(f"episode {episode.id} is stored already")
        self._take(episode, self._put(EpisodeRecord(episode)))
        self._seal_when_due()

    def append_reward(self, episode_id: str, entry: RewardEntry) -> None:
        """Add a reward that came later: delayed, or of another grader. What was stored is not touched.

        Raises: StoreError where there is no such episode, or the disk refuses.
        """
        if episode_id not in self.index.by_id:
            raise StoreError(f"{self.path} holds no episode {episode_id}")
        self._put(RewardRecord(episode_id, entry))
        self._late.append((episode_id, entry))
        self._seal_when_due()

    def seal(self) -> None:
        """Turn the journal into a Parquet segment, on the disk to stay. Raises: StoreError, with the journal in force."""
        assert self._journal is not None, "open for reading"
        if not self._fresh and not self._late:
            return
        tables, name = self._unsealed_tables(), f"{self._number:06d}"
        try:
            self._journal.sync()
            entry_ = write_segment(self.path / "segments", name, tables)
        except OSError as error:
            raise _refused(self.path, error) from error
        self.manifest.segments.append(entry_)
        self.manifest.spent = self._number
        try:
            self._write_manifest()
        except StoreError:
            self.manifest.segments.pop()
            self.manifest.spent -= 1
            raise
        self._after_seal(Segment(self.path / "segments", entry_))

    def close(self) -> None:
        """Seal what is there and let others write. Idempotent."""
        if self._journal is not None:
            try:
                self.seal()
            finally:
                self._journal.close()
                self._journal = None
                self._unlock()

    def _put(self, record: Record) -> bytes:
        assert self._journal is not None, "open for reading"
        payload = encode(record)
        self._journal.append(payload)
        return payload

    def _seal_when_due(self) -> None:
        if len(self._fresh) + len(self._late) >= SEAL_EVERY:
            self.seal()

    def _after_seal(self, segment: Segment) -> None:
        assert self._journal is not None
        name = segment.entry.name
        self._journal.close()
        self._journal.path.unlink(missing_ok=True)
        self._segments[name] = segment
        for episode_id in self._fresh:
            self.index.by_id[episode_id].segment = name
        for episode_id, entry in self._late:
            self._late_sealed.setdefault(episode_id, []).append(entry)
        self._fresh, self._late = {}, []
        self._number += 1
        self._journal = Journal(self._journal_path())

    def _open_journal(self) -> Journal:
        """Drop what an interrupted seal left (spent journals, unnamed segments), then go on with the current journal."""
        for path in (self.path / "journal").iterdir():
            if path.suffix == ".tmp" or int(path.stem) <= self.manifest.spent:
                path.unlink()
        for path in (self.path / "segments").iterdir():
            if path.name not in self._segments:
                shutil.rmtree(path)
        return Journal(self._journal_path())

    def _write_manifest(self) -> None:
        try:
            self.manifest.write(self.path)
        except OSError as error:
            raise _refused(self.path, error) from error

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def lock_store(path: Path) -> int:
    """Hold the store for writing; the kernel lets go when this process ends, however it ends."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path} is being written by another process: wait for it, or end it") from None
    return descriptor


def _refused(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write to {path}: {error.strerror or error}. Everything stored before is whole; free some space and "
        "start the same command again"
    )
