"""Which episodes a store holds and where: small, in memory, rebuilt on open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rollout.types import Episode, StopReason

Slot = tuple[str, int, int, int]


@dataclass
class Entry:
    """One episode, as far as it is searched for."""

    id: str
    run: str
    stage: str
    step: int
    group: str
    index: int
    member: int
    attempt: int
    env: str
    split: str
    stop: StopReason
    instance_hash: str
    seats: dict[str, tuple[str, str]]  # role -> (policy, checksum)
    segment: str | None  # None: in the journal

    @property
    def slot(self) -> Slot:
        return (self.stage, self.step, self.index, self.member)

    @property
    def key(self) -> tuple[str, int, int, int, int, str]:
        """The order in which episodes are read: dispatch order, whenever they finished."""
        return (self.stage, self.step, self.index, self.member, self.attempt, self.id)

    @property
    def ok(self) -> bool:
        return self.stop.ok

    @classmethod
    def of(cls, episode: Episode, segment: str | None) -> Entry:
        return cls(
            id=episode.id, run=episode.run, stage=episode.stage, step=episode.step, group=episode.group,
            index=episode.index, member=episode.member, attempt=episode.attempt, env=episode.env, split=episode.split,
            stop=episode.stop, instance_hash=episode.instance_hash,
            seats={role: (v.policy, v.checksum) for role, v in episode.seats.items()}, segment=segment,
        )  # fmt: skip

    @classmethod
    def of_row(cls, row: Mapping[str, Any], segment: str) -> Entry:
        seats = {role: (v["policy"], v["checksum"]) for role, v in row["seats"].items()}
        return cls(**{**row, "stop": StopReason(row["stop"]), "seats": seats}, segment=segment)


@dataclass
class Index:
    """Entries by id and by slot."""

    by_id: dict[str, Entry] = field(default_factory=dict)
    slots: dict[Slot, list[Entry]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)  # ids that came more than once: damage

    def add(self, entry: Entry) -> None:
        if entry.id in self.by_id:
            self.repeated.append(entry.id)
            return
        self.by_id[entry.id] = entry
        self.slots.setdefault(entry.slot, []).append(entry)

    def select(self, filters: Mapping[str, Any]) -> Iterator[Entry]:
        """Entries whose attributes equal `filters`, in dispatch order. Raises: AttributeError on an unknown filter."""
        entries = [e for e in self.by_id.values() if all(getattr(e, name) == want for name, want in filters.items())]
        yield from sorted(entries, key=lambda e: e.key)
