"""`engine: {kind: vllm}`: policies by name, each on a vLLM of its own, in this process or served.

What it promises: exact ids, logprobs of what was really sampled (temperature and top-p applied), a seed per request, and a
version for every token, also where the weights changed while it was being sampled. It is not batch-invariant: the last bits
of a logprob depend on what was computed beside it, so the same seed may one day give another token.

An engine that dies takes its requests with it (InfraError: their episodes are run again) and is started anew with the weights
that it had, as often as `restarts` says. Who asks for a reply meanwhile is refused at once (InfraError); `ready` waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envfarm.errors import UserError
from rollout.engines.base import Adapter, Capabilities, Generation, Probe
from rollout.engines.checks import check_new, check_prompt, check_scored, served
from rollout.engines.vllm.inprocess import LocalReplica
from rollout.engines.vllm.replica import Replica
from rollout.engines.vllm.served import ServedPolicy
from rollout.engines.vllm.server import ServerReplica
from rollout.engines.vllm.settings import Settings, need_vllm
from rollout.engines.vllm.transport import WeightTransport, transport_of
from rollout.types import PolicyVersion, SamplingParams


class VLLMEngine:
    """`models` maps each policy's name to a model folder; the other arguments are keys of `engine:` in a run file."""

    def __init__(
        self, models: Mapping[str, str | Path], *, versions: Mapping[str, PolicyVersion] | None = None,
        max_in_flight: int = 64, context: int | None = None, threads: int | None = None, device: str | None = None,
        dtype: str | None = None, kv_cache: int | None = None, compile: bool = False, serve: bool = False,
        base_url: str | None = None, api_key_env: str = "OPENAI_API_KEY", restarts: int = 3, transport: str | None = None,
        lora_rank: int = 0,
    ):  # fmt: skip
        """Raises: MissingDependencyError where vLLM is not installed, UserError on folders or arguments that do not fit."""
        if not models:
            raise UserError("an engine needs at least one policy; `models` is empty")
        if base_url is not None and len(models) > 1:
            raise UserError(f"the server at {base_url} serves one policy; {', '.join(models)} want one each: drop `base_url`")
        if base_url is None and find_spec("vllm") is None:
            need_vllm()
        transport_of(transport, device)
        self._common = Settings(
            Path(), max_in_flight=max_in_flight, context=context, threads=threads, device=device, dtype=dtype,
            kv_cache=kv_cache, compile=compile, lora_rank=lora_rank,
        )  # fmt: skip
        self._serve, self._base_url, self._api_key_env = serve, base_url, api_key_env
        self._restarts, self._transport = restarts, transport
        self._started = False
        known = versions or {}
        self._policies = {
            name: self._policy(Path(folder), known.get(name) or PolicyVersion(name)) for name, folder in models.items()
        }
        self.capabilities = Capabilities(
            token_ids=True, logprobs=True, seeds=True, versions=True, probes=True, adapters=lora_rank > 0
        )
        self._declare()

    async def start(self) -> None:
        """Idempotent. Raises: UserError on what a person can mend, InfraError where vLLM does not come up."""
        if self._started:
            return
        self._started = True
        try:
            for policy in self._policies.values():  # one after the other: each takes all it can get while it loads
                await policy.start()
        except BaseException:
            await self.close()
            raise

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        serving = self._served(policy)
        check_prompt(prompt_ids, params, context=serving.context, vocab=serving.vocab)
        most = serving.context - len(prompt_ids)
        if params.max_tokens > most:
            params = SamplingParams(
                temperature=params.temperature, top_p=params.top_p, max_tokens=most, stop_ids=params.stop_ids, seed=params.seed
            )
        return await serving.generate(prompt_ids, params)

    async def score(self, token_ids: list[int], *, policy: str) -> list[float]:
        """Teacher-forced logprobs of `token_ids[1:]` at temperature 1 under `policy`'s current weights.

        Raises: ValueError where they do not fit the context.
        """
        serving = self._served(policy)
        check_scored(token_ids, most=serving.context - 1, vocab=serving.vocab)
        return await serving.score(token_ids)

    async def update_weights(
        self, version: PolicyVersion, state: Mapping[str, Any] | Adapter, *, probe: Probe | None = None
    ) -> None:
        """See `rollout.engines.base.Engine`; CapabilityError for an adapter where the engine has no room for one."""
        await self._served(version.policy).update(version, state, probe)

    async def add_policy(self, version: PolicyVersion, model: str | Path) -> None:
        """One more vLLM. Raises: ValueError where its name is taken."""
        check_new(version.policy, self._policies)
        if self._base_url is not None:
            raise UserError(f"policy {version.policy!r}: the server at {self._base_url} serves one policy; leave `base_url` out")
        policy = self._policy(Path(model), version)
        if self._started:
            await policy.start()
        self._policies[version.policy] = policy
        self._declare()

    async def ready(self, policy: str) -> None:
        """Wait while it is being started again. Raises: InfraError where it will not be."""
        await self._served(policy).ready()

    def version(self, policy: str) -> PolicyVersion:
        """What `policy` is served with now."""
        return self._served(policy).weights.version

    def pids(self, policy: str) -> list[int]:
        """Of the processes behind a policy: first the one that must not die."""
        return self._served(policy).replica.pids

    async def close(self) -> None:
        await asyncio.gather(*[policy.close() for policy in self._policies.values()])

    def _policy(self, folder: Path, version: PolicyVersion) -> ServedPolicy:
        sender = transport_of(self._transport, self._common.device)
        settings = replace(self._common, folder=folder.resolve(), backend=sender.backend)

        def make() -> tuple[Replica, WeightTransport]:
            return self._replica(settings), transport_of(self._transport, settings.device)

        return ServedPolicy(settings, version, make, restarts=self._restarts, foreign=self._base_url is not None)

    def _replica(self, settings: Settings) -> Replica:
        if self._serve or self._base_url is not None:
            return ServerReplica(settings, base_url=self._base_url, api_key_env=self._api_key_env)
        return LocalReplica(settings)

    def _declare(self) -> None:
        """What can be promised of all policies together."""
        self.capabilities = replace(self.capabilities, context=min(p.context for p in self._policies.values()))

    def _served(self, policy: str) -> ServedPolicy:
        return served(policy, self._policies)
