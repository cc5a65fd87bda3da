"""What the checks of a backend share: a bench that makes boxes and takes them away, and one way to fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from envfarm.box import Backend, Box, BoxSpec, ExecResult, Snapshot

SMALL = BoxSpec(
    memory_bytes=96 << 20,
    pids=24,
    disk_bytes=8 << 20,
    output_bytes=4096,
    exec_cpu_s=1.0,
    exec_timeout_s=10.0,
)
"""Limits that a test reaches in a moment."""


class Failed(Exception):
    """A check did not hold; the message says what was seen and what was expected."""


class Bench:
    """Boxes for one check."""

    def __init__(self, backend: Backend, image: str, patience: float = 1.0):
        self.backend = backend
        self.image = image
        self.patience = patience
        self._boxes: list[Box] = []

    async def box(self, *, snapshot: Snapshot | None = None, **limits: Any) -> Box:
        spec = msgspec.structs.replace(SMALL, image=self.image, **limits)
        seconds = {"exec_cpu_s": spec.exec_cpu_s * self.patience, "exec_timeout_s": spec.exec_timeout_s * self.patience}
        spec = msgspec.structs.replace(spec, **seconds)
        box = await self.backend.start(spec, owner="check", snapshot=snapshot)
        self._boxes.append(box)
        return box

    async def close(self) -> None:
        for box in self._boxes:
            await box.stop()


Check = Callable[[Bench], Awaitable[str]]


def expect(holds: bool, seen: object, expected: str) -> None:
    """Raises Failed where `holds` is false."""
    if not holds:
        raise Failed(f"saw {seen!r}, expected {expected}")


def expect_result(result: ExecResult, *, code: int | None = 0, out: bytes | None = None, err: bytes | None = None) -> ExecResult:
    """Compares what is given; a limit is never expected here."""
    wanted = f"exit code {code}, stdout {out!r}, stderr {err!r}, no limit"
    holds = (
        (code is None or result.exit_code == code)
        and (out is None or result.stdout == out)
        and (err is None or result.stderr == err)
        and result.limit is None
    )
    expect(holds, result, wanted)
    return result
