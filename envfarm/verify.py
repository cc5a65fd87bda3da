"""Verification by outputs (`verify: outputs`, the default): nothing that loaded the agent's code forms the verdict.

The artifacts that the agent left are copied into a fresh box; hidden inputs go in there on standard input, one command per
input; what comes out is compared *here*, in the worker, with expected values that never entered any box.

What is not promised: artifacts run in one box for all inputs, so a program can remember earlier *inputs*; give
`fresh_each=True` where that matters. It never sees an expected value either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from envfarm.box import WORKDIR, ExecResult, SyncBox


def run_hidden(
    fresh_box: Callable[[], AbstractContextManager[SyncBox]],
    artifacts: Mapping[str, bytes],
    command: str,
    inputs: Sequence[bytes],
    *,
    files: Mapping[str, bytes] | None = None,
    fresh_each: bool = False,
) -> list[ExecResult]:
    """One result per input, in order. `fresh_box` is the scene's (`Scene.fresh_box`). `artifacts` and `files` (the
    verifier's own, written last, so that no artifact replaces them) are paths relative to the workdir, as
    `Box.archive` gives them.

    Raises: PermissionError where a path leaves the workdir, OSError(ENOSPC) where they do not fit, InfraError.
    A result with `limit` is the agent's doing: the caller counts it as a wrong output.
    """
    results: list[ExecResult] = []
    groups = [[data] for data in inputs] if fresh_each else [list(inputs)]
    for group in groups:
        with fresh_box() as box:
            _place(box, artifacts)
            _place(box, files or {})
            results += [box.exec(f"cd {WORKDIR} && {{ {command}\n}}", stdin=data) for data in group]
    return results


def _place(box: SyncBox, files: Mapping[str, bytes]) -> None:
    for path, content in sorted(files.items()):
        if path.startswith("/"):
            raise PermissionError(f"an artifact's path is relative to the workdir, not {path!r}")
        box.write(f"{WORKDIR}/{path}", content)
