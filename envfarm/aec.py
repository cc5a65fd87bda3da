"""Scenes for several roles, as PettingZoo's AEC environments: the same `Scene`, another front door.

    class Kuhn(AECEnv):
        def start(self): ...; self.turn = "second"; return self.view(self.turn)
        def view(self, role): ...             # what `role` may see now, and nothing else
        @tool
        def bet(self) -> Observed: ...; self.turn = other; return ()

Authors write `view` where a `Scene` has `observe`, since PettingZoo uses that name. `view` may be called at any time
and for any role, so it must not change anything. A tool that passes the turn sets `self.turn`; the session then shows
`view` to the next role, and what the tool returned is seen only by the role that acted, if it is on turn again.
An action that is none leaves the same role on turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
from gymnasium import spaces

from envfarm.blocks import Blocks, as_blocks
from envfarm.env import Observed, Scene
from envfarm.spaces import ActionText, ObservationText
from envfarm.spec import EnvSpec
from envfarm.tools import Action

TEXT_BYTES = 2048
"""Length of the `observation` array: the text's UTF-8 bytes, cut or padded with zeros. `text` has all of it."""


class AECEnv(Scene, pettingzoo.AECEnv):
    """`reset`, `last`, `step`, `observe` as PettingZoo has them; actions are text or `ToolCall`s."""

    metadata = {"render_modes": ["ansi"], "is_parallelizable": False, "name": "envfarm"}

    def __init__(self, env_spec: EnvSpec, *, setting: dict[str, Any] | None = None, render_mode: str | None = None):
        super().__init__(env_spec)
        self.setting, self.render_mode = setting or {}, render_mode
        self.possible_agents = list(self.roles)
        self.agents: list[str] = []
        space = spaces.Box(0, 255, (TEXT_BYTES,), np.uint8)
        self.observation_spaces = {r: spaces.Dict(observation=space, text=ObservationText()) for r in self.roles}
        self.action_spaces = {r: ActionText(self) for r in self.roles}
        self._session: Any = None
        self._draws: np.random.Generator | None = None

    def view(self, role: str) -> Observed:
        """What `role` may see now. Authors override it."""
        raise NotImplementedError(f"{type(self).__name__} does not define view()")

    def observe_blocks(self, role: str) -> Blocks:
        return as_blocks(self.view(role))

    def observation_space(self, agent: str) -> spaces.Dict:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> ActionText:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """A new episode. `options={"instance": Instance}` decides what it is; else `seed` picks from the train split
        (without one, the next draw). Raises: BoxUnavailableError where a box is needed and none can be made."""
        from envfarm.session import local_session

        if seed is not None or self._draws is None:
            self._draws = np.random.default_rng(seed)
        instance = (options or {}).get("instance")
        if instance is None:
            at = int(self._draws.integers(self.env_spec.size("train")))
            instance = self.env_spec.instance("train", at, self.setting)
        if self._session is None:
            self._session = local_session(self.env_spec, scene=self)
        self.agents = list(self.possible_agents)
        self._cumulative_rewards, self._skip_agent_selection = dict.fromkeys(self.agents, 0.0), None
        self._follow(self._session.reset(instance))

    def step(self, action: Action | None) -> None:
        """One action of `agent_selection`; None from a role whose episode is over."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        assert action is not None, "a role that is still playing acts"
        self._cumulative_rewards[agent] = 0.0
        self._follow(self._session.step(action))
        self._accumulate_rewards()

    def observe(self, agent: str) -> dict[str, Any]:  # type: ignore[override]
        """What `agent` sees now: `text`, and its bytes as `observation`."""
        from envfarm.formats import write_plain

        turn = self._shown
        text = turn.text if agent == turn.role else write_plain(self.observe_blocks(agent))[0]
        padded = np.zeros(TEXT_BYTES, np.uint8)
        data = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
        padded[: len(data)] = data
        return {"observation": padded, "text": text}

    def render(self) -> str | None:
        return self._shown.text if self.render_mode == "ansi" else None

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _follow(self, turn: Any) -> None:
        """PettingZoo's attributes, from what the session said."""
        self._shown = turn
        self.agent_selection = turn.role
        self.rewards = {a: turn.rewards.get(a, 0.0) for a in self.agents}
        self.terminations = dict.fromkeys(self.agents, turn.terminated)
        self.truncations = dict.fromkeys(self.agents, turn.truncated)
        self.infos = {a: {"malformed": turn.malformed and a == turn.role, "stop": turn.stop} for a in self.agents}
