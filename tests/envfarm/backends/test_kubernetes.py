"""The Kubernetes backend on a real cluster: the conformance suite, what an agent may try, deaths, quotas, and what is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.backends.owners import BOX, OWNER, owner_label
from envfarm.box import Box
from envfarm.errors import BoxDied, BoxUnavailableError, InfraError
from envfarm.testing.backend_checks import SMALL
from envfarm.testing.check_backend import CHECKS, check_backend
from tests import testbed
from tests.envfarm.backends import remote_scenes
from tests.envfarm.backends.remote_scenes import with_backend
from tests.envfarm.backends.shared import Shared
from tests.testbed import kubectl, needs_root

pytestmark = pytest.mark.kubernetes

FAILS = {"network": "a pod has an interface; what passes through it is for a NetworkPolicy, which the test bed does not enforce"}


def left(owner: str) -> list[str]:
    return kubectl("get", "pods", "-l", f"{OWNER}={owner}", "-o", "name").split()


def until_gone(owner: str) -> None:
    """Deleted pods go when a busy node has come to it; the tests' time limit is the end of patience."""
    while left(owner):
        time.sleep(0.5)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in FAILS])
def test_conformance(shared: Shared, check: str) -> None:
    (finding,) = shared(KubernetesBackend, lambda b: check_backend(b, only=[check]))
    assert finding.ok, finding.detail
    until_gone(owner_label())


@pytest.mark.parametrize("trick", remote_scenes.TRICKS)
def test_what_the_agent_does_to_its_box_is_its_own_doing(shared: Shared, trick: str) -> None:
    remote_scenes.a_trick_is_the_agents_own_doing(shared, KubernetesBackend, trick)


def test_a_second_shell_that_nobody_waits_for_is_no_obstacle(shared: Shared) -> None:
    remote_scenes.a_second_shell_that_nobody_waits_for_is_no_obstacle(shared, KubernetesBackend)


def test_a_beginning_is_marked_where_somebody_may_still_write(shared: Shared) -> None:
    remote_scenes.a_beginning_is_marked_where_somebody_may_still_write(shared, KubernetesBackend)


def test_a_second_shell_that_stops_to_answer_costs_no_result(shared: Shared) -> None:
    remote_scenes.a_second_shell_that_stops_to_answer_costs_no_result(shared, KubernetesBackend)


# --- deaths and what is left ------------------------------------------------------------------------------------------


async def process_of(backend: KubernetesBackend, box: Box) -> int:
    process = testbed.process_of_pod(testbed.pods({os.getpid()})[box.id])
    assert process is not None
    return process


@needs_root
def test_a_killed_box_died_and_is_no_result() -> None:
    remote_scenes.a_box_killed_from_outside_died(KubernetesBackend, process_of)


def test_a_deleted_pod_and_a_deadline_are_deaths_of_the_farm() -> None:
    async def use(backend: KubernetesBackend) -> None:
        box = await backend.start(SMALL)
        await asyncio.to_thread(kubectl, "delete", "pod", "-l", f"{BOX}={box.id}")
        with pytest.raises(BoxDied, match="removed"):
            await box.exec("true")

    async def use_up(backend: KubernetesBackend) -> None:
        with pytest.raises(InfraError, match=r"deadline passed|removed"):  # on a busy machine it passes as the pod comes up
            box = await backend.start(msgspec.structs.replace(SMALL, exec_timeout_s=120.0))
            await box.exec("sleep 1000")

    with_backend(KubernetesBackend, use)
    with_backend(KubernetesBackend, use_up, slack_s=20 - SMALL.lifetime_s)


def test_nothing_outlives_a_killed_owner() -> None:
    def boxes_of(pid: int) -> list[str]:
        return [pod["metadata"]["labels"][OWNER] for pod in testbed.pods({pid}).values()]

    until_gone(remote_scenes.an_owner_is_killed("kubernetes", boxes_of)[0])


def test_reapers_take_their_own_alone() -> None:
    remote_scenes.reapers_take_their_own_alone(KubernetesBackend, lambda pid: list(testbed.pods({pid})))


# --- what a cluster may lack ------------------------------------------------------------------------------------------


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"lab-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    monkeypatch.setenv("ENVFARM_NAMESPACE", name)
    yield name
    kubectl("delete", "namespace", name)


def test_a_quota_is_waited_for(namespace: str) -> None:
    kubectl("create", "quota", "boxes", "--hard=pods=1", "-n", namespace)

    async def use(backend: KubernetesBackend) -> bytes:
        first = await backend.start(SMALL)
        second = asyncio.ensure_future(backend.start(SMALL))
        while not backend.waiting:
            await asyncio.sleep(0.05)
        (why,) = backend.waiting
        assert "exceeded quota: boxes" in why and "pods=1" in why
        await first.stop()
        return (await (await second).exec("echo room")).stdout

    assert with_backend(KubernetesBackend, use) == b"room\n"


def test_a_missing_image_and_a_box_too_large_for_any_node_are_named() -> None:
    with pytest.raises(BoxUnavailableError, match="can get the image 'lab/none'"):
        with_backend(KubernetesBackend, lambda b: b.start(msgspec.structs.replace(SMALL, image="lab/none")))
    with pytest.raises(BoxUnavailableError, match=r"no node has had room .* Insufficient memory"):
        with_backend(KubernetesBackend, lambda b: b.start(msgspec.structs.replace(SMALL, memory_bytes=1 << 44)), patience_s=5.0)


# --- the same box -----------------------------------------------------------------------------------------------------


def test_a_snapshot_moves_between_backends() -> None:
    remote_scenes.a_snapshot_moves_to_bubblewrap_and_back(KubernetesBackend)


def test_nothing_of_the_cluster_is_in_the_environment() -> None:
    async def use(backend: KubernetesBackend) -> tuple[bytes, bytes]:
        pod, local = await backend.start(SMALL), BubblewrapBackend()
        try:
            command = (
                "env | grep -v ^_= | sort; hostname; id; stat -c '%a %u %g' /task /tmp; ls /dev/termination-log; cat /root/*"
            )
            return (await pod.exec(command)).stdout, (await (await local.start(SMALL)).exec(command)).stdout
        finally:
            await local.close()

    there, here = with_backend(KubernetesBackend, use)
    assert there.replace(b"/usr/local/bin:", b"") == here.replace(b"/usr/local/bin:", b"")


@pytest.mark.slow
@pytest.mark.parametrize(("env", "policy"), remote_scenes.REPLAYED)
def test_a_store_from_pods_replays_on_bubblewrap(env: str, policy: str, tmp_path: Path) -> None:
    remote_scenes.a_store_replays_on_bubblewrap("kubernetes", env, policy, tmp_path / "store")
