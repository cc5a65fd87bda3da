"""Groups of episodes, many at a time: permits, retries, an error budget, and each episode emitted exactly once.

    async with Rollouts(plan, pool, policies, store) as rollouts:
        groups = await rollouts.run(requests)          # dispatch order; members in order

One permit per episode; a group is admitted whole, in dispatch order, so that short episodes are not favoured. An
infra error is run again, up to a cap, as another attempt; every attempt is recorded. Before an episode is run, the
store is asked for a finished one of the same slot, instance and weights: what a killed run finished is not run again.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import msgspec

from envfarm.errors import RunHaltedError, first_failure
from rollout.engines.base import Probe, SeveralPolicies
from rollout.episode import Terms, has_begun
from rollout.hosts import Here, Host, Pool
from rollout.permits import Lease, Permits
from rollout.plan import GroupRequest, RunPlan, Slot
from rollout.policies import ChatPolicy, EnginePolicy, Policy
from rollout.types import Episode, Group, PolicyVersion, StopReason

MIN_ERRORS_TO_HALT = 8
"""Fewer failed episodes than this never halt a run, whatever their share."""


class Sink(Protocol):
    """What the scheduler needs of a store (`rollout.store.Store`)."""

    def append(self, episode: Episode) -> None: ...
    def find(self, slot: Slot, instance_hash: str, seats: Mapping[str, PolicyVersion] | None) -> Episode | None: ...
    def attempts(self, slot: Slot) -> int: ...


class Rollouts:
    """Plays groups. `policies` may be changed between runs; weights are changed by `publish`."""

    def __init__(self, plan: RunPlan, place: Pool | Host, policies: Mapping[str, Policy], store: Sink | None = None):
        self.plan, self.store = plan, store
        self._host: Host = place if isinstance(place, Host) else Here(place)
        self.policies: dict[str, Policy] = dict(policies)
        self.reused = 0  # episodes that the store already had
        self._permits = Permits(plan.max_in_flight)
        self._finished, self._failed = 0, 0
        self._last_error = ""

    async def __aenter__(self) -> Self:
        for engine in self._engines():
            await engine.start()
        for policy in self.policies.values():
            if isinstance(policy, EnginePolicy) and not policy.version.checksum and isinstance(policy.engine, SeveralPolicies):
                policy.version = policy.engine.version(policy.version.policy)  # a folder that does not say what its weights are
        # What is there when a run starts (modules, specs, a model) stays: spare the collector from walking it again
        # and again, which takes a third of the time where episodes are short.
        gc.freeze()
        return self

    async def __aexit__(self, *_: object) -> None:
        gc.unfreeze()
        for engine in self._engines():
            await engine.close()

    async def publish(self, version: PolicyVersion, state: Any, probe: Probe | None = None) -> None:
        """Serve `version.policy` with new weights, and say so in every episode from now on. `probe` is for engines that
        can be checked by one. Raises: ValueError where the engine refuses them, and goes on with the old ones."""
        policy = self.policies[version.policy]
        assert isinstance(policy, EnginePolicy), f"{version.policy} has no weights"
        asked = {"probe": probe} if probe is not None and policy.engine.capabilities.probes else {}
        await policy.engine.update_weights(version, state, **asked)
        policy.version = version

    async def run(self, requests: Sequence[GroupRequest], progress: Callable[[Episode], None] | None = None) -> list[Group]:
        """All groups, in dispatch order. `progress` is called with each episode as it finishes.

        Raises: RunHaltedError where too many episodes failed.
        """
        return [group async for group in self.stream(requests, progress)]

    async def stream(
        self, requests: Sequence[GroupRequest], progress: Callable[[Episode], None] | None = None
    ) -> AsyncIterator[Group]:
        """Groups in dispatch order, each as soon as it and those before it are complete. Leaving early calls off the rest."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Group]] = [loop.create_future() for _ in requests]
        dispatcher = asyncio.create_task(self._dispatch(requests, futures, progress))
        try:
            for future in futures:
                yield await future
            await dispatcher
        finally:
            dispatcher.cancel()
            await asyncio.gather(dispatcher, return_exceptions=True)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # seen: nobody is coming to await it any more

    async def begin(self, request: GroupRequest) -> asyncio.Task[Group]:
        """Set one group going as soon as there is room for all of it, and return what ends with it. Groups are admitted
        in the order of these calls. Cancelling the task calls the group off.

        Raises: ValueError where a group does not fit; the task raises RunHaltedError.
        """
        lease = await self._permits.admit(request.size)
        task = asyncio.create_task(self._alone(request, lease))
        task.add_done_callback(lease.close)
        return task

    async def _alone(self, request: GroupRequest, lease: Lease) -> Group:
        future: asyncio.Future[Group] = asyncio.get_running_loop().create_future()
        try:
            await self._group(request, future, lease, None)
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        return future.result()

    async def _dispatch(
        self,
        requests: Sequence[GroupRequest],
        futures: Sequence[asyncio.Future[Group]],
        progress: Callable[[Episode], None] | None,
    ) -> None:
        """Admit groups in order. What breaks one is raised where the first group that is missing is awaited."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for request, future in zip(requests, futures, strict=True):
                    lease = await self._permits.admit(request.size)
                    group = tasks.create_task(self._group(request, future, lease, progress))
                    group.add_done_callback(lease.close)  # also of a task that never began
        except BaseExceptionGroup as failures:
            for number, future in enumerate(f for f in futures if not f.done()):
                if number == 0:
                    future.set_exception(first_failure(failures))
                else:
                    future.cancel()

    async def _group(
        self,
        request: GroupRequest,
        future: asyncio.Future[Group],
        lease: Lease,
        progress: Callable[[Episode], None] | None,
    ) -> None:
        if request.size == 1:
            episodes = [await self._member(request, 0, progress)]
        else:
            async with asyncio.TaskGroup() as tasks:
                members = [tasks.create_task(self._member(request, m, progress)) for m in range(request.size)]
                for task in members:
                    task.add_done_callback(lease.give_one)
            episodes = [m.result() for m in members]
        if not future.done():  # else whoever awaited it was called off
            hash_ = request.instance.hash
            future.set_result(Group(id=request.id, env=request.env, instance_hash=hash_, episodes=episodes))

    async def _member(self, request: GroupRequest, member: int, progress: Callable[[Episode], None] | None) -> Episode:
        episode = await self._settle(request, member)
        if progress is not None:
            progress(episode)
        return episode

    async def _settle(self, request: GroupRequest, member: int) -> Episode:
        """One slot's episode: from the store, or played, again after infra errors."""
        slot: Slot = (request.stage, request.step, request.index, member)
        seated = {role: self.policies[name] for role, name in request.seats.items()}
        first = 0
        if self.store is not None:
            versions = None if request.any_version else {r: p.version for r, p in seated.items()}
            known = self.store.find(slot, request.instance.hash, versions)
            if known is not None:
                self.reused += 1
                return known
            first = self.store.attempts(slot)
        for attempt in range(first, first + self.plan.retries + 1):
            episode = await self._attempt(request, member, attempt, seated)
            if episode.stop is not StopReason.INFRA_ERROR:
                break
        self._count(episode)
        return episode

    async def _attempt(self, request: GroupRequest, member: int, attempt: int, seated: Mapping[str, Policy]) -> Episode:
        spec = self.plan.specs[request.env]
        episode = blank_episode(self.plan.run, request, member, attempt, {r: p.version for r, p in seated.items()})
        terms = Terms(
            run_seed=self.plan.seed, seed_key=request.seeded_by, sampling=request.sampling, solved_at=spec.reward.solved_at,
            timeout_s=spec.limits.episode_timeout_s, token_budget=self.plan.token_budget,
        )  # fmt: skip
        try:
            await self._host.play(episode, request.instance, seated, terms)
        finally:
            self._emit(episode)
        return episode

    def _emit(self, episode: Episode) -> None:
        """The one place where an episode leaves: not awaited, so that no cancellation comes in between. One that was called
        off before there was anything to see is as if it had never been asked for."""
        if self.store is not None and (has_begun(episode) or episode.stop is not StopReason.ABORTED):
            self.store.append(episode)

    def _count(self, episode: Episode) -> None:
        """Of a slot's last attempt only: what is made good by another one, after the death of a node say, is no failure."""
        self._finished += 1
        if not episode.ok:
            self._failed += 1
            self._last_error = f"{episode.id}: {episode.stop}: {episode.error}"
            if self._failed >= MIN_ERRORS_TO_HALT and self._failed > self.plan.error_budget * self._finished:
                raise RunHaltedError(
                    f"{self._failed} of {self._finished} episodes failed, more than the error budget of "
                    f"{self.plan.error_budget:.0%}; the last one: {self._last_error}. Finished episodes are stored; "
                    f"mend the cause and start the same command again, or raise `error_budget` in the run file."
                )

    def _engines(self) -> list[Any]:
        found = {id(p.engine): p.engine for p in self.policies.values() if isinstance(p, (EnginePolicy, ChatPolicy))}
        return list(found.values())


def blank_episode(run: str, request: GroupRequest, member: int, attempt: int, seats: Mapping[str, PolicyVersion]) -> Episode:
    """An episode before its first turn. Until it is concluded it reads as aborted."""
    return Episode(
        id=f"{run}/{request.id}/{member}.{attempt}", run=run, stage=request.stage, step=request.step,
        group=f"{run}/{request.id}", index=request.index, member=member, attempt=attempt, env=request.env,
        instance=msgspec.to_builtins(request.instance), instance_hash=request.instance.hash, split=request.split,
        seats=dict(seats), steps=[], stop=StopReason.ABORTED, error="called off",
    )  # fmt: skip
