"""Farms with boxes of their own, on a real engine and a real cluster: leases, back-pressure, deaths, and what is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from envfarm.backends.docker import connect
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.backends.owners import BOX, OWNER, pid_of
from envfarm.errors import BoxDied, BoxUnavailableError, NoRoomError, UserError
from envfarm.farm import KEEPER_VARIABLE, TOKEN_VARIABLE
from envfarm.farm.backend import LeasedBackend
from envfarm.farm.client import KeeperClient
from envfarm.farm.home import Home, Running
from envfarm.farm.leases import EXPIRY_S, Conflict
from envfarm.farm.object_book import ObjectBook
from envfarm.farm.pool import FarmPool
from envfarm.farm.status import BoxCounts, Scale
from envfarm.registry import default_registry
from envfarm.testing.backend_checks import SMALL
from tests.envfarm.farm.helpers import up, write_farm
from tests.envfarm.worker.helpers import wait_gone

SHELL = "coding/shell-v0"
POOL = '  - {environments: ["coding/shell-v0"], workers: 1, boxes: {max: 4, warm: 2}}\n'
NAME = f"test-{secrets.token_hex(3)}"


@pytest.fixture(scope="module")
def on_docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = write_farm(tmp_path_factory.mktemp("docker"), name=NAME, pools=POOL, target="{docker: {workers: process}}")
    with pytest.MonkeyPatch.context() as patch, up(file, patch) as running:
        yield running


@pytest.fixture(scope="module")
def on_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    target = f"{{kubernetes: {{namespace: {NAME}, box_namespace: {NAME}, workers: process}}}}"
    file = write_farm(tmp_path_factory.mktemp("kubernetes"), name=f"{NAME}-k", pools=POOL, target=target)
    subprocess.run(["kubectl", "create", "namespace", NAME], check=True, capture_output=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ENVFARM_NAMESPACE", NAME)
            with up(file, patch) as running:
                yield running
    finally:
        subprocess.run(["kubectl", "delete", "namespace", NAME, "--wait=false"], check=True, capture_output=True)


@pytest.fixture(params=["docker", "kubernetes"])
def farm(request: pytest.FixtureRequest) -> Running:
    return request.getfixturevalue(f"on_{request.param}")


ON = {"docker": pytest.mark.docker, "kubernetes": pytest.mark.kubernetes}
on_both = pytest.mark.parametrize("farm", [pytest.param(k, marks=ON[k]) for k in ON], indirect=True)


@asynccontextmanager
async def leasing(farm: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LeasedBackend]:
    """A worker's backend, in this process."""
    monkeypatch.setenv(KEEPER_VARIABLE, f"{farm.url}/pools/0")
    monkeypatch.setenv(TOKEN_VARIABLE, farm.token)
    backend = LeasedBackend()
    try:
        yield backend
    finally:
        await backend.close()


async def counts_of(farm: Running) -> BoxCounts:
    async with KeeperClient(farm.url, farm.token) as keeper:
        counts = (await keeper.status()).pools[0].boxes
    assert counts is not None
    return counts


async def until(farm: Running, holds: Callable[[BoxCounts], bool]) -> BoxCounts:
    """The tests' time limit is the end of patience."""
    while not holds(counts := await counts_of(farm)):
        await asyncio.sleep(0.2)
    return counts


@on_both
def test_more_episodes_than_boxes_are_all_played(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each verifies in a second box while it has its first."""
    spec = default_registry().get(SHELL)

    async def one(pool: FarmPool, index: int) -> float:
        session = await pool.session(SHELL)
        turn = await session.reset(spec.instance("train", index))
        while not turn.over:
            turn = await session.step(await session.oracle())
        await session.close()
        return turn.rewards["agent"]

    async def play() -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, farm.token)
        pool = FarmPool([spec], farm.url)
        await pool.start()
        assert min(await asyncio.gather(*(one(pool, index) for index in range(6)))) >= spec.reward.solved_at
        await pool.close()
        await until(farm, lambda c: c.leased == 0 and c.free == 2)

    asyncio.run(play())


@on_both
def test_a_leased_box_is_a_box(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with leasing(farm, monkeypatch) as backend:
            box = await backend.start(SMALL, owner="one")
            assert (await box.exec("x=1; echo hi > a; pwd")).stdout == b"/task\n"
            other = await backend.start(SMALL, owner="two", snapshot=await box.snapshot())
            assert (await other.exec("cat a; echo $x")).stdout == b"hi\n1\n"
            assert (await counts_of(farm)).leased == 2
            await box.stop()
            await other.stop()
            await until(farm, lambda c: c.leased == 0)

    asyncio.run(use())


@on_both
def test_a_holder_that_beats_no_more_loses_its_box(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget() -> None:
        async with leasing(farm, monkeypatch) as backend:
            box = await backend.start(SMALL)
            assert backend._beating is not None
            backend._beating.cancel()
            started = time.monotonic()
            await until(farm, lambda c: c.leased == 0)
            assert time.monotonic() - started >= EXPIRY_S - 1
            with pytest.raises(BoxDied):
                for _ in range(50):
                    await box.exec("sleep 0.2")
            await box.stop()

    asyncio.run(forget())


@on_both
def test_a_box_that_is_killed_is_told_and_replaced(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(box: str) -> None:
        if farm.kind == "docker":
            connect().kill(box)
        else:
            subprocess.run(["kubectl", "-n", NAME, "delete", "pod", box, "--now"], check=True, capture_output=True)

    async def die() -> None:
        async with leasing(farm, monkeypatch) as backend:
            box = await backend.start(SMALL)
            (name,) = backend._held
            command = asyncio.create_task(box.exec("sleep 15"))
            await asyncio.sleep(1)
            await asyncio.to_thread(kill, name)
            with pytest.raises(BoxDied):
                await command
            await box.stop()
            await until(farm, lambda c: c.leased == 0 and c.free >= 1)

    asyncio.run(die())


@on_both
def test_full_is_back_pressure_and_is_said(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill() -> None:
        async with leasing(farm, monkeypatch) as backend:
            boxes = [await backend.start(SMALL, owner=f"session {n}") for n in range(3)]  # one of four is left to further ones
            with pytest.raises(NoRoomError, match="pool 0 had no box to lease for 2 s: "):
                await backend.start(msgspec.structs.replace(SMALL, lifetime_s=8.0), owner="short of time")
            waiting = asyncio.create_task(backend.start(SMALL, owner="late"))
            counts = await until(farm, lambda c: c.waiting == 1)
            assert "1 wait" in counts.said and not waiting.done()
            further = await backend.start(SMALL, owner="session 0")
            await further.stop()
            assert not waiting.done()
            await boxes.pop().stop()
            boxes.append(await waiting)
            for box in boxes:
                await box.stop()

    asyncio.run(fill())


@pytest.mark.docker
def test_an_image_that_is_not_there_is_told_at_once(on_docker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with leasing(on_docker, monkeypatch) as backend:
            with pytest.raises(BoxUnavailableError, match="no image 'nothing/of-this-name'"):
                await backend.start(msgspec.structs.replace(SMALL, image="nothing/of-this-name"))

    asyncio.run(ask())


@pytest.mark.kubernetes
def test_a_namespace_of_boxes_that_is_not_there_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = f"{{kubernetes: {{namespace: {NAME}, box_namespace: {NAME}-none, workers: process}}}}"
    file = write_farm(tmp_path, name=f"{NAME}-n", pools=POOL, target=target)

    async def ask(farm: Running) -> None:
        async with leasing(farm, monkeypatch) as backend:
            with pytest.raises(BoxUnavailableError, match=f'namespaces "{NAME}-none" not found. `kubectl create namespace'):
                await backend.start(SMALL)
        await until(farm, lambda c: "not found" in c.said and c.making == c.leased == 0)  # it is tried again now and then

    with up(file, monkeypatch) as running:
        asyncio.run(ask(running))
        assert "Traceback" not in Home(f"{NAME}-n").log.read_text()


@on_both
def test_boxes_are_resized(farm: Running) -> None:
    async def resize() -> None:
        async with KeeperClient(farm.url, farm.token) as keeper:
            with pytest.raises(UserError, match=r"`warm: 9` is more than `max: 4`"):
                await keeper.scale(Scale(warm=9))
            await keeper.scale(Scale(warm=0, min=0))
            assert (await counts_of(farm)).warm == 0
            await keeper.scale(Scale(warm=2))
        await until(farm, lambda c: c.free >= 2)

    asyncio.run(resize())


def labelled(pid: int) -> list[Any]:
    found = connect().containers(all=True, filters={"label": BOX})
    return [c for c in found if c["Labels"][OWNER] and pid_of(c["Labels"][OWNER]) == pid]


@pytest.mark.docker
def test_nothing_is_left_of_a_killed_keeper_with_workers_in_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not connect().images(name="envfarm/worker"):
        pytest.skip("the engine has no image envfarm/worker: envfarm image build --worker --engine")
    file = write_farm(tmp_path, name=f"{NAME}-c", pools=POOL, target="{docker: {}}")

    with up(file, monkeypatch) as running:
        roles = sorted(c["Labels"].get("envfarm.role", "box") for c in labelled(running.pid))
        assert "worker" in roles
        os.kill(running.pid, signal.SIGKILL)
        assert wait_gone(running.pid)
        while labelled(running.pid):  # the tests' time limit is the end of patience
            time.sleep(0.2)


@pytest.mark.kubernetes
def test_of_two_keepers_one_gets_a_box(on_kubernetes: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The book as objects of the API: as `test_leases` has it for the folder."""

    async def race() -> None:
        monkeypatch.setenv("ENVFARM_NAMESPACE", NAME)
        backend = KubernetesBackend()
        await backend.probe()
        try:
            one, other = ObjectBook(backend, "race"), ObjectBook(backend, "race")
            seen = await one.add("box-race")
            with pytest.raises(Conflict):
                await other.add("box-race")
            also = await other.get("box-race")
            assert also == seen and await other.get("box-none") is None
            taken = await one.change(seen, holder="a", beats=1)
            for attempt in (other.change(seen, holder="b", beats=0), other.remove(seen)):
                with pytest.raises(Conflict):
                    await attempt
            assert await other.all() == [taken] and taken.holder == "a" and taken.beats == 1
            await other.remove(taken)
            assert await one.all() == []
        finally:
            await backend.close()

    asyncio.run(race())
