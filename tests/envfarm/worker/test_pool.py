"""Workers as child processes: they serve, die alone, come back, and end with their owner."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from envfarm.errors import InfraError, UnknownIdError, UserError, WorkerDied
from envfarm.spec import load_spec
from envfarm.worker import lifetime
from envfarm.worker.local import LocalPool
from envfarm.worker.pool import WorkerPool
from tests.envfarm.worker.helpers import LAMP, TOYS, play, play_here, toy, until, wait_gone


@pytest.mark.parametrize("kind", [WorkerPool, LocalPool])
def test_a_pool_plays_many_sessions(kind: type[WorkerPool | LocalPool]) -> None:
    async def run() -> None:
        spec = load_spec(LAMP)
        pool = kind([spec, toy("shared")], workers=2)
        await pool.start()

        async def one(index: int) -> None:
            session = await pool.session(spec.id)
            assert await play(session, spec.instance("train", index)) == play_here(spec, spec.instance("train", index))
            await session.close()

        await asyncio.gather(*(one(i) for i in range(20)))
        session = await pool.session("worker/troubled-shared-v0")
        await session.reset(toy("shared").instance("train", 0))
        branch = await session.fork()
        assert (await branch.step("say hm")).text
        await branch.close()
        await session.close()
        await session.close()
        with pytest.raises(UnknownIdError, match="did you mean 'toy/lamp-v0'"):
            await pool.session("toy/lamp-v1")
        await pool.close()
        await pool.close()

    asyncio.run(run())


def test_a_killed_worker_ends_its_sessions_only_and_is_replaced() -> None:
    async def kill() -> None:
        spec = toy("shared")
        pool = WorkerPool([spec], workers=2)
        await pool.start()
        sessions = [await pool.session(spec.id) for _ in range(4)]
        for session in sessions:
            await session.reset(spec.instance("train", 0))
        before = pool.pids
        os.kill(before[0], signal.SIGKILL)
        assert await asyncio.to_thread(wait_gone, before[0])
        answers = await asyncio.gather(*(s.step("say on") for s in sessions), return_exceptions=True)
        assert sorted(type(a).__name__ for a in answers) == ["Turn", "Turn", "WorkerDied", "WorkerDied"]
        for session in sessions:
            await session.close()
        await until(lambda: before[0] not in pool.pids and len(pool.pids) == 2)
        await until(lambda: all(w.up.is_set() for w in pool._workers))
        assert before[1] in pool.pids
        again = [await pool.session(spec.id) for _ in range(4)]
        for session in again:
            assert (await session.reset(spec.instance("train", 0))).text
            await session.close()
        after = pool.pids
        await pool.close()
        assert all(wait_gone(pid) for pid in (*before, *after))

    asyncio.run(kill())


def test_a_step_that_dies_with_its_worker_raises() -> None:
    async def die() -> None:
        spec = toy("shared")
        pool = WorkerPool([spec])
        await pool.start()
        session = await pool.session(spec.id)
        await session.reset(spec.instance("train", 0))
        with pytest.raises(WorkerDied):
            await session.step("die")
        await session.close()
        session = await pool.session(spec.id)  # waits for the replacement
        assert (await session.reset(spec.instance("train", 0))).text
        await session.close()
        await pool.close()

    asyncio.run(die())


def test_a_cancelled_step_does_not_spoil_the_next_session() -> None:
    async def cancel() -> None:
        spec = toy("process")
        pool = WorkerPool([spec])
        await pool.start()
        session = await pool.session(spec.id)
        await session.reset(spec.instance("train", 0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await session.step("spin")
        await session.close()
        for index in range(3):
            session = await pool.session(spec.id)
            turn = await session.reset(spec.instance("train", index))
            assert spec.instance("train", index).params["word"] in turn.text
            await session.close()
        await pool.close()

    asyncio.run(cancel())


def test_more_sessions_than_room_wait() -> None:
    async def wait() -> None:
        spec = toy("shared")
        pool = WorkerPool([spec], max_sessions=1)
        await pool.start()
        first = await pool.session(spec.id)
        second = asyncio.ensure_future(pool.session(spec.id))
        await first.reset(spec.instance("train", 0))
        assert not second.done()
        await first.close()
        session = await second
        assert (await session.reset(spec.instance("train", 0))).text
        await session.close()
        await pool.close()

    asyncio.run(wait())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(TOYS, tmp_path / "toys", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("kind", ["shared", "process"])
def test_an_environment_that_does_not_import_is_refused_at_the_start(copied: Path, kind: str) -> None:
    spec = load_spec(copied / f"{kind}.yaml")
    (copied / "troubled.py").write_text("import nothing_of_this_name\n")

    async def start() -> None:
        pool = WorkerPool([spec])
        with pytest.raises(UserError, match="nothing_of_this_name"):
            await pool.start()
        assert pool.pids == []

    asyncio.run(start())


def test_a_worker_that_cannot_come_back_is_given_up(copied: Path) -> None:
    async def start() -> None:
        spec = load_spec(copied / "shared.yaml")
        pool = WorkerPool([spec])
        await pool.start()
        (copied / "troubled.py").unlink()
        os.kill(pool.pids[0], signal.SIGKILL)
        await until(lambda: pool._workers[0].given_up)
        with pytest.raises(InfraError, match="no worker is left"):
            await pool.session(spec.id)
        await pool.close()

    asyncio.run(start())


OWNER = """
import asyncio, json, sys
from envfarm.spec import load_spec
from envfarm.worker.pool import WorkerPool

async def main():
    spec = load_spec(sys.argv[1])
    pool = WorkerPool([spec], workers=2)
    await pool.start()
    sessions = [await pool.session(spec.id) for _ in range(2)]
    for session in sessions:
        await session.reset(spec.instance("train", 0))
    forked = await sessions[0].fork()
    spinning = asyncio.ensure_future(forked.step("spin"))
    await asyncio.sleep(0)
    print(json.dumps({"dir": str(pool._dir.path), "pids": pool.pids}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_nothing_is_left_of_an_owner_that_is_killed() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(TOYS / "process.yaml")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(TOYS.parents[3])},
    )  # fmt: skip
    assert owner.stdout is not None
    told = json.loads(owner.stdout.readline())
    family = [p.pid for p in psutil.Process(owner.pid).children(recursive=True)]
    assert set(told["pids"]) < set(family) and len(family) >= 2 + 2 + 3  # workers, zygotes, sessions
    assert Path(told["dir"]).exists()
    owner.kill()
    owner.wait()
    assert all(wait_gone(pid) for pid in family)
    assert not Path(told["dir"]).exists()


def test_a_sweep_leaves_the_living_alone() -> None:
    mine = lifetime.PrivateDir()
    assert mine.path not in lifetime.sweep() and mine.path.exists()
    mine.remove()
    mine.remove()
    assert not mine.path.exists()
