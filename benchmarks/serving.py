"""Environment steps/s of a worker and of the `openenv` package's own server, with the same trivial environment.

At 1 and at 200 sessions; once with the official client on both sides, once each side with its own client. One server
process and one client process each. Both loops are uvloop: uvicorn picks it by itself, and the clients get it here.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import uvloop
from openenv.core import GenericEnvClient

from benchmarks.harness import finish, measure
from benchmarks.peers import peer_python
from envfarm.spec import load_spec
from envfarm.worker.pool import WorkerPool

PEER = ("openenv==0.10.0", "uvicorn", "uvloop")
HERE = Path(__file__).parent
MANY = 200
ROUND_S = 2.0
"""How long one round steps, on either side."""

Step = Callable[[], Awaitable[object]]


async def steps_per_s(open_session: Callable[[], Awaitable[Step]], sessions: int) -> float:
    """All sessions step at once, each as soon as it has its answer."""
    steppers = [await open_session() for _ in range(sessions)]
    start = time.perf_counter()
    taken = 0

    async def drive(step: Step) -> None:
        nonlocal taken
        while time.perf_counter() - start < ROUND_S:
            await step()
            taken += 1

    await asyncio.gather(*(drive(step) for step in steppers))
    return taken / (time.perf_counter() - start)


def official(url: str, sessions: int) -> float:
    """With `GenericEnvClient`."""

    async def run() -> float:
        clients: list[GenericEnvClient] = []
        ours = url.endswith("/ours")

        async def open_session() -> Step:
            client = GenericEnvClient(base_url=url.removesuffix("/ours"))
            clients.append(client)
            await client.connect()
            await client.reset()
            action = {"text": "say hello" if ours else "hello"}
            return lambda: client.step(action)

        try:
            return await steps_per_s(open_session, sessions)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    return uvloop.run(run())


def own(sessions: int) -> float:
    """With a `WorkerPool` of one worker."""

    async def run() -> float:
        spec = load_spec(HERE / "echo" / "echo.yaml")
        pool = WorkerPool([spec])
        await pool.start()

        async def open_session() -> Step:
            session = await pool.session(spec.id)
            await session.reset(spec.instance("train", 0))
            return lambda: session.step("say hello")

        try:
            return await steps_per_s(open_session, sessions)
        finally:
            await pool.close()

    return uvloop.run(run())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], port: int, stack: ExitStack) -> str:
    """A server process that ends with `stack`; returns its URL once it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    raise SystemExit(f"{command[0]} ended with exit code {process.returncode}")


def main() -> None:
    with ExitStack() as stack:
        theirs, mine, server = free_port(), free_port(), HERE / "echo" / "openenv_server.py"
        their_url = start([str(peer_python("openenv-0.10.0", PEER)), str(server), str(theirs), str(MANY + 1)], theirs, stack)
        worker = [sys.executable, "-m", "envfarm.worker", "--env", str(HERE / "echo" / "echo.yaml"), "--port", str(mine)]
        my_url = start(worker, mine, stack) + "/ours"
        rows = []
        for sessions, goal in ((1, ">=5"), (MANY, ">=10")):
            name = "1 session" if sessions == 1 else f"{sessions} sessions"
            their_figure = partial(official, their_url, sessions)
            their_figure()  # warm
            same = f"{name}, official client on both"
            rows.append(measure(same, partial(official, my_url, sessions), their_figure, unit="steps/s", rounds=3, warm_up=0))
            each = f"{name}, each with its own client"
            rows.append(measure(each, partial(own, sessions), their_figure, unit="steps/s", goal=goal, rounds=3, warm_up=0))
    finish("serving", rows)


if __name__ == "__main__":
    main()
