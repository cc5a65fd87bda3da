"""One reply, which is known as soon as it is asked for; only its time and its labels are not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollout.engines.base import Generation
from rollout.engines.simulated.models import LETTERS, draws
from rollout.types import PolicyVersion, SamplingParams


@dataclass(eq=False)
class Request:
    ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]
    prompt: int  # tokens
    policy: str
    future: asyncio.Future[Generation]
    name: str
    first: int = -1  # the step that gives its first token


def request_of(prompt_ids: Sequence[int], params: SamplingParams, length: int, policy: str, name: str) -> Request:
    """Letters, as many as `length` and the cap allow, and the first stop token at the end of a whole reply."""
    rng, count = draws("reply", prompt_ids, params), min(length, params.max_tokens)
    ids = rng.integers(*LETTERS, size=count).tolist()
    if length <= params.max_tokens and params.stop_ids:
        ids[-1] = params.stop_ids[0]
    return Request(
        ids=ids, logprobs=(-rng.random(count)).tolist(), finish="stop" if length <= params.max_tokens else "length",
        prompt=len(prompt_ids), policy=policy, future=asyncio.get_running_loop().create_future(), name=name,
    )  # fmt: skip


def spans_of(history: Sequence[tuple[int, PolicyVersion]], first: int, count: int) -> list[tuple[int, PolicyVersion]]:
    """Which versions gave the `count` tokens from step `first` on; `history` says from which step on each was served."""
    spans: list[tuple[int, PolicyVersion]] = []
    for step, version in history:
        at = max(step - max(first, 0), 0)
        if spans and at == spans[-1][0]:
            spans.pop()
        if not spans or at < count:
            spans.append((at, version))
    return spans
