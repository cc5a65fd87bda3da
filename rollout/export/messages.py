"""Conversations in the shape that chat libraries share (OpenAI's), for formats that train on text.

    {"role": "user", "content": "You stand in a maze."}
    {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "type": "function",
                                                        "function": {"name": "move", "arguments": '{"direction": "north"}'}}]}
    {"role": "tool", "content": "A wall.", "tool_call_id": "call_0", "name": "move"}

Arguments are a JSON string, as there. Text is a view: what is trained on exactly are the token ids of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from envfarm.tools import ToolCall
from rollout.policies import MALFORMED_CALL
from rollout.rows import Row
from rollout.types import Episode, Message


def messages_of(episode: Episode, seat: str) -> list[dict[str, Any]]:
    """What a seat was shown and said, from the recorded steps: also of logs, which have no tokens.

    What comes after the last action is not in it. Reasoning that a thinking template keeps apart is not in it either.
    """
    talk: list[Message] = []
    for step in episode.steps:
        if step.seat != seat:
            continue
        role = "tool" if talk and talk[-1].tool_calls else "user"
        talk.append(Message(role=role, content=step.observation))  # type: ignore[arg-type]
        calls = tuple(c for c in step.tool_calls if c.name != MALFORMED_CALL)
        talk.append(Message(role="assistant", content=step.action, tool_calls=calls))
    return as_openai(talk)


def row_messages(episode: Episode, row: Row) -> list[dict[str, Any]]:
    """The messages of a row's branch, as the model saw them: with a thinking template, earlier thoughts are gone."""
    return as_openai(episode.nodes[n].message for n in episode.branches[row.branch].nodes)


def tools_of(episode: Episode) -> list[dict[str, Any]]:
    """The episode's tools as chat templates take them: `{"type": "function", "function": {name, description, parameters}}`."""
    return [
        {
            "type": "function",
            "function": {"name": t["name"], "description": t["description"], "parameters": t["inputSchema"]},
        }
        for t in episode.tools
    ]


def as_openai(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Calls are numbered through the conversation; a tool's answer names the last call before it."""
    shown: list[dict[str, Any]] = []
    count, last = 0, ("", "")
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking:
            entry["reasoning_content"] = message.thinking
        if message.tool_calls:
            entry["tool_calls"] = [_call(call, count + i) for i, call in enumerate(message.tool_calls)]
            last = (entry["tool_calls"][-1]["id"], message.tool_calls[-1].name)
            count += len(message.tool_calls)
        elif message.role == "tool":
            entry |= {"tool_call_id": last[0], "name": last[1]}
        shown.append(entry)
    return shown


def _call(call: ToolCall, number: int) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
    }
