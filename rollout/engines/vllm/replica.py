"""One vLLM that serves one model, wherever it runs: what `inprocess` and `server` are alike in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from envfarm.errors import InfraError
from rollout.types import SamplingParams


class EngineDied(InfraError):
    """vLLM's processes are gone, or no longer answer. What was in flight is lost and can be asked for again."""


class UpdateRefused(ValueError):
    """vLLM did not take the weights; it has those that it had."""


class HalfLoaded(UpdateRefused):
    """It failed while it was taking them: what it has now is nobody's model."""


@dataclass(frozen=True)
class Lora:
    """An adapter that a replica has loaded, named by its version's label."""

    number: int
    label: str
    folder: str


@dataclass(frozen=True)
class Reply:
    """As vLLM gives it; `spans` are (first token, label of the weights)."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length", "abort"]
    spans: list[tuple[int, str]] = field(default_factory=list)
    cached_tokens: int = 0


class Control(Protocol):
    """vLLM's own calls for new weights, as `rollout.engines.vllm.transport` makes them, in this order."""

    async def init_transfer(self, info: dict[str, Any]) -> None: ...
    async def start_update(self) -> None: ...
    async def send_update(self, info: dict[str, Any]) -> None:
        """Raises: UpdateRefused."""
        ...

    async def finish_update(self, label: str) -> None:
        """From here on `label` names what samples. Raises: HalfLoaded."""
        ...


class Replica(Control, Protocol):
    """Every method raises EngineDied where vLLM is gone."""

    @property
    def pids(self) -> list[int]:
        """Of the processes behind it: first the one without which there is nothing."""
        ...

    async def start(self) -> None:
        """Raises: UserError on what a person can mend, EngineDied where it does not come up."""
        ...

    async def generate(self, prompt: list[int], params: SamplingParams, salt: str, lora: Lora | None) -> Reply:
        """Cancelling aborts the request."""
        ...

    async def score(self, token_ids: list[int], lora: Lora | None) -> list[float]:
        """Teacher-forced logprobs of `token_ids[1:]`, temperature 1; never out of the prefix cache."""
        ...

    async def name(self, label: str) -> None:
        """Say what the weights are that it has."""
        ...

    async def pause(self) -> None:
        """Hold what is in flight where it is, and forget every cached key and value."""
        ...

    async def resume(self) -> None: ...

    async def abort_all(self) -> None:
        """End what is in flight with `finish="abort"`."""
        ...

    async def add_lora(self, lora: Lora) -> None:
        """Raises: UpdateRefused."""
        ...

    async def remove_lora(self, lora: Lora) -> None: ...

    async def close(self) -> None:
        """Return when its processes are gone. Idempotent."""
        ...


def sampling(params: SamplingParams) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams. Logprobs of the sampled token alone; no text is made; only our stop ids end it."""
    return {
        "temperature": params.temperature, "top_p": params.top_p, "max_tokens": params.max_tokens,
        "stop_token_ids": list(params.stop_ids), "seed": params.seed, "ignore_eos": True, "logprobs": 0,
        "detokenize": False,
    }  # fmt: skip
