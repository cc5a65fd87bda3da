"""The policies of everything that is rendered, read as a graph: nothing reaches a box, only rollouts and the keeper a worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from envfarm.farm import FARM_LABEL, KEEPER_PORT, WORKER_PORT
from envfarm.farm.manifests.network import API_SERVER_PORTS
from tests.k8s.places import EVERYWHERE, Object, objects, pod_templates
from tests.k8s.policies import Edge, End, graph, sides

DNS, RAY, OTHER = 53, 6379, 80
PORTS = (KEEPER_PORT, WORKER_PORT, *API_SERVER_PORTS, DNS, RAY, OTHER)
OUTSIDE = ("API server", "internet", "node's metadata", "elsewhere")
"""Beside the namespace server's pod, which is asked for names alone."""


def labels_of(found: list[Object], role: str) -> dict[str, str]:
    """As the objects give them to their pods; those of rollouts as the documents ask for."""
    templates = [t["metadata"]["labels"] for t in pod_templates(found).values()]
    made = next((labels for labels in templates if labels.get("envfarm.role") == role), None)
    return made or {FARM_LABEL: templates[0][FARM_LABEL], "envfarm.role": role}


def ends(found: list[Object]) -> list[End]:
    (work,) = {one["metadata"]["namespace"] for one in found if one["kind"] == "Deployment"}
    (boxes,) = {one["metadata"]["name"] for one in found if one["kind"] == "Namespace"} - {work}
    rollout = labels_of(found, "rollout")
    return [
        End("box", "10.0.0.1", boxes, {"envfarm.box": "box-1"}),
        End("another box", "10.0.0.2", boxes, {"envfarm.box": "box-2"}),
        End("keeper", "10.0.0.3", work, labels_of(found, "keeper")),
        End("worker", "10.0.0.4", work, labels_of(found, "worker")),
        End("another worker", "10.0.0.5", work, labels_of(found, "worker")),
        End("rollout", "10.0.0.6", work, rollout),
        End("another rollout", "10.0.0.7", work, rollout),
        End("somebody", "10.0.0.8", work, {"app": "somebody"}),
        End("impostor box", "10.0.0.9", boxes, rollout),
        End("elsewhere", "10.0.0.10", "elsewhere", rollout),
        End("names", "10.0.0.11", "kube-system", {"k8s-app": "kube-dns"}),
        End("API server", "10.96.0.1"),
        End("internet", "93.184.216.34"),
        End("node's metadata", "169.254.169.254"),
    ]


def edges(found: list[Object]) -> set[Edge]:
    """Of connections with a pod of the farm at one end at least."""
    others = {*OUTSIDE, "names"}
    return {edge for edge in graph(found, ends(found), PORTS) if not {edge[0], edge[1]} <= others}


def expected(*, ray: bool) -> set[Edge]:
    workers, rollouts = ("worker", "another worker"), ("rollout", "another rollout")
    made = {(w, "keeper", KEEPER_PORT) for w in (*workers, *rollouts)}
    made |= {(source, w, WORKER_PORT) for source in (*rollouts, "keeper") for w in workers}
    made |= {(one, "names", DNS) for one in rollouts}
    reached = ("API server", "internet", "elsewhere", "names")  # by address the API server cannot be told from others
    made |= {(one, target, port) for one in ("keeper", *workers) for target in reached for port in API_SERVER_PORTS}
    if ray:
        made |= {(*pair, port) for pair in (rollouts, rollouts[::-1]) for port in PORTS}
    return made


@pytest.mark.parametrize("name", EVERYWHERE)
def test_who_may_speak_to_whom(name: str) -> None:
    found = edges(objects(name))
    assert found == expected(ray="gpu" in name)
    assert not [edge for edge in found if "box" in edge[0] or "box" in edge[1]]
    assert {source for source, target, _ in found if "worker" in target} == {"rollout", "another rollout", "keeper"}
    assert not [edge for edge in found if edge[1] == "node's metadata" or "somebody" in edge[:2]]


def mutants(found: list[Object]) -> Iterator[tuple[str, list[Object]]]:
    """Without each policy, without each rule, with each peer widened to every pod of the namespace, with each port opened."""
    for place, one in enumerate(found):
        if one["kind"] != "NetworkPolicy":
            continue
        name = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        yield f"no {name}", [*found[:place], *found[place + 1 :]]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for number, rule in enumerate(one["spec"].get(direction, ())):
                where = f"{name} {direction} {number}"
                for what, change in (("none", None), ("any peer", {side: []}), ("any port", {"ports": []})):
                    if change is not None and not rule.get(next(iter(change))):
                        continue
                    changed = copy.deepcopy(one)
                    rules = changed["spec"][direction]
                    if change is None:
                        del rules[number]
                    else:
                        rules[number] |= change
                    yield f"{where} {what}", [*found[:place], changed, *found[place + 1 :]]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_each_policy_and_each_rule_counts(name: str) -> None:
    """At the end that it is about: mostly the other end would still hold."""
    found = objects(name)
    there = ends(found)
    whole, seen = sides(found, there, PORTS), 0
    for what, mutant in mutants(found):
        assert sides(mutant, there, PORTS) != whole, what
        seen += 1
    assert seen >= 20
