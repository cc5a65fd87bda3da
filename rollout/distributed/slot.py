"""One replica as the driver sees it: an actor, started again when it dies, and told everything that it missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

import envfarm
from envfarm.errors import EnvfarmError, InfraError, UserError
from rollout.distributed.calls import ReplicaLost, ask
from rollout.distributed.cluster import Cluster
from rollout.distributed.parcels import Finished, Greeting, Job
from rollout.distributed.replica import Replica
from rollout.run import RayEntry

ORDER_TIMEOUT_S = 600.0
"""For an engine to start, and for new weights to arrive."""
CLOSE_TIMEOUT_S = 20.0
MAX_FAILED_STARTS = 5
"""In a row, with growing pauses: a node that died is taken for alive for some 15 s. Then a slot stays empty."""
BUSIEST = 10_000
"""Calls at a time; how many there really are is the fleet's business."""


@dataclass(frozen=True)
class Order:
    """Something that every replica must have done, also one that is started later."""

    serial: int
    method: str
    arguments: tuple[Any, ...]


class Slot:
    """`orders` is the fleet's list; `changed` is called when a replica comes up or a slot is given up."""

    def __init__(self, number: int, entry: RayEntry, orders: Mapping[str, Order], changed: Callable[[], None]):
        self.number, self.busy, self.played = number, 0, 0  # attempts in flight; attempts that it returned
        self.given_up, self.last_words = False, ""
        self.greeting: Greeting | None = None
        self.answers: dict[str, Any] = {}  # to orders, by their keys
        self._entry, self._orders, self._changed = entry, orders, changed
        self._actor: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: list[Job] = []
        self._playing: dict[int, asyncio.Future[bytes]] = {}  # by number

    @property
    def up(self) -> bool:
        return self._actor is not None

    async def start(self) -> None:
        """Again where the actor dies at once: on a node, perhaps, that Ray takes for alive.

        Raises: UserError where no replica can be had, InfraError where each of them died.
        """
        await self._try((ReplicaLost,))
        if not self.up:
            raise InfraError(self.last_words)

    async def _try(self, passing: tuple[type[Exception], ...]) -> None:
        """Several times, as long as errors are `passing`; what the last one said is in `last_words`."""
        for failures in range(MAX_FAILED_STARTS):
            await asyncio.sleep(2**failures - 1)
            try:
                return await self._launch()
            except passing as error:
                self.last_words = self._told(f"cannot be started: {error}")

    async def _launch(self) -> None:
        """Raises: UserError, ReplicaLost, what an order raises."""
        entry = self._entry
        actor = (
            ray.remote(Replica)
            .options(
                num_cpus=entry.cpus, num_gpus=entry.gpus, resources=entry.resources or None, scheduling_strategy="SPREAD",
                max_restarts=0, max_task_retries=0, max_concurrency=BUSIEST,
                runtime_env={"env_vars": dict(entry.env)} if entry.env else None,
            )
            .remote()
        )  # fmt: skip
        try:
            self.greeting = await self._greet(actor)
            done: dict[str, int] = {}
            while missing := [(k, o) for k, o in self._orders.items() if done.get(k) != o.serial]:
                for key, order in missing:
                    self.answers[key] = await ask(actor, order.method, order.arguments, ORDER_TIMEOUT_S)
                    done[key] = order.serial
        except TimeoutError:
            ray.kill(actor)
            raise InfraError(self._told(f"did not finish `{order.method}` within {ORDER_TIMEOUT_S} s")) from None
        except BaseException:
            ray.kill(actor)
            raise
        self._actor = actor
        self._run(self._collect(actor))
        self._changed()

    async def _greet(self, actor: Any) -> Greeting:
        """Raises: UserError where the actor finds no place, or has another version of this package."""
        try:
            greeting = await ask(actor, "hello", (), self._entry.start_timeout_s)
        except TimeoutError:
            raise UserError(
                f"ray: replica {self.number + 1} of {self._entry.workers} found no place within "
                f"{self._entry.start_timeout_s:g} s: it asks for {self._entry.asks()}, and the cluster has {Cluster.room()}. "
                "Ask for fewer `workers` or less for each, or add nodes"
            ) from None
        except ReplicaLost as error:
            if "ModuleNotFoundError" in str(error):
                raise UserError(f"ray: a node cannot import this package; install the same envfarm there ({error})") from error
            raise
        if greeting.envfarm != envfarm.__version__:
            raise UserError(
                f"ray: node {greeting.host} has envfarm {greeting.envfarm}, this process {envfarm.__version__}; "
                f"install the same there: pip install envfarm=={envfarm.__version__}"
            )
        return greeting

    async def obey(self, key: str, order: Order) -> None:
        """Carry out a new order now. Raises: ReplicaLost, in which case the next replica will; what the replica raises."""
        self.answers[key] = await self.call(order.method, *order.arguments, timeout_s=ORDER_TIMEOUT_S)

    async def call(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        """Raises: ReplicaLost, after which another replica is on its way; what the replica raises."""
        actor = self._actor
        if actor is None:
            raise ReplicaLost(self._told("is being started again"))
        try:
            return await ask(actor, method, arguments, timeout_s)
        except TimeoutError:
            self._lose(actor, f"did not finish `{method}` within {timeout_s} s")
        except ReplicaLost as error:
            self._lose(actor, str(error))
        raise ReplicaLost(self.last_words)

    async def play(self, job: Job, timeout_s: float | None) -> bytes:
        """The attempt's episode. Jobs of one turn of the loop travel together, and so do episodes that end together: Ray's
        calls cost more than a short episode. Raises: ReplicaLost, what playing it raised."""
        future = self._playing[job.number] = asyncio.get_running_loop().create_future()
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(job)
        try:
            async with asyncio.timeout(timeout_s):
                episode = await future
        except TimeoutError:
            self._lose(self._actor, f"did not finish an episode within {timeout_s} s")
            raise ReplicaLost(self.last_words) from None
        except asyncio.CancelledError:
            if self._actor is not None:
                self._actor.call_off.remote(job.number)
            raise
        finally:
            del self._playing[job.number]
        self.played += 1
        return episode

    def _flush(self) -> None:
        jobs, self._outbox = [job for job in self._outbox if job.number in self._playing], []
        if self._actor is None:
            self._fail(ReplicaLost(self._told("is being started again")), [job.number for job in jobs])
        elif jobs:
            self._run(self._submit(self._actor, jobs))

    async def _submit(self, actor: Any, jobs: list[Job]) -> None:
        try:
            await ask(actor, "submit", (jobs,), ORDER_TIMEOUT_S)
        except (ReplicaLost, TimeoutError) as error:
            self._lose(actor, str(error))
        except Exception as error:  # the boundary: whoever awaits these jobs hears of it
            self._fail(error, [job.number for job in jobs])

    async def _collect(self, actor: Any) -> None:
        """Hand out what ends, for as long as that actor lives."""
        while actor is self._actor:
            try:
                finished: list[Finished] = await ask(actor, "collect", (), None)
            except ReplicaLost as error:
                return self._lose(actor, str(error))
            for number, result in finished:
                if isinstance(result, Exception):
                    self._fail(result, [number])
                elif (future := self._playing.get(number)) is not None and not future.done():
                    future.set_result(result)

    def _fail(self, error: Exception, numbers: Sequence[int]) -> None:
        for future in [self._playing[n] for n in numbers if n in self._playing]:  # the others were called off
            if not future.done():
                future.set_exception(error)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lose(self, actor: Any, why: str) -> None:
        """Have another one made; only once, whoever of its callers is first to notice."""
        if actor is self._actor:
            self._actor, self.last_words = None, self._told(why)
            ray.kill(actor)  # one that only seems dead must not go on
            self._fail(ReplicaLost(self.last_words), list(self._playing))
            self._run(self._revive())

    async def _revive(self) -> None:
        await self._try((EnvfarmError,))
        if not self.up:
            self.given_up = True
            self._changed()

    def _told(self, what: str) -> str:
        where = f" on {self.greeting.host} (process {self.greeting.pid})" if self.greeting is not None else ""
        return f"replica {self.number + 1}{where} {what}"

    async def close(self) -> None:
        """End the actor and all that it started. Idempotent."""
        actor, self._actor = self._actor, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if actor is not None:
            with suppress(TimeoutError, ReplicaLost):  # its workers end with it in any case, and clean up
                await ask(actor, "close", (), CLOSE_TIMEOUT_S)
            ray.kill(actor)
