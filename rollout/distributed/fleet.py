"""Many replicas behind two faces: a `Host` that plays attempts, and an `Engine` whose weights are everywhere the same.

An attempt goes to the replica that plays its group already, as long as that has room (its members share a prompt, and
so a prefix cache), else to the least busy one. Each replica takes at most its share of `max_in_flight`. What every
replica must have (environments, engine, weights) is an order: carried out by those that are up, and by each that comes
up later before it plays.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray

from envfarm.errors import CapabilityError, InfraError, first_failure
from envfarm.spec import EnvSpec, Instance
from rollout.build import ModelFolder
from rollout.distributed.calls import ReplicaLost
from rollout.distributed.cluster import Cluster
from rollout.distributed.parcels import EngineRecipe, Environments, Job, ModelFiles, Served, read_files, seat_of
from rollout.distributed.slot import Order, Slot
from rollout.engines.base import Capabilities, Generation
from rollout.episode import Terms, fail
from rollout.policies import Policy
from rollout.run import RayEntry
from rollout.run_policies import EngineEntry
from rollout.types import Episode, PolicyVersion, SamplingParams, StopReason

GRACE_S = 180.0
"""Beyond an episode's own wall clock, for a session to be had and closed; then its replica is given up as hanging."""
_NUMBERS = itertools.count()
_EPISODE = msgspec.msgpack.Decoder(Episode)


class Fleet:
    """`workers` (processes with sessions) are those of each replica, or all play on a farm's; `max_in_flight` (episodes) is
    divided among them."""

    def __init__(
        self, entry: RayEntry, specs: Mapping[str, EnvSpec], *, backend: str = "bubblewrap", workers: int = 1,
        max_in_flight: int = 64, farm: str | None = None,
    ):  # fmt: skip
        self.entry, self.room = entry, -(-max_in_flight // entry.workers)
        self._environments = Environments.pack(
            list(specs.values()), backend=backend, workers=workers, max_sessions=max(256, self.room), farm=farm
        )
        self._cluster: Cluster | None = None
        self._orders: dict[str, Order] = {}
        self._serial = 0
        self.slots = [Slot(n, entry, self._orders, self._change) for n in range(entry.workers)]
        self._homes: dict[str, list[Slot]] = {}  # group -> where its members are being played
        self._waiting: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Join the cluster and start every replica.

        Raises: UserError where the cluster is unreachable, has no room, or has another version of this package, and
        where an environment cannot be played there; InfraError where a replica dies at once.
        """
        self._cluster = Cluster.join(self.entry)
        try:
            self._place_order("open", "open", (ray.put(self._environments),))
            async with asyncio.TaskGroup() as tasks:
                for slot in self.slots:
                    tasks.create_task(slot.start())
        except BaseExceptionGroup as failures:
            await self.close()
            raise first_failure(failures) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the replicas, and the cluster where it is ours. Idempotent."""
        await asyncio.gather(*(slot.close() for slot in self.slots))
        self._orders.clear()
        if self._cluster is not None:
            self._cluster.leave()

    async def play(self, episode: Episode, instance: Instance, policies: Mapping[str, Policy], terms: Terms) -> Episode:
        """As `rollout.hosts.Host.play`. Where a replica dies nothing is known of the attempt, and it holds no steps."""
        asked = time.perf_counter()
        seats = {role: seat_of(policy) for role, policy in policies.items()}
        limit = None if terms.timeout_s is None else terms.timeout_s + GRACE_S
        try:
            slot = await self._take(episode.group)
            waited = time.perf_counter() - asked
            try:
                played = _EPISODE.decode(await slot.play(Job(next(_NUMBERS), episode, instance, seats, terms), limit))
            finally:
                self._give(episode.group, slot)
        except InfraError as error:
            fail(episode, StopReason.INFRA_ERROR, error)
            return episode
        for name in Episode.__struct_fields__:
            setattr(episode, name, getattr(played, name))
        episode.timings.queue_s += waited
        return episode

    async def _take(self, group: str) -> Slot:
        """A place in a replica. Raises: InfraError where there will be none."""
        free = await self._those(lambda s: s.busy < self.room)
        homes = [s for s in self._homes.get(group, ()) if s in free]
        slot = homes[0] if homes else min(free, key=lambda s: s.busy)
        slot.busy += 1
        self._homes.setdefault(group, []).append(slot)
        return slot

    def _give(self, group: str, slot: Slot) -> None:
        slot.busy -= 1
        self._homes[group].remove(slot)
        if not self._homes[group]:
            del self._homes[group]
        self._change()

    async def _those(self, fit: Callable[[Slot], bool]) -> list[Slot]:
        """The replicas that are up and fit; waits for one. Raises: InfraError where there will be none."""
        while not (found := [s for s in self.slots if s.up and fit(s)]):
            if all(s.given_up for s in self.slots):
                raise InfraError(f"no replica is left; {self.slots[-1].last_words}")
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await change
        return found

    def _change(self) -> None:
        """Whoever waits looks again, first come first served."""
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    async def order(self, key: str, method: str, *arguments: Any) -> Any:
        """Have every replica do something; a later order of the same key takes its place. Returns one replica's answer.

        Raises: what a replica raises, and the order counts as never given; InfraError where no replica is left.
        """
        before = self._orders.get(key)
        order = self._place_order(key, method, arguments)
        up = [s for s in self.slots if s.up]
        results = await asyncio.gather(*(s.obey(key, order) for s in up), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ReplicaLost):
                if self._orders.get(key) is order:
                    del self._orders[key]
                    self._orders.update({key: before} if before is not None else {})
                raise result
        return (await self._those(lambda _: True))[0].answers[key]

    def _place_order(self, key: str, method: str, arguments: tuple[Any, ...]) -> Order:
        self._serial += 1
        self._orders[key] = Order(self._serial, method, arguments)
        return self._orders[key]

    def engine(
        self, entry: EngineEntry, folders: Mapping[str, ModelFolder], versions: Mapping[str, PolicyVersion] | None = None
    ) -> FleetEngine:
        """One engine in every replica. The folders are read now, and may be changed afterwards."""
        own = entry.model_copy(update={"max_in_flight": min(self.room, entry.max_in_flight)})
        known = {name: v for name, f in folders.items() if (v := f.version(name)) is not None}
        recipe = EngineRecipe(own, tuple(folders), {**known, **(versions or {})})
        return FleetEngine(self, recipe, [read_files(f) for f in folders.values()])

    async def cpu_s(self) -> list[float]:
        """Processor seconds of each replica and its workers so far."""
        return await asyncio.gather(*(s.call("cpu_s", timeout_s=60.0) for s in self.slots))


class FleetEngine:
    """The engines of all replicas, as one: new weights and policies go to each. It is not asked for tokens here; a policy
    that holds it acts in a replica."""

    def __init__(self, fleet: Fleet, recipe: EngineRecipe, models: list[ModelFiles]):
        self._fleet, self._recipe, self._models = fleet, recipe, models
        self._versions = dict(recipe.versions)
        self._started = False
        self.capabilities = Capabilities()  # known once it is started

    async def start(self) -> None:
        """In every replica. Idempotent. Raises: as the engine's `start`."""
        if self._started:
            return
        models, self._models = [ray.put(files) for files in self._models], []
        served: Served = await self._fleet.order("engine", "serve", self._recipe, *models)
        self.capabilities, self._started = served.capabilities, True
        self._versions.update(served.versions)

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        raise CapabilityError("Ray carries episodes, not turns: a policy of a fleet acts where its episode is played")

    async def update_weights(self, version: PolicyVersion, state: Any, **options: Any) -> None:
        """Put the weights into the object store once; every replica reads them from there."""
        from rollout.engines.torch.transport import pack

        weights = ray.put(pack(state))
        await self._fleet.order(f"weights of {version.policy}", "update_weights", version, weights, options)
        self._versions[version.policy] = version

    async def add_policy(self, version: PolicyVersion, model: Any) -> None:
        if version.policy in self._versions:
            raise ValueError(f"the engine has a policy {version.policy!r} already; use update_weights")
        files = ray.put(read_files(ModelFolder.open(Path(model))))
        self.capabilities = await self._fleet.order(f"policy {version.policy}", "add_policy", version, files)
        self._versions[version.policy] = version

    def version(self, policy: str) -> PolicyVersion:
        """Nothing but the name where the engines do not say what they serve."""
        return self._versions.get(policy, PolicyVersion(policy))

    async def close(self) -> None:
        """Nothing: the engines end with their replicas, which belong to the fleet."""
