"""Every object is what current Kubernetes takes, and KubeRay's what its own definition takes: unknown fields are refused."""

from __future__ import annotations

import copy
import json

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.crds import definition, strict_schema
from tests.k8s.places import EVERYWHERE, objects

VERSIONS = ("1.35", "1.36", "1.37")
CUSTOM = {"RayCluster": "rayclusters"}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_them(version: str) -> None:
    """Each object once, though it may stand in several overlays."""
    every = {json.dumps(one, sort_keys=True) for name in EVERYWHERE for one in objects(name) if one["kind"] not in CUSTOM}
    assert len(every) > 50
    for one in every:
        kubernetes_validate.validate(json.loads(one), version, strict=True)


def test_kubernetes_refuses_what_it_does_not_know() -> None:
    one = copy.deepcopy(next(one for one in objects("two pools") if one["kind"] == "Deployment"))
    one["spec"]["template"]["spec"]["readonly"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readonly"):
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)


def test_custom_resources_pass_their_definitions() -> None:
    found = [one for one in objects("overlays/gpu") if one["kind"] in CUSTOM]
    assert [one["kind"] for one in found] == ["RayCluster"]
    for one in found:
        jsonschema.validate(one, strict_schema(definition(CUSTOM[one["kind"]])))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "workerGroupSpecs", 0, "replicas"), "two"),
        (("spec", "workerGroupSpecs", 0, "replica"), 2),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePulPolicy"), "Never"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "env"), [{"value": "nameless"}]),
        (("spec", "authOptions", "mode"), "password"),
    ],
)
def test_a_definition_refuses_what_it_does_not_know(path: tuple[str | int, ...], value: object) -> None:
    (one,) = (copy.deepcopy(one) for one in objects("overlays/gpu") if one["kind"] == "RayCluster")
    place = one
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(one, strict_schema(definition("rayclusters")))
