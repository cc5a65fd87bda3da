"""Wherever a session lives it says the same; forks are snapshots; one that dies is nobody else's trouble."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from typing import Any

import msgspec
import pytest

from envfarm.errors import BoxDied, CapabilityError, EnvironmentFault, InfraError, UnknownIdError, VerifierFault, WorkerDied
from envfarm.spec import EnvSpec, load_spec
from envfarm.worker.client import AsyncSession
from envfarm.worker.pipe import Hello, decode_upward
from envfarm.worker.process import SPARES, ProcessHost
from envfarm.worker.serving import Worker
from tests.envfarm.worker.helpers import LAMP, PaperBackend, play, play_here, running, session, toy, until, wait_gone

KINDS = ["shared", "process"]


def as_process(spec: EnvSpec) -> EnvSpec:
    return msgspec.structs.replace(spec, isolation="process")


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_in_a_worker_is_the_session_here(kind: str) -> None:
    async def compare() -> None:
        spec = load_spec(LAMP)
        served = as_process(spec) if kind == "process" else spec
        async with running(served) as (_, url):
            for index in range(5):
                on = await session(url, served)
                assert await play(on, spec.instance("train", index)) == play_here(spec, spec.instance("train", index))
                await on.close()

    asyncio.run(compare())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_is_a_snapshot(kind: str) -> None:
    async def fork() -> None:
        spec = toy(kind)
        async with running(spec) as (worker, url):
            stem = await session(url, spec)
            await stem.reset(spec.instance("train", 0))
            await stem.step("say one")
            branch = await stem.fork()
            await stem.step("say two")
            assert (await branch.step("say three")).text.endswith("one three")
            assert (await stem.step("say four")).text.endswith("one two four")
            twig = await branch.fork()
            await stem.close()
            await branch.close()
            assert (await twig.step("say five")).text.endswith("one three five")
            assert (await twig.step(await twig.oracle())).rewards == {"agent": 1.0}
            await twig.close()
            await until(lambda: not seats(worker))

    asyncio.run(fork())


def test_what_cannot_be_copied_says_so() -> None:
    async def fork() -> None:
        spec = toy("fixed")
        async with running(spec) as (_, url):
            on = await session(url, spec)
            await on.reset(spec.instance("train", 0))
            with pytest.raises(CapabilityError, match=r"Fixed\.forkable is False"):
                await on.fork()
            assert (await on.step("say one")).text
            await on.close()

    asyncio.run(fork())


@pytest.mark.parametrize("kind", KINDS)
def test_faults_arrive_as_what_they_are(kind: str) -> None:
    async def provoke() -> None:
        spec = toy(kind)
        async with running(spec) as (_, url):
            on = await session(url, spec)
            with pytest.raises(EnvironmentFault, match="reset first"):
                await on.step("say one")
            await on.reset(spec.instance("train", 0))
            with pytest.raises(EnvironmentFault, match="ZeroDivisionError: the author's mistake"):
                await on.step("crash")
            with pytest.raises(VerifierFault, match=r"7\.0"):
                await on.step("overpay")
            with pytest.raises(EnvironmentFault, match="agent's turn"):
                await on.reset(spec.instance("train", 0))
                await on.step("say one", role="dealer")
            other = AsyncSession(load_spec(LAMP), on._wire)
            with pytest.raises(UnknownIdError, match="does not serve 'toy/lamp-v0'"):
                await other.reset(load_spec(LAMP).instance("train", 0))
            await on.close()

    asyncio.run(provoke())


def test_a_session_process_that_is_killed_takes_nobody_along() -> None:
    async def kill() -> None:
        spec = toy("process")
        async with running(spec) as (worker, url):
            one, two, three = [await session(url, spec) for _ in range(3)]
            for on in (one, two, three):
                await on.reset(spec.instance("train", 0))
            with pytest.raises(WorkerDied, match="session's process"):
                await one.step("die")
            victim = next(h for h in hosts(worker) if not h._dead)
            os.kill(victim.pid, signal.SIGKILL)
            answers = await asyncio.gather(two.step("say on"), three.step("say on"), return_exceptions=True)
            assert sorted(type(a).__name__ for a in answers) == ["Turn", "WorkerDied"]
            with pytest.raises(WorkerDied):
                await one.step("say on")
            assert (await one.reset(spec.instance("train", 1))).text  # the connection is as good as new
            for on in (one, two, three):
                await on.close()

    asyncio.run(kill())


def test_a_session_starts_in_a_process_that_waits_and_dead_ones_are_passed_over() -> None:
    async def start() -> None:
        spec = toy("process")
        async with running(spec) as (worker, url):
            assert worker._zygote is not None
            on = await session(url, spec)
            await on.reset(spec.instance("train", 0))
            spares = worker._zygote._spares[spec.id]
            assert len(spares) == SPARES  # they are asked for before the answer goes out
            waiting = list(spares)
            pids = [await asyncio.to_thread(pid_of, spare) for spare in waiting]
            assert len({*pids, hosts(worker)[0].pid}) == SPARES + 1
            os.kill(pids[0], signal.SIGKILL)
            assert await asyncio.to_thread(wait_gone, pids[0])
            first = (await on.step("roll")).text
            await on.reset(spec.instance("train", 0))
            assert [h.pid for h in hosts(worker)] == [pids[1]] and waiting[0].fileno() == -1
            assert (await on.step("roll")).text == first  # fresh, as any other
            assert len(spares) == SPARES and not {*spares} & {*waiting}
            left = [await asyncio.to_thread(pid_of, spare) for spare in spares]
            await on.close()
        assert all([await asyncio.to_thread(wait_gone, pid) for pid in left])

    asyncio.run(start())


def pid_of(spare: socket.socket) -> int:
    """What the waiting process says first, which stays in the socket for whoever takes it."""
    assert select.select([spare], [], [], 15)[0]
    hello = decode_upward(spare.recv(64, socket.MSG_PEEK)[4:])
    assert isinstance(hello, Hello)
    return hello.pid


def test_global_random_state_is_the_session_s_own_and_part_of_a_fork() -> None:
    async def roll() -> None:
        spec = toy("process")
        async with running(spec) as (_, url):
            one, two = await session(url, spec), await session(url, spec)
            for on in (one, two):
                await on.reset(spec.instance("train", 0))
            interleaved = [(await one.step("roll")).text, (await two.step("roll")).text, (await one.step("roll")).text]
            await two.reset(spec.instance("train", 0))
            alone = [(await two.step("roll")).text, (await two.step("roll")).text]
            assert interleaved == [alone[0], alone[0], alone[1]] and alone[0] != alone[1]
            branch = await one.fork()
            assert (await branch.step("roll")).text == (await one.step("roll")).text
            await two.reset(spec.instance("train", 1))
            assert (await two.step("roll")).text != alone[0]
            for on in (one, two, branch):
                await on.close()

    asyncio.run(roll())


def test_a_closed_session_that_loops_for_ever_is_killed() -> None:
    async def spin() -> None:
        spec = toy("process")
        async with running(spec) as (worker, url):
            on = await session(url, spec)
            await on.reset(spec.instance("train", 0))
            pidfd = os.pidfd_open(hosts(worker)[0].pid)
            stuck = asyncio.ensure_future(on.step("spin"))
            await asyncio.sleep(0)
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
            await on.close()
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, gone.set)
            async with asyncio.timeout(15):
                await gone.wait()
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    asyncio.run(spin())


def test_sessions_share_a_connection_and_do_not_wait_for_each_other() -> None:
    async def share() -> None:
        spec, backend = toy("box-shared"), PaperBackend()
        async with running(spec, backend=backend, max_sessions=3) as (worker, url):
            first = await session(url, spec)
            second, third, fourth = [AsyncSession(spec, first._wire._connection.open()) for _ in range(3)]  # type: ignore[attr-defined]
            for on in (first, second, third):
                await on.reset(spec.instance("train", 0))
            stuck = asyncio.ensure_future(first.step("run hang"))
            await backend.hanging.wait()
            assert (await second.step("say " + "x" * 3_000_000)).text.endswith("xxx")
            with pytest.raises(EnvironmentFault, match="one request at a time"):
                await first.step("say more")
            with pytest.raises(InfraError, match="3 sessions, its limit"):
                await fourth.reset(spec.instance("train", 0))
            with pytest.raises(InfraError, match="Unknown or attached session_id"):
                await second._wire.attach("nobody")
            await third.close()
            assert (await fourth.reset(spec.instance("train", 1))).text
            await first.close()
            with pytest.raises(WorkerDied, match="the session was closed"):
                await stuck
            await second.close()
            await fourth.close()
            await until(lambda: backend.open == 0 and not seats(worker))

    asyncio.run(share())


# Boxes: made of paper here; tests/envfarm/worker/test_boxed.py uses real ones.


@pytest.mark.parametrize("kind", KINDS)
def test_the_box_of_a_session(kind: str) -> None:
    async def use() -> None:
        spec, backend = toy(f"box-{kind}"), PaperBackend()
        async with running(spec, backend=backend) as (worker, url):
            on = await session(url, spec)
            await on.reset(spec.instance("train", 0))
            await on.step("run put greeting hello")
            assert (await on.step("run cat greeting")).text == "hello"
            assert (await on.step("lose")).text == "lost: FileNotFoundError 2"
            assert (await on.step("second")).text == "[]"
            await until(lambda: backend.open == 1)
            branch = await on.fork()
            await on.step("run put greeting goodbye")
            assert (await branch.step("run cat greeting")).text == "hello"
            assert (await branch.step("second")).text == "[]"
            await branch.close()
            await until(lambda: backend.open == 1)
            await on.reset(spec.instance("train", 1))
            assert (await on.step("run ls")).text == ""
            await until(lambda: backend.open == 1)
            with pytest.raises(BoxDied, match="somebody killed the box"):
                await on.step("run kill")
            await on.close()
            await until(lambda: backend.open == 0 and not seats(worker))

    asyncio.run(use())


@pytest.mark.parametrize("kind", KINDS)
def test_closing_a_session_ends_the_command_under_way(kind: str) -> None:
    async def hang() -> None:
        spec, backend = toy(f"box-{kind}"), PaperBackend()
        async with running(spec, backend=backend) as (worker, url):
            on = await session(url, spec)
            await on.reset(spec.instance("train", 0))
            stuck = asyncio.ensure_future(on.step("run hang"))
            await backend.hanging.wait()
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
            await on.close()
            await until(lambda: backend.open == 0 and not seats(worker))

    asyncio.run(hang())


def hosts(worker: Worker) -> list[ProcessHost]:
    return [s.host for s in seats(worker) if isinstance(s.host, ProcessHost)]


def seats(worker: Worker) -> list[Any]:
    assert worker.sessions is not None
    return list(worker.sessions.seats)
