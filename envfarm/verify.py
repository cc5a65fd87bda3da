"""Verification by outputs (`verify: outputs`, the default): nothing that loaded the agent's code forms the verdict.

The artifacts that the agent left are copied into a fresh box; hidden inputs go in there on standard input, one command per
input; what comes out is compared *here*, in the worker, with expected values that never entered any box.

What is not promised: artifacts run in one box for all inputs, so a program can remember earlier *inputs*; give
`fresh_each=True` where that matters. It never sees an expected value either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from envfarm.box import WORKDIR, Backend, Box, BoxSpec, ExecResult


async def run_hidden(
    backend: Backend,
    spec: BoxSpec,
    artifacts: Mapping[str, bytes],
    command: str,
    inputs: Sequence[bytes],
    *,
    files: Mapping[str, bytes] | None = None,
    fresh_each: bool = False,
) -> list[ExecResult]:
    """One result per input, in order. `artifacts` and `files` (the verifier's own, written last, so that no artifact
    replaces them) are paths relative to the workdir, as `Box.archive` gives them.

    Raises: PermissionError where a path leaves the workdir, OSError(ENOSPC) where they do not fit, InfraError.
    A result with `limit` is the agent's doing: the caller counts it as a wrong output.
    """
    results: list[ExecResult] = []
    groups = [[data] for data in inputs] if fresh_each else [list(inputs)]
    for group in groups:
        box = await backend.start(spec, owner="verify")
        try:
            await _place(box, artifacts)
            await _place(box, files or {})
            results += [await box.exec(f"cd {WORKDIR} && {{ {command}\n}}", stdin=data) for data in group]
        finally:
            await box.stop()
    return results


def run_hidden_sync(
    loop: asyncio.AbstractEventLoop,
    backend: Backend,
    spec: BoxSpec,
    artifacts: Mapping[str, bytes],
    command: str,
    inputs: Sequence[bytes],
    *,
    files: Mapping[str, bytes] | None = None,
    fresh_each: bool = False,
) -> list[ExecResult]:
    """`run_hidden` for an environment's thread; `loop` is the one that the backend lives on."""
    call = run_hidden(backend, spec, artifacts, command, inputs, files=files, fresh_each=fresh_each)
    return asyncio.run_coroutine_threadsafe(call, loop).result()


async def _place(box: Box, files: Mapping[str, bytes]) -> None:
    for path, content in sorted(files.items()):
        if path.startswith("/"):
            raise PermissionError(f"an artifact's path is relative to the workdir, not {path!r}")
        await box.write(f"{WORKDIR}/{path}", content)


def compare_artifacts(expected: Mapping[str, bytes], got: Mapping[str, bytes]) -> list[str]:
    """What differs, one line per file, in path order; empty where they are equal. For the worker's log, not the agent."""
    differences: list[str] = []
    for path in sorted({*expected, *got}):
        if path not in got:
            differences.append(f"{path}: missing")
        elif path not in expected:
            differences.append(f"{path}: not expected")
        elif expected[path] != got[path]:
            differences.append(f"{path}: {_first_difference(expected[path], got[path])}")
    return differences


def _first_difference(expected: bytes, got: bytes) -> str:
    """Where two different contents part."""
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    line = expected[:at].count(b"\n") + 1
    return f"differs from byte {at} (line {line}); expected {len(expected)} bytes, got {len(got)}"
