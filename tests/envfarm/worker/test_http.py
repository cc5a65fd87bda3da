"""Plain HTTP: the parser under any cut, bad requests, one-shot resets and steps, tasks, and MCP over HTTP."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.spec import load_spec
from envfarm.worker.http import HttpError, HttpParser
from tests.envfarm.worker.helpers import LAMP, running, toy

REQUESTS = (
    b"POST /step?x=1&token=a%20b HTTP/1.1\r\nHost: w\r\ncontent-length: 5\r\n\r\nhello"
    b"GET /games/maze%2Dv0/splits HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n"
)


@given(st.lists(st.integers(0, len(REQUESTS)), max_size=6))
def test_any_cut_gives_the_same_requests(places: list[int]) -> None:
    edges = [0, *sorted(places), len(REQUESTS)]
    parser, got = HttpParser(), []
    for start, end in itertools.pairwise(edges):
        parser.feed(REQUESTS[start:end])
        while (request := parser.next()) is not None:
            got.append(request)
    assert [(r.method, r.path, r.query, r.body, r.keep_alive) for r in got] == [
        ("POST", "/step", {"x": "1", "token": "a b"}, b"hello", True),
        ("GET", "/games/maze-v0/splits", {}, b"", False),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HELLO\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /" + b"a" * 40_000, 431),
    ],
)  # fmt: skip
def test_bad_requests_have_a_status(data: bytes, status: int) -> None:
    parser = HttpParser()
    parser.feed(data)
    with pytest.raises(HttpError) as error:
        parser.next()
    assert error.value.status == status


async def call(url: str, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any, Any]:
    async with aiohttp.ClientSession() as http, http.request(method, url + path, json=body, **more) as answer:
        return answer.status, await answer.json() if answer.content_length else None, answer.headers


def test_a_worker_that_serves_only_what_clients_bring_is_healthy() -> None:
    """A cluster asks for that before it calls the pod ready."""

    async def ask() -> None:
        async with running() as (_, url):
            assert (await call(url, "GET", "/health"))[:2] == (200, {"status": "healthy"})
            assert (await call(url, "GET", "/list_environments"))[:2] == (200, [])
            status, said, _ = await call(url, "GET", "/metadata")
            assert status == 400 and "only what clients bring" in said["detail"]

    asyncio.run(ask())


def test_resets_and_steps_live_for_one_request() -> None:
    async def play() -> None:
        async with running(toy("shared")) as (worker, url):
            status, first, _ = await call(url, "POST", "/reset", {"seed": 0})
            assert status == 200 and first["reward"] is None and first["observation"]["text"].startswith("Say ")
            status, after, _ = await call(url, "POST", "/step", {"action": {"text": "say x"}})
            assert status == 200 and after["reward"] == 0.0 and after["observation"]["text"].endswith(" x")
            assert (await call(url, "POST", "/step", {"action": {"txt": "say"}}))[0] == 422
            assert (await call(url, "POST", "/step", {"action": {"text": "crash"}}))[0] == 500
            assert (await call(url, "POST", "/reset", {"split": "nowhere"}))[0] == 400
            assert (await call(url, "GET", "/nothing"))[0] == 404
            assert (await call(url, "DELETE", "/reset"))[0] == 405
            assert worker.sessions is not None and not worker.sessions.seats

    asyncio.run(play())


def test_the_task_api() -> None:
    async def browse() -> None:
        spec = load_spec(LAMP)
        async with running(spec) as (_, url):
            assert (await call(url, "GET", "/list_environments"))[1] == [spec.id]
            splits = (await call(url, "GET", f"/{spec.id}/splits"))[1]
            assert {s["name"]: s["type"] for s in splits} == {"train": "train", "validation": "validation", "heldout": "test"}
            assert (await call(url, "POST", f"/{spec.id}/num_tasks", {"split": "heldout"}))[1] == {"num_tasks": 1000}
            task = (await call(url, "POST", f"/{spec.id}/task", {"split": "heldout", "index": 7}))[1]["task"]
            played = (await call(url, "POST", "/reset", {"split": task["split"], "index": task["index"]}))[1]
            serial = spec.instance("heldout", 7).params["serial"]
            assert str(serial) in played["observation"]["text"]
            some = (await call(url, "POST", f"/{spec.id}/task_range", {"split": "heldout", "start": 998}))[1]["tasks"]
            assert [t["index"] for t in some] == [998, 999]
            assert (await call(url, "POST", f"/{spec.id}/task", {"split": "heldout", "index": 1000}))[0] == 400
            assert (await call(url, "POST", "/other/env/num_tasks", {"split": "heldout"}))[0] == 404

    asyncio.run(browse())


def test_mcp_over_http_with_a_session_of_its_own() -> None:
    def rpc(method: str, **params: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}

    async def talk() -> None:
        async with running(toy("shared")) as (worker, url):
            status, hello, headers = await call(url, "POST", "/mcp", rpc("initialize", protocolVersion="2025-06-18"))
            assert status == 200 and hello["result"]["capabilities"] == {"tools": {}}
            mine = {"Mcp-Session-Id": headers["Mcp-Session-Id"]}
            note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await call(url, "POST", "/mcp", note, headers=mine))[:2] == (202, None)
            for said in ("a", "a b"):
                word = said[-1]
                answer = (await call(url, "POST", "/mcp", rpc("tools/call", name="say", arguments={"word": word}), headers=mine))[
                    1
                ]
                assert answer["result"]["content"][0]["text"].endswith(said) and answer["result"]["isError"] is False
            wrong = (await call(url, "POST", "/mcp", rpc("tools/call", name="shout"), headers=mine))[1]
            assert wrong["result"]["isError"] is True
            assert (await call(url, "POST", "/mcp", rpc("tools/dance"), headers=mine))[1]["error"]["code"] == -32601
            assert (await call(url, "POST", "/mcp", rpc("tools/call"), headers=mine))[1]["error"]["code"] == -32602
            assert (await call(url, "DELETE", "/mcp", headers=mine))[0] == 204
            assert (await call(url, "POST", "/mcp", rpc("ping"), headers=mine))[0] == 404
            assert (await call(url, "POST", "/mcp", {}))[1]["error"]["code"] == -32600
            tools = (await call(url, "POST", "/mcp", rpc("tools/list")))[1]["result"]["tools"]
            assert {"name", "description", "inputSchema"} <= set(tools[0])
            assert worker.sessions is not None and not worker.sessions.seats

    asyncio.run(talk())
