"""The chat engine against a real HTTP server on the loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from envfarm.errors import CapabilityError, InfraError, UserError
from rollout.engines.base import NEEDS_FOR_TRAINING, require
from rollout.engines.openai import OpenAIEngine
from rollout.renderers.pieces import read_calls
from rollout.types import Message, SamplingParams, ToolCall

PARAMS = SamplingParams(temperature=0.5, top_p=0.9, max_tokens=7, seed=3)
ASK = [Message(role="user", content="hi")]


def completion(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]}


def served(answer: Callable[[int, Any], Any], test: Callable[[OpenAIEngine, list[Any]], Awaitable[None]], **options: Any) -> None:
    """Serve `answer(number, body)` (a completion, or a status and text), and run `test` against it."""
    bodies: list[Any] = []

    async def chat(request: web.Request) -> web.Response:
        bodies.append({"body": await request.json(), "key": request.headers.get("Authorization")})
        said = answer(len(bodies), bodies[-1]["body"])
        return web.Response(status=said[0], text=said[1]) if isinstance(said, tuple) else web.json_response(said)

    async def play() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        server = web.AppRunner(app)
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        port = server.addresses[0][1]
        engine = OpenAIEngine(f"http://127.0.0.1:{port}/v1/", "stub", retry_delay_s=0.001, **options)
        try:
            await engine.start()
            await test(engine, bodies)
        finally:
            await engine.close()
            await engine.close()
            await server.cleanup()

    asyncio.run(play())


def test_a_conversation_goes_over_the_wire_and_a_reply_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "abc")
    history = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Go."),
        Message(role="assistant", content="", tool_calls=(ToolCall("move", {"to": "north"}), ToolCall("look", {}))),
        Message(role="tool", content="moved"),
        Message(role="tool", content="a door"),
    ]
    tool = {"name": "move", "description": "Go.", "inputSchema": {"type": "object", "properties": {}}}

    async def test(engine: OpenAIEngine, bodies: list[Any]) -> None:
        got = await engine.chat(history, [tool], PARAMS, policy="judge")
        assert (got.text, got.finish, got.token_ids, got.version.policy) == ("done", "length", [], "judge")
        sent = bodies[0]["body"]
        assert bodies[0]["key"] == "Bearer abc"
        assert {k: sent[k] for k in ("model", "temperature", "top_p", "max_tokens", "seed")} == {
            "model": "stub", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3,
        }  # fmt: skip
        assert sent["tools"][0]["function"]["parameters"] == tool["inputSchema"]
        made, first, second = sent["messages"][2:]
        assert [c["id"] for c in made["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
        assert json.loads(made["tool_calls"][0]["function"]["arguments"]) == {"to": "north"}

    served(lambda n, body: completion("done", "length"), test, api_key_env="STUB_KEY")


def test_native_calls_of_a_reply_are_read_like_our_own() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "move", "arguments": '{"to": "north"}'}}
    broken = {"id": "1", "type": "function", "function": {"name": "move", "arguments": "{north"}}

    async def test(engine: OpenAIEngine, bodies: list[Any]) -> None:
        good = await engine.chat(ASK, [], PARAMS)
        assert read_calls(good.text) == ("On my way.", (ToolCall("move", {"to": "north"}),), True)
        bad = await engine.chat(ASK, [], PARAMS)
        assert read_calls(bad.text)[2] is False

    served(lambda n, body: completion("On my way.", tool_calls=[call]) if n == 1 else completion(None, tool_calls=[broken]), test)


def test_what_passes_is_tried_again_and_what_stays_is_an_infra_error() -> None:
    async def test(engine: OpenAIEngine, bodies: list[Any]) -> None:
        assert (await engine.chat(ASK, [], PARAMS)).text == "at last"
        assert len(bodies) == 3

    served(lambda n, body: (503, "busy") if n < 3 else completion("at last"), test)

    async def never(engine: OpenAIEngine, bodies: list[Any]) -> None:
        with pytest.raises(InfraError, match=r"failed 3 times.*429.*slow down"):
            await engine.chat(ASK, [], PARAMS)
        assert len(bodies) == 3

    served(lambda n, body: (429, "slow down"), never, retries=2)


@pytest.mark.parametrize("said", [{"choices": []}, {"error": "x"}, [1], {"choices": [{"message": None}]}, (200, "<html>")])
def test_an_answer_that_is_no_completion_is_an_infra_error(said: Any) -> None:
    async def test(engine: OpenAIEngine, bodies: list[Any]) -> None:
        with pytest.raises(InfraError, match="answered what is no"):
            await engine.chat(ASK, [], PARAMS)

    served(lambda n, body: said, test)


def test_a_refusal_is_the_users_to_mend() -> None:
    async def test(engine: OpenAIEngine, bodies: list[Any]) -> None:
        with pytest.raises(UserError, match="status 404: no such model"):
            await engine.chat(ASK, [], PARAMS)
        assert len(bodies) == 1

    served(lambda n, body: (404, "no such model"), test)


def test_training_with_it_is_refused() -> None:
    engine = OpenAIEngine("http://127.0.0.1:9/v1", "stub")
    with pytest.raises(CapabilityError, match="lacks token_ids, logprobs, seeds, versions"):
        require(engine, NEEDS_FOR_TRAINING, what="training")
    with pytest.raises(CapabilityError, match="takes no token ids"):
        asyncio.run(engine.generate([1], PARAMS, policy="p"))


def test_nobody_there_and_no_url() -> None:
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        asyncio.run(OpenAIEngine("http://127.0.0.1:9/v1", "stub").start())
    with pytest.raises(UserError, match="'localhost'; a URL"):
        OpenAIEngine("localhost", "stub")
