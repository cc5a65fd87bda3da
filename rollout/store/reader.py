"""Reading a store: sealed segments and the journal as one, in dispatch order."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from envfarm.errors import StoreError
from rollout.store.index import Entry, Index, Slot
from rollout.store.journal import read_frames
from rollout.store.manifest import Manifest
from rollout.store.records import EpisodeRecord, decode, episode_of, owner_of
from rollout.store.segment import Segment
from rollout.store.tables import TableWriter
from rollout.types import Episode, PolicyVersion, RewardEntry, StopReason

CACHED_SEGMENTS = 8
"""How many segments are kept decoded."""


class StoreReader:
    """What a store holds. The index is read at once, episodes when they are asked for."""

    def __init__(self, path: Path, manifest: Manifest, *, salvage: bool = False):
        self.path, self.manifest, self.salvage = path, manifest, salvage
        self.damages: list[str] = []  # with `salvage`: what was left out
        self.index = Index()
        self._number = manifest.spent + 1  # of the journal in force
        self._segments = {e.name: Segment(path / "segments", e) for e in manifest.segments}
        self._cache: OrderedDict[str, dict[str, Episode]] = OrderedDict()
        self._fresh: dict[str, bytes] = {}  # not sealed yet: journal records by episode id
        self._late: list[tuple[str, RewardEntry]] = []  # appended since the last seal
        self._late_sealed: dict[str, list[RewardEntry]] = {}
        for segment in self._segments.values():
            try:
                if salvage:
                    segment.verify()  # it is left out as a whole, before anything of it is in the index
                self._read_segment_index(segment)
            except StoreError as error:
                if not salvage:
                    raise
                self.damages.append(str(error))
        self._read_journal()

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

    def find(self, slot: Slot, instance_hash: str, seats: Mapping[str, PolicyVersion] | None) -> Episode | None:
        """The finished episode of a slot, if it was of this instance and these weights (checksums, not numbers; None
        is any)."""
        for entry in reversed(self.index.slots.get(slot, [])):
            if entry.stop in (StopReason.ABORTED, StopReason.INFRA_ERROR) or entry.instance_hash != instance_hash:
                continue
            if seats is None or entry.seats == {role: (v.policy, v.checksum) for role, v in seats.items()}:
                return self._load(entry)
        return None

    def attempts(self, slot: Slot) -> int:
        """The number that the slot's next attempt gets."""
        return max((e.attempt + 1 for e in self.index.slots.get(slot, [])), default=0)

    @property
    def segments(self) -> list[Segment]:
        return list(self._segments.values())

    @property
    def unsealed(self) -> list[Episode]:
        """Episodes that are still in the journal, in dispatch order."""
        ids = sorted(self._fresh, key=lambda i: self.index.by_id[i].key)
        return [episode_of(self._fresh[i]) for i in ids]

    def late_ids(self) -> set[str]:
        """Ids that rewards were appended to."""
        return {*self._late_sealed, *(episode_id for episode_id, _ in self._late)}

    def stats(self) -> dict[str, Any]:
        """Counts, for people and `store info`."""
        entries = list(self.index.by_id.values())
        count = lambda key: dict(sorted(Counter(key(e) for e in entries).items()))  # noqa: E731
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

    def _take(self, episode: Episode, payload: bytes) -> None:
        self._fresh[episode.id] = payload
        self.index.add(Entry.of(episode, segment=None))

    def _load(self, entry: Entry) -> Episode:
        if entry.segment is None:
            episode = episode_of(self._fresh[entry.id])
        else:
            episode = self._segment_episodes(entry.segment)[entry.id]
        late = [*self._late_sealed.get(entry.id, []), *(r for i, r in self._late if i == entry.id)]
        return msgspec.structs.replace(episode, rewards=[*episode.rewards, *late])

    def _segment_episodes(self, name: str) -> dict[str, Episode]:
        if name not in self._cache:
            self._cache[name] = {e.id: e for e, _, _ in self._segments[name].episodes()}
            while len(self._cache) > CACHED_SEGMENTS:
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
                self._damaged(f"{path}, byte {frame.offset}: {frame.damage}{owner_of(frame)}")
                continue
            record = decode(frame.payload)
            if isinstance(record, EpisodeRecord):
                self._take(record.episode, frame.payload)
            else:
                self._late.append((record.episode_id, record.entry))

    def _damaged(self, what: str) -> None:
        if not self.salvage:
            raise StoreError(
                f"{what}. Everything else is untouched: `envfarm store check` says what is readable, `--salvage` reads it, "
                "`envfarm store repair` sets the damaged part aside"
            )
        self.damages.append(what)

    def _journal_path(self) -> Path:
        return self.path / "journal" / f"{self._number:06d}.log"
