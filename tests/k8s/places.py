"""Everything that the project hands to a cluster, as objects: farms as they are rendered, the base and its overlays."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from envfarm.farm.file import FarmFile, read_farm
from envfarm.farm.manifests import render, to_yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("base", "overlays/laptop", "overlays/gpu")
EVERYWHERE = ("two pools", *OVERLAYS)

Object = dict[str, Any]


@cache
def farm() -> FarmFile:
    """Of two pools, with names of its own for everything that has a default."""
    return read_farm(Path(__file__).with_name("two_pools.yaml"))


@cache
def objects(name: str) -> list[Object]:
    """Do not change them: copies are cheap."""
    if name == "two pools":
        return list(yaml.safe_load_all(to_yaml(render(farm()))))
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders overlays, is not installed here: apt install kubernetes-client")
    done = subprocess.run(["kubectl", "kustomize", str(K8S / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod_templates(found: list[Object]) -> dict[str, Object]:
    """Name -> the template of every pod that the objects lead to."""
    made = {}
    for one in found:
        name = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] in ("Deployment", "Job"):
            made[name] = one["spec"]["template"]
        elif one["kind"] == "RayCluster":
            made[f"{name} head"] = one["spec"]["headGroupSpec"]["template"]
            made |= {f"{name} {group['groupName']}": group["template"] for group in one["spec"]["workerGroupSpecs"]}
    return made
