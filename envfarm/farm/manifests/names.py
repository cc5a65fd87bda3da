"""How the parts of a farm are called in a cluster, and the metadata that all of them carry."""

from __future__ import annotations

from typing import Any

from envfarm.farm import FARM_LABEL, POOL_LABEL, ROLE_LABEL
from envfarm.farm.file import FarmFile, KubernetesTarget

KEEPER, WORKER, ROLLOUT = "keeper", "worker", "rollout"
"""Values of `ROLE_LABEL`. Pods that roll out carry the last one: nobody else may speak to keeper and workers."""

TOKEN_SECRET, TOKEN_KEY = "farm-token", "token"
BOX_OWNER, BOX_USER, LEASE_KEEPER, WORKER_READER = "box-owner", "box-user", "lease-keeper", "worker-reader"
"""Roles."""


def target_of(farm: FarmFile) -> KubernetesTarget:
    """Of a farm that was read `on` Kubernetes."""
    assert farm.target.kubernetes is not None
    return farm.target.kubernetes


def worker_name(pool: int) -> str:
    return f"{WORKER}-{pool}"


def selector(farm: FarmFile, role: str, pool: int | None = None) -> dict[str, str]:
    return {FARM_LABEL: farm.farm, ROLE_LABEL: role} | ({} if pool is None else {POOL_LABEL: str(pool)})


def made(
    kind: str,
    name: str,
    farm: FarmFile,
    *,
    api: str = "v1",
    boxes: bool = False,
    labels: dict[str, str] | None = None,
    **rest: Any,
) -> dict[str, Any]:
    """One object in the farm's namespace, or in that of its boxes."""
    target = target_of(farm)
    metadata = {
        "name": name,
        "namespace": target.boxes if boxes else target.namespace,
        "labels": {"app.kubernetes.io/name": "envfarm", FARM_LABEL: farm.farm, **(labels or {})},
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}
