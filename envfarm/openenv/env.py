"""`OpenEnv`: an environment whose YAML has an `openenv:` - the address of a server, whoever wrote it - instead of a class.

    openenv: http://127.0.0.1:8000
    randomize: {level: {choice: [easy, hard]}}      # goes to the server's reset, beside the seed

An episode is one connection. Reset gets `seed`, the instance's parameters and its row; tools are the server's MCP tools or,
where it has none, its action as one tool `step`. The server decides about rewards and the end; what the YAML says about
splits, limits, perturbations and `reward.range` holds as for any environment.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envfarm.blocks import Block, Blocks, Fields, Text
from envfarm.env import Env, Observed
from envfarm.openenv.actions import STEP, mcp_tool, step_tool
from envfarm.openenv.address import address
from envfarm.openenv.wire import Result, Wire
from envfarm.tools import Malformed, ToolCall

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec

_HIDDEN = {"metadata", "tool_name"}
"""Keys of an observation that are not for agents."""


class OpenEnv(Env):
    blocking = True
    text_tool: str | None = None  # type: ignore[misc]

    def __init__(self, env_spec: EnvSpec, **options: Any):
        super().__init__(env_spec, **options)
        self._wire: Wire | None = None

    def start(self) -> Observed:
        self.release()
        self._wire = wire = Wire(address(self.env_spec.entry), self.env_spec.limits.exec_timeout_s)
        seed = {} if self.instance.seed is None else {"seed": self.instance.seed}
        first = wire.reset({**seed, **(self.row or {}), **self.params})
        tools = [mcp_tool(found) for found in wire.tools()]
        self._by_mcp = bool(tools)
        tools = tools or [step_tool(wire.action_schema())]
        self.tools = {tool.name: tool for tool in tools}
        only = list(tools[0].parameters.values())
        typed = not self._by_mcp and len(only) == 1 and only[0]["type"] == "string"
        self.text_tool = STEP if typed else None
        return self._seen(first, shown_reward=False)

    def call(self, call: ToolCall) -> Blocks:
        assert self._wire is not None, "a session calls after `start`"
        action = call.arguments
        if self._by_mcp:
            action = {"type": "call_tool", "tool_name": call.name, "arguments": call.arguments}
        return self._seen(self._wire.step(action))

    def release(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _seen(self, result: Result, *, shown_reward: bool = True) -> Blocks:
        """Take over what the server decided. A reward of a reset says nothing about an action, and is dropped."""
        if shown_reward and result.reward is not None:
            self.reward(float(result.reward))
        if result.done:
            self.end()
        if result.observation.get("malformed") is True:  # a server of ours
            raise Malformed(str(result.observation.get("text", "")))
        return blocks(result.observation)


def blocks(observation: dict[str, Any]) -> Blocks:
    """An observation as it is shown: its `text` (servers of ours), its tool's result, its only text, or its fields."""
    if isinstance(observation.get("text"), str):
        return _text(observation["text"])
    if "tool_name" in observation:
        error = observation.get("error")
        if error:
            return _text(error["message"] if isinstance(error, dict) and "message" in error else _written(error))
        return _text(_written(_unwrapped(observation.get("result"))))
    fields = {k: v for k, v in observation.items() if k not in _HIDDEN and v is not None}
    if len(fields) == 1 and isinstance(only := next(iter(fields.values())), str):
        return _text(only)
    made: Block = Fields(tuple((name, _written(value)) for name, value in fields.items()))
    return (made,) if fields else ()


def _text(text: str) -> Blocks:
    return (Text(text, exact=True),) if text else ()


def _unwrapped(result: Any) -> Any:
    """What a tool returned, without the frame that MCP puts around it."""
    if isinstance(result, dict) and isinstance(result.get("content"), list):
        if result.get("data") is not None:
            return result["data"]
        return "\n".join(str(part.get("text", "")) for part in result["content"] if isinstance(part, dict))
    return result


def _written(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
