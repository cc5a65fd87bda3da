"""Workers in containers or pods, for `envfarm.testing.cells`: those of a farm that is brought up for a check and taken down."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from envfarm.farm.daemon import bring_up, take_down
from envfarm.farm.file import read_farm
from envfarm.farm.pool import FarmPool
from envfarm.spec import EnvSpec

BOXES = {"max": 16, "warm": 1}


class FarmWorkers(FarmPool):
    """As `envfarm.worker.pool.WorkerPool`; on `docker` a worker and its boxes are containers, on `kubernetes` pods."""

    def __init__(self, specs: Sequence[EnvSpec], *, backend: str):
        self._name, self._kind = f"check-{backend}-{os.getpid()}", backend
        super().__init__(specs, self._name)
        self._up = False

    async def start(self) -> None:
        await asyncio.to_thread(self._bring_up)
        self._up = True
        await super().start()

    async def close(self) -> None:
        await super().close()
        if self._up:
            self._up = False
            await asyncio.to_thread(take_down, self._name)

    def _bring_up(self) -> None:
        target = {self._kind: {"namespace": self._name} if self._kind == "kubernetes" else {}}
        pool = {"environments": list(self.specs), "boxes": BOXES}
        described = {"envfarm": 1, "farm": self._name, "pools": [pool], "target": target}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "farm.yaml")
            file.write_text(json.dumps(described))
            bring_up(file, read_farm(file), None)
