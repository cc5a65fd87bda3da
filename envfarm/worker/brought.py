"""Environments that clients bring to a running worker as bundles, beside those that it was started with.

They are kept by their spec's hash: two runs may bring different versions of one id, and each plays its own. Who may bring
code is who has the worker's token; a worker that was given no folder takes none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from envfarm.bundle import Bundle, unpack
from envfarm.errors import CapabilityError, UserError
from envfarm.spec import EnvSpec, load_spec
from envfarm.worker.process import Zygote
from envfarm.worker.sessions import preload

if TYPE_CHECKING:
    from envfarm.worker.boxes import Boxes


class Brought:
    """`folder`: where bundles are unpacked."""

    def __init__(self, folder: Path | None, boxes: Boxes):
        self._folder, self._boxes = folder, boxes
        self._specs: dict[str, EnvSpec] = {}
        self._zygotes: dict[str, Zygote] = {}
        self._taking: dict[str, asyncio.Task[EnvSpec]] = {}

    def get(self, spec_hash: str) -> EnvSpec | None:
        return self._specs.get(spec_hash)

    def zygote(self, spec: EnvSpec) -> Zygote | None:
        """That of a brought spec with `isolation: process`."""
        return self._zygotes.get(spec.hash)

    async def take(self, bundle: Bundle, spec_hash: str) -> EnvSpec:
        """Unpack, import, and serve from now on. Idempotent.

        Raises: CapabilityError where this worker takes none; UserError where it does not arrive as it was; as
        `sessions.preload`; BoxUnavailableError.
        """
        if self._folder is None:
            raise CapabilityError("this worker takes no environments from its clients")
        if spec_hash not in self._taking or (self._taking[spec_hash].done() and spec_hash not in self._specs):
            self._taking[spec_hash] = asyncio.create_task(self._take(bundle, spec_hash, self._folder))
        return await asyncio.shield(self._taking[spec_hash])

    async def _take(self, bundle: Bundle, spec_hash: str, folder: Path) -> EnvSpec:
        spec = await asyncio.to_thread(lambda: load_spec(unpack(bundle, folder)))
        if spec.hash != spec_hash:
            raise UserError(f"{spec.id} has hash {spec.hash[:12]} at the worker and {spec_hash[:12]} where the run was started")
        await self._boxes.probe([spec])
        if spec.isolation == "process":
            zygote = Zygote([spec])
            try:
                await zygote.ready()
            except BaseException:
                zygote.close()
                raise
            self._zygotes[spec_hash] = zygote
        else:
            await asyncio.to_thread(preload, spec)
        self._specs[spec_hash] = spec
        return spec

    def close(self) -> None:
        """Idempotent."""
        for task in self._taking.values():
            task.cancel()
        for zygote in self._zygotes.values():
            zygote.close()
