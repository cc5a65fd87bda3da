"""Transcript identity: the same episodes wherever a worker and its boxes may be.

The reference (a worker here, boxes of bubblewrap) and every cell play the same instances with the same policies, each in
workers of its own, and nothing of an episode may differ (`envfarm.testing.transcripts`). Bubblewrap's root is the image that
the other boxes have, unpacked. A cell that applies and cannot be played is a finding that fails, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from envfarm.comparison import Comparison
from envfarm.errors import BoxUnavailableError, InfraError, UserError
from envfarm.images.build import cache, how_to_build
from envfarm.images.recipe import BASES
from envfarm.spec import EnvSpec
from envfarm.testing.cells import REFERENCE, Cell, Workers
from envfarm.testing.transcripts import Case, Transcript, cases_of, compare, play
from envfarm.worker.client import AsyncSession
from envfarm.worker.fresh import Job, play_all

IMAGES = "ENVFARM_IMAGES"
AT_ONCE = 4
"""Episodes of one cell."""
PATIENCE = 10.0
"""A command's limits in seconds are stretched, the reference's too: what a slow kernel (gVisor's) makes of a clock is no text."""

Played = list[Transcript] | str
"""Of an environment's cases in one cell; or why there are none."""


@dataclass(frozen=True)
class Finding:
    """One environment in one cell."""

    env: str
    cell: Cell
    episodes: int = 0
    found: Comparison = field(default_factory=Comparison)
    reason: str = ""  # why it could not be played

    @property
    def ok(self) -> bool:
        return not self.reason and self.found.same

    def to_json(self) -> dict[str, Any]:
        said = {"env": self.env, "cell": self.cell.name, "worker": self.cell.worker, "boxes": self.cell.boxes, "ok": self.ok}
        return {**said, "episodes": self.episodes, "reason": self.reason, **self.found.to_json()}


async def identity(specs: Sequence[EnvSpec], cells: Sequence[Cell], count: int) -> AsyncIterator[Finding]:
    """As they are done: the reference's findings, with nothing to differ from, then each cell's. `count` instances each."""
    specs = [_patient(spec) for spec in specs]
    cases = {spec.id: list(cases_of(spec, count)) for spec in specs}
    expected: dict[str, Played] = {}
    for cell in (REFERENCE, *cells):
        applying = [spec for spec in specs if cell is REFERENCE or cell.applies(spec)]
        playable = [spec for spec in applying if not isinstance(expected.get(spec.id), str)]
        for spec in applying:
            if spec not in playable:
                yield Finding(spec.id, cell, reason=f"nothing to compare with: {expected[spec.id]}")
        async for spec, played in _play(cell, playable, cases):
            yield _finding(cell, cases[spec.id], expected.setdefault(spec.id, played), played)


def _patient(spec: EnvSpec) -> EnvSpec:
    limits = spec.limits
    seconds = {"exec_cpu_s": limits.exec_cpu_s * PATIENCE, "exec_timeout_s": limits.exec_timeout_s * PATIENCE}
    return replace(spec, limits=replace(limits, **seconds))


async def _play(cell: Cell, specs: Sequence[EnvSpec], cases: Mapping[str, list[Case]]) -> AsyncIterator[tuple[EnvSpec, Played]]:
    if not specs:
        return
    workers = cell.workers(specs)
    try:
        missing = await _start(workers)
        for spec in specs:
            yield spec, missing or await _play_one(cell, cases[spec.id], workers)
    finally:
        await workers.close()


async def _start(workers: Workers) -> str:
    """Why they did not."""
    try:
        await workers.start()
    except (UserError, InfraError) as error:
        return str(error)
    return ""


async def _play_one(cell: Cell, cases: list[Case], workers: Workers) -> Played:
    def job(case: Case) -> Job[AsyncSession, Transcript]:
        return Job(case.name, case.spec.id, lambda session: play(case, session))

    try:
        if cell is REFERENCE:
            _check_root(cases[0].spec)
        return await play_all([job(case) for case in cases], workers, at_once=AT_ONCE)
    except (UserError, InfraError) as error:
        return str(error)


def _check_root(spec: EnvSpec) -> None:
    """Raises: BoxUnavailableError where bubblewrap would have the host's programs in the place of the image's."""
    image, folder = spec.sandbox.image, Path(os.environ.get(IMAGES) or cache())
    if spec.sandbox.box and image in BASES and not (folder / image).is_dir():
        raise BoxUnavailableError(f"{image} is not unpacked in {folder} ({IMAGES}): {how_to_build(image, '--engine')}")


def _finding(cell: Cell, cases: list[Case], expected: Played, played: Played) -> Finding:
    env = cases[0].spec.id
    if isinstance(played, str) or isinstance(expected, str):
        return Finding(env, cell, reason=str(played))
    found = Comparison()
    for case, here, there in zip(cases, expected, played, strict=True):
        compare(case, here, there, found)
    return Finding(env, cell, len(cases), found)
