"""The embedded engine: several policies, one thread, continuous batching.

All arithmetic happens in the engine's own thread; callers await futures, so the event loop stays free. Each turn of
the thread takes in everything that arrived meanwhile (requests, cancellations, new weights), then lets every busy
policy sample one token for each of its requests.

`threads` is how many cores one operation may use (torch's setting for the engine's thread). On models of a few million
weights two cores working on one operation mostly wait for each other, and badly so where the environments need them
too, so the default is 1 there, and on machines with two cores; torch's own count for larger models elsewhere. The
results of our own decoders do not depend on it where the engine says that it is batch-invariant; other models' may.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envfarm.errors import UserError
from rollout.engines.base import Capabilities, Generation
from rollout.engines.checks import check_new, check_prompt, check_scored, served
from rollout.engines.torch.batching import LaneRunner
from rollout.engines.torch.checkpoint import checksum, load_config, load_state, read_config
from rollout.engines.torch.config import ModelConfig, unsupported
from rollout.engines.torch.model import Decoder
from rollout.engines.torch.probe import batch_invariant
from rollout.engines.torch.request import Request, Runner
from rollout.engines.torch.thread import EngineThread
from rollout.types import PolicyVersion, SamplingParams

Model = Decoder | str | Path

CACHE_BYTES, ENOUGH = 4 << 30, 1024
"""Where `context` is not given: as many tokens as this much cache holds for all lanes, but never fewer than enough."""

SMALL = 5_000_000
"""Weights up to which one core computes a step faster than two that share each operation."""

FEW = 2
"""On so few cores one computes models of any size: the others have environments to run and a trainer to serve, and an
operation shared with a core that is busy waits for it."""


class TorchEngine:
    """`models` maps each policy's name to a `Decoder` (its weights are copied) or a model folder.

    `max_in_flight` requests per policy are sampled at once, others wait; conversations keep their place in the cache
    between turns, so it should be at least the number of episodes that run at once. `context` is the longest prompt plus
    reply; the model's own limit unless given, or less where that would take gigabytes. `versions` labels the initial
    weights (default: number 0 with the weights' checksum).
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        threads: int | None = None,
        max_in_flight: int = 64,
        context: int | None = None,
        versions: Mapping[str, PolicyVersion] | None = None,
    ):
        if not models:
            raise UserError("an engine needs at least one policy; `models` is empty")
        if max_in_flight < 1:
            raise UserError(f"engine.max_in_flight is {max_in_flight}; at least 1 was expected")
        self._models, self._versions = dict(models), dict(versions or {})
        self._threads, self._max_in_flight, self._context = threads, max_in_flight, context
        self._runners: dict[str, Runner] = {}
        self._thread = EngineThread(self._step, lambda: any(r.busy() for r in self._runners.values()))
        self.capabilities = Capabilities(token_ids=True, logprobs=True, seeds=True, versions=True)

    async def start(self) -> None:
        """Load the models, measure what can be promised, start the thread. Idempotent."""
        if self._thread.started:
            return
        for policy, model in self._models.items():
            self._runners[policy] = self._build(policy, model)
        self._declare()
        self._thread.start(self._cores(max(r.weight_count for r in self._runners.values())))

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        runner = self._runner(policy)
        check_prompt(prompt_ids, params, context=runner.context, vocab=runner.vocab)
        request = Request(np.array(prompt_ids, dtype=np.int64), params, session, self._thread.promise())
        self._thread.post(lambda: runner.submit(request))
        try:
            return await request.future
        except asyncio.CancelledError:
            self._thread.post(lambda: runner.cancel(request))
            raise

    async def score(self, token_ids: list[int], *, policy: str) -> list[float]:
        """Teacher-forced logprobs of `token_ids[1:]` at temperature 1 under `policy`'s current weights.

        Raises: ValueError where they do not fit the context.
        """
        runner = self._runner(policy)
        check_scored(token_ids, most=runner.context, vocab=runner.vocab)
        return await self._thread.call(lambda: runner.score(token_ids))

    async def update_weights(self, version: PolicyVersion, state: Mapping[str, Tensor]) -> None:
        """Serve `version.policy` with `state` (a state dict; copied before this returns) from the next token on.

        Raises: ValueError where names or shapes do not fit, or the weights are not those that the version names.
        """
        runner = self._runner(version.policy)

        def update() -> None:
            _verify(version, state)
            runner.update(version, state)

        await self._thread.call(update)

    async def add_policy(self, version: PolicyVersion, model: Model) -> None:
        """Serve one more policy (an older version of the learner, say). Raises: ValueError where its name is taken."""
        check_new(version.policy, self._runners)
        self._versions[version.policy] = version
        runner = self._build(version.policy, model)
        await self._thread.call(lambda: self._runners.__setitem__(version.policy, runner))
        self._declare()

    def version(self, policy: str) -> PolicyVersion:
        """What `policy` is served with now."""
        return self._runner(policy).version

    async def close(self) -> None:
        await self._thread.close()
        self._runners.clear()

    def _declare(self) -> None:
        """What can be promised of all policies together."""
        self.capabilities = replace(
            self.capabilities,
            batch_invariant=all(r.batch_invariant for r in self._runners.values()),
            context=min(r.context for r in self._runners.values()),
        )

    def _build(self, policy: str, model: Model) -> Runner:
        if isinstance(model, Decoder):
            config, state = model.config, model.state_dict()
        elif unsupported(read_config(model)):
            from rollout.engines.torch.hf import HFRunner

            return HFRunner(Path(model), policy, self._versions.get(policy), self._max_in_flight, self._context)
        else:
            config, state = load_config(model), load_state(model)
        version = self._versions.get(policy) or PolicyVersion(policy=policy, checksum=checksum(state))
        try:
            _verify(version, state)
        except ValueError as e:
            raise UserError(f"policy {policy!r}, {model if not isinstance(model, Decoder) else 'decoder'}: {e}") from None
        context = self._limit(policy, config)
        with torch.inference_mode():
            runner = LaneRunner(config, state, version, lanes=self._max_in_flight, context=context)
            with _threads(self._cores(runner.weight_count)):
                runner.batch_invariant = batch_invariant(config, runner.weights)
        return runner

    def _cores(self, weights: int) -> int:
        """How many cores one operation on so many weights may use."""
        most = torch.get_num_threads()
        return self._threads or (1 if weights <= SMALL or most <= FEW else most)

    def _limit(self, policy: str, config: ModelConfig) -> int:
        """Longest prompt plus reply. Raises: UserError where more is asked for than the model knows positions."""
        if self._context is None:
            token = 8 * config.layers * config.kv_heads * config.head_dim  # bytes of keys and values
            return min(config.max_len, max(ENOUGH, CACHE_BYTES // (token * self._max_in_flight)))
        if self._context > config.max_len:
            raise UserError(
                f"engine.context is {self._context}, but the model of policy {policy!r} reads at most {config.max_len} tokens; "
                "leave `context` out, or give at most that"
            )
        return self._context

    def _runner(self, policy: str) -> Runner:
        self._thread.check()
        return served(policy, self._runners)

    def _step(self) -> list[tuple[Request, Generation]]:
        """One token for each request of every busy policy; those that are finished."""
        return [item for r in list(self._runners.values()) if r.busy() for item in r.step()]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _verify(version: PolicyVersion, state: Mapping[str, Tensor]) -> None:
    """Raises: ValueError where the version names other weights. One without a checksum names none."""
    if version.checksum and version.checksum != (found := checksum(state)):
        raise ValueError(f"the weights have checksum {found[:12]}, but {version} is {version.checksum[:12]}")
