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
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from envfarm.errors import StoreError
from rollout.store.index import Entry, Index
from rollout.store.journal import Frame, Journal, read_frames
from rollout.store.manifest import Manifest
from rollout.store.segment import Segment, write_segment
from rollout.store.tables import TableWriter
from rollout.types import Episode, PolicyVersion, RewardEntry, StopReason


class EpisodeRecord(msgspec.Struct, frozen=True, tag="episode"):
    """A journal record: one finished episode."""

    episode: Episode


class RewardRecord(msgspec.Struct, frozen=True, tag="reward"):
    """A journal record: a reward that came later."""

    episode_id: str
    entry: RewardEntry


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(EpisodeRecord | RewardRecord)

SEAL_EVERY = 2048
"""Records in a journal before it is sealed by itself."""


class Store:
    """Made by `create` or `open`; a context manager that seals and closes a writer."""

    def __init__(self, path: Path, manifest: Manifest, *, lock: int = -1, salvage: bool = False):
        self.path, self.manifest, self.salvage = path, manifest, salvage
        self.damages: list[str] = []  # with `salvage`: what was left out
        self._lock = lock  # a held descriptor where this store is written
        self._segments = {e.name: Segment(path / "segments", e) for e in manifest.segments}
        self._cache: OrderedDict[str, dict[str, Episode]] = OrderedDict()
        self._fresh: dict[str, bytes] = {}  # not sealed yet: journal records by episode id
        self._late: list[tuple[str, RewardEntry]] = []  # appended since the last seal
        self._late_sealed: dict[str, list[RewardEntry]] = {}
        self.index = Index()
        try:
            for segment in self._segments.values():
                self._salvaging(lambda s=segment: self._read_segment_index(s))
            self._number = manifest.spent + 1
            self._salvaging(self._read_journal)
            self._journal = self._open_journal() if lock >= 0 else None
        except BaseException:
            self._unlock()
            raise

    @classmethod
    def create(cls, path: str | Path, *, tokenizer_hash: str = "", template_hash: str = "") -> Store:
        """A new, empty store, open for writing. Raises: StoreError where something else is there, or the disk refuses."""
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not empty: a new store needs a directory of its own")
        manifest = Manifest(tokenizer_hash=tokenizer_hash, template_hash=template_hash)
        try:
            (folder / "journal").mkdir(parents=True)
            (folder / "segments").mkdir()
            manifest.write(folder)
        except OSError as error:
            raise _refused(folder, error) from error
        return cls(folder, manifest, lock=lock_store(folder))

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

    def __exit__(self, *_: object) -> None:
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

    # Reading.

    def episodes(self, **filters: Any) -> Iterator[Episode]:
        """Episodes in dispatch order: stage, step, group index, member, attempt. Filters compare columns of the index
        (`stage="logs"`, `env=...`, `split=...`, `step=3`, `stop=...`, `ok=True`); appended rewards are included."""
        for entry in self.index.select(filters):
            yield self._load(entry)

    def get(self, episode_id: str) -> Episode:
        """Raises: StoreError where there is none."""
        entry = self.index.by_id.get(episode_id)
        if entry is None:
            raise StoreError(f"{self.path} holds no episode {episode_id}")
        return self._load(entry)

    def find(self, slot: tuple[str, int, int, int], instance_hash: str, seats: Mapping[str, PolicyVersion]) -> Episode | None:
        """The finished episode of a slot, if it was of this instance and these weights (checksums, not numbers)."""
        for entry in reversed(self.index.slots.get(slot, [])):
            if entry.stop in (StopReason.ABORTED, StopReason.INFRA_ERROR) or entry.instance_hash != instance_hash:
                continue
            if entry.seats == {role: (v.policy, v.checksum) for role, v in seats.items()}:
                return self._load(entry)
        return None

    def attempts(self, slot: tuple[str, int, int, int]) -> int:
        """The number that the slot's next attempt gets."""
        return max((e.attempt + 1 for e in self.index.slots.get(slot, [])), default=0)

    @property
    def segments(self) -> list[Segment]:
        return list(self._segments.values())

    @property
    def unsealed(self) -> list[Episode]:
        """Episodes that are still in the journal, in dispatch order."""
        ids = sorted(self._fresh, key=lambda i: self.index.by_id[i].key)
        return [_episode(self._fresh[i]) for i in ids]

    def late_ids(self) -> set[str]:
        """Ids that rewards were appended to."""
        return {*self._late_sealed, *(episode_id for episode_id, _ in self._late)}

    def stats(self) -> dict[str, Any]:
        """Counts, for people and `store info`."""
        entries = list(self.index.by_id.values())
        count = lambda key: dict(sorted(_tally(key(e) for e in entries).items()))  # noqa: E731
        return {
            "episodes": len(entries), "segments": len(self._segments), "unsealed": len(self._fresh),
            "schema_version": self.manifest.schema_version, "tokenizer_hash": self.manifest.tokenizer_hash,
            "template_hash": self.manifest.template_hash, "stages": count(lambda e: e.stage),
            "envs": count(lambda e: e.env), "splits": count(lambda e: e.split), "stops": count(lambda e: str(e.stop)),
        }  # fmt: skip

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Rows of a DuckDB query over the tables, unsealed records included (`rollout.store.query`)."""
        from rollout.store.query import run_query

        return run_query(list(self._segments.values()), self._unsealed_tables(), query)

    # Inside.

    def _unsealed_tables(self) -> dict[str, Any]:
        writer = TableWriter()
        for episode in self.unsealed:
            writer.add(episode)
        for episode_id, entry in self._late:
            writer.add_reward(episode_id, entry, appended=True)
        return writer.tables()

    def _put(self, record: EpisodeRecord | RewardRecord) -> bytes:
        assert self._journal is not None, "open for reading"
        payload = _encode(record)
        self._journal.append(payload)
        return payload

    def _take(self, episode: Episode, payload: bytes) -> None:
        self._fresh[episode.id] = payload
        self.index.add(Entry.of(episode, segment=None))

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

    def _load(self, entry: Entry) -> Episode:
        if entry.segment is None:
            episode = _episode(self._fresh[entry.id])
        else:
            episode = self._segment_episodes(entry.segment)[entry.id]
        late = [*self._late_sealed.get(entry.id, []), *(r for i, r in self._late if i == entry.id)]
        return msgspec.structs.replace(episode, rewards=[*episode.rewards, *late])

    def _segment_episodes(self, name: str) -> dict[str, Episode]:
        if name not in self._cache:
            self._cache[name] = {e.id: e for e, _, _ in self._segments[name].episodes()}
            while len(self._cache) > 8:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def _read_segment_index(self, segment: Segment) -> None:
        for row in segment.index().to_pylist(maps_as_pydicts="strict"):
            self.index.add(Entry.of_row(row, segment.entry.name))
        for row in segment.rewards().to_pylist():
            if row["appended"]:
                entry = RewardEntry(**{k: row[k] for k in RewardEntry.__struct_fields__})
                self._late_sealed.setdefault(row["episode_id"], []).append(entry)

    def _read_journal(self) -> None:
        path = self._journal_path()
        for frame in read_frames(path.read_bytes()) if path.exists() else ():
            if frame.torn:
                continue
            if frame.damage:
                self._damaged(f"{path}, byte {frame.offset}: {frame.damage}{_whose(frame)}")
                continue
            record = _decoder.decode(frame.payload)
            if isinstance(record, EpisodeRecord):
                self._take(record.episode, frame.payload)
            else:
                self._late.append((record.episode_id, record.entry))

    def _salvaging(self, read: Any) -> None:
        try:
            read()
        except StoreError as error:
            if not self.salvage:
                raise
            self.damages.append(str(error))

    def _damaged(self, what: str) -> None:
        if not self.salvage:
            raise StoreError(
                f"{what}. Everything else is untouched: `envfarm store check` says what is readable, `--salvage` reads it, "
                "`envfarm store repair` sets the damaged part aside"
            )
        self.damages.append(what)

    def _journal_path(self) -> Path:
        return self.path / "journal" / f"{self._number:06d}.log"

    def _open_journal(self) -> Journal:
        """Drop what an interrupted seal left (spent journals, unnamed segments), then go on with the current journal."""
        for path in (self.path / "journal").iterdir():
            if path != self._journal_path():
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


def _episode(payload: bytes) -> Episode:
    """A stored episode: a copy that nobody else changes, with every number of its declared type."""
    record = _decoder.decode(payload)
    assert isinstance(record, EpisodeRecord)
    return record.episode


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


def _whose(frame: Frame) -> str:
    """The episode that a damaged frame was of, as far as it can still be read."""
    try:
        record = _decoder.decode(frame.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return f" (episode {record.episode.id if isinstance(record, EpisodeRecord) else record.episode_id})"


def _tally(values: Iterator[Any]) -> dict[Any, int]:
    counted: dict[Any, int] = {}
    for value in values:
        counted[value] = counted.get(value, 0) + 1
    return counted
