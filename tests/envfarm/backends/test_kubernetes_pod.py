"""What a box's pod asks for, and what its status is taken for. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from envfarm.backends import owners
from envfarm.backends.kubernetes_manifest import pod
from envfarm.backends.kubernetes_states import death, ended, no_image, over, running, settled, unschedulable
from envfarm.backends.remote_box import variables
from envfarm.box import BoxSpec
from envfarm.testing.backend_checks import SMALL
from tests.k8s.restricted import violations


def made(spec: BoxSpec = SMALL) -> dict[str, Any]:
    return pod(spec, owners.labels("box-1", 60), 60)


def test_it_passes_pod_security_restricted() -> None:
    spec = made()["spec"]
    assert len(spec["initContainers"]) == 1 and violations(spec) == []
    assert not [one for one in (*spec["initContainers"], *spec["containers"]) if "ports" in one]


def test_it_is_passive_and_limited() -> None:
    whole = made(msgspec.structs.replace(SMALL, cpu=0.5))
    spec, (box,) = whole["spec"], whole["spec"]["containers"]
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert box["securityContext"]["readOnlyRootFilesystem"] is True
    assert box["resources"]["limits"] | {"ephemeral-storage": ""} == {
        "memory": str(SMALL.memory_bytes),
        "cpu": "500m",
        "ephemeral-storage": "",
    }
    assert box["resources"]["requests"]["memory"] == str(SMALL.memory_bytes)
    sizes = {v["name"]: int(v["emptyDir"]["sizeLimit"]) for v in spec["volumes"]}
    assert sizes["task"] + sizes["tmp"] == SMALL.disk_bytes and {v["emptyDir"]["medium"] for v in spec["volumes"]} == {"Memory"}
    assert (spec["activeDeadlineSeconds"], spec["restartPolicy"]) == (60, "Never")
    inside = json.dumps([spec["containers"], spec["initContainers"], spec["hostname"]]).replace(SMALL.image, "")
    assert "envfarm" not in inside


def test_what_the_cluster_reads_as_a_variable_is_written_as_text() -> None:
    (box,) = made()["spec"]["containers"]
    assert {one["name"]: one["value"] for one in box["env"]}["__f"].replace("$$", "$") == variables()["__f"]
    for text in (*box["command"], *(one["value"] for one in box["env"])):
        assert "$" not in text.replace("$$", "")


def test_labels_are_what_kubernetes_takes() -> None:
    labels = made()["metadata"]["labels"]
    assert labels[owners.OWNER] == owners.owner_label()
    for value in labels.values():
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value)


def test_whose_time_has_come_is_known_by_labels() -> None:
    mine = owners.labels("box-1", 60)
    assert not owners.is_over(mine, None) and owners.is_over(mine, owners.owner_label())
    assert owners.is_over(mine | {owners.DEADLINE: "1"}, None)
    machine, pid, _ = owners.owner_label().rsplit("_", 2)
    assert owners.is_over(mine | {owners.OWNER: f"{machine}_{pid}_1"}, None)  # this process's number, earlier
    assert not owners.is_over(mine | {owners.OWNER: f"elsewhere_{pid}_1"}, None)


# --- what a status means ----------------------------------------------------------------------------------------------


def seen(phase: str = "Running", *, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = [{"name": "box", "state": state}] if state else []
    return {
        "metadata": {"name": "box-1"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def exit_of(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


@pytest.mark.parametrize(
    ("pod", "why", "by_agent", "limit"),
    [
        (seen("Failed", state=exit_of(137, "OOMKilled")), "out of memory", True, "memory"),
        (seen("Failed", state=exit_of(137)), "ended from outside .exit code 137", False, None),
        (seen("Failed", state=exit_of(139)), "made to end .exit code 139", True, None),
        (
            seen("Failed", initContainerStatuses=[{"name": "folders", "state": exit_of(1)}]),
            "its first container 'folders' failed .exit code 1.: Error",
            False,
            None,
        ),
        (seen("Failed", reason="DeadlineExceeded"), "its deadline passed", False, None),
        (seen("Failed", reason="Evicted", message="The node was low on resource: memory."), "node n1 evicted it", False, None),
        (
            seen("Failed", reason="Evicted", message='Container box exceeded its local ephemeral storage limit "512Mi". '),
            "evicted it: Container box exceeded its local ephemeral storage",
            True,
            "disk",
        ),
        (
            seen(
                "Failed",
                reason="Evicted",
                message="The node was low on resource: ephemeral-storage. Container box was using 9Mi. ",
            ),
            "node n1 evicted it",
            False,
            None,
        ),
        (seen("Failed", reason="NodeLost", message="node is unreachable"), "node n1 was lost .NodeLost.: node is", False, None),
        (seen(state={"running": {}}), "the connection to its pod was lost", False, None),
        (None, "its pod was removed", False, None),
    ],
)
def test_a_death_is_explained(pod: dict[str, Any] | None, why: str, by_agent: bool, limit: str | None) -> None:
    found = death(pod, answers=True)
    assert re.search(why, found.why) and (found.by_agent, found.limit) == (by_agent, limit)


def test_a_silent_api_server_is_not_a_removed_pod() -> None:
    assert death(None, answers=False).why == "the API server does not answer"


def test_waiting_ends_where_something_is_known() -> None:
    waiting = seen("Pending", state={"waiting": {"reason": "ContainerCreating"}})
    pulling = seen("Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    full = seen("Pending", conditions=[{"type": "PodScheduled", "reason": "Unschedulable", "message": "1 Insufficient cpu."}])
    assert not settled(waiting) and not settled(full) and settled(pulling) and settled(None)
    assert settled(seen(state={"running": {}})) and running(seen(state={"running": {}}))
    assert over(seen(state=exit_of(0))) and not over(waiting)
    assert no_image(pulling) == "ImagePullBackOff: no such image" and no_image(waiting) is None
    assert unschedulable(full) == "1 Insufficient cpu." and unschedulable(waiting) is None


def test_nothing_runs_where_something_ran_and_the_node_says_that_it_ended() -> None:
    def told(last: dict[str, Any], **state: Any) -> bool:
        pod = seen("Failed", state=state)
        pod["status"]["containerStatuses"][0]["lastState"] = last
        return ended(pod)

    of_runtime = exit_of(1)["terminated"] | {"containerID": "containerd://1"}
    assert told({}, terminated=of_runtime)
    assert told(exit_of(137, "ContainerStatusUnknown"), waiting={"reason": "ContainerCreating"})  # it used to run
    assert not told({}, **exit_of(137, "ContainerStatusUnknown"))  # it never did, and may yet
    assert not told({}, waiting={"reason": "PodInitializing"})
    assert told({}, waiting={"reason": "ErrImagePull"})  # and never will
    assert not told({}, running={})  # a pod that is evicted has failed before it has ended
    assert not ended(seen("Failed", reason="Evicted"))
