"""The command: it says where it listens, refuses what it cannot do, and leaves when told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from openenv.core import GenericEnvClient

from envfarm.errors import UserError
from envfarm.worker.serving import Listen
from tests.envfarm.worker.helpers import TOYS, running, toy

ENV = {**os.environ, "PYTHONPATH": str(TOYS.parents[3])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "envfarm.worker", *arguments]


def test_it_serves_until_told_to_stop() -> None:
    worker = subprocess.Popen(command("--env", str(TOYS / "shared.yaml")), stdout=subprocess.PIPE, text=True, env=ENV)
    try:
        assert worker.stdout is not None
        ready = json.loads(worker.stdout.readline())
        assert ready["environments"] == ["worker/troubled-shared-v0"] and ready["pid"] == worker.pid

        async def play() -> None:
            async with GenericEnvClient(base_url=ready["ready"]) as env:
                assert (await env.reset(seed=1)).observation["text"]

        asyncio.run(play())
    finally:
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to serve"),
        (["--env", "worker/no-such-v0"], "no environment 'worker/no-such-v0'"),
        (["--env", str(TOYS / "shared.yaml"), "--host", "0.0.0.0"], "needs a token"),
    ],
)
def test_bad_arguments_end_with_code_2_and_no_traceback(arguments: list[str], message: str) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_an_address_in_use_is_refused_and_a_stale_socket_is_not(tmp_path: Path) -> None:
    async def listen() -> None:
        path = str(tmp_path / "w.sock")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        async with running(toy("shared")) as (worker, url), running(toy("shared")) as (other, _):
            port = int(url.rsplit(":", 1)[1])
            with pytest.raises(UserError, match=f"127.0.0.1:{port} is in use"):
                await other.start(Listen(port=port))
            assert await worker.start(Listen(unix=path)) == path
            assert os.stat(path).st_mode & 0o777 == 0o600
            with pytest.raises(UserError, match=r"w\.sock is in use"):
                await other.start(Listen(unix=path))

    asyncio.run(listen())
