"""The manifests in k8s/base: what they allow is what a box needs, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from envfarm.backends.kubernetes_api import NEEDED

BASE = Path(__file__).parents[1] / "k8s/base"


def resources() -> dict[tuple[str, str], dict[str, Any]]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(f.name for f in BASE.glob("*.yaml") if f.name != "kustomization.yaml")
    found = [one for name in listed for one in yaml.safe_load_all((BASE / name).read_text())]
    made = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(made) == len(found)
    return made


def rights(role: dict[str, Any]) -> set[tuple[str, str]]:
    assert all(rule["apiGroups"] == [""] and "resourceNames" not in rule for rule in role["rules"])
    return {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_an_owner_may_what_the_backend_needs_and_a_user_only_use_boxes() -> None:
    found = resources()
    needed = {(verb, "/".join(filter(None, what))) for verb, *what in NEEDED}
    streams = {("create", "pods/attach"), ("create", "pods/exec")}  # newer servers ask for both verbs
    assert rights(found["Role", "box-owner"]) == needed | streams
    assert rights(found["Role", "box-user"]) == {(v, r) for v in ("get", "create") for r in ("pods/attach", "pods/exec")}
    for name in ("box-owner", "box-user"):
        binding = found["RoleBinding", name]
        assert binding["roleRef"]["name"] == name and [one["name"] for one in binding["subjects"]] == [name]
        assert found["ServiceAccount", name]["automountServiceAccountToken"] is False


def test_everything_is_in_one_restricted_and_closed_namespace() -> None:
    found = resources()
    (namespace,) = (one["metadata"] for (kind, _), one in found.items() if kind == "Namespace")
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"].get("namespace", namespace["name"]) for one in found.values()} == {namespace["name"]}
    (policy,) = (one["spec"] for (kind, _), one in found.items() if kind == "NetworkPolicy")
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}  # no rule: nothing is allowed
