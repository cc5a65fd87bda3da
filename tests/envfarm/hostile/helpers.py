"""One attempt at a time, and what the page docs/hostile.md says about it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from envfarm.box import Backend
from envfarm.hostile.attempt import LIMITS, Place
from envfarm.hostile.bait import Bait
from envfarm.hostile.panel import Finding, judged, named

PAGE = Path(__file__).parents[3] / "docs" / "hostile.md"
_ROW = re.compile(r"^\|" + r" ([^|]+) \|" * 6 + "$", re.MULTILINE)


def played(make: Callable[[], Backend], name: str, image: str = LIMITS.image) -> Finding:
    """One attempt on a backend of its own."""

    async def main() -> Finding:
        backend = make()
        try:
            return await played_on(backend, name, image)
        finally:
            await backend.close()

    return asyncio.run(main())


async def played_on(backend: Backend, name: str, image: str = LIMITS.image) -> Finding:
    await backend.probe()
    with Bait() as bait:
        return await judged(named(name), Place(backend, bait, image))


def told() -> dict[str, dict[str, str]]:
    """Attempt -> column of the page's table -> text."""
    header, _, *rows = [[c.strip() for c in found.groups()] for found in _ROW.finditer(PAGE.read_text("utf-8"))]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
