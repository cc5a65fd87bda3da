"""The Kubernetes backend on a real cluster: the conformance suite, what an agent may try, deaths, quotas, and what is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.backends.owners import BOX, OWNER, owner_label, pid_of
from envfarm.box import Box, ExecResult
from envfarm.errors import BoxDied, BoxUnavailableError, InfraError
from envfarm.testing.backend_checks import SMALL
from envfarm.testing.check_backend import CHECKS, check_backend
from tests.envfarm.backends.test_docker import TRICKS, envfarm

pytestmark = pytest.mark.kubernetes
T = TypeVar("T")
REPOSITORY = Path(__file__).parents[3]

FAILS = {"network": "a pod has an interface; what passes through it is for a NetworkPolicy, which the test bed does not enforce"}


def with_backend(use: Callable[[KubernetesBackend], Awaitable[T]], **options: float) -> T:
    async def main() -> T:
        backend = KubernetesBackend(**options)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


def kubectl(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(owner: str) -> list[str]:
    return kubectl("get", "pods", "-l", f"{OWNER}={owner}", "-o", "name").split()


def until_gone(owner: str) -> None:
    """Deleted pods go when a busy node has come to it; the tests' time limit is the end of patience."""
    while left(owner):
        time.sleep(0.5)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in FAILS])
def test_conformance(check: str) -> None:
    (finding,) = with_backend(lambda b: check_backend(b, only=[check]))
    assert finding.ok, finding.detail
    until_gone(owner_label())


@pytest.mark.parametrize("trick", TRICKS)
def test_what_the_agent_does_to_its_box_is_its_own_doing(trick: str) -> None:
    async def use(backend: KubernetesBackend) -> list[ExecResult]:
        box = await backend.start(msgspec.structs.replace(SMALL, exec_timeout_s=2.0))
        await box.write("kept", b"kept")
        return [await box.exec(TRICKS[trick]), await box.exec("echo next"), await box.exec("cat kept; exit 3")]

    first, _, last = with_backend(use)
    assert b"next" not in first.stdout
    if last.exit_code == 3 and trick != "a shell that runs out of time":
        assert last.stdout == b"kept" and last.limit is None


# --- deaths and what is left ------------------------------------------------------------------------------------------


def first_process_of(namespace: str) -> int:
    """On this machine, the process 1 of a process namespace, as `readlink /proc/self/ns/pid` names it inside."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns/pid") != namespace:
                continue
            numbers = (entry / "status").read_text().split("\nNSpid:\t")[1].split("\n")[0].split()
        except OSError:  # it has ended meanwhile
            continue
        if numbers[-1] == "1":
            return int(entry.name)
    raise AssertionError(f"no process of {namespace} on this machine")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to kill a pod's process")
def test_a_killed_box_died_and_is_no_result() -> None:
    async def use(backend: KubernetesBackend) -> None:
        box = await backend.start(SMALL)
        namespace = (await box.exec("readlink /proc/self/ns/pid")).stdout.decode().strip()
        running = asyncio.ensure_future(box.exec("sleep 1000"))
        await asyncio.sleep(0)
        os.kill(first_process_of(namespace), signal.SIGKILL)
        with pytest.raises(BoxDied, match="ended from outside"):
            await running
        for call in (box.exec("true"), box.read("x"), box.write("x", b""), box.list(), box.archive(["/task"]), box.snapshot()):
            with pytest.raises(BoxDied):
                await call
        await box.stop()
        await box.stop()

    with_backend(use)


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

    with_backend(use)
    with_backend(use_up, slack_s=20 - SMALL.lifetime_s)


OWNER_SCRIPT = """
import asyncio
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.testing.backend_checks import SMALL
async def main():
    backend = KubernetesBackend()
    boxes = [await backend.start(SMALL) for _ in range(3)]
    calls = [asyncio.ensure_future(b.exec("setsid sleep 1000 & trap '' TERM; sleep 1000")) for b in boxes]
    print("up", flush=True)
    await asyncio.gather(*calls)
asyncio.run(main())
"""


def test_nothing_outlives_a_killed_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER_SCRIPT], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    labels = kubectl("get", "pods", "-o", f"jsonpath={{.items[*].metadata.labels.{OWNER.replace('.', chr(92) + '.')}}}").split()
    (label,) = {one for one in labels if pid_of(one) == owner.pid}
    assert len(left(label)) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until_gone(label)


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

    assert with_backend(use) == b"room\n"


def test_a_missing_image_and_a_box_too_large_for_any_node_are_named() -> None:
    with pytest.raises(BoxUnavailableError, match="can get the image 'lab/none'"):
        with_backend(lambda b: b.start(msgspec.structs.replace(SMALL, image="lab/none")))
    with pytest.raises(BoxUnavailableError, match=r"no node has had room .* Insufficient memory"):
        with_backend(lambda b: b.start(msgspec.structs.replace(SMALL, memory_bytes=1 << 44)), patience_s=5.0)


# --- the same box -----------------------------------------------------------------------------------------------------


def test_a_snapshot_moves_between_backends() -> None:
    async def use(backend: KubernetesBackend) -> list[bytes]:
        local = BubblewrapBackend()
        try:
            box: Box = await backend.start(SMALL)
            await box.exec("mkdir -p d/e; echo hi >d/e/f; ln d/e/f hard; ln -s e/f d/link; mkfifo p; chmod 750 d; cd d; x=5")
            seen = []
            for place in (local, backend):
                box = await place.start(SMALL, snapshot=await box.snapshot())
                seen.append((await box.exec('echo $x; pwd; cat link /task/hard; stat -c "%a %n" /task/*')).stdout)
            return seen
        finally:
            await local.close()

    there, back = with_backend(use)
    assert there == back == b"5\n/task/d\nhi\nhi\n750 /task/d\n644 /task/hard\n"


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

    there, here = with_backend(use)
    assert there.replace(b"/usr/local/bin:", b"") == here.replace(b"/usr/local/bin:", b"")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["oracle", "random"])
@pytest.mark.parametrize("env", ["coding/shell-v0", "coding/repair-v0"])
def test_a_store_from_pods_replays_on_bubblewrap(env: str, policy: str, tmp_path: Path) -> None:
    if "ENVFARM_IMAGES" not in os.environ:
        pytest.skip("ENVFARM_IMAGES does not name the unpacked images; `make test-farm` sets it")
    store = str(tmp_path / "store")
    what = ("--env", env, "--policy", policy, "--rung", "0", "--episodes", "2", "--group", "1")
    envfarm("rollout", *what, "--backend", "kubernetes", "--out", store)
    told = envfarm("replay", store, "--backend", "bubblewrap")
    assert (told["episodes"], told["differences"], told["same"]) == (2, [], True), told
