"""One episode for a program that owns the conversation: it brings what its model said, and is told what to show next.

    episode = ChatEpisode(shared_sessions(), spec, instance, seat="agent")
    turn = await episode.open()                                   # turn.text is the first message
    turn = await episode.act("move north", calls=[])              # or native calls: [("move", '{"direction": "north"}')]
    ... until turn.over; then episode.reward, .success, .components
    await episode.close()                                         # whatever happened

Several roles: the program's model has one seat, scripts play the others. Broken replies are observations, as in a
rollout; what raises is an `EpisodeError`: the episode broke, and its reward means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from envfarm.seeding import derive_seed
from envfarm.session import Turn
from envfarm.spec import EnvSpec, Instance
from envfarm.tools import Action, ToolCall, ToolSpec
from rollout.policies import MALFORMED_CALL
from rollout.renderers.pieces import read_calls
from trainer.adapters.sessions import RemoteSession, Sessions

Others = Literal["oracle", "null", "random"]
NativeCall = tuple[str, str]
"""Name and arguments as JSON, as chat APIs give them."""


class ChatEpisode:
    def __init__(self, sessions: Sessions, spec: EnvSpec, instance: Instance, seat: str, others: Others = "random"):
        self.spec, self.instance, self.seat = spec, instance, seat
        self._sessions, self._others = sessions, others
        self._session: RemoteSession | None = None
        self._scripted = 0  # actions of the others
        self.tools: tuple[ToolSpec, ...] = ()  # visible now
        self.components: dict[str, float] = {}  # of the seat, summed over the episode; "env" is the reward
        self.malformed, self.turns, self.stop = 0, 0, ""

    @property
    def reward(self) -> float:
        """Of the whole episode so far."""
        return self.components.get("env", 0.0)

    @property
    def success(self) -> bool:
        return self.reward >= self.spec.reward.solved_at - 1e-9

    async def open(self) -> Turn:
        """The first turn of the seat. Raises: EpisodeError; UserError where no session can be had."""
        self._session = await self._sessions.open(self.spec)
        return await self._until_ours(await self._session.reset(self.instance))

    async def act(self, content: str, calls: Sequence[NativeCall] = ()) -> Turn:
        """Send a reply. Raises: EpisodeError."""
        assert self._session is not None, "open() first"
        self.turns += 1
        return await self._until_ours(await self._session.step(action_of(content, calls)))

    async def finish(self, reason: str) -> Turn:
        """The seat stops for a reason of its own (`token_limit`, ...): the verdict. Raises: EpisodeError."""
        assert self._session is not None, "open() first"
        return self._note(await self._session.finish(reason))

    async def close(self) -> None:
        """Free the session. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _until_ours(self, turn: Turn) -> Turn:
        assert self._session is not None
        turn = self._note(turn)
        while not turn.over and turn.role != self.seat:
            action: Action = ""
            if self._others == "oracle":
                action = await self._session.oracle()
            elif self._others == "random":
                action = await self._session.random(derive_seed("others", self.instance.hash, self._scripted))
            self._scripted += 1
            turn = self._note(await self._session.step(action))
        return turn

    def _note(self, turn: Turn) -> Turn:
        self.tools = turn.tools or self.tools
        self.malformed += turn.malformed
        self.stop = turn.stop or self.stop
        parts = turn.components or {seat: {"env": value} for seat, value in turn.rewards.items()}
        for component, value in parts.get(self.seat, {}).items():
            self.components[component] = self.components.get(component, 0.0) + value
        return turn


def action_of(content: str, calls: Sequence[NativeCall] = ()) -> Action:
    """What a reply does: its one call, native or written between tags, else its text. Anything else is malformed."""
    broken = ToolCall(MALFORMED_CALL, {})
    if not calls:
        text, written, readable = read_calls(content)
        if not readable or len(written) > 1:
            return broken
        return written[0] if written else text
    name, arguments = calls[0]
    try:
        values = json.loads(arguments or "{}")
    except ValueError:
        return broken
    return ToolCall(name, values) if len(calls) == 1 and isinstance(values, dict) else broken
