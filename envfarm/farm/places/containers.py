"""Workers as containers of a Docker engine, from the worker image.

A worker speaks to the engine itself, to use the boxes that it leases: it has the engine's socket, which is as much as root there.
So it is trusted like the keeper, which is why no agent's code ever runs in it. It uses the host's network, as keeper and runs do.
The containers carry the keeper's owner label: when that is gone a reaper removes them, as it does boxes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from envfarm.backends import docker, owners
from envfarm.backends.docker_container import NOT_FOUND, EngineError, remove
from envfarm.errors import BoxUnavailableError, EnvfarmError, InfraError
from envfarm.farm import FARM_LABEL, POOL_LABEL, ROLE_LABEL, TOKEN_VARIABLE
from envfarm.farm.places import WorkerInfo
from envfarm.worker.child import MAX_FAILED_STARTS

START_TIMEOUT_S = 120.0
_LOOK_S = 1.0
_SOCKET = "/run/engine.sock"
_TMP_BYTES = 2 << 30


@dataclass
class Slot:
    pool: int
    number: int
    started: asyncio.Future[None]
    """Of the first time."""
    address: str = ""
    said: str = "is being started"
    container: str = ""
    keeping: asyncio.Task[None] | None = field(default=None, repr=False)


class Containers:
    """`patterns`: of the environments of each pool; `variables`: of the environment of a pool's workers, by its number."""

    def __init__(
        self, farm: str, image: str, patterns: Sequence[list[str]], counts: Sequence[int], *, token: str,
        variables: Callable[[int], Mapping[str, str]], changed: Callable[[], None],
    ):  # fmt: skip
        self._farm, self._image, self._patterns, self._counts = farm, image, patterns, list(counts)
        self._token, self._variables, self._changed = token, variables, changed
        self._slots: list[list[Slot]] = [[] for _ in patterns]
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="containers")
        self._reaper = owners.Reaper(docker.__name__)
        self._prefix = secrets.token_hex(4)
        self._api: Any = None

    async def start(self) -> None:
        self._api = await self._in_thread(docker.connect)
        self._reaper.start()
        await asyncio.gather(*(self.scale(pool, count) for pool, count in enumerate(self._counts)))

    async def scale(self, pool: int, workers: int) -> None:
        there = self._slots[pool]
        spare = there[workers:]
        del there[workers:]
        fresh = [Slot(pool, n, asyncio.get_running_loop().create_future()) for n in range(len(there), workers)]
        there.extend(fresh)
        for slot in fresh:
            slot.keeping = asyncio.create_task(self._keep(slot))
        try:
            await asyncio.gather(*(slot.started for slot in fresh), *(self._stop(slot) for slot in spare))
        except BaseException:
            await asyncio.gather(*(self._stop(slot) for slot in fresh))
            self._slots[pool] = [slot for slot in there if slot not in fresh]
            raise
        finally:
            self._changed()

    def workers(self) -> list[WorkerInfo]:
        return [
            WorkerInfo(f"{slot.pool}-{slot.number}", slot.pool, bool(slot.address), slot.address, slot.said)
            for slots in self._slots
            for slot in slots
        ]

    async def close(self) -> None:
        slots = [slot for pool in self._slots for slot in pool]
        self._slots = [[] for _ in self._patterns]
        await asyncio.gather(*(self._stop(slot) for slot in slots))
        if self._api is not None:
            self._api.close()
            self._api = None
        self._reaper.end(work_left=False)
        self._threads.shutdown(wait=False)

    # --- one worker -----------------------------------------------------------------------------------------------------

    async def _keep(self, slot: Slot) -> None:
        """Start it, and again whenever it ends, until this is cancelled."""
        failures = 0
        while failures < MAX_FAILED_STARTS:
            try:
                await self._run(slot)
                failures = 0
            except EnvfarmError as error:
                failures += 1
                slot.said = str(error)
                if not slot.started.done():
                    slot.started.set_exception(error)
                    return
            finally:
                slot.address = ""
                await asyncio.shield(self._remove(slot))
                self._changed()
        slot.said = f"given up: {slot.said}"

    async def _run(self, slot: Slot) -> None:
        """Returns when one that was up has ended. Raises: BoxUnavailableError, InfraError."""
        try:
            await self._create(slot)
            await self._call(self._api.start, slot.container)
            slot.address = await self._ready(slot)
            slot.said = ""
            if not slot.started.done():
                slot.started.set_result(None)
            self._changed()
            while await self._runs(slot):
                await asyncio.sleep(_LOOK_S)
            slot.said = f"died: {await self._last_words(slot)}"
        except EngineError as error:
            if error.status == NOT_FOUND and not slot.container:
                raise BoxUnavailableError(
                    f"the Docker engine has no image {self._image!r} for the farm's workers: run `envfarm image build --worker "
                    "--engine`, or have workers as processes of this machine (`target: {docker: {workers: process}}`)"
                ) from None
            raise InfraError(f"the Docker engine could not run a worker: {error.said}") from None

    async def _create(self, slot: Slot) -> None:
        creating = asyncio.ensure_future(self._call(self._api.create_container, **self._configuration(slot)))
        try:
            slot.container = (await asyncio.shield(creating))["Id"]
        except asyncio.CancelledError:  # it cannot be called off, and what comes of it is to be removed
            await asyncio.wait([creating])
            if creating.exception() is None:
                slot.container = creating.result()["Id"]
            raise

    async def _ready(self, slot: Slot) -> str:
        """Its address. Raises: InfraError, EngineError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + START_TIMEOUT_S
        while loop.time() < until:
            said = await self._call(self._api.logs, slot.container, stdout=True, stderr=False)
            for line in said.splitlines():
                with suppress(msgspec.DecodeError, KeyError, TypeError):
                    return msgspec.json.decode(line)["ready"].removeprefix("http://")
            if not await self._runs(slot):
                raise InfraError(f"a worker did not start; {await self._last_words(slot)}")
            await asyncio.sleep(_LOOK_S / 4)
        raise InfraError(f"a worker did not start within {START_TIMEOUT_S:.0f} s; {await self._last_words(slot)}")

    async def _runs(self, slot: Slot) -> bool:
        try:
            return (await self._call(self._api.inspect_container, slot.container))["State"]["Running"]
        except EngineError as error:
            if error.status == NOT_FOUND:
                return False
            raise

    async def _last_words(self, slot: Slot) -> str:
        try:
            said = await self._call(self._api.logs, slot.container, stdout=False, stderr=True, tail=20)
        except EngineError as error:
            return error.said
        return f"its log ends with: {said.decode('utf-8', 'replace')[-2000:].strip()}"

    async def _remove(self, slot: Slot) -> None:
        container, slot.container = slot.container, ""
        if container:
            with suppress(EngineError):  # else the reaper's
                await self._call(remove, self._api, container)

    async def _stop(self, slot: Slot) -> None:
        assert slot.keeping is not None
        slot.keeping.cancel()
        await asyncio.wait([slot.keeping])

    def _configuration(self, slot: Slot) -> dict[str, Any]:
        """Arguments of docker-py's `create_container`."""
        name = f"worker-{self._prefix}-{slot.pool}-{slot.number}-{secrets.token_hex(2)}"
        engine, mounts, groups = _engine()
        patterns = [word for pattern in self._patterns[slot.pool] for word in ("--env", pattern)]
        return {
            "name": name,
            "image": self._image,
            "command": [*patterns, "--host", "127.0.0.1", "--bundles", "/tmp/bundles", "--backend", "farm"],
            "environment": {TOKEN_VARIABLE: self._token, **engine, **self._variables(slot.pool)},
            "labels": {
                owners.BOX: name, owners.OWNER: owners.owner_label(), FARM_LABEL: self._farm, ROLE_LABEL: "worker",
                POOL_LABEL: str(slot.pool),
            },
            "host_config": {
                "NetworkMode": "host",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "ReadonlyRootfs": True,
                "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={_TMP_BYTES},mode=1777"},
                "Binds": mounts,
                "GroupAdd": groups,
            },
        }  # fmt: skip

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """docker-py blocks. Raises: EngineError."""
        return await self._in_thread(docker.ask, function, *args, **kwargs)

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))


def _engine() -> tuple[dict[str, str], list[str], list[str]]:
    """How a container reaches the engine that this process uses: variables, mounts, groups that may use the socket."""
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not where.startswith("unix://"):
        return {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}, [], []
    path = where.removeprefix("unix://")
    return {"DOCKER_HOST": f"unix://{_SOCKET}"}, [f"{path}:{_SOCKET}"], [str(os.stat(path).st_gid)]
