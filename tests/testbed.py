"""The test bed (`k8s/testbed`) as tests see it: its boxes, their processes on this machine, and its parts, which can be killed.

ENVFARM_TESTBED names the folder of a test bed that is the tests' own: only of such a one parts are killed, by tests with the mark
`alone`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from envfarm.backends.docker import connect
from envfarm.backends.kubernetes_manifest import CONTAINER
from envfarm.backends.owners import BOX, OWNER, pid_of
from envfarm.backends.rootfs import IMAGES_VARIABLE

SCRIPTS = Path(__file__).parents[1] / "k8s" / "testbed"
own_testbed = pytest.mark.skipif(
    "ENVFARM_TESTBED" not in os.environ,
    reason="ENVFARM_TESTBED names no engine and cluster that may be killed; `make test-farm` and `make faults` make some",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to kill processes of containers and pods")


def with_the_hosts_root() -> dict[str, str]:
    """This process's variables, for one whose user may not see the folder of images: bubblewrap's root is the host's."""
    return {name: value for name, value in os.environ.items() if name != IMAGES_VARIABLE}


def require_gvisor() -> None:
    if "runsc" not in connect().info()["Runtimes"]:
        pytest.skip("the engine has no runtime runsc")


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


Boxes = dict[str, dict[str, Any]]
"""Name -> as the engine or the API server lists it."""


def containers(owners: Collection[int]) -> Boxes:
    """Of these processes."""
    found = connect().containers(all=True, filters={"label": BOX})
    return {c["Labels"][BOX]: c for c in found if pid_of(c["Labels"][OWNER]) in owners}


def pods(owners: Collection[int]) -> Boxes:
    """Of these processes."""
    found = json.loads(kubectl("get", "pods", "-l", BOX, "-o", "json"))["items"]
    return {pod["metadata"]["name"]: pod for pod in found if pid_of(pod["metadata"]["labels"][OWNER]) in owners}


def process_of_container(container: dict[str, Any]) -> int | None:
    """On this machine, its first process; None where it does not run."""
    import docker.errors

    try:
        return connect().inspect_container(container["Id"])["State"]["Pid"] or None
    except docker.errors.NotFound:  # it has ended meanwhile
        return None


def process_of_pod(pod: dict[str, Any], container: str = CONTAINER) -> int | None:
    """On this machine, the first process of its container, a box's; None where it does not run, or is about to be ended."""
    if "deletionTimestamp" in pod["metadata"]:
        return None
    for status in pod["status"].get("containerStatuses", ()):
        name = status.get("containerID", "").rpartition("/")[2]
        if status["name"] != container or not name:
            continue
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                inside = name in (entry / "cgroup").read_text()
                numbers = (entry / "status").read_text().split("\nNSpid:\t")[1].split("\n")[0].split() if inside else []
            except OSError:  # it has ended meanwhile
                continue
            if numbers[-1:] == ["1"]:
                return int(entry.name)
    return None


def until_none(count: Callable[[], int], timeout_s: float = 60.0) -> int:
    """How many are still there when none is, or when the time is over."""
    until = time.monotonic() + timeout_s
    while (left := count()) and time.monotonic() < until:
        time.sleep(0.5)
    return left


class Part:
    """A part of the test bed: dockerd, kubelet or apiserver."""

    def __init__(self, name: str):
        bed = Path(os.environ["ENVFARM_TESTBED"])
        self._pid = bed / "docker/dockerd.pid" if name == "dockerd" else bed / f"k8s/run/{name}.pid"
        self._start: list[str | Path] = [SCRIPTS / "k8s-start.sh", bed / "k8s", name]
        if name == "dockerd":
            self._start = [SCRIPTS / "docker-up.sh", bed / "docker"]
        self._starting: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """With -9; it is started again in the background."""
        killed = int(self._pid.read_text())
        ended = os.pidfd_open(killed)
        os.kill(killed, signal.SIGKILL)
        select.select([ended], [], [])  # it holds its port and its lock until then
        os.close(ended)
        self._starting = subprocess.Popen(self._start, stdout=subprocess.DEVNULL)

    def back(self) -> None:
        """Wait until it was started again."""
        assert self._starting is not None and self._starting.wait() == 0
