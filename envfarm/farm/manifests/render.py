"""The whole farm, in the order in which a cluster takes it."""

from __future__ import annotations

from typing import Any

import yaml

from envfarm.farm import FARM_LABEL, KEEPER_PORT, WORKER_PORT
from envfarm.farm.file import FarmFile
from envfarm.farm.manifests import pods
from envfarm.farm.manifests.names import KEEPER, WORKER, made, selector, target_of, worker_name
from envfarm.farm.manifests.network import policies
from envfarm.farm.manifests.rights import accounts, roles

_SECURITY = "pod-security.kubernetes.io"


def render(farm: FarmFile) -> list[dict[str, Any]]:
    """The objects of a farm that was read `on` Kubernetes. They need Kubernetes 1.21 or newer; 1.20 knows all but the
    PodDisruptionBudgets."""
    target, pools = target_of(farm), range(len(farm.pools))
    return [
        _namespace(farm, target.namespace),
        _namespace(farm, target.boxes),
        *accounts(farm),
        *roles(farm),
        *policies(farm),
        quota(farm),
        pods.config(farm),
        pods.service(farm, KEEPER, selector(farm, KEEPER), KEEPER_PORT),
        pods.keeper(farm),
        *(pods.service(farm, worker_name(n), selector(farm, WORKER, n), WORKER_PORT) for n in pools),
        *(pods.workers(farm, n) for n in pools),
        *(pods.budget(farm, n) for n in pools),
    ]


def to_yaml(objects: list[dict[str, Any]]) -> str:
    """As one file of several documents."""
    return "".join(f"---\n{yaml.dump(one, Dumper=_Plain, sort_keys=False, width=120)}" for one in objects)


def quota(farm: FarmFile) -> dict[str, Any]:
    """As many boxes as the pools may have; the cluster holds it also against a keeper that errs."""
    most = sum(pool.boxes.max for pool in farm.pools)
    return made("ResourceQuota", "boxes", farm, boxes=True, spec={"hard": {"pods": str(most)}})


def _namespace(farm: FarmFile, name: str) -> dict[str, Any]:
    """The API server itself refuses a pod that is not restricted."""
    labels = {"app.kubernetes.io/name": "envfarm", FARM_LABEL: farm.farm}
    security = {f"{_SECURITY}/enforce": "restricted", f"{_SECURITY}/enforce-version": "latest", f"{_SECURITY}/warn": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {**labels, **security}}}


class _Plain(yaml.SafeDumper):
    """Equal parts are written out, without anchors; texts of several lines line by line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
