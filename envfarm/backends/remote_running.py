"""One command of a remote box: when it must be over, and which limit explains how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from envfarm.backends.limits import OURS
from envfarm.backends.outcome import explain, told
from envfarm.backends.remote_main import Main
from envfarm.backends.remote_side import State
from envfarm.box import BoxSpec, ExecResult, LimitKind


@dataclass
class Running:
    spec: BoxSpec
    deadline: float  # loop time
    before: State
    limit: LimitKind | None = None
    attempts: int = 0

    def exceeds(self, now: State, time: float) -> LimitKind | None:
        """Which limit the box is beyond; `time`: the loop's."""
        if now.processes > self.spec.pids + OURS:  # a pod counts them and does not limit them
            return "pids"
        if not now.counters and now.private_bytes > self.spec.memory_bytes:
            return "memory"
        if now.cpu_s > self.before.cpu_s + self.spec.exec_cpu_s:
            return "cpu"
        return "idle" if time > self.deadline else None

    def outcome(self, main: Main, after: State) -> ExecResult:
        out, cut_out = main.out.take()
        err, cut_err = main.err.take()
        limit = explain(
            self.limit,
            killed=after.memory_kills > self.before.memory_kills,
            refused=after.refused_forks > self.before.refused_forks,
            cut=cut_out or cut_err,
            told=told(bool(after.counters), main.ended.exit_code, err),
        )
        return ExecResult(exit_code=main.ended.exit_code, stdout=out, stderr=err, limit=limit)
