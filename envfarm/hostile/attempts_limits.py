"""Attempts to use more than a box may: each must come back with a limit, and leave a box that still runs commands (or that
the agent ruined for itself)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from envfarm.box import LimitKind
from envfarm.hostile.attempt import Attempt, Place, Seen


@dataclass(frozen=True, kw_only=True)
class Overuse:
    """One shell command that goes beyond a limit. Stopped where it comes back with one of `ends`."""

    name: str
    tried: str
    guard: str
    command: str
    ends: frozenset[LimitKind]
    limits: dict[str, Any] = field(default_factory=dict)
    group: str = "limits"

    async def play(self, place: Place) -> Seen:
        async with place.box(**self.limits) as box:
            result = await box.exec(self.command)
            after = await box.exec("echo usable")
        recorded = f"limit {result.limit}, exit code {result.exit_code}"
        if result.limit not in self.ends:
            return Seen(True, f"no limit of {', '.join(sorted(self.ends))}: {result.text[:80]!r}", recorded)
        if after.stdout == b"usable\n":
            return Seen(False, f"{result.limit} limit", recorded)
        if after.limit is not None:
            return Seen(False, f"{after.limit} limit, the box is spent", recorded)
        return Seen(True, f"the next command broke: {after.text[:80]!r}", recorded)


def _ends(*kinds: LimitKind) -> frozenset[LimitKind]:
    return frozenset(kinds)


_SOON = {"exec_timeout_s": 4.0, "exec_cpu_s": 1.0}

ATTEMPTS: tuple[Attempt, ...] = (
    Overuse(
        name="fork bomb",
        tried="a function that starts itself twice, for ever",
        guard="pids",
        command="b() { b | b & b; }; b",
        ends=_ends("pids", "cpu", "idle", "output"),
        limits=_SOON,
    ),
    Overuse(
        name="many processes",
        tried="a hundred sleeping children",
        guard="pids",
        command="for i in $(seq 100); do sleep 100 & done; wait",
        ends=_ends("pids"),
        limits={"exec_timeout_s": 4.0, "memory_bytes": 512 << 20},  # gVisor counts shared pages
    ),
    Overuse(
        name="memory bomb",
        tried="three times the memory, in one process",
        guard="memory",
        command="x=$(head -c 300000000 /dev/zero | tr '\\0' x); echo ${#x}",
        ends=_ends("memory", "cpu"),
    ),
    Overuse(
        name="memory by many",
        tried="three times the memory, in twelve processes",
        guard="memory",
        command="for i in $(seq 12); do python3 -c 'x = b\"x\" * 25000000; import time; time.sleep(30)' & done; wait",
        ends=_ends("memory"),
        limits={"exec_timeout_s": 20.0},
    ),
    Overuse(
        name="disk fill",
        tried="20 MB into each directory, 8 MiB being allowed",
        guard="disk",
        command="for d in /task /tmp /dev/shm /run /run/in /var /dev; do head -c 20000000 /dev/zero >$d/f; done; false",
        ends=_ends("disk"),
    ),
    Overuse(
        name="output flood",
        tried="yes, for ever, on both streams",
        guard="output",
        command="yes flood >&2 & yes flood",
        ends=_ends("output", "cpu"),
    ),
    Overuse(
        name="one endless line",
        tried="zeros without a line's end, for ever",
        guard="output",
        command="cat /dev/zero",
        ends=_ends("output", "cpu"),
    ),
    Overuse(
        name="busy loop",
        tried="a loop that ignores TERM, INT and HUP",
        guard="cpu",
        command="trap '' TERM INT HUP; while :; do :; done",
        ends=_ends("cpu"),
        limits={"exec_cpu_s": 0.5},
    ),
    Overuse(
        name="busy children",
        tried="CPU seconds spread over children of children",
        guard="cpu",
        command="for i in 1 2 3 4; do (trap '' TERM; (while :; do :; done) & wait) & done; wait",
        ends=_ends("cpu"),
        limits={"exec_cpu_s": 0.5},
    ),
    Overuse(
        name="endless sleep",
        tried="a sleep that ignores TERM, in a session of its own",
        guard="idle",
        command="trap '' TERM INT HUP; setsid sleep 1000; setsid -w sleep 1000; sleep 1000",
        ends=_ends("idle"),
        limits={"exec_timeout_s": 0.5},
    ),
    Overuse(
        name="stopped shell",
        tried="the agent's shell stops itself, so that no command ever ends",
        guard="idle",
        command="kill -STOP $(sh -c 'echo $PPID')",
        ends=_ends("idle"),
        limits={"exec_timeout_s": 0.5},
    ),
)
