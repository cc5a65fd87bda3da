"""Processes of a box, seen from outside: who is below process 1, what they use, and ending them for good.

Everything here reads `/proc` of the worker's own pid namespace, so it needs no help from inside the box.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress

PAGE = os.sysconf("SC_PAGE_SIZE")
MANY = 512
"""More members than this are not swept one by one."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Direct children of a process; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
            return [int(p) for p in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def all_children(pid: int) -> list[int]:
    """Children of every thread of a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
    if len(threads) == 1:
        return children(pid)
    found: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += [int(p) for p in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, zombies included, parents first."""
    found, todo = [], [pid]
    while todo:
        for child in all_children(todo.pop()):
            found.append(child)
            todo.append(child)
    return found


def stat(pid: int) -> list[bytes] | None:
    """The fields of `/proc/PID/stat` after the command's name (index 0 is the state); None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it names the process for ever."""
    fields = stat(pid)
    return int(fields[19]) if fields else None


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds of the processes and of the children that they have waited for."""
    total = 0
    for pid in pids:
        fields = stat(pid)
        if fields:
            total += sum(int(f) for f in fields[11:15])
    return total / TICKS_PER_S


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes that no file backs; pages still shared since a fork count in each."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
                _, resident, shared, *_ = file.read().split()
                total += int(resident) - int(shared)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue
    return total * PAGE


def prefer_to_end(pid: int) -> None:
    """Out of memory, the kernel takes this process and its children before others (the supervisor, above all)."""
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("500")


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie: some shells reap their children only at the next command."""
    fields = stat(pid)
    return fields is not None and fields[0] not in (b"Z", b"X")


def end_all(supervisor: int, members: Callable[[], Iterable[int]], spare: frozenset[int]) -> None:
    """Stop, then kill every member but those spared.

    Stopping first is what beats a fork bomb: a stopped process neither forks nor frees its place for a sibling, so the
    sweep meets no new process after as many rounds as the pids limit allows. Their zombies vanish when process 1 reaps
    them. Where the kernel sets no such limit the bomb is faster than any sweep, and all but process 1 die at one stroke.
    """
    stopped: set[int] = set()
    while fresh := {p for p in members() if p not in spare and p not in stopped and alive(p)}:
        if len(stopped) + len(fresh) > MANY and _end_namespace(supervisor):
            return
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        _signal(pid, signal.SIGKILL)


def _end_namespace(supervisor: int) -> bool:
    """`kill -9 -1` from inside the pid namespace: the kernel signals all of it while nothing can fork."""
    nsenter = shutil.which("nsenter", path="/usr/bin:/bin")
    if nsenter is None:
        return False
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    command = [nsenter, "--target", str(supervisor), "--pid", *user, "--", "/bin/sh", "-c", "kill -9 -1"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
