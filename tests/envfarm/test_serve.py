"""`envfarm serve`: what it serves to clients that say nothing, how it ends, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openenv.core import GenericEnvClient

from envfarm.cli import main
from envfarm.spec import load_spec
from envfarm.worker.catalogue import Served
from envfarm.worker.serving import Listen, Worker
from tests.envfarm.worker.helpers import LAMP

ENVFARM = [sys.executable, "-c", "from envfarm.cli import main; main()"]


@contextmanager
def serving(*arguments: str, env: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, on any port: its address, and the process, which is told to stop at the end."""
    command = [*ENVFARM, "serve", *arguments, "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        found = re.fullmatch(r"serving .* at (http://\S+)\n", server.stdout.readline())
        assert found, server.stderr.read()
        yield found[1], server
    finally:
        server.terminate()
        server.communicate()


def test_clients_that_say_nothing_play_what_is_served() -> None:
    async def play(url: str) -> None:
        spec = load_spec(LAMP)
        async with GenericEnvClient(base_url=url, headers={"Authorization": "Bearer sesame"}) as env:
            for asked, split in (({}, "heldout"), ({"split": "train"}, "train")):
                served = spec.instance(split, 2, {"perturb": "off"})
                assert (await env.reset(index=2, **asked)).metadata["instance"] == served.hash
            free = await env.reset(index=2, setting={})
            assert free.metadata["instance"] == spec.instance("heldout", 2).hash

    options = ("--split", "heldout", "--perturb", "off", "--host", "0.0.0.0")
    with serving(str(LAMP), *options, env={"ENVFARM_TOKEN": "sesame"}) as (url, server):
        asyncio.run(play(url.replace("0.0.0.0", "127.0.0.1")))
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument"),
        (("games/maz-v0",), "did you mean 'games/maze-v0'"),
        ((str(LAMP), "--host", "0.0.0.0"), "needs a token"),
        ((str(LAMP), "--split", "heldot"), "did you mean 'heldout'"),
        ((str(LAMP), "--set", "colr=red"), "no axis 'colr'"),
        ((str(LAMP), "--port", "70000"), "65535"),
        ((str(LAMP), "--token", ""), "the token is empty"),
        ((str(LAMP), str(LAMP)), "stands there twice"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *arguments)


def test_an_image_that_is_missing_is_said_before_anything_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENVFARM_IMAGES", str(tmp_path))
    assert "run `envfarm image build`" in refused(capsys, "coding/shell-v0", "--port", "0")


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    async def taken() -> str:
        worker = Worker([load_spec(LAMP)], served=Served("heldout"))
        try:
            url = await worker.start(Listen())
            return await asyncio.to_thread(subprocess_refused, url.rsplit(":", 1)[1])
        finally:
            await worker.close()

    def subprocess_refused(port: str) -> str:
        done = subprocess.run([*ENVFARM, "serve", str(LAMP), "--port", port], capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    assert "is in use" in asyncio.run(taken())


def test_served_is_checked_for_every_environment() -> None:
    maze = Path(__file__).parents[2] / "environments" / "games" / "maze" / "maze.yaml"
    Served("heldout", {"perturb": "off"}).check([load_spec(LAMP), load_spec(maze)])
