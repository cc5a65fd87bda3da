"""An engine without a model: lengths and latencies as of one, weight versions, and faults on demand.

It is for what happens around an engine: scheduling, staleness, aborts, with hundreds of requests in flight and no GPU.
Requests are batched continuously: a step takes `Latency.step_s(requests in flight)` and gives each of them a token; new
requests, aborts and new weights come in between steps. Time is the event loop's: under `rollout.virtual_time.run` hours
pass in seconds, and every run is the same.

A reply's length is drawn from its prompt and seed, whatever the weights are; its text is letters, ended by the first stop
token. Logprobs are as made up as the tokens: there is nothing to learn. `rollout.engines.simulated.server` is the same
thing behind vLLM's routes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from envfarm.errors import InfraError
from rollout.engines.base import Capabilities, Generation
from rollout.engines.checks import check_new, served
from rollout.engines.simulated.batch import Batch
from rollout.engines.simulated.models import Faults, Latency, LengthModel, Lengths
from rollout.engines.simulated.request import Request, request_of, spans_of
from rollout.types import PolicyVersion, SamplingParams


class SimulatedEngine:
    """Serves every policy that `models` names, whatever the model is. `lengths(prompt_ids, params)` says how long a reply
    would get; at most `max_in_flight` requests are in a step, others wait their turn."""

    def __init__(
        self, models: Mapping[str, Any], *, max_in_flight: int = 64, context: int | None = None,
        versions: Mapping[str, PolicyVersion] | None = None, lengths: LengthModel | None = None,
        latency: Latency | None = None, faults: Faults | None = None,
    ):  # fmt: skip
        self.capabilities = Capabilities(token_ids=True, logprobs=True, seeds=True, versions=True, context=context or 0)
        self.lengths, self.latency, self.faults = lengths or Lengths(), latency or Latency(), faults or Faults()
        self.steps, self.tokens, self.aborted, self.deaths, self.updates = 0, 0, 0, 0, 0  # so far
        said = dict(versions or {})
        self._history = {n: [(0, said.get(n) or PolicyVersion(n, checksum="simulated"))] for n in models}
        self.max_in_flight, self._batch = max_in_flight, Batch(max_in_flight)
        self._aborting: list[Request] = []
        self._pauses, self._drains, self._closed = 0, 0, False
        self._alive = asyncio.Event()
        self._changed, self._still = asyncio.Event(), asyncio.Event()  # something to look at; nothing is being computed
        self._driver: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def start(self) -> None:
        if self._driver is None:
            self._driver = asyncio.create_task(self._run())
            self._alive.set()
            self._timers = [asyncio.get_running_loop().call_later(s, self.die) for s in self.faults.deaths_s]

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "", name: str = ""
    ) -> Generation:
        """`name` is what `abort` calls it by."""
        self.version(policy)
        context = self.capabilities.context
        if not prompt_ids or (context and len(prompt_ids) >= context):
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens does not fit a context of {context or 'any length'}")
        await self._up()
        request = request_of(prompt_ids, params, self.lengths(prompt_ids, params), policy, name)
        self._batch.add(request)
        self._changed.set()
        try:
            return await request.future
        finally:
            if request in self._batch:  # called off
                self._drop(request)
                self.aborted += 1

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        self.version(version.policy)
        await self.pause()
        try:
            await self.receive()
            self._history[version.policy].append((self.steps, version))
        finally:
            self.resume()

    async def receive(self) -> None:
        """Weights arrive, or are refused (ValueError)."""
        await self._up()
        number, self.updates = self.updates, self.updates + 1
        if number in self.faults.refused_updates:
            raise ValueError(f"simulated: update {number} is refused")
        await asyncio.sleep(self.latency.update_s + self.faults.slow_updates.get(number, 0.0))
        await self._up()

    async def adopt(self, version: PolicyVersion) -> None:
        """`version` names the weights from the next step on."""
        await self.pause()
        try:
            self._history[version.policy].append((self.steps, version))
        finally:
            self.resume()

    async def add_policy(self, version: PolicyVersion, model: Any) -> None:
        check_new(version.policy, self._history)
        self._history[version.policy] = [(0, version)]

    def version(self, policy: str) -> PolicyVersion:
        return served(policy, self._history)[-1][1]

    @property
    def alive(self) -> bool:
        return self._alive.is_set() and not self._closed

    @property
    def in_flight(self) -> int:
        return len(self._batch)

    async def pause(self) -> None:
        """Compute nothing from the end of this step on, until as many `resume`s. What is in flight stays."""
        self._pauses += 1
        self._changed.set()
        try:
            await self._still.wait()
        except asyncio.CancelledError:
            self.resume()
            raise

    async def drain(self) -> None:
        """Begin nothing more, and wait for what has begun; then `pause`."""
        self._drains += 1
        self._changed.set()
        try:
            while self._batch.running and not self._pauses:
                await self._still.wait()
        finally:
            self._drains -= 1
        await self.pause()

    def resume(self) -> None:
        self._pauses = max(self._pauses - 1, 0)
        self._changed.set()

    def abort(self, names: Sequence[str] | None = None) -> int:
        """End the requests of these names (all by default) with what they have after this step; how many that are."""
        found = [r for r in self._batch if names is None or r.name in names]
        self._aborting += found
        self._changed.set()
        if self._still.is_set():
            self._end_aborted()
        return len(found)

    def die(self) -> None:
        """As after a `kill -9`; somebody watches, and it is up again after `Faults.restart_s`."""
        self._alive.clear()
        self.deaths += 1
        self._fail(InfraError("simulated: the engine died"))
        if math.isfinite(self.faults.restart_s):
            self._timers.append(asyncio.get_running_loop().call_later(self.faults.restart_s, self._alive.set))

    async def close(self) -> None:
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        self._alive.set()  # who waits for it hears that it is closed
        self._fail(InfraError("the engine was closed"))

    async def _up(self) -> None:
        """Raises: InfraError where it does not run, and will not."""
        if not self._closed and self._driver is not None and (self._alive.is_set() or math.isfinite(self.faults.restart_s)):
            await self._alive.wait()
        if self._closed or not self._alive.is_set():
            raise InfraError("simulated: the engine is not running")

    def _fail(self, error: InfraError) -> None:
        for request in self._batch:
            self._drop(request)
            if not request.future.done():
                request.future.set_exception(error)

    # What the driver does.

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            prompts = 0 if self._pauses or self._drains else self._batch.admit(self.steps)
            if self._pauses or not self._batch.running:
                self._still.set()
                await self._changed.wait()
                continue
            self._still.clear()
            if prompts:
                await asyncio.sleep(self.latency.prefill_s * prompts)
            await self._compute()

    async def _compute(self) -> None:
        """Steps until the next reply is complete, or until the end of the step in which something else comes up."""
        end = self._batch.next_end()
        if end is None:
            return  # the last one was called off meanwhile
        loop, busy = asyncio.get_running_loop(), self._batch.running
        step_s, most, began = self.latency.step_s(busy), end - self.steps, loop.time()
        timer = loop.call_at(began + most * step_s, self._changed.set)
        await self._changed.wait()
        timer.cancel()
        done = min(most, math.ceil((loop.time() - began) / step_s - 1e-6))
        if (rest := began + done * step_s - loop.time()) > 0:
            await asyncio.sleep(rest)
        self.steps, self.tokens = self.steps + done, self.tokens + done * busy
        for request in self._batch.ended(self.steps):
            self._settle(request, request.finish)
        self._end_aborted()

    def _end_aborted(self) -> None:
        for request in self._aborting:
            if request in self._batch:
                self._settle(request, "abort")
                self.aborted += 1
        self._aborting.clear()

    def _drop(self, request: Request) -> None:
        self._batch.drop(request)
        self._changed.set()

    def _settle(self, request: Request, finish: Literal["stop", "length", "abort"]) -> None:
        count = len(request.ids) if finish != "abort" else 0 if request.first < 0 else self.steps - request.first
        spans = spans_of(self._history[request.policy], request.first, count)
        self._drop(request)
        if not request.future.done():
            versions = spans if len(spans) > 1 else []
            generation = Generation(request.ids[:count], request.logprobs[:count], finish, spans[0][1], versions)
            request.future.set_result(generation)
