"""`FarmPool`: sessions in a farm's workers, for a rollout. The interface of `envfarm.worker.pool.WorkerPool`.

    pool = FarmPool([spec], "lab")           # or the URL of the farm's keeper
    await pool.start()
    session = await pool.session(spec.id)    # as with any pool
    await pool.close()                       # the farm stays

Which workers there are the keeper tells, and again whenever that changes; sessions go to the workers themselves. An environment
that a worker does not have in just this version is brought to it as a bundle.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from envfarm.bundle import Bundle, bundle
from envfarm.errors import EnvfarmError, InfraError, MissingDependencyError, UnknownIdError, UserError, did_you_mean
from envfarm.farm.client import KeeperClient, KeeperLost
from envfarm.farm.file import FarmFile
from envfarm.farm.places import WorkerInfo
from envfarm.farm.status import Roster
from envfarm.spec import EnvSpec
from envfarm.worker import protocol
from envfarm.worker.address import Address
from envfarm.worker.client import AsyncSession, Channel, WorkerConnection
from envfarm.worker.line import Line
from envfarm.worker.protocol import Bring

MAX_BRING_BYTES = protocol.MAX_MESSAGE_BYTES - (1 << 20)
WORKER_WAIT_S = 90.0
"""How long a session waits for a worker to come up."""
_AGAIN_S = 0.5


@dataclass
class Worker:
    """One of the farm's, as this run sees it."""

    info: WorkerInfo
    line: Line
    leased: int = 0
    """Sessions of this run."""
    broken: bool = False
    """It did not answer, or is not ready; until the keeper says something new about it."""


class FarmPool:
    """`farm`: the name of one that is up on this machine, or its keeper's URL."""

    def __init__(self, specs: Sequence[EnvSpec], farm: str):
        self.specs = {spec.id: spec for spec in specs}
        self._named = farm
        self._farm: FarmFile | None = None
        self._client: KeeperClient | None = None
        self._workers: dict[str, Worker] = {}
        self._bundles: dict[str, Bundle] = {}
        self._news = asyncio.Condition()
        self._following: asyncio.Task[None] | None = None
        self._trouble = ""

    async def start(self) -> None:
        """Raises: UserError where no such farm is up, its token is wrong, or it does not serve an environment."""
        self._client = KeeperClient.of(self._named)
        try:
            roster = await self._client.workers()
            self._farm = FarmFile.model_validate(roster.file)
            for spec in self.specs.values():
                self._farm.pool_of(spec.id)
            self._update(roster)
        except BaseException as error:
            await self._client.close()
            if isinstance(error, KeeperLost):
                raise UserError(f"{error}. Is the farm up? `envfarm farm status {self._named}`") from None
            raise
        self._following = asyncio.create_task(self._follow(roster.version))

    async def close(self) -> None:
        """Leave the farm, and every session with it. Idempotent."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            self._following = None
        for worker in self._workers.values():
            worker.line.close()
        self._workers = {}
        if self._client is not None:
            await self._client.close()

    # --- which workers there are -------------------------------------------------------------------------------------

    async def _follow(self, version: int) -> None:
        """Hear of every change, from a keeper of that name that is brought up again too."""
        while True:
            assert self._client is not None
            try:
                roster = await self._client.workers(after=version)
                version, self._trouble = roster.version, ""
                self._update(roster)
            except EnvfarmError as error:
                self._trouble, version = str(error), -1  # a keeper that starts anew counts anew
                await asyncio.sleep(_AGAIN_S)
                with suppress(UserError):
                    found = KeeperClient.of(self._named)
                    if (found.url, found.token) != (self._client.url, self._client.token):
                        await self._client.close()
                        self._client = found
            async with self._news:
                self._news.notify_all()

    def _update(self, roster: Roster) -> None:
        """A worker that is only not ready, which a busy node's is for a while, keeps its sessions and gets no more."""
        told = {info.name: info for info in roster.workers}
        for name, worker in list(self._workers.items()):
            if name not in told or told[name].address not in ("", worker.info.address):
                worker.line.close()
                del self._workers[name]
        for name, info in told.items():
            if info.up and name not in self._workers:
                self._workers[name] = Worker(info, self._line(info))
            if name in self._workers:
                self._workers[name].broken = not info.up

    def _line(self, info: WorkerInfo) -> Line:
        assert self._client is not None
        address = Address.of(f"http://{info.address}", self._client.token)

        async def greet(connection: WorkerConnection) -> None:
            await self._bring(info.pool, connection)

        return Line(address, lambda: f"worker {info.name} of farm {self._named} at {info.address} died", greet)

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def session(self, env_id: str) -> AsyncSession:
        """A session in this run's least busy worker. Raises: UnknownIdError, InfraError, UserError where an environment cannot
        be played there."""
        if env_id not in self.specs:
            raise UnknownIdError(f"this pool does not serve {env_id!r}{did_you_mean(env_id, self.specs)}")
        assert self._farm is not None, "the pool was not started"
        worker, channel = await self._channel(self._farm.pool_of(env_id))

        def closed() -> None:
            worker.leased -= 1

        return AsyncSession(self.specs[env_id], channel, closed)

    async def _channel(self, pool: int) -> tuple[Worker, Channel]:
        """A worker that turns out to be dead is passed over: nothing was asked of it yet."""
        until = asyncio.get_running_loop().time() + WORKER_WAIT_S
        while True:
            worker = await self._least_busy(pool, until)
            worker.leased += 1
            try:
                return worker, (await worker.line.connection()).open()
            except InfraError:
                worker.leased -= 1
                worker.broken = True
            except BaseException:
                worker.leased -= 1
                raise

    async def _least_busy(self, pool: int, until: float) -> Worker:
        """Raises: InfraError where there is none by then."""

        def up() -> list[Worker]:
            return [w for w in self._workers.values() if w.info.pool == pool and not w.broken]

        try:
            async with asyncio.timeout_at(until), self._news:
                await self._news.wait_for(up)
        except TimeoutError:
            why = self._trouble or f"see `envfarm farm status {self._named}`"
            raise InfraError(f"pool {pool} of farm {self._named} has had no worker for {WORKER_WAIT_S:.0f} s: {why}") from None
        return min(up(), key=lambda w: w.leased)

    # --- environments that workers do not have ------------------------------------------------------------------------

    async def _bring(self, pool: int, connection: WorkerConnection) -> None:
        """Have a worker serve this run's environments of its pool. Raises: UserError, InfraError."""
        assert self._farm is not None
        channel = connection.open()
        try:
            for spec in self.specs.values():
                if self._farm.pool_of(spec.id) != pool:
                    continue
                if not protocol.as_words(await channel.ask(Bring(spec.hash))):
                    protocol.as_words(await channel.ask(Bring(spec.hash, self._bundle(spec))))
        except MissingDependencyError as error:
            unpacked = rf"\S*/{self._bundle(spec).digest}\b"  # where the worker has it
            said = re.sub(unpacked, lambda _: str(spec.folder), str(error))
            raise MissingDependencyError(
                f"a worker of farm {self._named} cannot play {spec.id}: {said}. {self._mend(spec)}"
            ) from None
        finally:
            channel.close()

    def _bundle(self, spec: EnvSpec) -> Bundle:
        if spec.hash not in self._bundles:
            made = bundle(spec)
            if len(made.data) > MAX_BRING_BYTES:
                raise UserError(
                    f"{spec.id}: its folder is of {len(made.data) >> 20} MiB, and at most {MAX_BRING_BYTES >> 20} MiB are "
                    "brought to a farm's workers: install it beside them"
                )
            self._bundles[spec.hash] = made
        return self._bundles[spec.hash]

    def _mend(self, spec: EnvSpec) -> str:
        assert self._farm is not None
        docker = self._farm.target.docker
        if not self._farm.in_cluster and (docker is None or docker.workers == "process"):
            return "Workers are processes beside the keeper: install it there, then bring the farm up again"
        wanted = " ".join(f"--install {requirement!r}" for requirement in spec.requires)
        what = "pods" if self._farm.in_cluster else "containers"
        command = f"envfarm image build --worker --engine {wanted}"
        return f"For workers in {what} that is `{command}`, and the farm brought up with that image"
