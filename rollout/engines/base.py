"""What an engine is: token ids in, sampled ids with logprobs and versions out.

An engine declares its `Capabilities`; a run that needs what an engine lacks is refused before it starts
(`require`). Engines are built late, from a picklable description, inside the process that uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    probes: bool = False
    """`update_weights` takes a `probe` and refuses weights that do not answer it."""
    adapters: bool = False
    """`update_weights` takes an `Adapter` where it would take a state dict."""


@dataclass(frozen=True)
class Probe:
    """A few tokens, and what the trainer's own forward makes of them: whoever serves its weights must agree."""

    token_ids: list[int]
    logprobs: list[float]  # of token_ids[1:], teacher-forced, temperature 1
    exact: bool = True  # computed in float32


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as peft writes it, over the weights of the policy's model folder."""

    config: Mapping[str, Any]  # of `adapter_config.json`
    tensors: Mapping[str, Any]  # of `adapter_model.safetensors`: name -> Tensor


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

        `state` is what the trainer publishes: a `dict[str, Tensor]` of the names and shapes of the model folder, or an
        `Adapter` where the engine takes them. Where the engine has `probes`, `probe=` a `Probe` is checked too.
        Raises: CapabilityError where this engine cannot, ValueError on names or shapes that do not fit, or where the
        weights that arrived are not those that `version` names; the old ones then go on serving.
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


@runtime_checkable
class Restarting(Protocol):
    """An engine that is started again after it died. Until then it fails whoever asks, so that no episode's clock runs."""

    async def ready(self, policy: str) -> None:
        """Wait until it serves `policy`. Raises: InfraError where it never will again."""
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
    "vllm": "rollout.engines.vllm.engine:VLLMEngine",
    "openai": "rollout.engines.openai:OpenAIEngine",
    "simulated": "rollout.engines.simulated.engine:SimulatedEngine",
}
"""Name -> `module:Class`, imported late. A new engine costs one file and a line here and in `ENGINE_KEYS`.

Except for `openai`, which serves no model folder, a class is called with a mapping from policies to model folders, and by
name `versions` (what is known of the folders' weights) and the keys of the run file that the table below gives it."""

EVERY_ENGINE = ("max_in_flight", "context")

ENGINE_KEYS: dict[str, tuple[str, ...]] = {
    "torch": ("threads",),
    "vllm": ("threads", "device", "dtype", "kv_cache", "compile", "serve", "base_url", "api_key_env", "restarts", "transport"),
    "openai": ("base_url", "model", "api_key_env"),
    "simulated": (),
}
"""Which further keys of `engine:` in a run file an engine takes, as arguments of the same names. An engine of somebody's
own (`module:Class`) takes `threads`."""


def engine_keys(kind: str) -> tuple[str, ...]:
    return EVERY_ENGINE + ENGINE_KEYS.get(kind, ("threads",))
