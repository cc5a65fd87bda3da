"""Boxes as containers of a Docker engine, near or far: the only importer of docker-py.

A container is passive: its process 1 is a shell of the image with `remote_loop`'s text, reached over attach; a second shell is
an exec. So `network none` is really none, and an engine on another machine works like this one's. It has no capabilities and no
way to new privileges, a read-only root, memory without swap, pids and CPU limits, and tmpfs where it may write.

Nothing outlives its owner: see `owners`.

Where the engine is: DOCKER_HOST (with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH), else the default socket.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from envfarm.backends import docker_gvisor, owners
from envfarm.backends.docker_config import RUNSC, configuration, enforcement
from envfarm.backends.docker_container import NOT_FOUND, AttachedContainer, Container, EngineError, remove
from envfarm.backends.docker_gvisor import AttachedGvisor, GvisorContainer
from envfarm.backends.remote_backend import RemoteBackend
from envfarm.box import BoxSpec
from envfarm.errors import BoxUnavailableError, InfraError, MissingDependencyError

T = TypeVar("T")
_CALLS_AT_ONCE = 16
PATIENCE_S = 60.0
"""How long a new box waits for an engine that answered before."""
_AGAIN_S = 0.5


def connect(timeout_s: float = 120.0) -> Any:
    """A docker-py `APIClient` of the engine that the environment names. Raises: MissingDependencyError, BoxUnavailableError."""
    try:
        import docker
    except ModuleNotFoundError:
        raise MissingDependencyError("the backend 'docker' needs docker-py: pip install 'envfarm[docker]'") from None
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if where.startswith("ssh://"):
        tunnel = "ssh -nNT -L /tmp/engine.sock:/var/run/docker.sock HOST"
        raise BoxUnavailableError(
            f"DOCKER_HOST={where}: forward the socket with `{tunnel}` and set DOCKER_HOST=unix:///tmp/engine.sock"
        )
    try:
        return docker.from_env(version="auto", timeout=timeout_s, max_pool_size=_CALLS_AT_ONCE).api
    except docker.errors.DockerException as error:
        if "Permission denied" in str(error):
            raise BoxUnavailableError(
                f"this user may not use the Docker engine at {where}. As root: usermod -aG docker USER, then log in again"
            ) from None
        raise BoxUnavailableError(
            f"no Docker engine answers at {where}. Start it (`systemctl start docker`), or set DOCKER_HOST to one that runs. "
            f"Said: {error}"
        ) from None


def ask(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """A call of docker-py, whose errors stay here. Raises: EngineError."""
    import docker

    try:
        return function(*args, **kwargs)
    except docker.errors.APIError as error:
        raise EngineError(error.status_code or 500, str(error.explanation or error)) from None
    except (docker.errors.DockerException, OSError) as error:
        raise EngineError(0, str(error)) from None


def remove_left_over(owner: str | None, names: Set[str] = frozenset(), timeout_s: float = 10.0) -> int:
    """Remove the boxes `names`, those of `owner`, of every owner that is gone, and those past their deadline. For the reaper.

    Returns how many it found; -1 where the engine does not answer. One that cannot be removed (a runtime that hangs) does not
    keep the others: it is found again the next time.
    """
    import docker

    count = 0
    try:
        api = connect(timeout_s)
        found = api.containers(all=True, filters={"label": owners.BOX})
    except (BoxUnavailableError, docker.errors.DockerException, OSError):
        return -1
    for container in found:
        if owners.is_over(container["Labels"], owner, names):
            count += 1
            with suppress(docker.errors.DockerException, OSError):
                remove(api, container["Id"])
    api.close()
    return count


class DockerBackend(RemoteBackend):
    """`runtime`: one of the engine's (runc, runsc)."""

    name = "docker"
    module = __name__

    def __init__(self, *, runtime: str | None = None, warm: int = 0, slack_s: float = owners.SLACK_S, makes: bool = True):
        super().__init__(warm=warm, slack_s=slack_s, makes=makes)
        self.runtime = runtime
        self._api: Any = None
        self._info: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="docker")
        self._probing = asyncio.Lock()
        self._answers = True
        self.current: set[str] = set()

    async def probe(self) -> None:
        """Raises BoxUnavailableError, MissingDependencyError; InfraError where an engine that answered does so no more."""
        async with self._probing:
            if self._api is not None:
                await self._until_it_answers()
                return
            loop = asyncio.get_running_loop()
            api = await loop.run_in_executor(self._threads, connect)
            try:
                self._info = await self.call(api.info)
            except EngineError as error:
                raise BoxUnavailableError(f"no box can be made: the Docker engine refused ({error.said})") from None
            runtimes = self._info.get("Runtimes") or {}
            if self.runtime and self.runtime not in runtimes:
                raise BoxUnavailableError(
                    f"the Docker engine has no runtime {self.runtime!r}, it has {', '.join(sorted(runtimes))}. Install it and "
                    f"start the engine with `dockerd --add-runtime {self.runtime}=/usr/bin/{self.runtime}`"
                )
            self._api = api

    async def _until_it_answers(self) -> None:
        """An engine that did before is waited for. Raises: InfraError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while not self._answers:
            try:
                await self.call(self._api.ping)
            except EngineError as error:
                if loop.time() > until:
                    raise InfraError(f"the Docker engine has not answered for {PATIENCE_S:.0f} s: {error.said}") from None
                await asyncio.sleep(_AGAIN_S)

    async def _disconnect(self) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None
        self._threads.shutdown(wait=False)

    def enforcement(self) -> dict[str, str]:
        """Before `probe`, what holds on an engine with control groups."""
        return {**enforcement(self.runtime, self._info.get("CgroupVersion")), **self._lifetime()}

    def attached(self, spec: BoxSpec, name: str) -> AttachedContainer:
        return (AttachedGvisor if self.runtime == RUNSC else AttachedContainer)(self, spec, name)

    async def live(self) -> set[str]:
        mine = {"label": f"{owners.OWNER}={owners.owner_label()}", "status": "running"}
        try:
            return {container["Labels"][owners.BOX] for container in await self.call(self._api.containers, filters=mine)}
        except EngineError as error:
            raise InfraError(f"the Docker engine does not tell of containers: {error.said}") from None

    async def delete(self, name: str) -> None:
        try:
            await self.call(remove, self._api, name)
        except EngineError as error:
            if error.status != NOT_FOUND:
                self.leave(name)

    # --- used by the containers -----------------------------------------------------------------------------------

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """docker-py blocks. Raises: EngineError."""
        work = functools.partial(ask, function, *args, **kwargs)
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except EngineError as error:
            self._answers = error.status != 0
            raise
        self._answers = True
        return done

    @property
    def api(self) -> Any:
        return self._api

    def _streams(self, spec: BoxSpec, name: str) -> Container:
        labels = owners.labels(name, self._deadline_s(spec))
        if self.runtime == RUNSC:
            return GvisorContainer(self, spec, docker_gvisor.configuration(spec, labels))
        return Container(self, spec, configuration(spec, self.runtime, labels))


class GvisorBackend(DockerBackend):
    """The same in gVisor's own kernel, where the engine has the runtime `runsc`."""

    name = "docker-runsc"

    def __init__(self, **options: Any):
        super().__init__(runtime=RUNSC, **options)
