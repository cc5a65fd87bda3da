"""Tools over JSON-RPC 2.0, as Model Context Protocol clients and OpenEnv's `MCPToolClient` call them.

`POST /mcp` with `initialize` (or OpenEnv's `openenv/session/create`) opens a session, named by the header
`Mcp-Session-Id` (or `params.session_id`); on a WebSocket the connection is the session. An episode of the first
instance that is served begins with the first tool call, unless a WebSocket that is attached to the same session has reset it.
Over HTTP `openenv/session/close` or `DELETE /mcp` ends it. Rewards travel in `_meta`, which agents are not shown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from envfarm.errors import EnvfarmError
from envfarm.tools import ToolCall
from envfarm.worker import openenv, protocol
from envfarm.worker.protocol import Failed, Step
from envfarm.worker.seats import Seat, Sessions

PROTOCOL_VERSION = "2025-06-18"
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, SERVER_ERROR = -32603, -32000


class RpcError(Exception):
    def __init__(self, code: int, message: str, data: Any = None):
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class Mcp:
    """Answers one request; sessions over HTTP live in `Sessions.parked`."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        self.opened: str | None = None
        """The session that `initialize` made, for the answer's header."""

    async def answer_bytes(self, payload: bytes, *, seat: Seat | None = None, session_id: str | None = None) -> bytes:
        """The answer to one JSON text, or nothing where it was a notification."""
        try:
            request = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return msgspec.json.encode(_error(None, RpcError(PARSE_ERROR, f"Parse error: {error}")))
        answer = await self.answer(request, seat=seat, session_id=session_id)
        return msgspec.json.encode(answer) if answer is not None else b""

    async def answer(self, request: Any, *, seat: Seat | None = None, session_id: str | None = None) -> dict[str, Any] | None:
        """The answer to one decoded message; None to a notification."""
        if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
            return _error(None, RpcError(INVALID_REQUEST, "Invalid request: expected {'jsonrpc': '2.0', 'method': ...}"))
        number, params = request.get("id"), request.get("params") or {}
        if number is None and request["method"].startswith("notifications/"):
            return None
        try:
            if not isinstance(params, dict):
                raise RpcError(INVALID_PARAMS, "Params must be an object")
            result = await self._result(request["method"], params, seat, params.get("session_id") or session_id)
            return {"jsonrpc": "2.0", "id": number, "result": result}
        except RpcError as error:
            return _error(number, error)
        except EnvfarmError as error:
            return _error(number, RpcError(INTERNAL_ERROR, str(error)))

    async def _result(self, method: str, params: dict[str, Any], seat: Seat | None, session_id: str | None) -> Any:
        if method == "initialize":
            if seat is None:
                self.opened = self._open()
            served = self._sessions.catalogue.default.id
            return {
                "protocolVersion": params.get("protocolVersion", PROTOCOL_VERSION),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": served, "version": served.rpartition("-v")[2]},
            }
        if method == "ping":
            return {}
        if method == "openenv/session/create":
            return {"session_id": self._open()}
        if method == "openenv/session/close":
            return self._close(params.get("session_id"), seat)
        if method == "tools/list":
            return await self._with_seat(seat, session_id, self._list)
        if method == "tools/call":
            name, arguments = params.get("name"), params.get("arguments") or {}
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise RpcError(INVALID_PARAMS, "tools/call needs 'name' and, if any, 'arguments' as an object")
            return await self._with_seat(seat, session_id, lambda s: self._call(s, ToolCall(name, arguments)))
        raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")

    def _open(self) -> str:
        if refusal := self._sessions.refusal:
            counts = {"active_sessions": len(self._sessions.seats), "max_sessions": self._sessions.limit}
            raise RpcError(SERVER_ERROR, refusal, counts)
        return self._sessions.park(Seat(self._sessions, kept=True))

    def _close(self, session_id: Any, seat: Seat | None) -> dict[str, Any]:
        parked = self._sessions.parked.get(session_id)
        if parked is None or parked is seat:
            raise RpcError(INVALID_PARAMS, f"Unknown session_id: {session_id}")
        del self._sessions.parked[session_id]
        if parked.attached:  # the WebSocket frees it when it ends
            parked.kept = False
            return {"session_id": session_id, "closed": False, "closing": True}
        parked.close()
        return {"session_id": session_id, "closed": True}

    async def _with_seat(self, seat: Seat | None, session_id: str | None, work: Any) -> Any:
        """`work(seat)` on this connection's seat, the named session's, or one that lives for this request."""
        if seat is not None and (session_id is None or self._sessions.parked.get(session_id) is seat):
            return await work(seat)
        if session_id is not None:
            parked = self._sessions.parked.get(session_id)
            if parked is None:
                raise RpcError(INVALID_PARAMS, f"Unknown session_id: {session_id}")
            return await work(parked)
        if refusal := self._sessions.refusal:
            raise RpcError(SERVER_ERROR, refusal)
        once = Seat(self._sessions)
        try:
            return await work(once)
        finally:
            once.close()

    async def _begun(self, seat: Seat) -> None:
        if seat.turn is None:
            protocol.as_turn(await seat.ask(openenv.as_reset(openenv.ResetData(index=0), self._sessions)))

    async def _list(self, seat: Seat) -> dict[str, Any]:
        await self._begun(seat)
        return {"tools": [tool.as_mcp() for tool in seat.tools]}

    async def _call(self, seat: Seat, call: ToolCall) -> dict[str, Any]:
        await self._begun(seat)
        assert seat.turn is not None
        actor, reply = seat.turn.role, await seat.ask(Step(call))
        if isinstance(reply, Failed):
            raise protocol.as_exception(reply)
        data = openenv.observation(protocol.as_turn(reply), actor)
        text = data["observation"]["text"]
        return {
            "content": [{"type": "text", "text": text}], "isError": "malformed" in data["observation"],
            "data": text,  # what OpenEnv's client returns
            "_meta": {"reward": data["reward"], "done": data["done"]},
        }  # fmt: skip


def _error(number: Any, error: RpcError) -> dict[str, Any]:
    body = {"code": error.code, "message": error.message}
    return {"jsonrpc": "2.0", "id": number, "error": body if error.data is None else {**body, "data": error.data}}
