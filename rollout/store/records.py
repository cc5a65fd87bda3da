"""What a journal's frames hold: msgpack of a finished episode, or of a reward that came later."""

from __future__ import annotations

import msgspec

from rollout.store.journal import Frame
from rollout.types import Episode, RewardEntry


class EpisodeRecord(msgspec.Struct, frozen=True, tag="episode"):
    """One finished episode."""

    episode: Episode


class RewardRecord(msgspec.Struct, frozen=True, tag="reward"):
    """A reward that came later."""

    episode_id: str
    entry: RewardEntry


Record = EpisodeRecord | RewardRecord

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


def episode_of(payload: bytes) -> Episode:
    """A stored episode: a copy that nobody else changes, with every number of its declared type."""
    record = decode(payload)
    assert isinstance(record, EpisodeRecord)
    return record.episode


def owner_of(frame: Frame) -> str:
    """The episode that a damaged frame was of, as far as it can still be read."""
    try:
        record = decode(frame.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return f" (episode {record.episode.id if isinstance(record, EpisodeRecord) else record.episode_id})"
