"""What it costs to have a session: started by a fork of a warm worker, forked from a live one, in the event loop.

The clock runs from the request to the first observation, over the worker's socket, so it includes the fork, the
environment's reset in the new process and both ways. Starts one right after the other outrun the spare processes that a
worker keeps, so they include the making of one; a start after a pause, as between episodes, takes one that waits. The rows
about boxes come from `benchmarks.bubblewrap`; containers and pods are in `benchmarks.boxes`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import uvloop

from benchmarks import bubblewrap
from benchmarks.harness import Row, finish, row
from envfarm.spec import load_spec
from envfarm.worker.pool import WorkerPool

HERE = Path(__file__).parent
STARTS = 200
PAUSE_S = 0.02


async def milliseconds() -> dict[str, float]:
    """Medians over `STARTS`, one after the other."""
    forked, shared = load_spec(HERE / "echo" / "echo_process.yaml"), load_spec(HERE / "echo" / "echo.yaml")
    pool = WorkerPool([forked, shared])
    await pool.start()
    times: dict[str, list[float]] = {"process": [], "fork": [], "shared": [], "spare": []}
    try:
        for spec, name in ((forked, "process"), (shared, "shared")):
            session = await pool.session(spec.id)
            for index in range(STARTS + 5):
                start = time.perf_counter()
                await session.reset(spec.instance("train", index))
                times[name].append(time.perf_counter() - start)
                if name == "process":
                    start = time.perf_counter()
                    branch = await session.fork()
                    times["fork"].append(time.perf_counter() - start)
                    await branch.close()
            await session.close()
        session = await pool.session(forked.id)
        for index in range(STARTS + 5):
            await asyncio.sleep(PAUSE_S)
            start = time.perf_counter()
            await session.reset(forked.instance("train", index))
            times["spare"].append(time.perf_counter() - start)
        await session.close()
    finally:
        await pool.close()
    return {name: 1e3 * statistics.median(values[5:]) for name, values in times.items()}


def session_rows() -> list[Row]:
    found = uvloop.run(milliseconds())
    return [
        row("session start: fork of a warm worker", found["process"], goal="<=3", unit="ms"),
        row("the same after a pause, with a spare ready", found["spare"], unit="ms"),
        row("fork of a live session", found["fork"], unit="ms"),
        row("session start in the event loop", found["shared"], unit="ms"),
    ]


def main() -> None:
    finish("sessions", session_rows() + bubblewrap.rows())


if __name__ == "__main__":
    main()
