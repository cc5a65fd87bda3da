"""Limits that bite: control groups where this process may make them, else what the kernel offers to anyone.

A `Meter` belongs to one box. It says how the box's first process enters it, who its members are, and what they have used.
Both kinds answer the same questions, so the box does not know which one it has:

    CgroupMeter   (`cgroups`) version 1 or 2; memory, pids and CPU of the whole box, counted and enforced by the kernel
    RlimitMeter   address space per process and processes per user namespace (kernel 5.14), by rlimits; the sums over the
                  box (private memory, processes, CPU) are watched from outside at every tick, so a burst shorter than that passes

"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from envfarm.backends import processes
from envfarm.box import BoxSpec, LimitKind

OURS = 3
"""Processes of a box that are not the agent's, at most: bwrap's monitor, the supervisor, the shell itself."""


@dataclass(frozen=True)
class Counts:
    """How often limits were hit since the box started."""

    memory: int = 0
    pids: int = 0


class Meter(Protocol):
    kernel_counts: bool  # whether `counts` is told by the kernel
    rate_is_late: bool  # whether `hold_rate` does something

    def enter(self) -> list[str]:
        """Files to write a `0` into, by process 1 itself or one above it, before there is an agent's shell."""
        ...

    def adopt(self, pids: Iterable[int]) -> None:
        """The box's own processes, once it is up."""
        ...

    def members(self) -> list[int]:
        """Every process of the box that is alive or not yet reaped."""
        ...

    def idle(self) -> bool:
        """Whether nothing but the box's own processes is there. Called after every command, so cheap."""
        ...

    def cpu_s(self) -> float: ...
    def hold_rate(self) -> None:
        """Limit the CPU rate from now on. Called from a helper thread, once, when a command turns out to be a long one."""
        ...

    def exceeded(self) -> LimitKind | None:
        """A limit that is passed and that the kernel does not enforce here. Called at every tick."""
        ...

    def counts(self) -> Counts: ...
    def close(self) -> None: ...


class RlimitMeter:
    """For a machine without writable control groups."""

    kernel_counts = rate_is_late = False

    def __init__(self, spec: BoxSpec):
        self._spec = spec
        self._supervisor = 0
        self._own: list[int] = []

    def enter(self) -> list[str]:
        return []

    def adopt(self, pids: Iterable[int]) -> None:
        self._own = list(pids)
        self._supervisor = self._own[0]
        for pid in self._own:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_AS, (self._spec.memory_bytes,) * 2)
                resource.prlimit(pid, resource.RLIMIT_NPROC, (self._spec.pids + OURS - 1,) * 2)

    def members(self) -> list[int]:
        return [self._supervisor, *processes.descendants(self._supervisor)]

    def idle(self) -> bool:
        shells = processes.children(self._supervisor)
        return len(shells) == 1 and not processes.children(shells[0])

    def cpu_s(self) -> float:
        return processes.cpu_seconds(self.members())

    def hold_rate(self) -> None:
        pass

    def exceeded(self) -> LimitKind | None:
        members = self.members()
        if len(members) > self._spec.pids + OURS:
            return "pids"
        return "memory" if processes.anonymous_bytes(members) > self._spec.memory_bytes else None

    def counts(self) -> Counts:
        return Counts()

    def close(self) -> None:
        pass
