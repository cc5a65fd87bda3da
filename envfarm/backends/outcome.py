"""What became of a command: its output, and which limit explains how it ended."""

from __future__ import annotations

import signal

from envfarm.backends.command import Running, Stream
from envfarm.backends.limits import Meter
from envfarm.box import ExecResult, LimitKind

KILLED = 128 + signal.SIGKILL


def outcome(meter: Meter, running: Running, exit_code: int, stdout: Stream, stderr: Stream) -> ExecResult:
    """Of a command that came to its end, or was brought to it. The streams are emptied."""
    out, cut_out = stdout.take()
    err, cut_err = stderr.take()
    now, kernel_counts = meter.counts(), meter.kernel_counts
    killed, refused = now.memory > running.before.memory, now.pids > running.before.pids
    limit = explain(
        running.limit, killed=killed, refused=refused, cut=cut_out or cut_err, told=told(kernel_counts, exit_code, err)
    )
    return ExecResult(exit_code=exit_code, stdout=out, stderr=err, limit=limit)


def explain(ended_for: LimitKind | None, *, killed: bool, refused: bool, cut: bool, told: LimitKind | None) -> LimitKind | None:
    """The limit that explains best how a command ended. `ended_for`: we ended it; the kernel `killed` one of its processes
    for memory or `refused` a fork; its output was `cut`; `told` by its words."""
    if killed:
        return "memory"
    if ended_for not in (None, "idle", "cpu"):
        return ended_for
    if refused:
        return "pids"
    return "output" if cut else told or ended_for


def told(kernel_counts: bool, exit_code: int, stderr: bytes) -> LimitKind | None:
    """Limits that the kernel answers with an error code: read from the words of those who got it."""
    if not kernel_counts and b"fork: " in stderr and b"Resource temporarily unavailable" in stderr:
        return "pids"
    if exit_code in (0, KILLED):
        return None
    if b"No space left on device" in stderr:
        return "disk"
    if not kernel_counts and (b"annot allocate" in stderr or b"MemoryError" in stderr):
        return "memory"
    return None


def last_words(meter: Meter, running: Running, stdout: Stream, stderr: Stream) -> ExecResult | None:
    """Of a box that ended under a command: out of memory is the agent's doing, None is anything else."""
    if running.limit == "memory" or meter.counts().memory > running.before.memory:
        return ExecResult(exit_code=KILLED, stdout=stdout.take()[0], stderr=stderr.take()[0], limit="memory")
    return None
