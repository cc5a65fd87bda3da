"""Everything a worker answers over plain HTTP: who it is, what it speaks, one-shot resets and steps, tasks, tools.

HTTP `/reset` and `/step` live for one request, as OpenEnv defines them; episodes are played over the WebSocket.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from envfarm.errors import UserError
from envfarm.worker import openenv, protocol, schemas
from envfarm.worker.http import HttpRequest, json_response, response
from envfarm.worker.mcp import Mcp
from envfarm.worker.protocol import Failed
from envfarm.worker.seats import Seat, Sessions

_TASKS = re.compile(r"/(.+)/(splits|num_tasks|tasks|task|task_range)")
MAX_TASKS = 10_000


class TaskQuery(msgspec.Struct, forbid_unknown_fields=True):
    split: str
    index: int | None = None
    start: int | None = None
    stop: int | None = None


class StepBody(msgspec.Struct):
    action: openenv.StepData


async def answer(sessions: Sessions, request: HttpRequest) -> bytes:
    """The whole HTTP answer to one request."""
    try:
        status, body, headers = await _route(sessions, request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        status, body, headers = 422, {"detail": str(error)}, {}
    except UserError as error:
        status, body, headers = 400, {"detail": str(error)}, {}
    if body is None:
        return response(status, headers=headers, keep_alive=request.keep_alive)
    return json_response(body, status, headers=headers, keep_alive=request.keep_alive)


Answer = tuple[int, Any, dict[str, str]]


async def _route(sessions: Sessions, request: HttpRequest) -> Answer:
    path, get = request.path.rstrip("/") or "/", request.method == "GET"
    if path == "/mcp":
        return await _mcp(sessions, request)
    if path in ("/reset", "/step") and request.method == "POST":
        return await (_reset if path == "/reset" else _step)(sessions, request)
    if get:
        made = schemas.document(path, sessions.catalogue)
        if made is not None:
            return 200, made, {}
        if path == "/list_environments":
            return 200, list(sessions.catalogue.specs), {}
    if found := _TASKS.fullmatch(path):
        return _tasks(sessions, found[1], found[2], request)
    if path in schemas.PATHS:
        return 405, {"detail": f"{request.method} is not for {path}"}, {}
    return 404, {"detail": f"there is nothing at {path}"}, {}


async def _mcp(sessions: Sessions, request: HttpRequest) -> Answer:
    given = request.headers.get("mcp-session-id")
    if request.method == "DELETE":
        seat = sessions.parked.pop(given or "", None)
        if seat is None:
            return 404, {"detail": "no such session"}, {}
        seat.close()
        return 204, None, {}
    if request.method != "POST":
        return 405, {"detail": "POST JSON-RPC messages here"}, {"Allow": "POST, DELETE"}
    if given is not None and given not in sessions.parked:
        return 404, {"detail": "no such session; initialize again"}, {}
    rpc = Mcp(sessions)
    body = await rpc.answer_bytes(request.body, session_id=given)
    headers = {"Mcp-Session-Id": rpc.opened} if rpc.opened else {}
    return (200, msgspec.Raw(body), headers) if body else (202, None, headers)


async def _reset(sessions: Sessions, request: HttpRequest) -> Answer:
    data = msgspec.json.decode(request.body or b"{}", type=openenv.ResetData)
    return await _once(sessions, data, None)


async def _step(sessions: Sessions, request: HttpRequest) -> Answer:
    data = msgspec.json.decode(request.body, type=StepBody).action
    data.action()
    return await _once(sessions, openenv.ResetData(index=0), data)


async def _once(sessions: Sessions, reset: openenv.ResetData, step: openenv.StepData | None) -> Answer:
    """A session for one request: reset, and perhaps one step."""
    try:
        request = openenv.as_reset(reset, sessions)
    except IndexError as error:
        return 400, {"detail": str(error)}, {}
    if sessions.refusal:
        return 503, {"detail": sessions.refusal}, {}
    seat = Seat(sessions)
    try:
        reply = await seat.ask(request)
        actor = seat.turn.role if seat.turn else ""
        if step is not None and not isinstance(reply, Failed):
            reply = await seat.ask(protocol.Step(step.action(), step.role))
        if isinstance(reply, Failed):
            return 500, {"detail": openenv.error(reply)}, {}
        return 200, openenv.observation(protocol.as_turn(reply), actor, first=step is None), {}
    finally:
        seat.close()


def _tasks(sessions: Sessions, env_id: str, what: str, request: HttpRequest) -> Answer:
    """The task API: a task is `{id, split, index}`, and `reset {split, index}` plays it."""
    if env_id not in sessions.catalogue.specs:
        return 404, {"detail": f"unknown environment {env_id!r}"}, {}
    spec = sessions.catalogue.specs[env_id]
    if what == "splits" and request.method == "GET":
        kinds = {"train": "train", "validation": "validation"}
        return 200, [{"name": name, "type": kinds.get(name, "test")} for name in spec.splits], {}
    if request.method != "POST" or what == "splits":
        return 405, {"detail": f"{request.method} is not for {request.path}"}, {}
    query = msgspec.json.decode(request.body, type=TaskQuery)
    size = spec.size(query.split)
    if what == "num_tasks":
        return 200, {"num_tasks": size}, {}
    if what == "task":
        if query.index is None or not 0 <= query.index < size:
            return 400, {"detail": f"Invalid task index: {query.index} of {size}"}, {}
        return 200, {"task": _task(env_id, query.split, query.index)}, {}
    start, stop = (query.start or 0, query.stop) if what == "task_range" else (0, None)
    chosen = range(size)[start : size if stop is None else stop][:MAX_TASKS]
    tasks = [_task(env_id, query.split, i) for i in chosen]
    return 200, {"tasks": tasks, **({"env_name": env_id} if what == "tasks" else {})}, {}


def _task(env_id: str, split: str, index: int) -> dict[str, Any]:
    return {"id": f"{env_id}:{split}:{index}", "env": env_id, "split": split, "index": index}
