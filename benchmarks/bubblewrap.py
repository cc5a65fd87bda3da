"""Rows of `benchmarks.sessions` about boxes of bubblewrap: what ours costs over the raw limit of the same primitive.

Each pair is measured in turns (ours, raw, ours, raw, ...) in one run and compared by medians:

    box start           until the first answer of its shell, over a raw `bwrap` with the very same arguments (namespaces,
                        mounts, seccomp filter) and the same shell until its first byte; raw has no limits and no control
    built-in commands   per second, each with its exit code and separate streams; no other side
    external commands   time of `ls` in a live box, over the loop of the same shell in a raw `bwrap` with the same arguments:
                        a line in, a line out after each command, streams not apart, no exit code
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time

from benchmarks.harness import Row, finish, row
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.rootfs import PINNED_ENV
from envfarm.box import BoxSpec

SPEC = BoxSpec()
_SETTLE_S = 0.02
"""Before each start: the kernel takes the namespaces of the one before apart in the background."""


class Raw:
    """`bwrap` and a shell as the backend starts them, with a script instead of our loop and nothing around it."""

    def __init__(self, backend: BubblewrapBackend, script: str):
        given: list[int] = []
        root = backend._root(SPEC.image)
        arguments = [*backend._program(), *backend._arguments(SPEC, root, given), root.shell, "--norc", "-c", script]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**PINNED_ENV, **root.env},
            pass_fds=given,
            bufsize=0,
        )
        for fd in given:
            os.close(fd)

    def say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    def heard(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.read(1 << 16)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


async def _start_ms(backend: BubblewrapBackend, rounds: int) -> tuple[float, float]:
    ours, raw = [], []
    for _ in range(rounds):
        await asyncio.sleep(_SETTLE_S)
        before = time.perf_counter()
        box = await backend.start(SPEC)
        ours.append(time.perf_counter() - before)
        await box.stop()
        await asyncio.sleep(_SETTLE_S)
        before = time.perf_counter()
        process = Raw(backend, "echo up; read line")
        process.heard()
        raw.append(time.perf_counter() - before)
        process.end()
    return statistics.median(ours) * 1e3, statistics.median(raw) * 1e3


async def _built_ins_per_s(backend: BubblewrapBackend, rounds: int) -> float:
    box = await backend.start(SPEC)
    rates = []
    for _ in range(rounds):
        before = time.perf_counter()
        for _ in range(500):
            result = await box.exec("x=1; echo $x; echo e >&2; false")
        rates.append(500 / (time.perf_counter() - before))
        assert (result.exit_code, result.stdout, result.stderr) == (1, b"1\n", b"e\n")
    await box.stop()
    return statistics.median(rates)


async def _external_ms(backend: BubblewrapBackend, rounds: int) -> tuple[float, float]:
    box = await backend.start(SPEC)
    process = Raw(backend, 'while read -r line; do eval "$line"; echo; done')
    ours, raw = [], []
    for _ in range(rounds):
        before = time.perf_counter()
        for _ in range(20):
            await box.exec("ls")
        ours.append((time.perf_counter() - before) / 20)
        before = time.perf_counter()
        for _ in range(20):
            process.say(b"ls\n")
            assert process.heard() == b"\n"
        raw.append((time.perf_counter() - before) / 20)
    process.end()
    await box.stop()
    return statistics.median(ours) * 1e3, statistics.median(raw) * 1e3


async def _measure(scale: float) -> list[Row]:
    def rounds(full: int) -> int:
        return max(3, int(full * scale))

    backend = BubblewrapBackend()
    try:
        await _start_ms(backend, 3)  # warm caches
        return [
            row("box start over raw bwrap", *await _start_ms(backend, rounds(40)), unit="ms", goal="<=1.3"),
            row("built-in commands in a live box", await _built_ins_per_s(backend, rounds(10)), unit="commands/s", goal=">=1000"),
            row("external command over the raw loop", *await _external_ms(backend, rounds(30)), unit="ms", goal="<=1.3"),
        ]
    finally:
        await backend.close()


def rows(scale: float = 1.0) -> list[Row]:
    """The three rows; `scale` shortens the run."""
    return asyncio.run(_measure(scale))


if __name__ == "__main__":
    finish("bubblewrap", rows())
