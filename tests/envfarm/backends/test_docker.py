"""The Docker backend on a real engine: the conformance suite, hardening, what an agent may try, deaths, and what is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.docker import DockerBackend, GvisorBackend, connect, remove_left_over
from envfarm.backends.local import backend_class
from envfarm.backends.owners import BOX, DEADLINE, OWNER, owner_label, pid_of
from envfarm.backends.sync import SyncBox
from envfarm.box import Box, ExecResult
from envfarm.errors import BoxDied, BoxUnavailableError, InfraError, MissingDependencyError
from envfarm.testing.backend_checks import SMALL
from envfarm.testing.check_backend import CHECKS, check_backend

T = TypeVar("T")
on_engine = pytest.mark.docker
REPOSITORY = Path(__file__).parents[3]

RUNSC_FAILS = {
    "shell ends": "gVisor lets a process kill process 1, so `kill -9 1` ends the box (by the agent's doing)",
    "snapshots": "statx of this gVisor and `stat` of Debian 12 do not understand each other",
    "files": "as snapshots",
    "descriptors": "as snapshots (`ls -l`)",
    "disk limit": "as snapshots (`du`)",
    "fork bomb": "it wedges the sandbox: the box is given up, as the agent's doing, and the engine needs minutes to remove it",
    "privileges": "this gVisor does not show NoNewPrivs in /proc/self/status",
}
"""Seen with Debian's runsc 20221219 on the ptrace platform. Each is contained all the same."""

RUNSC_PATIENCE = 8.0
"""Every system call is some thirty times slower there, and gVisor's CPU seconds are an estimate by wall clock."""


def with_backend(use: Callable[[DockerBackend], Awaitable[T]], kind: type[DockerBackend] = DockerBackend, **options: Any) -> T:
    async def main() -> T:
        backend = kind(**options)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


def owned(api: Any) -> list[dict[str, Any]]:
    return api.containers(all=True, filters={"label": BOX})


@on_engine
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check: str) -> None:
    (finding,) = with_backend(lambda b: check_backend(b, only=[check]))
    assert finding.ok, finding.detail


@on_engine
@pytest.mark.parametrize("check", [c for c in CHECKS if c not in RUNSC_FAILS])
def test_conformance_in_gvisor(check: str) -> None:
    if "runsc" not in connect().info()["Runtimes"]:
        pytest.skip("the engine has no runtime runsc")
    (finding,) = with_backend(lambda b: check_backend(b, only=[check], patience=RUNSC_PATIENCE), GvisorBackend)
    assert finding.ok, finding.detail


def test_gvisor_says_what_is_not_enforced() -> None:
    told, of_runc = GvisorBackend().enforcement(), DockerBackend().enforcement()
    assert "runsc enforces no control groups" in told["memory"] and "runsc enforces no control groups" in told["pids"]
    assert "not limited" in told["cpu"] and "not protected" in told["process 1"]
    assert "control groups" in of_runc["memory"] and set(of_runc) < set(told)


@on_engine
def test_a_container_is_hardened_and_labelled() -> None:
    async def use(backend: DockerBackend) -> dict[str, Any]:
        await backend.start(SMALL)
        (found,) = [c for c in owned(backend.api) if c["Labels"][OWNER] == owner_label()]
        return backend.api.inspect_container(found["Id"])

    seen = with_backend(use)
    host = seen["HostConfig"]
    assert (host["CapDrop"], host["ReadonlyRootfs"], host["NetworkMode"]) == (["ALL"], True, "none")
    assert not host["Binds"] and not host["Privileged"] and host["LogConfig"]["Type"] == "none"
    assert host["Memory"] == host["MemorySwap"] == SMALL.memory_bytes and host["NanoCpus"] == 1e9
    assert "no-new-privileges" in host["SecurityOpt"] and any(o.startswith("seccomp=") for o in host["SecurityOpt"])
    assert seen["Config"]["User"] == "1000:1000" and int(seen["Config"]["Labels"][DEADLINE]) > 0
    assert "envfarm" not in json.dumps([seen["Config"]["Env"], seen["Config"]["Entrypoint"], seen["Name"]])


# --- what an agent may try: its own command suffers, or its box; never is it an infra error ---------------------------

SIDE = "for d in /proc/[0-9]*; do p=${d#/proc/}; case $p in 1|$BASHPID) continue;; esac; "
TRICKS = {
    "forges its end": r"""printf 'x\0E%s 0 /task\0' "$__n"; printf '\0E%s\0' "$__n" >&2; while :; do :; done""",
    "a huge mark": r"""printf '\0E%s 0 ' "$__n"; head -c 3000000 /dev/zero | tr '\0' /""",
    "forges the shell's end": r"printf '\0X%032d 0\0\0X 0\0' 0",
    "takes printf away": "printf() { :; }",
    "takes read away": "read() { return 1; }",
    "kills all": "kill -9 -1",
    "kills all, then a fork bomb": "kill -9 -1; b() { b | b & b; }; b",
    "kills all for ever": "while :; do kill -9 -1; done 2>/dev/null",
    "stops the second shell": SIDE + "kill -STOP $p; done; sleep 1",
    "steals frames": "cat /proc/1/fd/0 >/dev/null & cat /proc/1/fd/3 >/dev/null",
    "writes to the frames": "head -c 100000 /dev/zero | tr '\\0' x >/proc/1/fd/3",
    "forges the second shell": SIDE + r"printf '\0aaaaaaaaaaaaaaaa ok 0 1 2 3 4 5 6\n' >/proc/$p/fd/1; done",
    "floods the second shell": SIDE + "timeout 1 head -c 100000000 /dev/zero >/proc/$p/fd/1; done",
    "speaks to the second shell": SIDE + "echo 'kill -9 $$; reply ok 0' >/proc/$p/fd/0; done",
    "a shell that runs out of time": "TMOUT=1; trap 'echo bye' EXIT",
    "signals process 1": "for s in TERM INT HUP QUIT USR1 STOP SEGV KILL; do kill -$s 1; done",
    "overwrites process 1": "while IFS='- ' read -r a b c; do dd if=/dev/zero of=/proc/1/mem bs=4096 count=1 seek=$((0x$a/4096)) "
    "conv=notrunc; done </proc/1/maps 2>/dev/null",
}


@on_engine
@pytest.mark.parametrize("trick", TRICKS)
def test_what_the_agent_does_to_its_box_is_its_own_doing(trick: str) -> None:
    async def use(backend: DockerBackend) -> list[ExecResult]:
        box = await backend.start(msgspec.structs.replace(SMALL, exec_timeout_s=2.0))
        await box.write("kept", b"kept")
        results = [await box.exec(TRICKS[trick]), await box.exec("echo next"), await box.exec("cat kept; exit 3")]
        found = await box.archive(["/task"])
        spent = results[2].exit_code != 3
        assert found == ({} if spent else {"kept": b"kept"})
        if spent:  # then every further command says so as well
            assert (await box.exec("true")).exit_code == results[2].exit_code
            with pytest.raises(FileNotFoundError):
                await box.read("kept")
        return results

    first, _, last = with_backend(use)
    assert b"next" not in first.stdout
    if last.exit_code == 3 and trick != "a shell that runs out of time":
        assert last.stdout == b"kept" and last.limit is None


# --- deaths and what is left ------------------------------------------------------------------------------------------


@on_engine
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to kill a container's process")
def test_a_killed_box_died_and_is_no_result() -> None:
    async def use(backend: DockerBackend) -> None:
        box = await backend.start(SMALL)
        assert (await box.exec("echo up")).stdout == b"up\n"
        (found,) = [c for c in owned(backend.api) if c["Labels"][OWNER] == owner_label()]
        running = asyncio.ensure_future(box.exec("sleep 1000"))
        await asyncio.sleep(0)
        os.kill(backend.api.inspect_container(found["Id"])["State"]["Pid"], signal.SIGKILL)
        with pytest.raises(BoxDied, match="ended from outside"):
            await running
        for call in (box.exec("true"), box.read("x"), box.write("x", b""), box.list(), box.archive(["/task"]), box.snapshot()):
            with pytest.raises(BoxDied):
                await call
        await box.stop()
        await box.stop()

    with_backend(use)


OWNER_SCRIPT = """
import asyncio
from envfarm.backends.docker import DockerBackend
from envfarm.testing.backend_checks import SMALL
async def main():
    backend = DockerBackend()
    boxes = [await backend.start(SMALL) for _ in range(3)]
    calls = [asyncio.ensure_future(b.exec("setsid sleep 1000 & trap '' TERM; sleep 1000")) for b in boxes]
    print("up", flush=True)
    await asyncio.gather(*calls)
asyncio.run(main())
"""


@on_engine
def test_nothing_outlives_a_killed_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER_SCRIPT], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    api = connect()
    mine = [c["Id"] for c in owned(api) if pid_of(c["Labels"][OWNER]) == owner.pid]
    assert len(mine) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    import docker.errors

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

    with_backend(use, slack_s=-SMALL.lifetime_s - 5)


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

    with_backend(use)


@on_engine
def test_warm_boxes_are_handed_out_and_go_with_the_backend() -> None:
    async def use(backend: DockerBackend) -> tuple[str, str, bytes]:
        first = await backend.start(SMALL)
        ready = await asyncio.gather(*(task for tasks in backend._ready.values() for task in tasks))
        second = await backend.start(SMALL)
        assert second is ready[0]
        return first.id, second.id, (await second.exec("ls -A; pwd")).stdout

    first, second, fresh = with_backend(use, warm=2)
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

    waited, used = with_backend(use, warm=1, slack_s=-1)
    assert waited != used


# --- the same box -----------------------------------------------------------------------------------------------------


@on_engine
def test_a_snapshot_moves_between_backends() -> None:
    async def use(backend: DockerBackend) -> list[bytes]:
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


@on_engine
def test_environments_use_it_from_a_thread() -> None:
    def play(box: SyncBox) -> tuple[bytes, bytes, dict[str, bytes]]:
        box.write("in put's\n.txt", b"b\na\n")
        out = box.exec("sort in*.txt >out.txt; cat out.txt").stdout
        return out, box.read("in put's\n.txt"), box.archive(["/task"])

    async def use(backend: DockerBackend) -> object:
        box = SyncBox(await backend.start(SMALL), asyncio.get_running_loop())
        return await asyncio.to_thread(play, box)

    assert with_backend(use) == (b"a\nb\n", b"b\na\n", {"in put's\n.txt": b"b\na\n", "out.txt": b"a\nb\n"})


def envfarm(*arguments: str) -> Any:
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@on_engine
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["oracle", "random"])
@pytest.mark.parametrize("env", ["coding/shell-v0", "coding/repair-v0"])
def test_a_store_from_docker_replays_on_bubblewrap(env: str, policy: str, tmp_path: Path) -> None:
    if "ENVFARM_IMAGES" not in os.environ:
        pytest.skip("ENVFARM_IMAGES does not name the unpacked images; `make test-farm` sets it")
    store = str(tmp_path / "store")
    what = ("--env", env, "--policy", policy, "--rung", "0", "--episodes", "2", "--group", "1")
    envfarm("rollout", *what, "--backend", "docker", "--out", store)
    told = envfarm("replay", store, "--backend", "bubblewrap")
    assert (told["episodes"], told["differences"], told["same"]) == (2, [], True), told


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_docker_py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[docker\]'"):
        with_backend(lambda b: b.probe())


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
        with_backend(lambda b: b.start(SMALL))


@on_engine
def test_a_missing_image_or_runtime_is_named() -> None:
    with pytest.raises(BoxUnavailableError, match="no image 'lab/none': `docker pull` it"):
        with_backend(lambda b: b.start(msgspec.structs.replace(SMALL, image="lab/none")))
    with pytest.raises(BoxUnavailableError, match="no runtime 'kata'"):
        with_backend(lambda b: b.probe(), runtime="kata")


def test_it_is_found_by_name() -> None:
    assert (backend_class("docker"), backend_class("docker-runsc")) == (DockerBackend, GvisorBackend)
