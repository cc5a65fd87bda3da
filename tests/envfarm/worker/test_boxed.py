"""Sessions with real boxes, in a thread and in a process of their own."""

from __future__ import annotations

import asyncio

import pytest

from envfarm.worker.pool import WorkerPool
from tests.envfarm.worker.helpers import toy, wait_gone

pytestmark = pytest.mark.box


@pytest.mark.parametrize("kind", ["shared", "process"])
def test_a_forked_session_has_a_forked_box(kind: str) -> None:
    async def fork() -> None:
        spec = toy(f"box-{kind}")
        pool = WorkerPool([spec])
        await pool.start()
        stem = await pool.session(spec.id)
        await stem.reset(spec.instance("train", 0))
        await stem.step("run echo hello > greeting; name=world; cd /tmp")
        branch = await stem.fork()
        await stem.step("run echo goodbye > /task/greeting; name=moon")
        assert (await branch.step("run cat /task/greeting; echo $name; pwd")).text.split() == ["hello", "world", "/tmp"]
        assert (await stem.step("run cat /task/greeting; echo $name; pwd")).text.split() == ["goodbye", "moon", "/tmp"]
        assert (await branch.step("second")).text == "[]"
        assert (await branch.step("third")).text.strip() == "hello"
        assert (await branch.step("lose")).text == "lost: FileNotFoundError 2"
        await branch.close()
        await stem.reset(spec.instance("train", 1))
        assert (await stem.step("run ls; echo $name")).text.strip() == ""
        await stem.close()
        pids = pool.pids
        await pool.close()
        assert all(wait_gone(pid) for pid in pids)

    asyncio.run(fork())
