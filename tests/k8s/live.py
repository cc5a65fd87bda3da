"""A farm in the live cluster, brought up by the command that people use, and what the cluster says of it.

Its Services and pods are reached by their addresses: tests run on the cluster's node.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envfarm.farm import KEEPER_PORT, ROLE_LABEL, TOKEN_VARIABLE
from envfarm.farm.client import KeeperClient, KeeperLost
from envfarm.farm.manifests.names import KEEPER, TOKEN_KEY, TOKEN_SECRET, WORKER
from envfarm.farm.status import BoxCounts, PoolStatus, Status
from tests.k8s.places import Object
from tests.testbed import kubectl

IMAGE = "envfarm/worker:latest"
_AGAIN_S = 0.5


def envfarm(*arguments: str, code: int = 0, **variables: str) -> str:
    """What the command says: on its standard output, or where it is to fail, on its standard error."""
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", *arguments]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def require_image() -> None:
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    if not any(IMAGE in name for node in nodes for image in node["status"]["images"] for name in image["names"] or ()):
        pytest.skip(f"no node has {IMAGE}: k8s/testbed/worker-image.sh puts it there")


def write(folder: Path, pools: list[Object]) -> Path:
    """FARM.yaml of a farm in namespaces of its own; its name is theirs."""
    name = f"farm-{secrets.token_hex(3)}"
    file = folder / f"{name}.yaml"
    target = {"kubernetes": {"namespace": name, "image": IMAGE}}
    file.write_text(json.dumps({"envfarm": 1, "farm": name, "pools": pools, "target": target}))
    return file


@dataclass(frozen=True)
class LiveFarm:
    name: str
    """Of the farm and of its namespace."""
    url: str
    token: str

    @classmethod
    def of(cls, file: Path) -> LiveFarm:
        """One that was applied, as soon as its keeper is up."""
        name = file.stem
        kubectl("-n", name, "rollout", "status", f"deployment/{KEEPER}", "--timeout=240s")
        secret = json.loads(kubectl("-n", name, "get", "secret", TOKEN_SECRET, "-o", "json"))
        address = json.loads(kubectl("-n", name, "get", "service", KEEPER, "-o", "json"))["spec"]["clusterIP"]
        return cls(name, f"http://{address}:{KEEPER_PORT}", base64.b64decode(secret["data"][TOKEN_KEY]).decode())

    def envfarm(self, *arguments: str, code: int = 0) -> str:
        """With the farm's token."""
        return envfarm(*arguments, code=code, **{TOKEN_VARIABLE: self.token})

    def status(self) -> Status:
        async def ask() -> Status:
            async with KeeperClient(self.url, self.token) as keeper:
                return await keeper.status()

        return asyncio.run(ask())

    def until(self, holds: Callable[[PoolStatus], bool], pool: int = 0) -> PoolStatus:
        """The tests' time limit is the end of patience."""
        while True:
            with suppress(KeeperLost):  # a service's address is there a moment after its pod
                if holds(found := self.status().pools[pool]):
                    return found
            time.sleep(_AGAIN_S)

    def scaled(self, workers: int, pool: int = 0) -> None:
        """Returns when it is so."""
        self.envfarm("farm", "scale", self.url, "--workers", str(workers), "--pool", str(pool))
        self.until(lambda found: [worker.up for worker in found.workers] == [True] * workers, pool)

    # --- as the cluster has it ------------------------------------------------------------------------------------------

    def listed(self, what: str, *, boxes: bool = False) -> list[Any]:
        where = f"{self.name}-boxes" if boxes else self.name
        return json.loads(kubectl("-n", where, "get", what, "-o", "json"))["items"]

    def pod(self, role: str) -> Any:
        """The one that does its work, as soon as there is one and no other."""
        while True:
            (first, *others) = [p for p in self.listed("pods") if p["metadata"]["labels"][ROLE_LABEL] == role] or [None]
            if first and not others and "deletionTimestamp" not in first["metadata"] and is_ready(first):
                return first
            time.sleep(_AGAIN_S)

    def worker(self) -> Any:
        return self.pod(WORKER)

    def keeper(self) -> Any:
        return self.pod(KEEPER)

    def until_settled(self, warm: int) -> None:
        """No lease, and of boxes those that are kept ready: to the keeper, and in the cluster."""

        def is_quiet(found: PoolStatus) -> bool:
            counts = found.boxes or BoxCounts(0, 0, 0)
            return (counts.leased, counts.free, counts.making) == (0, warm, 0)

        while True:
            self.until(is_quiet)
            leases, pods = self.listed("leases", boxes=True), self.listed("pods", boxes=True)
            free = {lease["metadata"]["name"] for lease in leases if not lease["spec"].get("holderIdentity")}
            if len(leases) == len(pods) == warm and free == {pod["metadata"]["name"] for pod in pods}:
                return
            time.sleep(_AGAIN_S)


def is_ready(pod: Any) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def life_of(pod: Any) -> tuple[str, int]:
    """Another one for every start of its container."""
    return pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["restartCount"]
