"""One container as `remote_streams.Streams`. Talks to the engine through its backend, which translates docker-py's errors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from envfarm.backends import remote_side, rootfs
from envfarm.backends.docker_stream import SocketPipe
from envfarm.backends.limits import OURS
from envfarm.backends.owners import BOX
from envfarm.backends.remote_streams import Death, Lost, NoRoom
from envfarm.box import BoxSpec
from envfarm.errors import BoxUnavailableError, InfraError
from envfarm.images.build import how_to_build
from envfarm.images.recipe import BASES, LABEL, base

T = TypeVar("T")
_ROOM = 64  # processes more, for the moment in which an exec needs them
_KILLED, _TERMINATED = 137, 143
_BAD_REQUEST, NOT_FOUND, _CONFLICT = 400, 404, 409


class EngineError(Exception):
    """The engine refused (`status` as in HTTP), or did not answer (0)."""

    def __init__(self, status: int, said: str):
        super().__init__(status, said)
        self.status, self.said = status, said


class Engine(Protocol):
    @property
    def api(self) -> Any:
        """docker-py's `APIClient`."""
        ...

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """A blocking call of it, in a thread. Raises: EngineError."""
        ...

    def leave(self, box: str) -> None:
        """To the reaper: it could not be removed."""
        ...

    current: set[str]
    """Base images that are known to be as their recipe says."""


class AttachedContainer:
    """The streams of a container that runs, whoever made it; `name` as the engine knows it."""

    def __init__(self, engine: Engine, spec: BoxSpec, name: str):
        self._engine, self._spec, self._name = engine, spec, name
        self._main: SocketPipe | None = None

    async def open_main(self) -> SocketPipe:
        """Process 1 says nothing before it is spoken to: nothing of its output was lost."""
        streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        try:
            self._main = _pipe(await self._engine.call(self._engine.api.attach_socket, self._name, streams))
        except EngineError:
            raise Lost from None
        return self._main

    async def open_side(self, *, crowded: bool, silent: bool) -> SocketPipe:
        api, call = self._engine.api, self._engine.call
        try:
            if crowded:
                await call(_limit_processes, api, self._name, self._spec.pids + OURS + _ROOM)
            _, pipe = await self._exec(remote_side.ENTRY)
            if crowded:
                await call(_limit_processes, api, self._name, self._spec.pids + OURS)
            return pipe
        except EngineError as error:
            raise (NoRoom if error.status and await self._runs() else Lost) from None

    async def _exec(self, command: list[str], workdir: str = "/") -> tuple[str, SocketPipe]:
        """A process of the agent's user beside process 1: its name and its streams. Raises: EngineError."""
        api, call, user = self._engine.api, self._engine.call, f"{rootfs.UID}:{rootfs.GID}"
        made = await call(api.exec_create, self._name, command, stdin=True, user=user, workdir=workdir)
        return made["Id"], _pipe(await call(api.exec_start, made["Id"], socket=True))

    async def _runs(self) -> bool:
        try:
            return (await self._state())["Running"]
        except EngineError:
            return False

    async def _state(self) -> dict[str, Any]:
        """Raises: EngineError."""
        return (await self._engine.call(self._engine.api.inspect_container, self._name))["State"]

    async def death(self) -> Death:
        """Of a live process 1 nothing but its own end, a kill from outside or the engine's end closes the streams. The
        kernel lets no process of the agent's kill it; one that writes into its memory makes it end by another signal."""
        try:
            state = await self._state()
        except EngineError as error:
            return without(error)
        if state["Running"]:
            return Death("the connection to its container was lost")
        code = state["ExitCode"]
        if state["OOMKilled"]:
            return Death("out of memory", by_agent=True, limit="memory")
        if code in (_KILLED, _TERMINATED) or state["Error"]:
            return ended_from_outside(state)
        return Death(f"its first process was made to end (exit code {code})", by_agent=True, exit_code=code)

    def disconnect(self) -> None:
        """Idempotent."""
        if self._main is not None:
            self._main.close()


class Container(AttachedContainer):
    """A container of this process's own."""

    def __init__(self, engine: Engine, spec: BoxSpec, configuration: dict[str, Any]):
        """`configuration`: arguments of docker-py's `create_container`."""
        super().__init__(engine, spec, configuration["name"])
        self._configuration = configuration
        self._id: str | None = None
        self._creating: asyncio.Future[dict[str, Any]] | None = None
        self._removed = False

    async def create(self) -> None:
        """Create it and start it. Raises: BoxUnavailableError, InfraError."""
        api, call = self._engine.api, self._engine.call
        try:
            await self._require_current(self._spec.image)
            self._creating = asyncio.ensure_future(call(api.create_container, **self._configuration))
            self._id = (await asyncio.shield(self._creating))["Id"]
            await call(api.start, self._id)
        except EngineError as error:
            if error.status == NOT_FOUND and self._id is None:
                raise BoxUnavailableError(missing(self._spec.image)) from None
            if error.status == _BAD_REQUEST and self._id is None:
                asked = f"cpu {self._spec.cpu:g}, memory {self._spec.memory_bytes}, pids {self._spec.pids}"
                raise BoxUnavailableError(
                    f"the Docker engine cannot make a box that asks for {asked}: {error.said}. Ask for less under `sandbox`"
                ) from None
            raise InfraError(f"the Docker engine could not start a box: {error.said}") from None

    async def _require_current(self, image: str) -> None:
        """One without our label was made by somebody's own recipe. Raises: BoxUnavailableError, EngineError."""
        if image not in BASES or image in self._engine.current:
            return
        labels = (await self._engine.call(self._engine.api.inspect_image, image))["Config"]["Labels"] or {}
        if labels.get(LABEL, base(image).digest) != base(image).digest:
            raise BoxUnavailableError(missing(image))
        self._engine.current.add(image)

    async def remove(self) -> None:
        """What cannot be removed now, as the engine is gone, the reaper removes when it is back."""
        if self._removed:
            return
        self._removed = True
        self.disconnect()
        if self._creating is not None:
            try:
                made = await self._creating  # it cannot be called off
                await self._engine.call(remove, self._engine.api, made["Id"])
            except EngineError as error:
                if error.status not in (NOT_FOUND, _CONFLICT):
                    self._engine.leave(self._configuration["labels"][BOX])


def ended_from_outside(state: dict[str, Any]) -> Death:
    return Death(f"its container was ended from outside (exit code {state['ExitCode']}) {state['Error']}".rstrip())


def without(error: EngineError) -> Death:
    """Of a container that the engine does not tell of."""
    gone = error.status == NOT_FOUND
    return Death("its container was removed" if gone else f"the Docker engine does not answer: {error.said}")


def missing(image: str) -> str:
    if image.startswith("envfarm/"):
        return f"the Docker engine has no image {image!r}, or a stale one: {how_to_build(image, '--engine')}"
    return f"the Docker engine has no image {image!r}: `docker pull` it, or `docker build -t {image}` it"


def remove(api: Any, container: str) -> None:
    """With what is in it."""
    api.remove_container(container, force=True, v=True)


def _pipe(handed_over: Any) -> SocketPipe:
    """A plain socket is duplicated, as what docker-py hands over lives as long as an HTTP response."""
    raw = getattr(handed_over, "_sock", handed_over)
    if type(raw) is not socket.socket:
        return SocketPipe(raw, keep=handed_over)
    own = socket.socket(fileno=os.dup(raw.fileno()))
    handed_over.close()
    return SocketPipe(own)


def _limit_processes(api: Any, container: str | None, pids: int) -> None:
    """docker-py's own `update_container` does not know this limit. A runtime that cannot change it says no: then there is no
    room, and whoever wants to come in sees that."""
    api.post(f"{api.base_url}/v{api.api_version}/containers/{container}/update", json={"PidsLimit": pids}, timeout=60)
