"""The book of leases as Kubernetes objects, `coordination.k8s.io/v1` Leases: changed by resource version, seen by `kubectl`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol

from envfarm.backends.kubernetes_api import CONFLICT, NOT_FOUND, no_namespace
from envfarm.backends.kubernetes_link import Link, Refused
from envfarm.errors import BoxUnavailableError, InfraError
from envfarm.farm import FARM_LABEL
from envfarm.farm.leases import EXPIRY_S, Conflict, Entry

_BEATS = "envfarm.beats"


class Reached(Protocol):
    """`envfarm.backends.kubernetes.KubernetesBackend`, once it has been probed."""

    namespace: str
    link: Link


class ObjectBook:
    """See `leases.Book`. The Leases lie in the boxes' namespace and carry the farm's name."""

    def __init__(self, cluster: Reached, farm: str):
        self._cluster, self._farm = cluster, farm

    async def add(self, box: str) -> Entry:
        return _entry(await self._ask("POST", "", self._object(Entry(box))))

    async def get(self, box: str) -> Entry | None:
        try:
            return _entry(await self._ask("GET", f"/{box}"))
        except Conflict:
            return None

    async def all(self) -> list[Entry]:
        found = await self._ask("GET", "", query=[("labelSelector", f"{FARM_LABEL}={self._farm}")])
        return [_entry(one) for one in found["items"]]

    async def change(self, entry: Entry, *, holder: str, beats: int) -> Entry:
        changed = self._object(Entry(entry.box, holder, beats, entry.version))
        return _entry(await self._ask("PUT", f"/{entry.box}", changed))

    async def remove(self, entry: Entry) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": entry.version}}
        await self._ask("DELETE", f"/{entry.box}", options)

    def _object(self, entry: Entry) -> dict[str, Any]:
        """`renewTime` is for people: who expires leases looks at the version alone."""
        metadata = {"name": entry.box, "labels": {FARM_LABEL: self._farm}, "annotations": {_BEATS: str(entry.beats)}}
        spec: dict[str, Any] = {"leaseDurationSeconds": int(EXPIRY_S), "renewTime": datetime.now(UTC).strftime("%FT%T.%fZ")}
        if entry.holder:
            spec["holderIdentity"] = entry.holder
        if entry.version:
            metadata["resourceVersion"] = entry.version
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, query: list[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        """Raises: Conflict where the object is another one, or gone; BoxUnavailableError where there is no such namespace;
        InfraError."""
        where = f"/apis/coordination.k8s.io/v1/namespaces/{self._cluster.namespace}/leases{path}"
        try:
            return await self._cluster.link.ask(method, where, body, query=query)
        except Refused as refused:
            if refused.status == NOT_FOUND and method == "POST":
                raise BoxUnavailableError(no_namespace(self._cluster.namespace, refused.said)) from None
            if refused.status in (CONFLICT, NOT_FOUND):
                raise Conflict(path) from None
            raise InfraError(f"the API server does not keep leases ({method} {where}): {refused.status} {refused.said}") from None


def _entry(found: dict[str, Any]) -> Entry:
    metadata, spec = found["metadata"], found["spec"]
    beats = int(metadata.get("annotations", {}).get(_BEATS, 0))
    return Entry(metadata["name"], spec.get("holderIdentity", ""), beats, metadata["resourceVersion"])
