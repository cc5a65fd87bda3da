"""One reply in the making, as the runners see it, and what a runner is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from rollout.engines.base import Generation
from rollout.types import PolicyVersion, SamplingParams


@dataclass(eq=False)
class Request:
    prompt: np.ndarray  # int64 [n]
    params: SamplingParams
    session: str
    future: Any  # asyncio.Future of the caller's loop; only its loop touches it
    lane: int = -1
    cached: int = 0
    spans: list[tuple[int, PolicyVersion]] = field(default_factory=list)

    def relabel(self, sampled: int, version: PolicyVersion) -> None:
        """From the reply's token `sampled` on, `version` makes the tokens."""
        if self.spans and self.spans[-1][0] == sampled:
            self.spans.pop()
        self.spans.append((sampled, version))

    def generation(self, ids: list[int], logprobs: list[float], finish: Literal["stop", "length"]) -> Generation:
        return Generation(
            token_ids=ids,
            logprobs=logprobs,
            finish=finish,
            version=self.spans[0][1],
            versions=list(self.spans) if len(self.spans) > 1 else [],
            cached_tokens=self.cached,
        )


class Runner(Protocol):
    """Serves one policy. Synchronous: the engine's thread calls it, one step at a time."""

    batch_invariant: bool
    context: int
    vocab: int
    weight_count: int
    version: PolicyVersion

    def submit(self, request: Request) -> None: ...

    def cancel(self, request: Request) -> None:
        """Drop a request, wherever it is; unknown ones are ignored."""
        ...

    def busy(self) -> bool: ...

    def step(self) -> list[tuple[Request, Generation]]:
        """Sample one token for every request in flight; what finished."""
        ...

    def update(self, version: PolicyVersion, state: Mapping[str, Any]) -> None:
        """Raises: ValueError on names or shapes that do not fit; the old weights then stay."""
        ...

    def score(self, token_ids: list[int]) -> list[float]:
        """Teacher-forced logprobs of `token_ids[1:]` at temperature 1."""
        ...
