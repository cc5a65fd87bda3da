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
    now = meter.counts()
    limit = running.limit
    if now.memory > running.before.memory:
        limit = "memory"
    elif limit is None or limit in ("idle", "cpu"):
        if now.pids > running.before.pids:
            limit = "pids"
        elif cut_out or cut_err:
            limit = "output"
        else:
            limit = told(meter.kernel_counts, exit_code, err) or limit
    return ExecResult(exit_code=exit_code, stdout=out, stderr=err, limit=limit)


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
