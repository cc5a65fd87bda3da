"""One pod as `remote_streams.Streams`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from envfarm.backends import kubernetes_states as states
from envfarm.backends import remote_side
from envfarm.backends.kubernetes_api import FORBIDDEN, NOT_FOUND
from envfarm.backends.kubernetes_link import Link, Refused, WebSocketPipe
from envfarm.backends.kubernetes_manifest import CONTAINER
from envfarm.backends.kubernetes_watch import PodWatch
from envfarm.backends.remote_streams import Death, Lost, NoRoom
from envfarm.errors import BoxUnavailableError, InfraError, NoRoomError
from envfarm.images.build import how_to_build

_START_S = 600.0
"""A node may have to get the image first."""

_LEARN_S = 10.0
"""How long the status of a pod whose streams ended may take to show it: the kubelet looks once a second."""

_SIDE = [*remote_side.ENTRY[:-1], f"exec 9>&2; {remote_side.ENTRY[-1]}"]
"""The second shell closes its standard error, and containerd closes a process's standard input as soon as that is closed: so
that one stays open under another number."""


class Reached(Protocol):
    """What a pod's streams need of a backend."""

    namespace: str
    link: Link


class Cluster(Reached, Protocol):
    """What a pod needs of its backend."""

    watch: PodWatch

    async def admit(self, manifest: dict[str, Any], patience_s: float) -> None:
        """Create a pod; waits while a quota is used up or the API server is away. Raises: NoRoomError where that takes too
        long, BoxUnavailableError, InfraError."""
        ...

    async def delete(self, name: str) -> None:
        """Never raises; what cannot be removed now, the reaper removes."""
        ...


class AttachedPod:
    """The streams of a pod that runs, whoever made it: all that a worker is allowed."""

    def __init__(self, reached: Reached, name: str):
        self._reached, self._name = reached, name
        self._main: WebSocketPipe | None = None

    async def open_main(self) -> WebSocketPipe:
        """The node says that it attaches before it does."""
        try:
            self._main = await self._open("attach")
        except NoRoom:
            raise Lost from None
        return self._main

    async def open_side(self, *, crowded: bool, silent: bool) -> WebSocketPipe:
        """There is no way to make room: a box whose agent keeps it full is given up."""
        return await self._open("exec", *(("command", word) for word in _SIDE))

    async def _open(self, what: str, *query: tuple[str, str]) -> WebSocketPipe:
        """Raises: Lost, NoRoom, BoxUnavailableError."""
        streams = [("container", CONTAINER), ("stdin", "true"), ("stdout", "true"), ("stderr", "true"), *query]
        path = f"/api/v1/namespaces/{self._reached.namespace}/pods/{self._name}/{what}"
        try:
            return await self._reached.link.stream(path, streams)
        except Refused as refused:
            if refused.status == FORBIDDEN:
                raise BoxUnavailableError(
                    f"the cluster forbids this user to use a box: it needs the verbs get and create on pods/{what} in namespace "
                    f"{self._reached.namespace!r}"
                ) from None
            raise (Lost if refused.status in (0, NOT_FOUND) else NoRoom) from None

    async def death(self) -> Death | None:
        return None

    def disconnect(self) -> None:
        """Idempotent."""
        if self._main is not None:
            self._main.close()


class PodStreams(AttachedPod):
    """A pod of this process's own. `patience_s`: how long it may wait for room."""

    def __init__(self, cluster: Cluster, manifest: dict[str, Any], patience_s: float):
        super().__init__(cluster, manifest["metadata"]["name"])
        self._cluster, self._manifest, self._patience_s = cluster, manifest, patience_s
        self._admitting: asyncio.Task[None] | None = None
        self._removed = False

    async def create(self) -> None:
        self._admitting = asyncio.ensure_future(self._cluster.admit(self._manifest, self._patience_s))
        await asyncio.shield(self._admitting)
        pod = await self._until(lambda pod: pod is None or states.settled(pod) or states.unschedulable(pod) is not None, _START_S)
        if pod is not None and states.unschedulable(pod) is not None:
            pod = await self._until(states.settled, self._patience_s)
        if pod is not None and states.running(pod):
            return
        image = self._manifest["spec"]["containers"][0]["image"]
        if pod is not None and (said := states.no_image(pod)) is not None:
            made = f"{how_to_build(image, '--engine')}, then " if image.startswith("envfarm/") else ""
            raise BoxUnavailableError(
                f"no node of the cluster has or can get the image {image!r} ({said}): {made}put it into a registry that the "
                f"nodes reach, or into their containerd (`docker save {image} | ctr -n k8s.io images import -`)"
            )
        if pod is not None and (said := states.unschedulable(pod)) is not None:
            asked = self._manifest["spec"]["containers"][0]["resources"]["requests"]
            wants = ", ".join(f"{name} {amount}" for name, amount in asked.items())
            raise NoRoomError(
                f"no node has had room for a box in {self._patience_s:.0f} s, which asks for {wants}: {said} Ask for "
                "less (`sandbox.memory`, `sandbox.cpu`), run fewer episodes at once, or add nodes"
            )
        if pod is None or states.over(pod):
            raise InfraError(f"pod {self._name} did not come up: {states.death(pod, answers=self._cluster.watch.answers).why}")
        raise InfraError(f"pod {self._name} did not come up in {_START_S:.0f} s: {states.progress(pod)}")

    async def _until(self, holds: Callable[[states.Pod | None], bool], timeout_s: float) -> states.Pod | None:
        return await self._cluster.watch.until(self._name, holds, timeout_s)

    async def death(self) -> Death:
        pod = await self._until(lambda pod: pod is None or states.over(pod), _LEARN_S)
        return states.death(pod, answers=self._cluster.watch.answers)

    async def remove(self) -> None:
        if self._removed:
            return
        self._removed = True
        self.disconnect()
        if self._admitting is None:
            return
        if not self._admitting.done():  # it may wait for room, or be under way: what comes of that is deleted
            self._admitting.cancel()
        await asyncio.wait([self._admitting])
        if not self._admitting.cancelled():
            self._admitting.exception()
        await self._cluster.delete(self._name)
