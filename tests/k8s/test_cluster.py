"""What a live API server says to all of it: a server-side dry run, which takes defaults, validation and admission into account.

The test bed's server is old (1.20): of what it does not know - `policy/v1` - it is not asked. KubeRay's resources are put to it
with KubeRay's definition loaded.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import UNKNOWN_TO_1_20, create, kubectl
from tests.k8s.crds import definition
from tests.k8s.places import EVERYWHERE, Object, objects

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600), pytest.mark.xdist_group("definition of Ray's")]


def renamed(found: list[Object], suffix: str) -> list[Object]:
    """In namespaces of their own."""
    made = copy.deepcopy(found)
    for one in made:
        key = "name" if one["kind"] == "Namespace" else "namespace"
        for place in (one["metadata"], *one.get("subjects", ())):
            place[key] += f"-{suffix}"
    return made


@pytest.fixture(params=EVERYWHERE)
def there(request: pytest.FixtureRequest) -> Iterator[list[Object]]:
    """The objects of one place, without namespaces: those are there."""
    found = renamed(objects(request.param), secrets.token_hex(3))
    namespaces = [one for one in found if one["kind"] == "Namespace"]
    assert len(namespaces) == 2
    try:
        create(*namespaces, dry=False)
        yield [one for one in found if one["kind"] != "Namespace"]
    finally:
        kubectl("delete", "namespace", "--wait=false", *(one["metadata"]["name"] for one in namespaces))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """KubeRay's definition in the cluster, unless somebody has put one there."""
    crd = definition("rayclusters")
    name = crd["metadata"]["name"]
    if kubectl("get", "crd", name).returncode == 0:
        yield
        return
    try:
        create(crd, dry=False)
        for _ in range(50):  # it fails at once while there is no condition at all
            done = kubectl("wait", "--for=condition=Established", "--timeout=60s", f"crd/{name}")
            if "accessor error" not in done.stderr:
                break
        assert done.returncode == 0, done.stderr
        yield
    finally:
        kubectl("delete", "crd", name)


def test_the_server_takes_everything_that_it_knows(there: list[Object], ray: None) -> None:
    known = [one for one in there if one["kind"] not in UNKNOWN_TO_1_20]
    taken = create(*known, dry=True).split()
    assert len(taken) == len(known)
    assert any(name.startswith("deployment.apps/worker-0") for name in taken)


def test_the_server_refuses_a_cluster_of_ray_that_is_none(ray: None) -> None:
    (one,) = (copy.deepcopy(one) for one in objects("overlays/gpu") if one["kind"] == "RayCluster")
    one["metadata"]["namespace"] = "default"
    one["spec"]["workerGroupSpecs"][0]["replicas"] = "two"
    with pytest.raises(AssertionError, match="replicas"):
        create(one, dry=True)
