"""Replies, one by one, for formats that train on a single answer to what came before (preference data).

A row's mask is a run of tokens per reply. So a reply's prompt is exactly what the model had seen, and nothing that the
environment said is ever part of a completion. Logs without tokens have replies too, as messages alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rollout.export.base import Played
from rollout.export.messages import messages_of, row_messages
from rollout.rows import Row
from rollout.types import Episode


@dataclass(frozen=True, eq=False)
class Reply:
    """What a seat said once. `heard` and `said` are comparable: token ids as bytes, or messages as JSON."""

    episode_id: str
    seat: str
    reward: float  # of the seat, whole episode
    number: int  # among the replies of its row, or of the logged episode
    heard: bytes
    said: bytes
    row: Row | None = None
    start: int = 0  # token_ids[:start] is the prompt,
    end: int = 0  # token_ids[start:end] the reply

    @property
    def prompt_ids(self) -> list[int]:
        return [] if self.row is None else self.row.token_ids[: self.start].tolist()

    @property
    def token_ids(self) -> list[int]:
        return [] if self.row is None else self.row.token_ids[self.start : self.end].tolist()

    @property
    def advantage(self) -> float:
        return 0.0 if self.row is None else self.row.advantage

    def only(self) -> Row:
        """Its row, with nothing but this reply trained."""
        assert self.row is not None
        mask = np.zeros_like(self.row.mask)
        mask[self.start : self.end] = True
        return replace(self.row, mask=mask, logprobs=np.where(mask, self.row.logprobs, 0.0))


def row_replies(row: Row) -> list[Reply]:
    """The trained runs of a row. Between two replies stand tokens of the template, so that each run is one reply."""
    edges = np.flatnonzero(np.diff(row.mask.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    ids = row.token_ids
    return [
        Reply(row.episode_id, row.seat, row.reward, i, ids[:a].tobytes(), ids[a:b].tobytes(), row, int(a), int(b))
        for i, (a, b) in enumerate(edges)
    ]


def logged_replies(episode: Episode, seat: str) -> list[Reply]:
    """Of an episode without tokens."""
    messages, reward = messages_of(episode, seat), episode.reward.get(seat, 0.0)
    spelled = [json.dumps(m, sort_keys=True).encode() for m in messages]
    return [
        Reply(episode.id, seat, reward, i, b"\n".join(spelled[: 2 * i + 1]), spelled[2 * i + 1])
        for i in range(len(messages) // 2)
    ]


def replies_of(played: Played) -> Iterator[list[Reply]]:
    """The replies of each ok episode and seat of a group: of its rows, or of what was logged where nothing was sampled."""
    for episode in played.group.episodes:
        if not episode.ok:
            continue
        rows = [row for row in played.rows if row.episode_id == episode.id]
        if rows:
            for seat in dict.fromkeys(row.seat for row in rows):
                yield [reply for row in rows if row.seat == seat for reply in row_replies(row)]
        elif not episode.nodes:
            yield from (logged_replies(episode, seat) for seat in episode.seats)


def spoken(played: Played, reply: Reply) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages before a reply, and its own."""
    episode = next(e for e in played.group.episodes if e.id == reply.episode_id)
    if reply.row is None:
        messages = messages_of(episode, reply.seat)
        place = 2 * reply.number + 1
    else:
        messages = row_messages(episode, reply.row)
        place = _trained_places(episode, reply.row)[reply.number]
    return messages[:place], messages[place]


def _trained_places(episode: Episode, row: Row) -> list[int]:
    """Where in the row's branch the nodes stand that are trained there and in no branch before."""
    before = {n for branch in episode.branches[: row.branch] for n in branch.nodes}
    path = episode.branches[row.branch].nodes
    return [i for i, n in enumerate(path) if n not in before and any(episode.nodes[n].mask)]


def pairs(episodes: Sequence[Sequence[Reply]]) -> list[tuple[Reply, Reply]]:
    """(better, worse) replies of one group: the best episode of a seat against its worst, the second best against the
    second worst, as far as rewards differ. Of both the first replies that differ after the same history: what came
    before is shared, and what came after has seen other observations.

    Same instance and same actions give the same observations, so two episodes can only part in a reply. Episodes that
    part elsewhere (an environment that is not deterministic) make no pair.
    """
    found = []
    for seat in dict.fromkeys(said[0].seat for said in episodes if said):
        ranked = sorted((said for said in episodes if said and said[0].seat == seat), key=lambda said: -said[0].reward)
        for better, worse in zip(ranked, reversed(ranked), strict=True):
            if better[0].reward <= worse[0].reward:
                break
            parted = next(((b, w) for b, w in zip(better, worse, strict=False) if b.heard == w.heard and b.said != w.said), None)
            if parted is not None:
                found.append(parted)
    return found
