"""The official client plays; its validator is satisfied; errors have the codes that OpenEnv defines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from openenv.cli._validation import validate_running_environment
from openenv.core import GenericEnvClient
from openenv.core.mcp_client import MCPToolClient
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from envfarm.spec import load_spec
from tests.envfarm.worker.helpers import LAMP, running, session, toy


def client(url: str, **more: Any) -> GenericEnvClient:
    return GenericEnvClient(base_url=url, **more)


def socket(url: str, path: str = "/ws", **more: Any) -> ws_connect:
    return ws_connect(url.replace("http", "ws", 1) + path, proxy=None, **more)


async def ask(ws: Any, message: Any) -> dict[str, Any]:
    await ws.send(message if isinstance(message, str) else json.dumps(message))
    return json.loads(await ws.recv())


def test_the_official_client_plays_an_episode() -> None:
    async def play() -> None:
        spec = load_spec(LAMP)
        async with running(spec) as (_, url), client(url) as env:
            first = await env.reset(split="train", index=4, setting={"perturb": "off"})
            params = spec.instance("train", 4, {"perturb": "off"}).params
            assert first.reward is None and not first.done
            assert f"{params['colour']} at level {params['level']}" in first.observation["text"]
            assert [t["name"] for t in first.observation["available_tools"]] == ["adjust", "note", "switch"]
            noted = await env.step({"text": f"adjust {params['colour']} {params['level']}"})
            assert noted.reward == 0.0 and not noted.done and params["colour"] in noted.observation["text"]
            state = await env.state()
            assert state["step_count"] == 1 and state["env"] == spec.id and state["episode_id"]
            last = await env.step({"name": "switch", "arguments": {}})
            assert last.reward == 1.0 and last.done and last.observation["stop"] == "terminated"
            assert last.metadata["rewards"] == {"agent": 1.0} and last.metadata["components"]["agent"]["colour"] == 0.25
            again = await env.reset(seed=4, setting={"perturb": "off"})
            assert again.observation == first.observation and not again.done

    asyncio.run(play())


def test_plain_clients_and_ours_see_the_same_episode() -> None:
    async def play() -> None:
        spec = load_spec(LAMP)
        instance = spec.instance("heldout", 9)
        async with running(spec) as (_, url), client(url) as env:
            ours = await session(url, spec)
            theirs, turn = await env.reset(instance=json.loads(instance.to_json())), await ours.reset(instance)
            for seed in range(6):
                assert theirs.observation["text"] == turn.text and theirs.metadata.get("events", []) == list(turn.events)
                if turn.over:
                    break
                action = await ours.random(seed)
                theirs, turn = await env.step({"text": action, "role": "agent"}), await ours.step(action)
            assert (theirs.reward, theirs.done) == (turn.rewards.get("agent", 0.0), turn.over)
            await ours.close()

    asyncio.run(play())


def test_openenv_validate_passes_every_criterion() -> None:
    async def validate() -> dict[str, Any]:
        async with running(load_spec(LAMP)) as (_, url):
            return await asyncio.to_thread(validate_running_environment, url)

    report = asyncio.run(validate())
    assert report["passed"] and report["summary"]["passed_count"] == report["summary"]["total_count"] == 6
    assert report["mode"] == "simulation" and report["standard_profile"] == "openenv-http/1.x"


def test_observations_fit_the_schema_that_is_published() -> None:
    async def play() -> None:
        async with running(load_spec(LAMP)) as (_, url), client(url) as env, socket(url) as ws:
            from envfarm.worker import schemas

            for index in range(4):
                result = await env.reset(index=index)
                while not result.done:
                    jsonschema.validate(result.observation, schemas.OBSERVATION)
                    result = await env.step({"text": "note this"})
                jsonschema.validate(result.observation, schemas.OBSERVATION)
            jsonschema.validate(await env.state(), schemas.STATE)
            jsonschema.validate((await ask(ws, {"type": "state"}))["data"], schemas.STATE)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{no json", "INVALID_JSON"),
        ({"type": "jump"}, "UNKNOWN_TYPE"),
        ([1, 2], "UNKNOWN_TYPE"),
        ({"type": "step"}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"txt": "say tea"}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"text": "say tea", "name": "say"}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"seed": -1}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"split": "heldot"}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"env": "worker/trouble-v0"}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"index": 100}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"text": "say tea", "role": "dealer"}}, "VALIDATION_ERROR"),
        ({"type": "step", "data": {"text": "crash"}}, "EXECUTION_ERROR"),
    ],
    ids=str,
)
def test_errors_have_openenv_s_codes_and_the_connection_lives_on(message: Any, code: str) -> None:
    async def provoke() -> None:
        async with running(toy("shared")) as (_, url), socket(url) as ws:
            await ask(ws, {"type": "reset", "data": {"index": 0}})
            answer = await ask(ws, message)
            assert answer["type"] == "error" and answer["data"]["code"] == code and answer["data"]["message"]
            assert ("status" in answer["data"]) == (code == "EXECUTION_ERROR")
            assert (await ask(ws, {"type": "reset", "data": {"index": 1}}))["type"] == "observation"

    asyncio.run(provoke())


def test_a_malformed_action_is_an_observation() -> None:
    async def play() -> None:
        async with running(toy("shared")) as (_, url), client(url) as env:
            await env.reset(index=0)
            answer = await env.step({"text": "juggle"})
            assert answer.observation["malformed"] is True and "say <word>" in answer.observation["text"] and not answer.done

    asyncio.run(play())


def test_a_step_without_an_episode_is_refused() -> None:
    async def play() -> None:
        async with running(toy("shared")) as (_, url), socket(url) as ws:
            answer = await ask(ws, {"type": "step", "data": {"text": "say tea"}})
            assert answer["data"]["code"] == "EXECUTION_ERROR" and "reset first" in answer["data"]["message"]

    asyncio.run(play())


def test_beyond_capacity_an_error_comes_and_the_connection_closes() -> None:
    async def fill() -> None:
        async with running(toy("shared"), max_sessions=1) as (_, url):
            async with client(url) as one:
                await one.reset(index=0)
                async with socket(url) as two:
                    refused = json.loads(await two.recv())
                    assert refused["data"]["code"] == "CAPACITY_REACHED" and refused["data"]["max_sessions"] == 1
                    with pytest.raises(ConnectionClosed):
                        await two.recv()
                with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
                    await client(url).reset()
                assert (await one.step({"text": "say nothing"})).observation["text"]
            async with client(url) as three:
                assert (await three.reset(index=1)).observation["text"]

    asyncio.run(fill())


def test_several_environments_one_server() -> None:
    async def play() -> None:
        async with running(toy("shared"), load_spec(LAMP)) as (_, url), client(url) as env:
            assert (await env.reset(index=0)).metadata["env"] == "worker/troubled-shared-v0"
            assert (await env.reset(index=0, env="toy/lamp-v0")).metadata["env"] == "toy/lamp-v0"

    asyncio.run(play())


def test_extensions_in_the_same_framing() -> None:
    async def play() -> None:
        async with running(toy("shared")) as (_, url), socket(url) as ws:
            await ask(ws, {"type": "reset", "data": {"index": 0}})
            expert = (await ask(ws, {"type": "oracle"}))["data"]["text"]
            assert (await ask(ws, {"type": "random", "data": {"seed": 3}}))["data"]["text"]
            key = (await ask(ws, {"type": "fork"}))["data"]["text"]
            async with socket(url, f"/ws?session_id={key}") as branch:
                last = await ask(branch, {"type": "step", "data": {"text": expert}})
                assert last["data"]["done"] and last["data"]["reward"] == 1.0
            stopped = await ask(ws, {"type": "finish", "data": {"reason": "agent_stopped"}})
            assert stopped["data"]["done"] and stopped["data"]["observation"]["stop"] == "agent_stopped"
            async with socket(url, f"/ws?session_id={key}") as again:
                assert json.loads(await again.recv())["data"]["code"] == "SESSION_ERROR"

    asyncio.run(play())


def test_the_official_mcp_client_lists_and_calls_tools() -> None:
    async def play() -> None:
        spec = toy("shared")
        async with running(spec) as (worker, url):
            async with MCPToolClient(base_url=url) as mcp:
                assert {t.name for t in await mcp.list_tools()} >= {"say", "crash"}
                assert (await mcp.call_tool("say", word="hm")).endswith("hm")
                with pytest.raises(RuntimeError, match="ZeroDivisionError"):
                    await mcp.call_tool("crash")
                reset = await mcp.reset(index=3)  # over the WebSocket that shares the session
                word = spec.instance("train", 3).params["word"]
                assert word in reset.observation.text
                assert await mcp.call_tool("say", word=word) == f"{word} {word}"
                assert (await mcp.state()).step_count == 1
            assert worker.sessions is not None and not worker.sessions.seats

    asyncio.run(play())


def test_a_token_is_asked_for() -> None:
    async def knock() -> None:
        async with running(toy("shared"), token="sesame") as (_, url):
            with pytest.raises(InvalidStatus):
                async with socket(url):
                    pass
            async with client(url, headers={"Authorization": "Bearer sesame"}) as env:
                assert (await env.reset(index=0)).observation["text"]
            ours = await session(url, toy("shared"), token="sesame")
            assert (await ours.reset(toy("shared").instance("train", 0))).text
            await ours.close()

    asyncio.run(knock())


def test_a_page_of_another_site_is_refused() -> None:
    async def knock() -> None:
        async with running(toy("shared")) as (_, url):
            with pytest.raises(InvalidStatus):
                async with socket(url, origin="http://evil.example"):
                    pass
            async with socket(url, origin="http://localhost:3000") as ws:
                assert (await ask(ws, {"type": "state"}))["type"] == "state"

    asyncio.run(knock())
