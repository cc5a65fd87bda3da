"""Boxes as containers of a Docker engine, near or far: the only importer of docker-py.

A container is passive: its process 1 is a shell of the image with `remote_loop`'s text, reached over attach; a second shell is
an exec. So `network none` is really none, and an engine on another machine works like this one's. It has no capabilities and no
way to new privileges, a read-only root, memory without swap, pids and CPU limits, and tmpfs where it may write.

Nothing outlives its owner: every container carries the labels `envfarm.box`, `envfarm.owner` and `envfarm.deadline`; a second
process (`docker_reaper`) removes the owner's containers when the owner is gone, however that came, and those past their
deadline, also those of owners whose own reaper is gone.

Where the engine is: DOCKER_HOST (with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH), else the default socket.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from envfarm.backends.docker_config import RUNSC, configuration, enforcement
from envfarm.backends.docker_container import Container, EngineError, remove
from envfarm.backends.owners import is_gone, owner_label
from envfarm.backends.remote_box import RemoteBox
from envfarm.box import BoxSpec, Snapshot
from envfarm.errors import BoxUnavailableError, InfraError, MissingDependencyError

T = TypeVar("T")
BOX, OWNER, DEADLINE = "envfarm.box", "envfarm.owner", "envfarm.deadline"
SLACK_S = 3600.0
_CALLS_AT_ONCE = 16


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
                f"no box can be made: this user may not use the Docker engine at {where}. "
                "As root: usermod -aG docker USER, then log in again"
            ) from None
        raise BoxUnavailableError(
            f"no box can be made: no Docker engine answers at {where}. Start it (`systemctl start docker`), or set DOCKER_HOST "
            f"to one that runs. Said: {error}"
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


def remove_left_over(owner: str | None, timeout_s: float = 10.0) -> int:
    """Remove the containers of `owner`, of every owner that is gone, and those past their deadline. For the reaper.

    Returns how many it found; -1 where the engine does not answer. One that cannot be removed (a runtime that hangs) does not
    keep the others: it is found again the next time.
    """
    import docker

    count = 0
    try:
        api = connect(timeout_s)
        found = api.containers(all=True, filters={"label": BOX})
    except (BoxUnavailableError, docker.errors.DockerException, OSError):
        return -1
    for container in found:
        labels = container["Labels"]
        late = float(labels.get(DEADLINE) or "inf") < time.time()
        if late or labels.get(OWNER) == owner or is_gone(labels.get(OWNER, "")):
            count += 1
            with suppress(docker.errors.DockerException, OSError):
                remove(api, container["Id"])
    api.close()
    return count


class DockerBackend:
    """See `envfarm.box.Backend`. `runtime`: one of the engine's (runc, runsc). `warm`: boxes kept ready of every spec that
    was asked for. `slack_s`: so long after `BoxSpec.lifetime_s` a box is removed, whatever it does."""

    name = "docker"

    def __init__(self, *, runtime: str | None = None, warm: int = 0, slack_s: float = SLACK_S):
        self.runtime = runtime
        self._warm, self._slack_s = warm, slack_s
        self._api: Any = None
        self._info: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="docker")
        self._reaper: subprocess.Popen[bytes] | None = None
        self._boxes: set[RemoteBox] = set()
        self._until: dict[str, float] = {}  # box -> its deadline, unix time
        self._ready: dict[BoxSpec, list[asyncio.Task[RemoteBox]]] = defaultdict(list)
        self._probing = asyncio.Lock()
        self._count = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._closed = False
        self.current: set[str] = set()
        self.left = 0  # containers that could not be removed: the reaper's

    async def probe(self) -> None:
        """Raises BoxUnavailableError, MissingDependencyError."""
        async with self._probing:
            if self._api is not None:
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

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> RemoteBox:
        await self.probe()
        ready = self._ready[spec]
        box = await self._take(spec, ready)
        for _ in range(self._warm - len(ready)):
            ready.append(asyncio.create_task(self._make(spec)))
        if snapshot is not None:
            try:
                await box.restore(snapshot)
            except BaseException:
                await box.stop()
                raise
        return box

    async def close(self) -> None:
        self._closed = True
        makers = [task for tasks in self._ready.values() for task in tasks]
        self._ready.clear()
        await asyncio.gather(*makers, return_exceptions=True)
        await asyncio.gather(*(box.stop() for box in list(self._boxes)))
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            if not self.left:
                self._reaper.kill()
                self._reaper.wait()
            self._reaper.stdin.close()
            self._reaper = None
        if self._api is not None:
            self._api.close()
            self._api = None
        self._threads.shutdown(wait=False)

    def enforcement(self) -> dict[str, str]:
        """Before `probe`, what holds on an engine with control groups."""
        limits = enforcement(self.runtime, self._info.get("CgroupVersion"))
        return {**limits, "lifetime": f"a reaper process, and a deadline {self._slack_s:.0f} s after the episode's"}

    # --- used by the containers -----------------------------------------------------------------------------------

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """docker-py blocks. Raises: EngineError."""
        work = functools.partial(ask, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @property
    def api(self) -> Any:
        return self._api

    # --- making one -----------------------------------------------------------------------------------------------

    async def _take(self, spec: BoxSpec, ready: list[asyncio.Task[RemoteBox]]) -> RemoteBox:
        """The oldest ready box that still has its whole lifetime before it, else a new one. Raises: as `_make`."""
        while ready:
            box = await ready.pop(0)
            if self._until[box.id] >= time.time() + spec.lifetime_s:
                return box
            await box.stop()
        return await self._make(spec)

    async def _make(self, spec: BoxSpec) -> RemoteBox:
        """A box without an owner yet. Raises: BoxUnavailableError, InfraError."""
        self._start_reaper()
        name = f"box-{self._prefix}-{next(self._count)}"
        streams = Container(self, spec)
        box = RemoteBox(name, spec, streams, self._forget)
        self._boxes.add(box)
        self._until[name] = time.time() + spec.lifetime_s + self._slack_s
        try:
            await streams.create(configuration(spec, self.runtime, self._labels(name)))
            await box.up()
            if self._closed:
                raise InfraError("the backend was closed before the box was up")
        except BaseException:
            await box.stop()
            raise
        return box

    def _labels(self, name: str) -> dict[str, str]:
        return {BOX: name, OWNER: owner_label(), DEADLINE: str(int(self._until[name]))}

    def _forget(self, box: RemoteBox) -> None:
        self._boxes.discard(box)
        self._until.pop(box.id, None)

    def _start_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = subprocess.Popen(
                [sys.executable, "-m", "envfarm.backends.docker_reaper", owner_label(), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


class GvisorBackend(DockerBackend):
    """The same in gVisor's own kernel, where the engine has the runtime `runsc`."""

    name = "docker-runsc"

    def __init__(self, **options: Any):
        super().__init__(runtime=RUNSC, **options)
