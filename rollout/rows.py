"""From episodes to training rows: one row per branch, each sampled token trained once.

rows = rows_of(episode)                        # of an episode that an engine sampled
rows = rows_of(tokenize(episode, renderer))    # of logs: messages first, tokens once there is a tokenizer
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from rollout.policies import MALFORMED_CALL
from rollout.recorder import Recorder
from rollout.renderers.base import Renderer
from rollout.types import Branch, Episode, Message, Node, PolicyVersion, StopReason


@dataclass(eq=False)
class Row:
    """One branch, flat. Arrays are as long as `token_ids`, [T]."""

    episode_id: str
    group: str
    env: str
    seat: str
    branch: int
    token_ids: np.ndarray  # int32 [T]
    mask: np.ndarray  # bool [T]: sampled, and in no branch before this one
    logprobs: np.ndarray  # float64 [T]; 0 where not masked, and where unknown (tokenized logs)
    versions: list[tuple[int, PolicyVersion]]  # (first token, version) spans of what was sampled
    temperature: np.ndarray  # float32 [T]; 1 where not sampled
    top_p: float  # the lowest that anything in this row was sampled with; 1.0 is the whole distribution
    reward: float  # of this seat, whole episode
    success: bool
    stop: StopReason
    turns: int  # actions of this seat
    advantage: float = 0.0  # for whoever computes it

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def version(self) -> PolicyVersion | None:
        """The oldest version of the tokens that are trained here."""
        return min((v for _, v in self.versions), key=lambda v: (v.incarnation, v.number), default=None)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.mask))


def rows_of(episode: Episode, seats: Iterable[str] | None = None) -> list[Row]:
    """The rows of an episode's seats (all by default), in branch order. Branches without a sampled token of their own
    are no rows. Whether a not-ok episode may be used is the caller's to ask (`episode.ok`)."""
    wanted = None if seats is None else set(seats)
    trained: set[int] = set()
    rows = []
    for index, branch in enumerate(episode.branches):
        if wanted is not None and branch.seat not in wanted:
            continue
        row = _row(episode, index, branch, trained)
        trained.update(branch.nodes)
        if row.trained:
            rows.append(row)
    return rows


def _row(episode: Episode, index: int, branch: Branch, trained: set[int]) -> Row:
    nodes = [(episode.nodes[n], n not in trained) for n in branch.nodes]
    versions: list[tuple[int, PolicyVersion]] = []
    temperature: list[np.ndarray] = []
    start, top_p = 0, 1.0
    for node, first in nodes:
        if first and node.version is not None:
            versions.extend(_spans(node, start))
        sampling = node.sampling
        temperature.append(np.full(len(node.token_ids), 1.0 if sampling is None else sampling.temperature, np.float32))
        top_p = min(top_p, 1.0 if sampling is None else sampling.top_p)
        start += len(node.token_ids)
    return Row(
        episode_id=episode.id, group=episode.group, env=episode.env, seat=branch.seat, branch=index,
        token_ids=_joined([n.token_ids for n, _ in nodes], np.int32),
        mask=_joined([n.mask if first else [False] * len(n.mask) for n, first in nodes], np.bool_),
        logprobs=_joined([n.logprobs if first else [0.0] * len(n.logprobs) for n, first in nodes], np.float64),
        versions=versions, temperature=np.concatenate(temperature) if temperature else np.zeros(0, np.float32),
        top_p=top_p, reward=episode.reward.get(branch.seat, 0.0), success=episode.success.get(branch.seat, False),
        stop=episode.stop, turns=sum(s.seat == branch.seat for s in episode.steps),
    )  # fmt: skip


def _spans(node: Node, start: int) -> list[tuple[int, PolicyVersion]]:
    """Version spans of one node in the row's coordinates; the first begins at the first sampled token."""
    assert node.version is not None
    if node.versions:
        return [(start + offset, version) for offset, version in node.versions]
    first = node.mask.index(True) if True in node.mask else 0
    return [(start + first, node.version)]


def _joined(parts: Sequence[Sequence[object]], dtype: type) -> np.ndarray:
    return np.array([value for part in parts for value in part], dtype)


def tokenize(episode: Episode, renderer: Renderer, seats: Iterable[str] | None = None) -> Episode:
    """The same episode with nodes made from its recorded steps: what a model is shown to imitate.

    Replies are masked as if sampled, stop token included, one conversation per seat. Logprobs are 0.0 and `sampling`
    is None: rows of it can be imitated, never importance-weighted. Tokens that were there before are dropped.
    """
    wanted = set(episode.seats) if seats is None else set(seats)
    recorder = Recorder()
    for step in episode.steps:
        if step.seat not in wanted:
            continue
        talk = recorder.conversation(step.seat, renderer, episode.tools)
        called = bool(talk.messages) and bool(talk.messages[-1].tool_calls)
        talk.hear(Message(role="tool" if called else "user", content=step.observation))
        calls = tuple(c for c in step.tool_calls if c.name != MALFORMED_CALL)  # what could not be read is text, as it was said
        talk.demonstrate(Message(role="assistant", content=step.action, tool_calls=calls), episode.seats[step.seat])
    return msgspec.structs.replace(episode, nodes=recorder.nodes, branches=recorder.branches, drift=recorder.drift)
