"""Who may do what: the keeper makes boxes and takes them away, a worker only uses those that it leases.

A worker runs code of environments, which strangers may have written. Its token reaches `exec` and `attach` in the namespace of
boxes, and nothing else of the cluster.
"""

from __future__ import annotations

from typing import Any

from envfarm.farm.file import FarmFile
from envfarm.farm.manifests.names import (
    BOX_OWNER,
    BOX_USER,
    KEEPER,
    LEASE_KEEPER,
    WORKER,
    WORKER_READER,
    made,
    target_of,
    worker_name,
)

_GROUP = "rbac.authorization.k8s.io"
_USE_BOXES = {"apiGroups": [""], "resources": ["pods/attach", "pods/exec"], "verbs": ["get", "create"]}


def accounts(farm: FarmFile) -> list[dict[str, Any]]:
    """Their tokens are mounted where a pod asks for it."""
    return [made("ServiceAccount", name, farm, automountServiceAccountToken=False) for name in (KEEPER, WORKER)]


def roles(farm: FarmFile) -> list[dict[str, Any]]:
    own_boxes = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete", "list", "watch"]}, _USE_BOXES]
    keep_leases = [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "verbs": ["create", "delete", "get", "list", "update", "watch"],
        }
    ]
    return [
        *_granted(farm, BOX_OWNER, own_boxes, KEEPER, boxes=True),
        *_granted(farm, LEASE_KEEPER, keep_leases, KEEPER, boxes=True),
        *_granted(farm, BOX_USER, [_USE_BOXES], WORKER, boxes=True),
        *_granted(farm, WORKER_READER, _see_and_scale_workers(farm), KEEPER, boxes=False),
    ]


def _see_and_scale_workers(farm: FarmFile) -> list[dict[str, Any]]:
    """A new pool is a new Deployment, and no matter of the keeper's."""
    names = [worker_name(number) for number in range(len(farm.pools))]
    return [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": names, "verbs": ["get", "patch", "update"]},
    ]


def _granted(farm: FarmFile, role: str, rules: list[dict[str, Any]], account: str, *, boxes: bool) -> list[dict[str, Any]]:
    """A Role and its one holder."""
    api = f"{_GROUP}/v1"
    holder = {"kind": "ServiceAccount", "name": account, "namespace": target_of(farm).namespace}
    return [
        made("Role", role, farm, api=api, boxes=boxes, rules=rules),
        made(
            "RoleBinding", role, farm, api=api, boxes=boxes,
            roleRef={"apiGroup": _GROUP, "kind": "Role", "name": role}, subjects=[holder],
        ),
    ]  # fmt: skip
