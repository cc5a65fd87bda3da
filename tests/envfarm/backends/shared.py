"""One remote backend of each kind for all tests of a process that need no more than one that works.

Coming up and closing costs more than many a test does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from envfarm.backends.remote_backend import RemoteBackend

B = TypeVar("B", bound=RemoteBackend)
T = TypeVar("T")


class Shared:
    """Every use is in the same event loop, which stands still between two."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._backends: dict[type[RemoteBackend], Any] = {}

    def __call__(self, kind: type[B], use: Callable[[B], Awaitable[T]]) -> T:
        """What `use` returns; its boxes are stopped whatever becomes of it."""

        async def main() -> T:
            backend = self._backends.get(kind) or self._backends.setdefault(kind, kind())
            try:
                return await use(backend)
            finally:
                await asyncio.gather(*(box.stop() for box in list(backend._boxes)))

        return self._runner.run(main())

    def close(self) -> None:
        async def main() -> None:
            await asyncio.gather(*(backend.close() for backend in self._backends.values()))

        self._runner.run(main())
        self._runner.close()
