"""Control groups, version 1 or 2: limits that the kernel counts and enforces for a whole box.

`find_groups` says whether and where this process may make some; a `CgroupMeter` is one box's. The groups of a box are named
after their owner (pid and start time), so that `sweep` knows which outlived theirs.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from envfarm.backends import processes
from envfarm.backends.limits import OURS, Counts
from envfarm.box import BoxSpec, LimitKind

COUNTED = ("memory", "pids", "cpuacct")
CONTROLLERS = (*COUNTED, "cpu")

_PREFIX = "box-"
_counter = itertools.count()


class CgroupMeter:
    """One group per controller (version 1) or one in all (version 2). Descriptors stay open: a reading is one `pread`."""

    kernel_counts = True

    def __init__(self, groups: Groups, spec: BoxSpec):
        name = f"{_PREFIX}{os.getpid()}-{processes.start_ticks(os.getpid())}-{next(_counter)}"
        self._groups = groups
        self._dirs = {c: parent / name for c, parent in groups.parents.items()}
        self._baseline = b""
        self.rate_is_late = self._dirs["cpu"] not in (self._dirs[c] for c in COUNTED)
        for directory in dict.fromkeys(self._dirs.values()):
            directory.mkdir()
        for controller, file, value in groups.settings(spec):
            with suppress(FileNotFoundError):  # memory.swap.* exists only where swap accounting is on
                _write(self._dirs[controller] / file, value)
        self._pids = os.open(self._dirs["pids"] / "pids.current", os.O_RDONLY | os.O_CLOEXEC)
        self._cpu = os.open(self._dirs["cpuacct"] / groups.cpu_file, os.O_RDONLY | os.O_CLOEXEC)
        self._pids_events = os.open(self._dirs["pids"] / "pids.events", os.O_RDONLY | os.O_CLOEXEC)
        self._memory_events = os.open(self._dirs["memory"] / groups.memory_file, os.O_RDONLY | os.O_CLOEXEC)

    def enter(self) -> list[str]:
        return [f"{d}/{self._groups.enter_file}" for d in dict.fromkeys(self._dirs[c] for c in COUNTED)]

    def adopt(self, pids: Iterable[int]) -> None:
        self._baseline = self._baseline or os.pread(self._pids, 32, 0)

    def members(self) -> list[int]:
        with suppress(FileNotFoundError):
            return [int(p) for p in (self._dirs["pids"] / "cgroup.procs").read_bytes().split()]
        return []

    def idle(self) -> bool:
        return os.pread(self._pids, 32, 0) == self._baseline

    def hold_rate(self) -> None:
        """Where `cpu` is a hierarchy of its own, entering it costs the start of a box several milliseconds on a busy
        machine (the task goes to the end of another queue), so only long commands enter. Elsewhere they are in it."""
        for pid in self.members():
            with suppress(OSError):  # ended meanwhile, or the whole box did
                _write(self._dirs["cpu"] / self._groups.enter_file, str(pid))

    def cpu_s(self) -> float:
        return self._groups.read_cpu_s(os.pread(self._cpu, 4096, 0))

    def exceeded(self) -> LimitKind | None:
        return None

    def counts(self) -> Counts:
        return Counts(
            memory=_field(os.pread(self._memory_events, 4096, 0), b"oom_kill"),
            pids=_field(os.pread(self._pids_events, 4096, 0), b"max"),
        )

    def close(self) -> None:
        """Give the groups back; a group that still has a dying member is removed at the next start."""
        for fd in (self._pids, self._cpu, self._pids_events, self._memory_events):
            os.close(fd)
        self._groups.remove(self._dirs.values())


class Groups:
    """Where this process may make groups, and how the two versions spell things."""

    enter_file: str
    cpu_file: str
    memory_file: str
    version: int

    def __init__(self, parents: dict[str, Path]):
        self.parents = parents
        self._leftover: set[Path] = set()

    def settings(self, spec: BoxSpec) -> list[tuple[str, str, str]]:
        raise NotImplementedError

    def read_cpu_s(self, text: bytes) -> float:
        raise NotImplementedError

    def remove(self, directories: Iterable[Path]) -> None:
        self._leftover |= set(directories)
        for directory in list(self._leftover):
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                continue
            self._leftover.discard(directory)

    def sweep(self) -> int:
        """Remove the groups of owners that are gone, killing what may still be in them. Returns how many."""
        found: set[Path] = set()
        for parent in self.parents.values():
            # an owner of another session had its groups beside ours
            found |= {*parent.glob(f"{_PREFIX}*-*-*"), *parent.parent.glob(f"*/{_PREFIX}*-*-*")}
        gone = [directory for directory in found if _owner_is_gone(directory.name)]
        for directory in gone:
            with suppress(FileNotFoundError):
                for member in (directory / "cgroup.procs").read_bytes().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(member), 9)
        self.remove(gone)
        return len(gone)

    def works(self) -> bool:
        """Whether a process can really enter a group made here."""
        try:
            meter = CgroupMeter(self, BoxSpec())
        except OSError:
            return False
        try:
            script = "".join(f"echo 0 >{f} || exit 1;" for f in meter.enter())
            return subprocess.run(["/bin/sh", "-c", script], stderr=subprocess.DEVNULL).returncode == 0
        finally:
            meter.close()


class GroupsV1(Groups):
    """A task that writes itself into `tasks` need not wait for the kernel's global lock; `cgroup.procs` must (7 ms)."""

    enter_file, cpu_file, memory_file, version = "tasks", "cpuacct.usage", "memory.oom_control", 1

    def settings(self, spec: BoxSpec) -> list[tuple[str, str, str]]:
        memory = str(spec.memory_bytes)
        return [
            ("memory", "memory.limit_in_bytes", memory),
            ("memory", "memory.memsw.limit_in_bytes", memory),
            ("memory", "memory.swappiness", "0"),
            ("pids", "pids.max", str(spec.pids + OURS)),
            ("cpu", "cpu.cfs_quota_us", str(int(spec.cpu * 100_000))),
        ]

    def read_cpu_s(self, text: bytes) -> float:
        return int(text) / 1e9


class GroupsV2(Groups):
    enter_file, cpu_file, memory_file, version = "cgroup.procs", "cpu.stat", "memory.events", 2

    def settings(self, spec: BoxSpec) -> list[tuple[str, str, str]]:
        return [
            ("memory", "memory.max", str(spec.memory_bytes)),
            ("memory", "memory.swap.max", "0"),
            ("pids", "pids.max", str(spec.pids + OURS)),
            ("cpu", "cpu.max", f"{int(spec.cpu * 100_000)} 100000"),
        ]

    def read_cpu_s(self, text: bytes) -> float:
        return _field(text, b"usage_usec") / 1e6


def find_groups(mounts: str | None = None, own: str | None = None) -> Groups | None:
    """Writable groups of this process, below its own where possible; None where there are none.

    `mounts` and `own` are the texts of `/proc/self/mounts` and `/proc/self/cgroup`, given in tests.
    """
    mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    own = Path("/proc/self/cgroup").read_text() if own is None else own
    for candidate in (_find_v1(mounts, own), _find_v2(mounts, own)):
        if candidate and all(os.access(p, os.W_OK) for p in candidate.parents.values()) and candidate.works():
            candidate.sweep()
            return candidate
    return None


def _find_v1(mounts: str, own: str) -> Groups | None:
    places: dict[str, Path] = {}
    paths = {c: line.split(":", 2)[2] for line in own.splitlines() for c in line.split(":", 2)[1].split(",")}
    for line in mounts.splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup":
            for controller in set(options.split(",")) & set(CONTROLLERS):
                below = Path(place) / paths.get(controller, "/").lstrip("/")
                places[controller] = below if below.is_dir() else Path(place)
    return GroupsV1(places) if set(places) == set(CONTROLLERS) else None


def _find_v2(mounts: str, own: str) -> Groups | None:
    """Children may have controllers only where their parent hands them down: our own group, else the one above."""
    places = [Path(line.split()[1]) for line in mounts.splitlines() if line.split()[2] == "cgroup2"]
    paths = [line[3:] for line in own.splitlines() if line.startswith("0::")]
    if not places or not paths:
        return None
    here = places[0] / paths[0].lstrip("/")
    for parent in (here, here.parent):
        with suppress(OSError):
            handed_down = (parent / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids", "cpu"} <= set(handed_down):
                return GroupsV2(dict.fromkeys(CONTROLLERS, parent))
    return None


def _owner_is_gone(name: str) -> bool:
    pid, ticks = name.removeprefix(_PREFIX).split("-")[:2]
    return pid.isdigit() and str(processes.start_ticks(int(pid))) != ticks


def _write(file: Path, value: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _field(text: bytes, name: bytes) -> int:
    """The number beside `name` in a flat keyed file; 0 where it is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0
