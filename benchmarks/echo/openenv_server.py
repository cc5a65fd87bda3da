"""The same environment on the `openenv` package's own server: `python openenv_server.py PORT SESSIONS`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

LENGTH = 200


class EchoAction(Action):
    text: str


class EchoObservation(Observation):
    text: str


class Echo(Environment):  # type: ignore[type-arg]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(episode_id="echo", step_count=0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> EchoObservation:
        self._state.step_count = 0
        return EchoObservation(text="Say something.", reward=None, done=False)

    def step(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> EchoObservation:
        assert isinstance(action, EchoAction)
        self._state.step_count += 1
        return EchoObservation(text=action.text.ljust(LENGTH, "."), reward=0.0, done=False)

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Echo, EchoAction, EchoObservation, max_concurrent_envs=int(sys.argv[2]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
