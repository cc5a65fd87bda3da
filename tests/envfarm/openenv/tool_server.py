"""An OpenEnv server with MCP tools, made of the `openenv` package alone: `python tool_server.py` prints its address.

The episode: guess a number below ten; `high` of a seed. Reset takes an argument of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State


class Guess(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("guess")
        self._secret, self._solved = 0, False
        self._state = State(step_count=0)

        @server.tool
        def guess(number: int, mood: Literal["calm", "wild"] | None = None) -> str:
            """Guess the number."""
            self._solved = number == self._secret
            return "right" if self._solved else "higher" if number < self._secret else "lower"

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, add: int = 0, **more: Any) -> Observation:
        self._secret, self._solved = ((seed or 0) + add) % 10, False
        return Observation(done=False, metadata={"hint": "below ten"})

    def _step_impl(self, action: Action, timeout_s: float | None = None, **more: Any) -> Observation:
        raise ValueError("only tools here")

    async def step_async(self, action: Action, timeout_s: float | None = None, **more: Any) -> Observation:
        seen = await super().step_async(action, timeout_s, **more)
        if isinstance(seen, CallToolObservation):
            seen.reward, seen.done = float(self._solved), self._solved
        return seen

    @property
    def state(self) -> State:
        return self._state


app = create_fastapi_app(Guess, CallToolAction, CallToolObservation, max_concurrent_envs=4)

if __name__ == "__main__":
    uvicorn.run(app, port=0)
