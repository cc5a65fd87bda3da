"""The cells of transcript identity: a place of the worker with a backend of the boxes.

An environment without a box has the places of the worker alone. What all are compared with is a worker and bubblewrap here.
A new place is a class like `envfarm.worker.pool.WorkerPool` and a line of `PLACES`; a new cell, a line of `CELLS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from envfarm.errors import UserError, did_you_mean
from envfarm.spec import EnvSpec
from envfarm.worker.client import AsyncSession
from envfarm.worker.fresh import Pool

PLACES: dict[str, str] = {
    "here": "envfarm.worker.pool:WorkerPool",
    "container": "envfarm.testing.farm_workers:ContainerWorkers",
    "pod": "envfarm.testing.farm_workers:PodWorkers",
}
"""Where a worker may be -> `module:Class`, imported late; made with specs and `backend=NAME`."""


class Workers(Pool[AsyncSession], Protocol):
    """Workers in one place, and sessions in them."""

    async def start(self) -> None:
        """Raises: UserError where there can be none, InfraError."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...


@dataclass(frozen=True)
class Cell:
    """One place of the worker, and the backend of its boxes."""

    name: str
    worker: str
    boxes: str

    def applies(self, spec: EnvSpec) -> bool:
        return spec.sandbox.box or self.worker != REFERENCE.worker

    def workers(self, specs: Sequence[EnvSpec]) -> Workers:
        """Not started yet."""
        module, _, name = PLACES[self.worker].partition(":")
        return getattr(import_module(module), name)(specs, backend=self.boxes)


REFERENCE = Cell("bubblewrap", "here", "bubblewrap")

CELLS = (
    Cell("docker", "here", "docker"),
    Cell("docker-runsc", "here", "docker-runsc"),
    Cell("kubernetes", "here", "kubernetes"),
    Cell("container", "container", "docker"),
    Cell("pod", "pod", "kubernetes"),
)


def chosen(backends: str) -> list[Cell]:
    """The cells of some backends: `all`, or names with commas between. Raises: UserError."""
    known = list(dict.fromkeys(cell.boxes for cell in CELLS))
    names = known if backends == "all" else backends.split(",")
    for name in names:
        if name not in known:
            raise UserError(
                f"--backends: nothing compares {name!r} with bubblewrap{did_you_mean(name, known)}; name some of "
                f"{', '.join(known)} with commas between, or all"
            )
    return [cell for cell in CELLS if cell.boxes in names]
