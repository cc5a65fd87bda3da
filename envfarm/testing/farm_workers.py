"""Workers in containers and in pods, for `envfarm.testing.cells`: those of a farm that is up as long as a check needs it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envfarm.backends.kubernetes_api import Api
from envfarm.backends.kubernetes_link import Link, Refused
from envfarm.errors import InfraError
from envfarm.farm import KEEPER_PORT, TOKEN_VARIABLE, cluster
from envfarm.farm.client import KeeperClient, KeeperLost
from envfarm.farm.daemon import bring_up, take_down
from envfarm.farm.file import FarmFile, read_farm
from envfarm.farm.home import Home
from envfarm.farm.manifests.names import KEEPER, TOKEN_KEY, TOKEN_SECRET, selector, target_of
from envfarm.farm.pool import FarmPool
from envfarm.spec import EnvSpec

BOXES = {"max": 16, "warm": 1}
KEEPER_START_S = 180.0
_AGAIN_S = 1.0


def described(name: str, specs: Sequence[EnvSpec], target: dict[str, Any]) -> dict[str, Any]:
    """A farm's file."""
    pool = {"environments": [spec.id for spec in specs], "boxes": BOXES}
    return {"envfarm": 1, "farm": name, "pools": [pool], "target": target}


class ContainerWorkers(FarmPool):
    """A worker and its boxes are containers; the keeper is a process of this machine."""

    def __init__(self, specs: Sequence[EnvSpec], *, backend: str):
        super().__init__(specs, f"check-{os.getpid()}")
        self._text = json.dumps(described(self._named, specs, {backend: {}}))
        self._up = False

    async def start(self) -> None:
        await asyncio.to_thread(self._bring_up)
        self._up = True
        await super().start()

    async def close(self) -> None:
        await super().close()
        if self._up:
            self._up = False
            await asyncio.to_thread(take_down, self._named)
        shutil.rmtree(Home(self._named).folder, ignore_errors=True)  # nobody uses that name again

    def _bring_up(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "farm.yaml")
            file.write_text(self._text)
            bring_up(file, read_farm(file), None)


class PodWorkers(FarmPool):
    """Keeper, worker and boxes are pods, in namespaces of their own. This process must reach pods by their addresses: it runs on
    a node, or in a pod."""

    def __init__(self, specs: Sequence[EnvSpec], *, backend: str):
        name = f"check-{os.getpid()}"
        super().__init__(specs, name)
        self._described = FarmFile.model_validate(described(name, specs, {backend: {"namespace": name}}))
        self._applied = False

    async def start(self) -> None:
        self._applied = True
        await cluster.bring_up(self._described)
        self._named, os.environ[TOKEN_VARIABLE] = await self._keeper()
        await self._answers(KeeperClient(self._named, os.environ[TOKEN_VARIABLE]))
        await super().start()

    async def close(self) -> None:
        await super().close()
        os.environ.pop(TOKEN_VARIABLE, None)
        if self._applied:
            self._applied = False
            await cluster.take_down(self._described)

    async def _answers(self, keeper: KeeperClient) -> None:
        """Raises: InfraError where it does not in time."""
        try:
            async with asyncio.timeout(KEEPER_START_S), keeper:
                while True:
                    try:
                        await keeper.status()
                        return
                    except KeeperLost:
                        await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            raise InfraError(f"the keeper's pod does not answer at {self._named}: is this process within the cluster?") from None

    async def _keeper(self) -> tuple[str, str]:
        """Its URL and its token. Raises: BoxUnavailableError, InfraError."""
        api, namespace = Api(), target_of(self._described).namespace
        await api.connect(())
        link = Link(api.access())
        try:
            secret = await link.ask("GET", f"/api/v1/namespaces/{namespace}/secrets/{TOKEN_SECRET}")
            labels = ",".join(f"{name}={value}" for name, value in selector(self._described, KEEPER).items())
            async with asyncio.timeout(KEEPER_START_S):
                while not (address := await self._address(link, namespace, labels)):
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            raise InfraError(f"the keeper's pod in namespace {namespace!r} did not start in {KEEPER_START_S:.0f} s") from None
        except Refused as refused:
            raise InfraError(f"the API server does not tell of namespace {namespace!r}: {refused.said}") from None
        finally:
            await link.close()
            api.close()
        return f"http://{address}:{KEEPER_PORT}", base64.b64decode(secret["data"][TOKEN_KEY]).decode()

    async def _address(self, link: Link, namespace: str, labels: str) -> str:
        """Empty until there is one."""
        found = await link.ask("GET", f"/api/v1/namespaces/{namespace}/pods", query=[("labelSelector", labels)])
        return next((pod["status"]["podIP"] for pod in found["items"] if "podIP" in pod["status"]), "")
