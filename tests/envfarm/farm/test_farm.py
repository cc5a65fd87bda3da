"""A farm on this machine: real keepers and workers, shared by runs, killed and healed, with environments from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from envfarm.cli import main
from envfarm.errors import MissingDependencyError, UserError, WorkerDied
from envfarm.farm import TOKEN_VARIABLE
from envfarm.farm.client import KeeperClient
from envfarm.farm.daemon import bring_up, take_down
from envfarm.farm.file import read_farm
from envfarm.farm.home import Home, Running
from envfarm.farm.pool import FarmPool
from envfarm.farm.status import Roster, Scale, Status
from envfarm.spec import EnvSpec, load_spec
from tests.envfarm.farm.helpers import family, up, write_farm
from tests.envfarm.worker.helpers import LAMP, play, play_here, toy, wait_gone


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch, up(write_farm(tmp_path_factory.mktemp("farm")), patch) as running:
        yield running


async def compare(pool: FarmPool, spec: EnvSpec, episodes: int = 3) -> None:
    """Episodes in the farm are those of this process."""

    async def one(index: int) -> None:
        session = await pool.session(spec.id)
        assert await play(session, spec.instance("train", index)) == play_here(spec, spec.instance("train", index))
        await session.close()

    await asyncio.gather(*(one(index) for index in range(episodes)))


async def status(name: str) -> Status:
    async with KeeperClient.of(name) as keeper:
        return await keeper.status()


def changed(folder: Path) -> EnvSpec:
    """The lamp with other words in it: another version of the same id."""
    shutil.copytree(LAMP.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = folder / "lamp.py"
    code.write_text(code.read_text() + "\n# changed\n")
    text = (folder / "lamp.yaml").read_text()
    (folder / "lamp.yaml").write_text(text.replace("level: {uniform_int: [1, 9]}", "level: {uniform_int: [2, 9]}"))
    return load_spec(folder / "lamp.yaml")


def test_two_runs_share_a_farm_and_each_plays_the_version_it_brought(farm: Running, tmp_path: Path) -> None:
    async def share() -> None:
        mine, theirs = load_spec(LAMP), changed(tmp_path / "theirs")
        assert mine.id == theirs.id and mine.hash != theirs.hash
        one, other = FarmPool([mine, toy("process")], farm.farm), FarmPool([theirs], farm.farm)
        await asyncio.gather(one.start(), other.start())
        await asyncio.gather(compare(one, mine), compare(other, theirs))
        session = await one.session("worker/troubled-process-v0")
        instance = toy("process").instance("train", 0)
        assert instance.params["word"] in (await session.reset(instance)).text
        branch = await session.fork()
        assert (await branch.step("say hm")).text
        await branch.close()
        await session.close()
        await asyncio.gather(one.close(), other.close())
        assert (await status(farm.farm)).pools[0].workers[0].up, "a run that ends leaves the farm up"

    asyncio.run(share())


def test_a_killed_worker_loses_its_sessions_and_comes_back(farm: Running) -> None:
    async def kill() -> None:
        spec = load_spec(LAMP)
        pool = FarmPool([spec], farm.farm)
        await pool.start()
        session = await pool.session(spec.id)
        await session.reset(spec.instance("train", 0))
        workers = [p for p in psutil.Process(farm.pid).children() if "envfarm.worker" in p.cmdline()]
        assert len(workers) == 1
        workers[0].kill()
        with pytest.raises(WorkerDied, match="worker 0-0 of farm lab"):
            await session.step("anything")
        await session.close()
        await compare(pool, spec)  # waits for the next one, and brings the environment again
        await pool.close()

    asyncio.run(kill())


def test_a_worker_that_is_not_ready_for_a_while_keeps_its_sessions_and_gets_no_more(farm: Running) -> None:
    async def wait() -> None:
        spec = load_spec(LAMP)
        pool = FarmPool([spec], farm.farm)
        await pool.start()
        session = await pool.session(spec.id)
        await session.reset(spec.instance("train", 0))
        (known,) = pool._workers.values()
        busy = msgspec.structs.replace(known.info, up=False, address="")
        pool._update(Roster(1, {}, [busy]))
        more = asyncio.ensure_future(pool.session(spec.id))
        assert (await session.step("anything")).text
        assert not more.done()
        pool._update(Roster(2, {}, [known.info]))
        async with pool._news:
            pool._news.notify_all()
        await (await more).close()
        assert (await session.step("anything")).text
        await session.close()
        await pool.close()

    asyncio.run(wait())


def test_a_farm_is_scaled_while_it_is_used(farm: Running) -> None:
    async def scale() -> None:
        spec = load_spec(LAMP)
        pool = FarmPool([spec], farm.farm)
        await pool.start()
        async with KeeperClient.of(farm.farm) as keeper:
            grown = await keeper.scale(Scale(workers=2))
            assert [w.up for w in grown.pools[0].workers] == [True, True] and grown.pools[0].wanted == 2
            while len(pool._workers) < 2:
                await asyncio.sleep(0.05)
            sessions = [await pool.session(spec.id) for _ in range(4)]
            assert sorted(w.leased for w in pool._workers.values()) == [2, 2]
            for session in sessions:
                await session.close()
            assert len((await keeper.scale(Scale(workers=1))).pools[0].workers) == 1
            with pytest.raises(UserError, match="no pool 3"):
                await keeper.scale(Scale(pool=3, workers=1))
        await compare(pool, spec)
        await pool.close()

    asyncio.run(scale())


def test_what_is_missing_beside_the_workers_is_named(farm: Running, tmp_path: Path) -> None:
    shutil.copytree(LAMP.parent, tmp_path / "needy", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "needy" / "lamp.yaml"
    file.write_text(file.read_text().replace("toy/lamp-v0", "toy/needy-v0") + 'requires: ["nothing-of-this-name>=2"]\n')

    async def ask() -> None:
        spec = load_spec(file)
        pool = FarmPool([spec], farm.farm)
        await pool.start()
        place = rf"cannot play toy/needy-v0: {re.escape(str(file))}:\d+:\d+"
        said = rf"{place}: .*requires 'nothing-of-this-name>=2'.*install it there"
        with pytest.raises(MissingDependencyError, match=said):
            await pool.session(spec.id)
        await pool.close()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("named", "token", "said"),
    [
        ("lap", None, r"no farm 'lap' is up on this machine \(did you mean 'lab'\?\)"),
        ("URL", None, "wants a token: set ENVFARM_TOKEN"),
        ("URL", "wrong", "does not take this token"),
        ("http://127.0.0.1:1", "any", "does not answer.*Is the farm up"),
    ],
)
def test_a_farm_that_cannot_be_used(
    farm: Running, monkeypatch: pytest.MonkeyPatch, named: str, token: str | None, said: str
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(UserError, match=said):
        asyncio.run(FarmPool([load_spec(LAMP)], named.replace("URL", farm.url)).start())


def test_a_farm_by_its_url(farm: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, farm.token)

    async def ask() -> None:
        spec = load_spec(LAMP)
        pool = FarmPool([spec], farm.url)
        await pool.start()
        await compare(pool, spec, 1)
        await pool.close()

    asyncio.run(ask())


def test_an_environment_that_no_pool_serves(farm: Running, tmp_path: Path) -> None:
    file = changed(tmp_path / "other").file
    file.write_text(file.read_text().replace("toy/lamp-v0", "toys/lamp-v0"))
    with pytest.raises(UserError, match=r"farm 'lab' does not serve 'toys/lamp-v0' \(did you mean 'toy/\*'\?\)"):
        asyncio.run(FarmPool([load_spec(file)], farm.farm).start())


def test_a_second_farm_of_that_name_and_a_port_in_use(farm: Running, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'lab' is already up.*envfarm farm down lab"):
        bring_up(write_farm(tmp_path), read_farm(write_farm(tmp_path)), None)
    other = write_farm(tmp_path, name="other")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is in use; choose another with --listen"):
            bring_up(other, read_farm(other), None, f"127.0.0.1:{taken.getsockname()[1]}")
    for nowhere in ("127.0.0.1", "127.0.0.1:70000"):
        with pytest.raises(UserError, match="--listen: expected HOST:PORT with a port up to 65535, found"):
            bring_up(other, read_farm(other), None, nowhere)
    with pytest.raises(UserError, match="no farm 'other' is up"):
        Home("other").running()
    assert Home("lab").running() == farm


def test_an_environment_installed_beside_the_workers_is_served_without_being_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"  # as a wheel leaves it
    package, info = site / "lab_worlds", site / "lab_worlds-1.0.dist-info"
    shutil.copytree(LAMP.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("")
    (package / "lamp.yaml").write_text(
        (package / "lamp.yaml").read_text().replace("toy/lamp-v0", "lab/lamp-v0").replace("./lamp.py:", "lab_worlds.lamp:")
    )
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-worlds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[envfarm.environments]\nlab = lab_worlds\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))

    async def ask() -> None:
        spec = load_spec(package / "lamp.yaml")
        pool = FarmPool([spec], "lab")
        await pool.start()
        await compare(pool, spec, 1)
        assert not pool._bundles
        await pool.close()

    with up(write_farm(tmp_path), monkeypatch):
        asyncio.run(ask())


def test_nothing_is_left_of_a_keeper_that_is_killed_and_a_run_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_farm(tmp_path)

    async def survive(first: Running) -> None:
        spec = toy("process")
        pool = FarmPool([spec], "lab")
        await pool.start()
        session = await pool.session(spec.id)
        await session.reset(spec.instance("train", 0))
        members = family(first.pid)
        assert len(members) >= 1 + 1 + 1 + 1  # keeper, worker, zygote, session
        os.kill(first.pid, signal.SIGKILL)
        assert all([await asyncio.to_thread(wait_gone, pid) for pid in members])
        with pytest.raises(UserError, match=rf"keeper of farm 'lab' \(pid {first.pid}\) is gone"):
            Home("lab").running()
        await session.close()
        await asyncio.to_thread(bring_up, file, read_farm(file), None, first.url.removeprefix("http://"))  # its token is another
        session = await pool.session(spec.id)
        assert (await session.reset(spec.instance("train", 0))).text
        await session.close()
        await pool.close()

    with up(file, monkeypatch) as first:
        asyncio.run(survive(first))
        take_down("lab")
        with pytest.raises(UserError, match="no farm 'lab' is up"):
            take_down("lab")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = write_farm(tmp_path, pools='  - {environments: ["toy/*", "games/maze-v0"], workers: 1}\n')

    def envfarm(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said.err if code else said.out

    assert "farm lab is up on bubblewrap" in envfarm("farm", "up", str(file))
    try:
        run = tmp_path / "run.yaml"
        text = "envfarm: 1\nrun: on-a-farm\nenvironments: [{id: games/maze-v0}]\npolicies: {p: {scripted: oracle}}\nfarm: lab\n"
        run.write_text(text + f"output: {tmp_path / 'out'}\n")
        told = json.loads(envfarm("rollout", str(run), "--episodes", "2", "--json"))
        assert told["by_env"]["games/maze-v0"] | {"turns": 0} == {
            "episodes": 2, "ok": 2, "success": 1.0, "turns": 0, "stops": {"terminated": 2},
        }  # fmt: skip
        found = json.loads(envfarm("eval", "oracle", "--env", str(LAMP), "--episodes", "2", "--farm", "lab", "--json"))
        assert found["splits"]["heldout"]["episodes"] == 2
        monkeypatch.setenv("COLUMNS", "80")
        shown = envfarm("farm", "status", "lab")
        assert max(map(len, shown.splitlines())) <= 80
        for words in ("1 of 1", "games/maze-v0", "environments", "workers", "sessions", "making"):
            assert words in shown, shown
        assert json.loads(envfarm("farm", "status", "lab", "--json"))["pools"][0]["boxes"] is None
        assert "give --workers" in envfarm("farm", "scale", "lab", code=2).replace("Give", "give")
        assert "2 of 2" in envfarm("farm", "scale", "lab", "--workers", "2")
        assert "workers make theirs" in envfarm("farm", "scale", "lab", "--warm", "1", code=2)
        assert "leave out --backend" in envfarm("rollout", str(run), "--backend", "docker", code=2)
        run.write_text(text + "workers: 3\n")
        assert "`farm` has workers and boxes of its own: leave out `workers`" in envfarm("rollout", str(run), code=2)
    finally:
        gone = Home("lab").running()
        assert "is down" in envfarm("farm", "down", str(file))
    assert "no farm 'lab' is up" in envfarm("farm", "status", "lab", code=2)
    monkeypatch.setenv(TOKEN_VARIABLE, gone.token)
    for asked in (("status", gone.url), ("scale", gone.url, "--workers", "1")):
        assert f"the keeper at {gone.url} does not answer" in envfarm("farm", *asked, code=2)
