"""What a farm's objects say: rights no larger than needed, pods that pass "restricted", the text that lies in k8s/base."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import yaml

from envfarm.backends.kubernetes_api import NEEDED
from envfarm.cli import main
from envfarm.farm import KEEPER_PORT, KEEPER_VARIABLE, TOKEN_VARIABLE, WORKER_PORT
from envfarm.farm.__main__ import arguments as keeper_arguments
from envfarm.farm.file import read_farm
from envfarm.farm.manifests import render, token_secret
from envfarm.worker.__main__ import arguments as worker_arguments
from tests.k8s.places import EVERYWHERE, K8S, Object, farm, objects, pod_templates
from tests.k8s.restricted import violations

Right = tuple[str, str, str]
"""Namespace, verb, resource."""
USE_BOXES = set(itertools.product(("get", "create"), ("pods/attach", "pods/exec")))


def rights(found: list[Object], account: str) -> set[Right]:
    """Of a service account, by its RoleBindings."""
    made: set[Right] = set()
    for one in found:
        if one["kind"] == "RoleBinding" and account in [subject["name"] for subject in one["subjects"]]:
            namespace, name = one["metadata"]["namespace"], one["roleRef"]["name"]
            (role,) = (r for r in found if r["kind"] == "Role" and r["metadata"]["name"] == name)
            assert role["metadata"]["namespace"] == namespace
            made |= {(namespace, v, r) for rule in role["rules"] for v in rule["verbs"] for r in rule["resources"]}
    return made


def test_a_worker_may_use_boxes_and_nothing_else() -> None:
    assert rights(objects("two pools"), "worker") == {("cells", *right) for right in USE_BOXES}
    assert not [one for one in objects("two pools") if one["kind"].startswith("Cluster")]


def test_the_keeper_may_what_the_backend_needs_keep_leases_and_scale_workers() -> None:
    found = rights(objects("two pools"), "keeper")
    boxes = {(verb, "/".join(filter(None, what))) for verb, *what in NEEDED} | USE_BOXES
    in_boxes = {(verb, resource) for namespace, verb, resource in found if namespace == "cells"}
    assert in_boxes - {right for right in in_boxes if right[1] == "leases"} == boxes
    assert {verb for verb, resource in in_boxes if resource == "leases"} == {"create", "delete", "get", "list", "update", "watch"}
    at_home = {(verb, resource) for namespace, verb, resource in found if namespace == "lab"}
    assert at_home == {*itertools.product(("get", "list", "watch"), ("pods",))} | {
        *itertools.product(("get", "patch", "update"), ("deployments/scale",))
    }
    (reader,) = (one for one in objects("two pools") if one["kind"] == "Role" and one["metadata"]["name"] == "worker-reader")
    assert reader["rules"][1]["resourceNames"] == ["worker-0", "worker-1"]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_pods_pass_pod_security_restricted_and_ask_for_what_they_need(name: str) -> None:
    templates = pod_templates(objects(name))
    assert len(templates) >= 2
    for who, template in templates.items():
        assert violations(template["spec"]) == [], who
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() and "memory" in resources["limits"], who


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("volumes", 0, "hostPath"), {"path": "/"}, "volume tmp"),
        (("securityContext", "runAsUser"), 0, "root"),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "seccomp profile"),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True, "worker: privilege escalation"),
        (("containers", 0, "securityContext", "capabilities"), {"drop": []}, "worker: capabilities"),
        (("containers", 0, "securityContext", "privileged"), True, "worker: privileged"),
        (("containers", 0, "ports", 0, "hostPort"), 80, "worker: hostPort"),
    ],
)
def test_what_asks_for_more_is_found(path: tuple[Any, ...], value: object, said: str) -> None:
    place = spec = copy.deepcopy(pod_templates(objects("two pools"))["Deployment worker-0"]["spec"])
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert violations(spec) == [said]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_namespace_is_restricted_and_every_object_in_one(name: str) -> None:
    found = objects(name)
    namespaces = {one["metadata"]["name"]: one["metadata"]["labels"] for one in found if one["kind"] == "Namespace"}
    assert len(namespaces) == 2
    assert all(labels["pod-security.kubernetes.io/enforce"] == "restricted" for labels in namespaces.values())
    rest = [one["metadata"] for one in found if one["kind"] != "Namespace"]
    assert {metadata["namespace"] for metadata in rest} == namespaces.keys()
    assert len({(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found}) == len(found)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_only_keeper_and_workers_have_a_token_of_the_cluster(name: str) -> None:
    holders = {who for who, t in pod_templates(objects(name)).items() if t["spec"].get("automountServiceAccountToken", True)}
    deployments = {who for who in pod_templates(objects(name)) if who.startswith("Deployment")}
    assert holders == deployments
    accounts = [one for one in objects(name) if one["kind"] == "ServiceAccount"]
    assert len(accounts) == 2 and all(one["automountServiceAccountToken"] is False for one in accounts)


def container(name: str) -> dict[str, Any]:
    (made,) = pod_templates(objects("two pools"))[f"Deployment {name}"]["spec"]["containers"]
    return made


def test_a_pool_is_a_deployment_of_what_it_serves() -> None:
    for number, (patterns, count) in enumerate(((["coding/*"], 2), (["games/maze-v0", "web/*"], 3))):
        given = worker_arguments(container(f"worker-{number}")["args"])
        assert (given.env, given.backend, given.host, given.port) == (patterns, "farm", "0.0.0.0", WORKER_PORT)
        (deployment,) = (
            one for one in objects("two pools") if one["kind"] == "Deployment" and one["metadata"]["name"] == f"worker-{number}"
        )
        assert deployment["spec"]["replicas"] == count
        assert (
            deployment["spec"]["selector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        )


def test_the_keeper_reads_the_farm_that_was_rendered(tmp_path: Any) -> None:
    (config,) = (one for one in objects("two pools") if one["kind"] == "ConfigMap")
    (tmp_path / "FARM.yaml").write_text(config["data"]["FARM.yaml"])
    assert read_farm(tmp_path / "FARM.yaml") == farm()
    given = keeper_arguments(container("keeper")["args"])
    assert (str(given.file), given.listen, given.on) == ("/etc/envfarm/FARM.yaml", f"0.0.0.0:{KEEPER_PORT}", None)


def test_the_token_is_referred_to_and_never_rendered() -> None:
    secret = token_secret(farm(), "a word")
    assert secret["stringData"] == {"token": "a word"} and secret["metadata"]["namespace"] == "lab"
    assert not [one for one in objects("two pools") if one["kind"] == "Secret"]
    for name in ("keeper", "worker-0"):
        named = {one["name"]: one for one in container(name)["env"]}
        assert named[TOKEN_VARIABLE]["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "token"}
    named = {one["name"]: one.get("value") for one in container("worker-1")["env"]}
    assert named[KEEPER_VARIABLE] == "http://$(KEEPER_SERVICE_HOST):7077/pools/1"
    kinds = [one["kind"] for one in objects("two pools")]
    assert kinds.index("Service") < kinds.index("Deployment"), "a pod hears of the Services that were there before it"
    assert pod_templates(objects("two pools"))["Deployment worker-1"]["spec"]["enableServiceLinks"] is True


def test_the_cluster_holds_the_farm_to_its_boxes() -> None:
    (quota,) = (one for one in objects("two pools") if one["kind"] == "ResourceQuota")
    assert quota["metadata"]["namespace"] == "cells" and quota["spec"] == {"hard": {"pods": "80"}}


def test_the_base_is_what_its_farm_renders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["farm", "render", str(K8S / "base/FARM.yaml")])
    assert ended.value.code == 0
    made = capsys.readouterr().out
    assert (K8S / "base/farm.yaml").read_text() == made, "run `envfarm farm render k8s/base/FARM.yaml > k8s/base/farm.yaml`"
    assert list(yaml.safe_load_all(made)) == render(read_farm(K8S / "base/FARM.yaml"))


def test_the_overlay_for_a_laptop_says_the_same_to_keeper_and_cluster(tmp_path: Any) -> None:
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects("overlays/laptop")}
    (tmp_path / "FARM.yaml").write_text(found["ConfigMap", "farm"]["data"]["FARM.yaml"])
    (pool,) = read_farm(tmp_path / "FARM.yaml").pools
    assert found["Deployment", "worker-0"]["spec"]["replicas"] == pool.workers
    assert found["ResourceQuota", "boxes"]["spec"]["hard"]["pods"] == str(pool.boxes.max)
