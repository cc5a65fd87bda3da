"""The pods of one owner, as the API server last told: one list and one watch for all boxes of a backend."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from envfarm.backends.kubernetes_link import Link, Refused

_AGAIN_S = 0.5

Pod = dict[str, Any]


class PodWatch:
    """Starts with the first question; `close` ends it."""

    def __init__(self, link: Link, namespace: str, selector: str):
        self._link, self._path = link, f"/api/v1/namespaces/{namespace}/pods"
        self._selector = ("labelSelector", selector)
        self._pods: dict[str, Pod | None] = {}  # None: deleted
        self._changed: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self.answers = True
        """Whether the API server did when last asked."""

    async def until(self, name: str, holds: Callable[[Pod | None], bool], timeout_s: float) -> Pod | None:
        """A pod that has been made, as soon as something holds for it, or as it is when the time is over; None for one that was
        deleted, or that was never seen."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._follow())
        event = asyncio.Event()
        self._changed[name].add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while name not in self._pods or not holds(self._pods[name]):
                        event.clear()
                        await event.wait()
        finally:
            self._changed[name].discard(event)
            if not self._changed[name]:
                del self._changed[name]
        return self._pods.get(name)

    async def close(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _follow(self) -> None:
        while True:
            try:
                version = await self._list()
                self.answers = True
                async for event in self._link.watch(self._path, [self._selector, ("watch", "1"), ("resourceVersion", version)]):
                    if event["type"] == "ERROR":  # what it remembers begins later
                        break
                    self._put(event["object"], deleted=event["type"] == "DELETED")
            except Refused as refused:
                self.answers = refused.status != 0
                await asyncio.sleep(_AGAIN_S)

    async def _list(self) -> str:
        """Returns from where to watch. Raises: Refused."""
        asked = set(self._changed)  # about pods that were there before: one that is not listed is gone
        found = await self._link.get(self._path, [self._selector])
        for pod in found["items"]:
            self._put(pod)
        for name in (self._pods.keys() | asked) - {pod["metadata"]["name"] for pod in found["items"]}:
            self._set(name, None)
        return found["metadata"]["resourceVersion"]

    def _put(self, pod: Pod, *, deleted: bool = False) -> None:
        self._set(pod["metadata"]["name"], None if deleted else pod)

    def _set(self, name: str, pod: Pod | None) -> None:
        self._pods[name] = pod
        for event in self._changed.get(name, ()):
            event.set()
