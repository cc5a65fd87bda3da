"""Tinker, live: its service samples in our episodes, and trains on their rows.

    service = tinker.ServiceClient()
    training = service.create_lora_training_client(base_model="Qwen/Qwen3-8B", rank=32)
    engine = TinkerEngine({"learner": training.save_weights_and_get_sampling_client()})
    policy = EnginePolicy(engine.version("learner"), engine, renderer_of(training.get_tokenizer()))  # `.tokenizers`

An engine like any other: token ids in, sampled ids and logprobs out. New weights are a new sampling client, which
`Rollouts.publish(next_version(policy), client)` puts in its place. Rows become datums by `rollout.export.tinker.datums_of`.
The loop around it is docs/trainers/tinker.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from envfarm.errors import CapabilityError, InfraError
from rollout.engines.base import Capabilities, Generation
from rollout.engines.checks import served
from rollout.export.base import package
from rollout.policies import EnginePolicy
from rollout.types import PolicyVersion, SamplingParams


class TinkerEngine:
    """`clients` maps each policy's name to a `tinker.SamplingClient`. `context` is the model's, 0 where unknown.

    The seed of a reply is sent; whether the same seed gives the same tokens is the service's to promise, so `seeds` is not
    declared. Weights are named by number: their checksum is not to be had.
    """

    def __init__(self, clients: Mapping[str, Any], *, context: int = 0):
        self._clients = dict(clients)
        self._versions = {name: PolicyVersion(name) for name in self._clients}
        self.capabilities = Capabilities(token_ids=True, logprobs=True, versions=True, context=context)

    async def start(self) -> None:
        """Raises: MissingDependencyError."""
        self._types = package("tinker", extra="tinker")

    def version(self, policy: str) -> PolicyVersion:
        """What `policy` is served with now. Raises: UnknownIdError."""
        return served(policy, self._versions)

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        """Raises: InfraError where the service fails, CapabilityError where it leaves out logprobs."""
        version = self.version(policy)
        asked = self._types.SamplingParams(
            max_tokens=params.max_tokens, seed=params.seed & 0x7FFF_FFFF, stop=list(params.stop_ids),
            temperature=params.temperature, top_p=params.top_p,
        )  # fmt: skip
        prompt = self._types.ModelInput.from_ints(prompt_ids)
        try:
            said = (await self._clients[policy].sample(prompt=prompt, num_samples=1, sampling_params=asked)).sequences[0]
        except self._types.TinkerError as error:
            raise InfraError(f"Tinker could not sample: {error}") from error
        if said.logprobs is None:
            raise CapabilityError("the service returned no logprobs; rows without them cannot be trained on")
        ids = list(said.tokens)
        finish: Literal["stop", "length"] = "stop" if ids and ids[-1] in params.stop_ids else "length"
        return Generation(ids, [min(float(p), 0.0) for p in said.logprobs], finish, version)

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        """`state` is the sampling client of the new weights; replies under way end with the old ones, and say so."""
        self.version(version.policy)
        self._clients[version.policy], self._versions[version.policy] = state, version

    async def close(self) -> None:
        pass


def next_version(policy: EnginePolicy) -> PolicyVersion:
    """The name of the weights that come after those that act now."""
    return msgspec.structs.replace(policy.version, number=policy.version.number + 1)
