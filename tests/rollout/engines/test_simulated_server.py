"""The simulated engine behind vLLM's routes, asked with the client that we ask vLLM with, and with bare requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rollout.engines.simulated.models import Faults, Latency
from rollout.engines.simulated.server import SimulatedServer, served_engine
from rollout.engines.vllm.replica import EngineDied, UpdateRefused
from rollout.engines.vllm.server import ServerReplica
from rollout.engines.vllm.settings import Settings
from rollout.types import SamplingParams

QUICK = Latency(base_s=0.002, request_s=0.0, prefill_s=0.0, update_s=0.005)


def lengths(prompt: Any, params: SamplingParams) -> int:
    """The prompt says how long."""
    return prompt[0]


def serve(work: Callable[[SimulatedServer, ServerReplica], Awaitable[None]], tmp_path: Path, **more: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))

    async def main() -> None:
        engine = served_engine(lengths=lengths, latency=QUICK, **more)
        async with SimulatedServer(engine) as server, asyncio.timeout(600):
            replica = ServerReplica(Settings(tmp_path), base_url=server.url)
            try:
                await replica.start()
                await work(server, replica)
            finally:
                await replica.close()

    asyncio.run(main())


def test_tokens_in_and_out_with_logprobs_and_the_label_of_the_weights(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        params = SamplingParams(max_tokens=100, stop_ids=(7,), seed=3)
        reply = await replica.generate([5, 1], params, "salt", None)
        assert len(reply.token_ids) == len(reply.logprobs) == 5 and reply.token_ids[-1] == 7
        assert (reply.finish, reply.spans) == ("stop", [(0, "default")])
        again = await replica.generate([5, 1], params, "salt", None)
        assert again == reply
        cut = await replica.generate([50], SamplingParams(max_tokens=4), "salt", None)
        assert cut.finish == "length" and len(cut.token_ids) == 4

    serve(work, tmp_path)


def test_new_weights_reach_a_request_in_flight_and_score_otherwise(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        before = await replica.score([1, 2, 3], None)
        running = asyncio.create_task(replica.generate([400], SamplingParams(max_tokens=500), "salt", None))
        while server.engine.in_flight == 0:
            await asyncio.sleep(0)
        while server.engine.steps == 0:
            await replica.pause()  # the step that it is in comes to an end
            await replica.resume()
        await replica.pause()
        await replica.init_transfer({})
        await replica.start_update()
        await replica.send_update({"path": "nowhere"})
        await replica.finish_update("v7")
        await replica.resume()
        reply = await running
        (first, old), (second, new) = reply.spans
        assert (first, old, new) == (0, "default", "v7") and 0 < second < 400 and len(reply.token_ids) == 400
        after = await replica.score([1, 2, 3], None)
        assert len(before) == len(after) == 2 and before != after
        assert server.label == "v7"

    serve(work, tmp_path)


def test_a_refused_update_says_so_and_the_old_weights_stay(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        with pytest.raises(UpdateRefused, match="no weight update was started"):
            await replica.send_update({})
        await replica.start_update()
        with pytest.raises(UpdateRefused, match="update 0 is refused"):
            await replica.send_update({})
        assert server.label == "default"
        await replica.start_update()
        await replica.send_update({})
        await replica.finish_update("v1")
        assert (await replica.generate([2], SamplingParams(), "s", None)).spans == [(0, "v1")]

    serve(work, tmp_path, faults=Faults(refused_updates=frozenset({0})))


def test_a_dead_engine_is_told_from_a_refusal(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        running = asyncio.create_task(replica.generate([900], SamplingParams(max_tokens=1000), "s", None))
        while server.engine.in_flight == 0:
            await asyncio.sleep(0)
        server.engine.die()
        with pytest.raises(EngineDied, match="500"):
            await running
        with pytest.raises(EngineDied):
            await replica.generate([1], SamplingParams(), "s", None)

    serve(work, tmp_path, faults=Faults(restart_s=float("inf")))


def test_hundreds_in_flight_are_aborted_at_once_with_what_they_have(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        params = SamplingParams(max_tokens=100_000)
        running = [asyncio.create_task(replica.generate([100_000, i], params, "s", None)) for i in range(300)]
        while server.engine.in_flight < 300:
            await asyncio.sleep(0)
        await replica.abort_all()
        replies = await asyncio.gather(*running)
        assert {r.finish for r in replies} == {"abort"} and server.engine.in_flight == 0
        assert all(len(r.token_ids) == len(r.logprobs) < 100_000 for r in replies)

    serve(work, tmp_path, max_in_flight=256)


def test_who_hangs_up_aborts_its_request(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        running = asyncio.create_task(replica.generate([100_000], SamplingParams(max_tokens=100_000), "s", None))
        while server.engine.in_flight == 0:
            await asyncio.sleep(0)
        running.cancel()
        while server.engine.in_flight:
            await asyncio.sleep(0)
        assert server.engine.aborted == 1

    serve(work, tmp_path)


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_what_a_pause_does_with_what_is_in_flight(tmp_path: Path, mode: str) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        running = asyncio.create_task(replica.generate([40], SamplingParams(max_tokens=100), "s", None))
        while server.engine.in_flight == 0:
            await asyncio.sleep(0)
        async with aiohttp.ClientSession(server.url) as http:
            async with http.post(f"/pause?mode={mode}") as answer:
                assert await answer.json() == {"status": "paused"}
            async with http.get("/is_paused") as answer:
                assert await answer.json() == {"is_paused": True}
            if mode == "keep":
                assert server.engine.in_flight == 1 and not running.done()
                await replica.resume()
            reply = await running
            assert reply.finish == ("abort" if mode == "abort" else "stop")
            assert mode == "abort" or len(reply.token_ids) == 40
            assert server.engine.in_flight == 0

    serve(work, tmp_path)


def test_what_makes_no_sense_is_answered_as_such(tmp_path: Path) -> None:
    async def work(server: SimulatedServer, replica: ServerReplica) -> None:
        async with aiohttp.ClientSession(server.url) as http:
            for path, body, status in (
                ("/inference/v1/generate", {"token_ids": [], "sampling_params": {}}, 400),
                ("/inference/v1/generate", {"token_ids": [1]}, 400),
                ("/inference/v1/generate", {"token_ids": [1] * 2000, "sampling_params": {}}, 400),
                ("/update_weights", {}, 422),
                ("/pause?mode=sometimes", {}, 422),
            ):
                async with http.post(path, json=body) as answer:
                    assert answer.status == status, path
                    assert (await answer.json())["error"]["code"] == status
            async with http.get("/v1/models") as answer:
                assert (await answer.json())["data"][0]["max_model_len"] == 1024

    serve(work, tmp_path, context=1024)
