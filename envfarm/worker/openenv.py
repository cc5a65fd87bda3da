"""OpenEnv's WebSocket messages as our requests and replies.

A plain client resets with `{seed?, index?, split?, setting?, env?, episode_id?}` (or our exact `{instance}`), steps
with `{"text": "move north"}` or `{"name": "move", "arguments": {...}}`, and reads `observation.text`, `reward`, `done`.
Whatever else a turn holds (rewards of all roles, components, events) is in `metadata`. The extensions
`finish`, `oracle`, `random`, `fork` and `release` use the same framing.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from envfarm.errors import UserError
from envfarm.session import Turn
from envfarm.spec import Instance
from envfarm.tools import Action, ToolCall
from envfarm.worker import protocol
from envfarm.worker.protocol import Failed, Finish, Fork, Oracle, Random, Release, Reply, Request, Reset, Said, Step
from envfarm.worker.seats import Seat, Sessions

Seed = Annotated[int, msgspec.Meta(ge=0)]


class ResetData(msgspec.Struct, frozen=True):
    """What decides the instance; unknown keys are ignored, as OpenEnv's own servers do."""

    seed: Seed | None = None  # any number: taken modulo the split's size
    index: Seed | None = None  # of the split, as in the task API
    split: str | None = None  # default of both: what is served
    setting: dict[str, Any] | None = None
    env: str | None = None  # default: the first that is served
    episode_id: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    instance: Instance | None = None


class StepData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An action: `text`, or a call in our form (`name`) or in OpenEnv's (`type: call_tool`, `tool_name`)."""

    text: str | None = None
    name: str | None = None
    arguments: dict[str, Any] = {}
    role: str | None = None
    type: str | None = None
    tool_name: str | None = None
    metadata: dict[str, Any] = {}

    def action(self) -> Action:
        """Raises: msgspec.ValidationError where it is none, or two at once."""
        name = self.name if self.name is not None else self.tool_name
        if (name is None) == (self.text is None):
            raise msgspec.ValidationError("an action is {'text': ...} or {'name': ..., 'arguments': {...}}")
        return ToolCall(name, self.arguments) if name is not None else self.text or ""


class ResetMessage(msgspec.Struct, frozen=True, tag_field="type", tag="reset"):
    data: ResetData = ResetData()


class StepMessage(msgspec.Struct, frozen=True, tag_field="type", tag="step"):
    data: StepData


class StateMessage(msgspec.Struct, frozen=True, tag_field="type", tag="state"):
    pass


class CloseMessage(msgspec.Struct, frozen=True, tag_field="type", tag="close"):
    pass


class McpMessage(msgspec.Struct, frozen=True, tag_field="type", tag="mcp"):
    data: dict[str, Any]


class FinishData(msgspec.Struct, frozen=True):
    reason: str = "agent_stopped"


class FinishMessage(msgspec.Struct, frozen=True, tag_field="type", tag="finish"):
    data: FinishData = FinishData()


class OracleMessage(msgspec.Struct, frozen=True, tag_field="type", tag="oracle"):
    pass


class RandomData(msgspec.Struct, frozen=True):
    seed: Seed = 0


class RandomMessage(msgspec.Struct, frozen=True, tag_field="type", tag="random"):
    data: RandomData = RandomData()


class ForkMessage(msgspec.Struct, frozen=True, tag_field="type", tag="fork"):
    pass


class ReleaseMessage(msgspec.Struct, frozen=True, tag_field="type", tag="release"):
    pass


Incoming = (
    ResetMessage | StepMessage | StateMessage | CloseMessage | McpMessage
    | FinishMessage | OracleMessage | RandomMessage | ForkMessage | ReleaseMessage
)  # fmt: skip


class _Typed(msgspec.Struct):
    type: str = ""


_TYPES = {"reset", "step", "state", "close", "mcp", "finish", "oracle", "random", "fork", "release"}
_decoder = msgspec.json.Decoder(Incoming)
_typed = msgspec.json.Decoder(_Typed)
_encoder = msgspec.json.Encoder()


def decode(payload: bytes) -> Incoming | Failed:
    """A message, or the error to answer with."""
    try:
        return _decoder.decode(payload)
    except msgspec.ValidationError as error:
        try:
            kind = _typed.decode(payload).type
        except msgspec.ValidationError:
            kind = ""
        if kind not in _TYPES:
            return Failed("ValueError", f"Unknown message type: {kind}", "UNKNOWN_TYPE")
        return Failed("ValueError", f"Invalid message: {error}", "VALIDATION_ERROR")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Failed("ValueError", f"Invalid JSON: {error}", "INVALID_JSON")


def as_request(message: Incoming, sessions: Sessions) -> Request | Failed:
    """What a session is asked by `message` (not for state, close and mcp, which it is not asked)."""
    try:
        if isinstance(message, StepMessage):
            return Step(message.data.action(), message.data.role)
        if isinstance(message, ResetMessage):
            return as_reset(message.data, sessions)
    except (msgspec.ValidationError, UserError, IndexError) as error:
        return protocol.failed(error, "VALIDATION_ERROR")
    if isinstance(message, FinishMessage):
        return Finish(message.data.reason)
    if isinstance(message, RandomMessage):
        return Random(message.data.seed)
    if isinstance(message, OracleMessage):
        return Oracle()
    return Fork() if isinstance(message, ForkMessage) else Release()


def as_reset(data: ResetData, sessions: Sessions) -> Reset:
    """The instance that a plain client asked for. Raises: UserError (unknown environment or split), IndexError."""
    catalogue = sessions.catalogue
    spec = catalogue.spec(data.env) if data.env is not None else catalogue.default
    if data.instance is not None:
        return Reset(spec.id, data.instance)
    split, setting = data.split, data.setting
    split = catalogue.served.split_of(spec) if split is None else split
    setting = catalogue.served.setting if setting is None else setting
    size = spec.size(split)
    if data.index is not None and data.index >= size:
        raise IndexError(f"split {split!r} of {spec.id} has {size} instances; there is no number {data.index}")
    index = data.index if data.index is not None else data.seed if data.seed is not None else sessions.next_number()
    return Reset(spec.id, spec.instance(split, index % size, setting))


def encode(reply: Reply, seat: Seat, actor: str, *, first: bool = False, tool: str | None = None) -> bytes:
    """A reply as JSON. `actor` is the role whose action this answers: `reward` is its. `tool` names what OpenEnv's own
    `call_tool` action called, which it wants to read again."""
    if isinstance(reply, Said):
        data = observation(reply.turn, actor, first=first)
        if tool is not None:
            data["observation"] |= {"tool_name": tool, "result": reply.turn.text}
        if first and seat.instance is not None:
            data["metadata"].update(env=seat.instance.env, instance=seat.instance.hash, episode_id=seat.episode_id)
        return _encoder.encode({"type": "observation", "data": data})
    if isinstance(reply, Failed):
        return _encoder.encode({"type": "error", "data": error(reply)})
    return _encoder.encode({"type": "text", "data": {"text": reply.text}})


def encode_state(seat: Seat) -> bytes:
    return _encoder.encode({"type": "state", "data": state(seat)})


def observation(turn: Turn, actor: str, *, first: bool = False) -> dict[str, Any]:
    """`{observation, reward, done, metadata}`; `reward` is null on the first turn."""
    seen: dict[str, Any] = {"text": turn.text, "role": turn.role}
    if turn.tools:
        # Not "tools": OpenEnv's MCP client takes an observation with that key for a list of tools and drops the rest.
        seen["available_tools"] = [tool.as_mcp() for tool in turn.tools]
    if turn.malformed:
        seen["malformed"] = True
    if turn.stop:
        seen["stop"] = turn.stop
    metadata: dict[str, Any] = {}
    for name in ("rewards", "components", "command_output", "events", "virtual_time_s", "text_tool"):
        value = getattr(turn, name)
        if value:
            metadata[name] = value
    if turn.over:
        metadata["terminated"], metadata["truncated"] = turn.terminated, turn.truncated
    reward = None if first else turn.rewards.get(actor, 0.0)
    return {"observation": seen, "reward": reward, "done": turn.over, "metadata": metadata}


def error(reply: Failed) -> dict[str, Any]:
    """OpenEnv's error data, and the class, so that a client that knows ours raises the same."""
    data = {"message": reply.message, "code": reply.code, "kind": reply.kind}
    status = getattr(protocol.as_exception(reply), "status", None)
    return data if status is None or reply.code != "EXECUTION_ERROR" else {**data, "status": status}


def state(seat: Seat) -> dict[str, Any]:
    """The state of a session. Neither seed nor parameters: whoever plays may read it."""
    turn, instance = seat.turn, seat.instance
    return {
        "episode_id": seat.episode_id, "step_count": seat.steps, "env": instance.env if instance else None,
        "instance": instance.hash if instance else None, "role": turn.role if turn else None,
        "done": turn.over if turn else False,
    }  # fmt: skip
