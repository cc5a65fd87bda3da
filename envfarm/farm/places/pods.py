"""Workers as pods: the cluster keeps them, as Deployments that `envfarm.farm.manifests` describes; here they are only read.

A pod is up when the cluster calls it ready. One whose container was started again is another worker: nothing is left of the
first one's sessions. Scaling is a change of the Deployment's replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from envfarm.backends.kubernetes_api import Api
from envfarm.backends.kubernetes_link import Link, Refused
from envfarm.errors import InfraError
from envfarm.farm import FARM_LABEL, POOL_LABEL, ROLE_LABEL, WORKER_PORT
from envfarm.farm.manifests.names import WORKER, worker_name
from envfarm.farm.places import WorkerInfo

_LOOK_S = 1.0
_MERGE = "application/merge-patch+json"


class Pods:
    def __init__(self, farm: str, namespace: str, changed: Callable[[], None]):
        self._farm, self._namespace, self._changed = farm, namespace, changed
        self._workers: list[WorkerInfo] = []
        self._api = Api()
        self._link: Link | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Does not wait for workers: they start when the keeper answers them. Raises: BoxUnavailableError (no cluster),
        InfraError (it does not tell of pods)."""
        await self._api.connect(())
        self._link = Link(self._api.access())
        try:
            self._workers = await self._look()
        except Refused as refused:
            raise InfraError(f"the API server does not tell of pods in {self._namespace!r}: {refused.said}") from None
        self._looking = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            with suppress(Refused):  # what is known stays
                workers = await self._look()
                if workers != self._workers:
                    self._workers = workers
                    self._changed()

    async def _look(self) -> list[WorkerInfo]:
        assert self._link is not None
        selector = ("labelSelector", f"{FARM_LABEL}={self._farm},{ROLE_LABEL}={WORKER}")
        found = await self._link.ask("GET", f"/api/v1/namespaces/{self._namespace}/pods", query=[selector])
        return [_info(pod) for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]

    async def scale(self, pool: int, workers: int) -> None:
        """The cluster does it in its own time. Raises: InfraError."""
        assert self._link is not None
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{worker_name(pool)}/scale"
        try:
            await self._link.ask("PATCH", path, {"spec": {"replicas": workers}}, kind=_MERGE)
        except Refused as refused:
            raise InfraError(f"the API server did not scale {worker_name(pool)}: {refused.said}") from None

    def workers(self) -> list[WorkerInfo]:
        return list(self._workers)

    async def close(self) -> None:
        """The pods stay: they are the cluster's."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        if self._link is not None:
            await self._link.close()
        self._api.close()


def _info(pod: dict[str, Any]) -> WorkerInfo:
    metadata, status = pod["metadata"], pod.get("status", {})
    containers = status.get("containerStatuses", [])
    starts = sum(container.get("restartCount", 0) for container in containers)
    up = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
    address = f"{status['podIP']}:{WORKER_PORT}" if up else ""
    name, pool = f"{metadata['name']}.{starts}", int(metadata["labels"][POOL_LABEL])
    return WorkerInfo(name, pool, up, address, "" if up else _why(status))


def _why(status: dict[str, Any]) -> str:
    """Why a pod is not ready, in the cluster's words."""
    said = [
        one.get("message") or one.get("reason", "")
        for one in status.get("conditions", [])
        if one["type"] == "PodScheduled" and one["status"] != "True"
    ]
    states = [state for one in status.get("containerStatuses", []) for state in one.get("state", {}).values()]
    said += [f"{state['reason']}: {state.get('message', '')}".rstrip(": ") for state in states if "reason" in state]
    return "; ".join(filter(None, said)) or f"is {status.get('phase', 'Pending').lower()}, not ready"
