"""The Docker backend on a real engine: the conformance suite, hardening, what an agent may try, deaths, and what is left."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from envfarm.backends import remote_side
from envfarm.backends.docker import DockerBackend, GvisorBackend, connect, remove_left_over
from envfarm.backends.local import backend_class
from envfarm.backends.owners import BOX, DEADLINE, OWNER, owner_label, pid_of
from envfarm.backends.sync import SyncBox
from envfarm.box import Box
from envfarm.errors import BoxDied, BoxUnavailableError, InfraError, MissingDependencyError
from envfarm.testing.backend_checks import SMALL
from envfarm.testing.check_backend import CHECKS, check_backend
from tests import testbed
from tests.envfarm.backends import remote_scenes
from tests.envfarm.backends.remote_scenes import with_backend
from tests.envfarm.backends.shared import Shared
from tests.testbed import needs_root, require_gvisor

on_engine = pytest.mark.docker

RUNSC_FAILS = {
    "shell ends": "the shell's supervisor is not process 1, so `kill -9 $$` ends the box (by the agent's doing)",
    "descriptors": "this gVisor shows the three streams as `host:[1]`, not as the pipes that they are",
    "fork bomb": "it wedges the sandbox: the box is given up, as the agent's doing",
    "privileges": "this gVisor does not show NoNewPrivs in /proc/self/status",
}
"""Seen with Debian's runsc 20221219, its statx mended (k8s/testbed/gvisor-build.sh), on the ptrace platform. Each is contained
all the same."""

RUNSC_PATIENCE = 8.0
"""Every system call is some thirty times slower there, and gVisor's CPU seconds are an estimate by wall clock."""


def owned(api: Any) -> list[dict[str, Any]]:
    return api.containers(all=True, filters={"label": BOX})


@on_engine
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(shared: Shared, check: str) -> None:
    (finding,) = shared(DockerBackend, lambda b: check_backend(b, only=[check]))
    assert finding.ok, finding.detail


@on_engine
@pytest.mark.parametrize("check", [c for c in CHECKS if c not in RUNSC_FAILS])
def test_conformance_in_gvisor(shared: Shared, check: str) -> None:
    require_gvisor()
    (finding,) = shared(GvisorBackend, lambda b: check_backend(b, only=[check], patience=RUNSC_PATIENCE))
    assert finding.ok, finding.detail


def test_gvisor_says_what_is_not_enforced() -> None:
    told, of_runc = GvisorBackend().enforcement(), DockerBackend().enforcement()
    assert "runsc enforces no control groups" in told["memory"] and "runsc enforces no control groups" in told["pids"]
    assert "not limited" in told["cpu"] and "another user's" in told["process 1"]
    assert "control groups" in of_runc["memory"] and set(of_runc) < set(told)


@on_engine
def test_a_container_is_hardened_and_labelled() -> None:
    async def use(backend: DockerBackend) -> dict[str, Any]:
        await backend.start(SMALL)
        (found,) = [c for c in owned(backend.api) if c["Labels"][OWNER] == owner_label()]
        return backend.api.inspect_container(found["Id"])

    seen = with_backend(DockerBackend, use)
    host = seen["HostConfig"]
    assert (host["CapDrop"], host["ReadonlyRootfs"], host["NetworkMode"]) == (["ALL"], True, "none")
    assert not host["Binds"] and not host["Privileged"] and host["LogConfig"]["Type"] == "none"
    assert host["Memory"] == host["MemorySwap"] == SMALL.memory_bytes and host["NanoCpus"] == 1e9
    assert "no-new-privileges" in host["SecurityOpt"] and any(o.startswith("seccomp=") for o in host["SecurityOpt"])
    assert seen["Config"]["User"] == "1000:1000" and int(seen["Config"]["Labels"][DEADLINE]) > 0
    assert "envfarm" not in json.dumps([seen["Config"]["Env"], seen["Config"]["Entrypoint"], seen["Name"]])


@on_engine
@pytest.mark.parametrize("trick", remote_scenes.TRICKS)
def test_what_the_agent_does_to_its_box_is_its_own_doing(shared: Shared, trick: str) -> None:
    remote_scenes.a_trick_is_the_agents_own_doing(shared, DockerBackend, trick)


@on_engine
def test_a_second_shell_that_nobody_waits_for_is_no_obstacle(shared: Shared) -> None:
    remote_scenes.a_second_shell_that_nobody_waits_for_is_no_obstacle(shared, DockerBackend)


@on_engine
def test_a_beginning_is_marked_where_somebody_may_still_write(shared: Shared) -> None:
    remote_scenes.a_beginning_is_marked_where_somebody_may_still_write(shared, DockerBackend)


@on_engine
def test_a_second_shell_that_stops_to_answer_costs_no_result(shared: Shared) -> None:
    remote_scenes.a_second_shell_that_stops_to_answer_costs_no_result(shared, DockerBackend)


# --- deaths and what is left ------------------------------------------------------------------------------------------


async def process_of(backend: DockerBackend, box: Box) -> int:
    (found,) = [c for c in owned(backend.api) if c["Labels"][BOX] == box.id]
    return backend.api.inspect_container(found["Id"])["State"]["Pid"]


@on_engine
@needs_root
@pytest.mark.parametrize("kind", [DockerBackend, GvisorBackend])
def test_a_killed_box_died_and_is_no_result(kind: type[DockerBackend]) -> None:
    if kind is GvisorBackend:
        require_gvisor()
    remote_scenes.a_box_killed_from_outside_died(kind, process_of)


@on_engine
def test_nothing_outlives_a_killed_owner() -> None:
    import docker.errors

    api = connect()

    def boxes_of(pid: int) -> list[str]:
        return [c["Id"] for c in owned(api) if pid_of(c["Labels"][OWNER]) == pid]

    mine = remote_scenes.an_owner_is_killed("docker", boxes_of)
    for container in mine:
        try:
            api.wait(container, timeout=60, condition="removed")
        except docker.errors.NotFound:
            continue
    assert not {c["Id"] for c in owned(api)} & set(mine)


@on_engine
def test_a_box_past_its_deadline_is_removed_by_any_reaper() -> None:
    async def use(backend: DockerBackend) -> None:
        # its own reaper may be faster than the box comes up
        with pytest.raises(InfraError, match=r"removed|ended from outside|No such container"):
            box = await backend.start(SMALL)
            await asyncio.to_thread(remove_left_over, None)
            await box.exec("true")

    with_backend(DockerBackend, use, slack_s=-SMALL.lifetime_s - 5)


@on_engine
def test_what_could_not_be_removed_the_reaper_removes() -> None:
    async def use(backend: DockerBackend) -> None:
        box, kept = await backend.start(SMALL), await backend.start(SMALL)
        (found,) = [c for c in owned(backend.api) if c["Labels"][BOX] == box.id]
        backend.leave(box.id)
        await asyncio.to_thread(backend.api.wait, found["Id"], timeout=60, condition="removed")
        assert (await kept.exec("echo kept")).stdout == b"kept\n"

    with_backend(DockerBackend, use)


@on_engine
def test_reapers_take_their_own_alone() -> None:
    remote_scenes.reapers_take_their_own_alone(DockerBackend, lambda pid: list(testbed.containers({pid})))


@on_engine
def test_a_cancelled_start_leaves_nothing() -> None:
    async def use(backend: DockerBackend) -> None:
        await backend.probe()
        starting = asyncio.ensure_future(backend.start(SMALL))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        assert [c for c in owned(backend.api) if c["Labels"][OWNER] == owner_label()] == []

    with_backend(DockerBackend, use)


@on_engine
@pytest.mark.parametrize("entry", [["/nowhere"], ["/bin/sh", "-c", "exit 1"]])
@pytest.mark.parametrize("first", ["a command", "a file"])
def test_a_second_shell_that_does_not_come_up_is_the_farms_fault(
    entry: list[str], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes up in the background, and is missed where it is first needed; no command of the agent's has run then."""
    monkeypatch.setattr(remote_side, "ENTRY", entry)

    async def use(backend: DockerBackend) -> None:
        box = await backend.start(SMALL)
        with pytest.raises(BoxDied):
            await (box.exec("echo ran >/task/ran") if first == "a command" else box.write("a", b"a"))
        for call in (box.exec("true"), box.read("ran")):
            with pytest.raises(BoxDied):
                await call

    with_backend(DockerBackend, use)


@on_engine
def test_a_box_that_is_stopped_while_its_second_shell_comes_up_leaves_nothing() -> None:
    async def use(backend: DockerBackend) -> None:
        box = await backend.start(SMALL)
        await box.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [c for c in owned(backend.api) if c["Labels"][OWNER] == owner_label()] == []

    with_backend(DockerBackend, use)


@on_engine
def test_warm_boxes_are_handed_out_and_go_with_the_backend() -> None:
    async def use(backend: DockerBackend) -> tuple[str, str, bytes]:
        first = await backend.start(SMALL)
        ready = await asyncio.gather(*(task for tasks in backend._ready.values() for task in tasks))
        second = await backend.start(SMALL)
        assert second is ready[0]
        return first.id, second.id, (await second.exec("ls -A; pwd")).stdout

    first, second, fresh = with_backend(DockerBackend, use, warm=2)
    assert first != second and fresh == b"/task\n"
    assert [c for c in owned(connect()) if c["Labels"][OWNER] == owner_label()] == []


@on_engine
def test_a_warm_box_without_a_lifetime_before_it_is_not_handed_out() -> None:
    async def use(backend: DockerBackend) -> tuple[str, str]:
        await backend.start(SMALL)
        (ready,) = await asyncio.gather(*(task for tasks in backend._ready.values() for task in tasks))
        second = await backend.start(SMALL)
        await second.exec("true")
        return ready.id, second.id

    waited, used = with_backend(DockerBackend, use, warm=1, slack_s=-1)
    assert waited != used


# --- the same box -----------------------------------------------------------------------------------------------------


@on_engine
def test_a_snapshot_moves_between_backends() -> None:
    remote_scenes.a_snapshot_moves_to_bubblewrap_and_back(DockerBackend)


@on_engine
def test_environments_use_it_from_a_thread() -> None:
    def play(box: SyncBox) -> tuple[bytes, bytes, dict[str, bytes]]:
        box.write("in put's\n.txt", b"b\na\n")
        out = box.exec("sort in*.txt >out.txt; cat out.txt").stdout
        return out, box.read("in put's\n.txt"), box.archive(["/task"])

    async def use(backend: DockerBackend) -> object:
        box = SyncBox(await backend.start(SMALL), asyncio.get_running_loop())
        return await asyncio.to_thread(play, box)

    assert with_backend(DockerBackend, use) == (b"a\nb\n", b"b\na\n", {"in put's\n.txt": b"b\na\n", "out.txt": b"a\nb\n"})


@on_engine
@pytest.mark.slow
@pytest.mark.parametrize(("env", "policy"), remote_scenes.REPLAYED)
def test_a_store_from_docker_replays_on_bubblewrap(env: str, policy: str, tmp_path: Path) -> None:
    remote_scenes.a_store_replays_on_bubblewrap("docker", env, policy, tmp_path / "store")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_docker_py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[docker\]'"):
        with_backend(DockerBackend, lambda b: b.probe())


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///nowhere/engine.sock", "no Docker engine answers at unix:///nowhere/engine.sock. Start it"),
        ("tcp://127.0.0.1:1", "no Docker engine answers at tcp://127.0.0.1:1"),
        ("ssh://somebody@somewhere", "forward the socket"),
    ],
)
def test_without_an_engine_it_says_what_to_do(host: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(BoxUnavailableError, match=said):
        with_backend(DockerBackend, lambda b: b.start(SMALL))


@on_engine
def test_a_missing_image_or_runtime_is_named() -> None:
    with pytest.raises(BoxUnavailableError, match="no image 'lab/none': `docker pull` it"):
        with_backend(DockerBackend, lambda b: b.start(msgspec.structs.replace(SMALL, image="lab/none")))
    with pytest.raises(BoxUnavailableError, match="no runtime 'kata'"):
        with_backend(DockerBackend, lambda b: b.probe(), runtime="kata")


@on_engine
def test_a_box_larger_than_the_machine_is_refused_with_what_it_asks_for() -> None:
    with pytest.raises(BoxUnavailableError, match=r"asks for cpu 1000, .*Range of CPUs.*Ask for less under `sandbox`"):
        with_backend(DockerBackend, lambda b: b.start(msgspec.structs.replace(SMALL, cpu=1000.0)))


@needs_root
def test_a_socket_that_this_user_may_not_open_is_named() -> None:
    """The other user's process imports everything as root first: the interpreter may be root's alone."""
    code = """
import os, tempfile, socket, docker
from envfarm.backends.docker import connect
folder = tempfile.mkdtemp(dir="/tmp")
os.chmod(folder, 0o755)
where = os.environ["DOCKER_HOST"] = f"unix://{folder}/engine.sock"
with socket.socket(socket.AF_UNIX) as engine:
    engine.bind(where.removeprefix("unix://"))
    engine.listen()
    os.seteuid(65534)
    try:
        connect()
    finally:
        os.seteuid(0)
        os.unlink(f"{folder}/engine.sock")
        os.rmdir(folder)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "this user may not use the Docker engine at unix:///tmp/" in done.stderr and "usermod -aG docker" in done.stderr


def test_it_is_found_by_name() -> None:
    assert (backend_class("docker"), backend_class("docker-runsc")) == (DockerBackend, GvisorBackend)
