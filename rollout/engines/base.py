"""What an engine is: token ids in, sampled ids with logprobs and versions out.

An engine declares its `Capabilities`; a run that needs what an engine lacks is refused before it starts
(`require`). Engines are built late, from a picklable description, inside the process that uses them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from envfarm.errors import CapabilityError
from rollout.types import PolicyVersion, SamplingParams


@dataclass(frozen=True)
class Capabilities:
    token_ids: bool = False
    """Takes and returns exact token ids."""
    logprobs: bool = False
    """Returns the logprob of each sampled token under the distribution that it was sampled from."""
    seeds: bool = False
    """The same seed, prompt and weights give the same tokens."""
    versions: bool = False
    """Every token is labelled with the weights that made it; weights can be updated in place."""
    images: bool = False
    batch_invariant: bool = False
    """A row's logprobs are bit-equal whatever it is batched with, and with or without a prefix-cache hit."""
    context: int = 0
    """Longest prompt plus reply in tokens; 0 is unknown."""


@dataclass(frozen=True)
class Generation:
    """One sampled reply."""

    token_ids: list[int]
    logprobs: list[float]  # equally long
    finish: Literal["stop", "length", "abort"]
    version: PolicyVersion  # of the first token
    versions: list[tuple[int, PolicyVersion]] = field(default_factory=list)  # spans, where weights changed midway
    text: str = ""  # only from engines without token ids
    cached_tokens: int = 0  # prompt tokens that the prefix cache saved


class Engine(Protocol):
    """Life cycle: construct, `start`, any number of concurrent `generate`s, `close`."""

    capabilities: Capabilities

    async def start(self) -> None:
        """Load weights, open connections. Raises: UserError subclasses on what a person can mend."""
        ...

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        """Sample one reply to `prompt_ids` with `policy`'s current weights.

        `session` is a stable key of the conversation, for cache affinity; it never changes the result.
        Raises: ValueError where the prompt does not fit the context, InfraError where the engine died.
        Cancelling the awaiting task aborts the request.
        """
        ...

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        """Serve `version.policy` with new weights from now on; requests in flight continue with them, labelled.

        `state` is what the trainer publishes: for the embedded engine a `dict[str, Tensor]`.
        Raises: CapabilityError where this engine cannot, ValueError on names or shapes that do not fit.
        """
        ...

    async def close(self) -> None:
        """Free everything. Idempotent."""
        ...


@runtime_checkable
class SeveralPolicies(Protocol):
    """An engine that takes in further policies while it runs: older versions of the learner, as they come to be."""

    async def add_policy(self, version: PolicyVersion, model: Any) -> None:
        """Serve `version.policy` beside the others, with the weights of a model folder.

        Raises: ValueError where its name is taken, UserError where the folder is damaged or not what `version` says.
        """
        ...

    def version(self, policy: str) -> PolicyVersion:
        """What `policy` is served with now."""
        ...


NEEDS_FOR_TRAINING = ("token_ids", "logprobs", "seeds", "versions")


def require(engine: Engine, needs: tuple[str, ...], *, what: str) -> None:
    """Refuse an engine without the capabilities that `what` needs.

    Raises: CapabilityError naming what is missing.
    """
    missing = [n for n in needs if not getattr(engine.capabilities, n)]
    if missing:
        raise CapabilityError(
            f"{what} needs an engine with {', '.join(needs)}; {type(engine).__name__} lacks {', '.join(missing)}. "
            f"Such an engine can evaluate, not feed training: use `engine: {{kind: torch}}` there."
        )


ENGINES: dict[str, str] = {
    "torch": "rollout.engines.torch.engine:TorchEngine",
    "openai": "rollout.engines.openai:OpenAIEngine",
}
"""Name -> `module:Class`, imported late. A new engine costs one file and one line."""
