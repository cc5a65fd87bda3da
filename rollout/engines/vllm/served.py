"""One policy on one vLLM: its weights and their label, changes of them under way, and its restarts."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from envfarm.errors import CapabilityError, InfraError
from rollout.engines.base import Adapter, Generation, Probe
from rollout.engines.vllm.adapters import write_adapter
from rollout.engines.vllm.replica import EngineDied, HalfLoaded, Lora, Replica, Reply, UpdateRefused
from rollout.engines.vllm.settings import Settings, shapes
from rollout.engines.vllm.transport import WeightTransport
from rollout.engines.vllm.weights import Weights, check_answer, check_shapes, folder_weights, named
from rollout.types import PolicyVersion, SamplingParams


class ServedPolicy:
    """`make` builds a replica and its transport, not started; it is called again for every restart. `foreign`: the
    replica's weights are whatever they are, until ours are pushed."""

    def __init__(
        self, settings: Settings, version: PolicyVersion, make: Callable[[], tuple[Replica, WeightTransport]], *,
        restarts: int, foreign: bool = False,
    ):  # fmt: skip
        self.settings, self.weights = settings, Weights(version)
        self.context = settings.limit()
        self.vocab = int(settings.config()["vocab_size"])
        self.restarts = restarts  # that are left
        self._make, self._foreign = make, foreign
        self.replica, self._transport = make()
        self._versions: dict[str, PolicyVersion] = {}  # by label
        self._update = asyncio.Lock()
        self._restart: asyncio.Task[None] | None = None
        self._dead = ""
        self._folder: TemporaryDirectory[str] | None = None  # of adapters
        self._numbers = itertools.count(1)
        self._adapters: list[Lora] = []  # that the replica has
        self._in_use: Counter[Lora] = Counter()

    async def start(self) -> None:
        """Raises: UserError, EngineDied."""
        version, state = await asyncio.to_thread(folder_weights, self.settings.folder, self.weights.version)
        self.weights = Weights(version, state if self._foreign else None)
        await self._begin(self.replica, self._transport)

    async def generate(self, prompt: list[int], params: SamplingParams) -> Generation:
        """Raises: EngineDied where vLLM died, or is being started again."""
        if self._restart is not None:
            raise EngineDied("vLLM died and is being started again")
        replica, weights = await self.ready(), self.weights
        if weights.lora is not None:
            self._in_use[weights.lora] += 1
        try:
            reply = await replica.generate(prompt, params, weights.salt, weights.lora)
        except EngineDied as error:
            raise self._lost(replica, error) from error
        finally:
            if weights.lora is not None:
                self._in_use[weights.lora] -= 1
        return self._generation(reply, weights, greedy=params.temperature == 0)

    async def score(self, token_ids: list[int]) -> list[float]:
        replica = await self.ready()
        try:
            return await replica.score(token_ids, self.weights.lora)
        except EngineDied as error:
            raise self._lost(replica, error) from error

    async def update(self, version: PolicyVersion, state: Mapping[str, Any] | Adapter, probe: Probe | None) -> None:
        """Raises: ValueError, with the old weights serving; CapabilityError."""
        async with self._update:
            while True:
                replica, before = await self.ready(), self.weights
                try:
                    if isinstance(state, Adapter):
                        await self._adapt(replica, version, state)
                    else:
                        await self._replace(replica, version, state)
                    if probe is not None:
                        found = await replica.score(probe.token_ids, self.weights.lora)
                        check_answer(probe, found, self.settings.precision())
                except EngineDied as error:  # it is started again with the weights before; then these once more
                    self.weights = before
                    self._lost(replica, error)
                except UpdateRefused as error:
                    half = isinstance(error, HalfLoaded)
                    await self._back_to(before, replica, half=half)
                    raise ValueError(f"{version}: vLLM refused the weights: {error}; {before.version} goes on serving") from error
                else:
                    return

    async def close(self) -> None:
        self._dead = self._dead or "it was closed"
        task, self._restart = self._restart, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.replica.close()
        if self._folder is not None:
            self._folder.cleanup()

    # New weights.

    async def _replace(self, replica: Replica, version: PolicyVersion, state: Mapping[str, Any]) -> None:
        if self.settings.lora_rank:
            raise CapabilityError(f"{version}: this engine was started for adapters and takes no full weights")
        check_shapes(state, shapes(self.settings.folder), self.settings.config().get("tie_word_embeddings", False))
        weights = Weights(named(version, state), state)
        await self._push(replica, self._transport, weights)
        self.weights = weights

    async def _push(self, replica: Replica, transport: WeightTransport, weights: Weights) -> None:
        """What is in flight goes on with these weights, labelled."""
        assert weights.state is not None
        self._versions[weights.label] = weights.version
        await replica.pause()
        try:
            await transport.send(replica, weights.state, weights.version.checksum, weights.label)
        except EngineDied:
            raise
        except BaseException:
            await replica.resume()
            raise
        await replica.resume()

    async def _adapt(self, replica: Replica, version: PolicyVersion, adapter: Adapter) -> None:
        """A new adapter beside the last one: requests in flight end with the one that they began with."""
        if not self.settings.lora_rank:
            raise CapabilityError(f"{version}: this engine was started without room for adapters; publish full weights")
        for old in [a for a in self._adapters if a != self.weights.lora and not self._in_use[a]]:
            await replica.remove_lora(old)
            self._adapters.remove(old)
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="envfarm-adapters-", ignore_cleanup_errors=True)
        number = next(self._numbers)
        folder = await asyncio.to_thread(write_adapter, Path(self._folder.name) / str(number), adapter)
        lora = Lora(number, Weights(version).label, str(folder))
        await replica.add_lora(lora)
        self._adapters.append(lora)
        self.weights = Weights(version, self.weights.state, lora)

    async def _back_to(self, before: Weights, replica: Replica, *, half: bool) -> None:
        """Serve `before` again, whatever a refused update left behind: what was sampled with it is not to be believed."""
        served, self.weights = self.weights, before
        if half:
            self._lost(replica, HalfLoaded("the new weights were loaded by halves"))
            return
        if served is before:
            return  # it was refused before anything was changed
        try:
            await replica.abort_all()
            if served.lora is None:
                await self._push(replica, self._transport, await self._with_state(before))
        except (EngineDied, UpdateRefused) as error:
            self._lost(replica, error)

    async def _with_state(self, weights: Weights) -> Weights:
        if weights.state is not None:
            return weights
        return replace(weights, state=(await asyncio.to_thread(folder_weights, self.settings.folder, weights.version))[1])

    # Death.

    async def _begin(self, replica: Replica, transport: WeightTransport) -> None:
        """Start a replica and make it serve what is to be served. It is closed where that fails."""
        try:
            await replica.start()
            base = replace(self.weights, lora=None)
            if base.state is None:
                self._versions[base.label] = base.version
                await replica.name(base.label)
            else:
                await self._push(replica, transport, base)
            self._adapters = []
            if self.weights.lora is not None:
                await replica.add_lora(self.weights.lora)
                self._adapters.append(self.weights.lora)
        except BaseException:
            await replica.close()
            raise

    async def ready(self) -> Replica:
        """What serves, once it does. Raises: EngineDied where it never will again."""
        if self._restart is not None:
            await asyncio.shield(self._restart)
        if self._dead:
            raise EngineDied(f"vLLM is not running: {self._dead}")
        return self.replica

    def _lost(self, replica: Replica, why: Exception) -> EngineDied:
        """What was in flight has failed; the next replica is on its way."""
        if replica is self.replica and self._restart is None and not self._dead:
            self._restart = asyncio.create_task(self._start_again(str(why)))
        return EngineDied(f"{why}; {self.restarts} restarts are left")

    async def _start_again(self, why: str) -> None:
        await self.replica.close()
        while self.restarts > 0:
            self.restarts -= 1
            replica, transport = self._make()
            try:
                await self._begin(replica, transport)
            except (InfraError, UpdateRefused) as error:
                why = str(error)
                continue
            self.replica, self._transport = replica, transport
            break
        else:
            self._dead = f"{why}; it was started again as often as `engine.restarts` allows"
        self._restart = None

    def _generation(self, reply: Reply, weights: Weights, *, greedy: bool) -> Generation:
        spans = [(start, self._versions[label]) for start, label in reply.spans]
        if weights.lora is not None or not spans:  # an adapter is chosen per request; no token was sampled
            spans = [(0, weights.version)]
        # A greedy token comes from a point mass.
        logprobs = [0.0] * len(reply.logprobs) if greedy else reply.logprobs
        return Generation(
            reply.token_ids, logprobs, reply.finish, spans[0][1], spans if len(spans) > 1 else [],
            cached_tokens=reply.cached_tokens,
        )  # fmt: skip
