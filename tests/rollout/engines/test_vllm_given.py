"""A server that somebody else started, as `docs/vllm.md` says: ours are the weights, his is the process."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.engines.base import Probe
from rollout.engines.vllm.engine import VLLMEngine
from rollout.engines.vllm.processes import Family
from rollout.engines.vllm.settings import Settings
from rollout.types import SamplingParams
from tests.rollout.engines.vllm_scene import MODELS, PROBE, apart, folders, teacher, version_of
from tests.rollout.test_death import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server of the untrained weights of another seed, started with the page's flags."""
    MODELS["tied", 1].save(tmp_path / "theirs")
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(VLLM_SERVER_DEV_MODE=1 .*?)^```$", page, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", "python", "-m"] and "FOLDER" in words
    words = [str(tmp_path / "theirs") if word == "FOLDER" else word for word in words[2:]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in Settings(tmp_path / "theirs", threads=1).environment().items() if v and "OWNER" not in k}
    small = ["--no-enable-chunked-prefill", "--kv-cache-memory-bytes", str(64 << 20), "--enforce-eager", "--dtype", "float32"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *words, "--host", "127.0.0.1", "--port", str(port), *small], stdout=log, stderr=log,
            env={**os.environ, **environment, "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        asyncio.run(until_healthy(server, port, tmp_path / "log"))
        yield f"http://127.0.0.1:{port}"
    finally:
        family = Family.below(server.pid)
        server.terminate()
        asyncio.run(family.gone(30))
        server.wait()


async def until_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)  # there is no event of a port that is being opened
            continue
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        status = await reader.readline()
        writer.close()
        if b" 200 " in status:
            return


def test_our_weights_are_pushed_first_and_it_outlives_us(url: str, tmp_path: Path) -> None:
    async def play() -> None:
        engine = VLLMEngine({"tied": folders(tmp_path)["tied"]}, base_url=url)
        await engine.start()
        for number in (0, 1, 2):
            model = MODELS["tied", number % 2]
            if number:
                probe = Probe(PROBE, teacher(model, PROBE).tolist())
                await engine.update_weights(version_of("tied", number), model.state_dict(), probe=probe)
            assert apart(await engine.score(PROBE, policy="tied"), teacher(model, PROBE)) < 1e-3
            reply = await engine.generate(PROBE, SamplingParams(max_tokens=20, temperature=0.7, seed=number), policy="tied")
            assert reply.version == version_of("tied", number)
            whole = teacher(model, PROBE + reply.token_ids, 0.7)
            assert apart(reply.logprobs, whole[len(PROBE) - 1 :]) < 1e-3
        await engine.close()
        again = VLLMEngine({"tied": folders(tmp_path)["tied"]}, base_url=url)
        await again.start()
        assert apart(await again.score(PROBE, policy="tied"), teacher(MODELS["tied", 0], PROBE)) < 1e-3
        await again.close()

    asyncio.run(play())
