"""What it costs to have a session: started by a fork of a warm worker, forked from a live one, in the event loop.

The clock runs from the request to the first observation, over the worker's socket, so it includes the fork, the
environment's reset in the new process and both ways. The rows about boxes come from `benchmarks.boxes`.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import uvloop

from benchmarks import boxes
from benchmarks.harness import Row, finish, row
from envfarm.spec import load_spec
from envfarm.worker.pool import WorkerPool

HERE = Path(__file__).parent
STARTS = 200


async def milliseconds() -> dict[str, float]:
    """Medians over `STARTS`, one after the other."""
    forked, shared = load_spec(HERE / "echo" / "echo_process.yaml"), load_spec(HERE / "echo" / "echo.yaml")
    pool = WorkerPool([forked, shared])
    await pool.start()
    times: dict[str, list[float]] = {"process": [], "fork": [], "shared": []}
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
    finally:
        await pool.close()
    return {name: 1e3 * statistics.median(values[5:]) for name, values in times.items()}


def session_rows() -> list[Row]:
    found = uvloop.run(milliseconds())
    return [
        row("session start: fork of a warm worker", found["process"], goal="<=3", unit="ms"),
        row("fork of a live session", found["fork"], unit="ms"),
        row("session start in the event loop", found["shared"], unit="ms"),
    ]


def main() -> None:
    finish("sessions", session_rows() + boxes.rows())


if __name__ == "__main__":
    main()
