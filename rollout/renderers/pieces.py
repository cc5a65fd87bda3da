"""What several templates share: special tokens that must be there, and tool calls written as JSON between tags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from envfarm.errors import UserError
from rollout.renderers.base import Tokenizer
from rollout.types import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def need_special(renderer: str, tokenizer: Tokenizer, *tokens: str) -> list[int]:
    """Ids of the special tokens of a template. Raises: UserError naming the first that the tokenizer lacks."""
    try:
        return [tokenizer.special(token) for token in tokens]
    except KeyError as e:
        raise UserError(
            f"renderer {renderer!r} needs the special tokens {', '.join(tokens)}; this tokenizer has {e.args[0]}. "
            "Choose the renderer that belongs to the model's chat template."
        ) from None


def call_json(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def write_calls(calls: Sequence[ToolCall]) -> str:
    """One tagged block of JSON per call."""
    return "\n".join(f"{OPEN}\n{json.dumps(call_json(c), ensure_ascii=False)}\n{CLOSE}" for c in calls)


def read_calls(text: str) -> tuple[str, tuple[ToolCall, ...], bool]:
    """`text` -> (what stands before the first call, the calls, well formed).

    Not well formed: a block that is not closed, is not JSON, or is no object with a `name` and an object
    `arguments`; anything but space between or behind calls. Never raises: what cannot be read stays in the content.
    """
    head, tag, rest = text.partition(OPEN)
    if not tag:
        return text, (), CLOSE not in text
    calls: list[ToolCall] = []
    while tag:
        body, closed, rest = rest.partition(CLOSE)
        call = _read_call(body) if closed else None
        if call is None:
            return text, (), False
        calls.append(call)
        between, tag, rest = rest.partition(OPEN)
        if between.strip():
            return text, (), False
    return head.removesuffix("\n"), tuple(calls), True


def _read_call(body: str) -> ToolCall | None:
    try:
        value = json.loads(body, parse_constant=_no_number)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", {})
        call = ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None
        msgspec.msgpack.encode(call)  # what neither wire nor store can carry: half characters, endless integers
    except (ValueError, RecursionError, OverflowError):
        return None
    return call


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def describe_tools(tools: Sequence[dict[str, Any]]) -> str:
    """The part of a system message that says which tools there are and how to call one."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = json.dumps({"name": "the tool's name", "arguments": {"parameter": "value"}})
    return (
        f"# Tools\n\nThese tools can be called; each line is one tool, with the JSON schema of its arguments:\n"
        f"<tools>\n{lines}\n</tools>\n\nTo call one, answer with a JSON object between tags, once per call:\n"
        f"{OPEN}\n{example}\n{CLOSE}"
    )
