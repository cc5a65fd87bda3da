"""One connection to an OpenEnv server: a message, its answer, and whose fault it is where there is none.

What the server says is checked to the letter: an answer of another form is an `InfraError` that names the server and what
it said, so a broken server never looks like a wrong answer of the agent's.
"""

from __future__ import annotations

import http.client
import urllib.request
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from envfarm.errors import EnvironmentFault, InfraError, UserError
from envfarm.openenv.address import Address
from envfarm.tools import Malformed

MAX_ANSWER_BYTES = 16 << 20


class Result(msgspec.Struct, frozen=True):
    """What a reset or step led to."""

    observation: dict[str, Any]
    reward: float | bool | None
    done: bool
    metadata: dict[str, Any] = {}


class Observed(msgspec.Struct, frozen=True, tag_field="type", tag="observation"):
    data: Result


class Rpc(msgspec.Struct, frozen=True, tag_field="type", tag="mcp"):
    data: dict[str, Any]


class Tools(msgspec.Struct, frozen=True):
    tools: list[dict[str, Any]]


class ErrorData(msgspec.Struct, frozen=True):
    message: str
    code: str = ""
    errors: list[dict[str, Any]] = []


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    data: ErrorData


_decoder = msgspec.json.Decoder(Observed | Rpc | Error)


class Wire:
    """A session on a server. Not for several threads at once."""

    def __init__(self, address: Address, timeout_s: float):
        """`timeout_s` is the time to connect, and for each answer. Raises: InfraError, UserError where a token is wanted."""
        self._address, self._timeout_s = address, timeout_s
        self._open = ExitStack()
        try:
            opening = connect(
                address.socket, additional_headers=address.headers, open_timeout=timeout_s, close_timeout=1,
                max_size=MAX_ANSWER_BYTES, proxy=None,
            )  # fmt: skip
            self._socket: ClientConnection = self._open.enter_context(opening)
        except InvalidStatus as error:
            if error.response.status_code in (401, 403):
                raise UserError(
                    f"the OpenEnv server {address.base} wants a token (HTTP {error.response.status_code}): write its address as "
                    "`http://:${NAME}@host:port` and set that environment variable"
                ) from None
            raise self._broken(f"serves no WebSocket at /ws: {error}") from error
        except (OSError, InvalidHandshake) as error:
            raise self._broken(f"cannot be reached: {str(error) or 'no answer in time'}") from error

    def reset(self, arguments: dict[str, Any]) -> Result:
        """Raises: EnvironmentFault where the server's environment refuses or raises, InfraError."""
        try:
            return self._result({"type": "reset", "data": arguments})
        except Malformed as error:
            raise EnvironmentFault(f"the OpenEnv server {self._address.base} refuses this reset: {error}") from None

    def step(self, action: dict[str, Any]) -> Result:
        """Raises: Malformed where the server takes this for no action, EnvironmentFault, InfraError."""
        return self._result({"type": "step", "data": action})

    def tools(self) -> list[dict[str, Any]]:
        """The environment's MCP tools; none where it has none. Raises: InfraError."""
        answer = self._ask({"type": "mcp", "data": {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}})
        if isinstance(answer, Observed):
            raise self._broken("breaks the protocol: it answered tools/list with an observation")
        result = answer.data.get("result") if isinstance(answer, Rpc) else None
        if result is None:  # an error: this environment has no tools
            return []
        try:
            return msgspec.convert(result, Tools).tools
        except msgspec.ValidationError as error:
            raise self._broken(f"breaks the protocol: it answered tools/list with {result!r:.200} ({error})") from error

    def action_schema(self) -> dict[str, Any]:
        """JSON Schema of an action, from `/schema`. Raises: InfraError."""
        request = urllib.request.Request(f"{self._address.base}/schema", headers=self._address.headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self._timeout_s) as answer:
                body = answer.read(MAX_ANSWER_BYTES)
            return msgspec.json.decode(body, type=dict[str, dict[str, Any]])["action"]
        except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise self._broken(f"gives no action schema at /schema: {error}") from error

    def close(self) -> None:
        self._open.close()

    def _result(self, message: dict[str, Any]) -> Result:
        answer = self._ask(message)
        if isinstance(answer, Observed):
            return answer.data
        if isinstance(answer, Rpc):
            raise self._broken(f"answered {message['type']!r} with an MCP message")
        code, text = answer.data.code, answer.data.message
        if code == "VALIDATION_ERROR":
            details = [f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', '')}" for e in answer.data.errors]
            raise Malformed("; ".join([text, *details]))
        if code == "EXECUTION_ERROR":
            raise EnvironmentFault(f"the OpenEnv server {self._address.base}: {text}")
        raise self._broken(f"refuses the session: {code} {text}")

    def _ask(self, message: dict[str, Any]) -> Observed | Rpc | Error:
        try:
            with suppress(ConnectionClosed):  # what it said before it hung up says more
                self._socket.send(msgspec.json.encode(message).decode())
            payload = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            raise self._broken(f"did not answer {message['type']!r} within {self._timeout_s:g} s") from error
        except (OSError, WebSocketException) as error:
            raise self._broken(f"closed the connection instead of answering {message['type']!r}: {error}") from error
        try:
            return _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(f"breaks the protocol: it answered {message['type']!r} with {payload!r:.200} ({error})") from error

    def _broken(self, what: str) -> InfraError:
        return InfraError(f"the OpenEnv server {self._address.base} {what}")
