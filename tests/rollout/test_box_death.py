"""`kill -9` of the boxes under running episodes: never a reward 0, run again with the same result, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from envfarm.backends import processes
from tests.faults import record
from tests.rollout.box_deaths import Pool, nothing_is_lost, pool_of

pytestmark = pytest.mark.box


def boxes(pool: Pool) -> list[int]:
    """The first processes of the boxes that live now."""
    found = []
    for pid in (p for worker in pool.pids for p in processes.descendants(worker)):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"bwrap"):
                found.append(pid)
    return found


def test_kill_9_of_boxes_is_an_infra_error_that_is_run_again(tmp_path: Path) -> None:
    watched: list[int] = []

    def kill(pool: Pool) -> bool:
        for pid in boxes(pool):
            with suppress(ProcessLookupError):  # its episode has just ended
                box = os.pidfd_open(pid)
                os.kill(pid, signal.SIGKILL)
                watched.append(box)
        return bool(watched)

    def left(_: object) -> int:
        return sum(not select.select([fd], [], [], 10)[0] for fd in watched)

    record("box", nothing_is_lost(tmp_path / "s", pool_of("bubblewrap"), kill, left))
    for fd in watched:
        os.close(fd)
