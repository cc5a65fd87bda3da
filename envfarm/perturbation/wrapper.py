"""One wrapper that applies an instance's channels to any session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envfarm.blocks import Blocks, Text
from envfarm.formats import writer
from envfarm.perturbation import CHANNELS, channel_class
from envfarm.perturbation.base import Channel, Draws
from envfarm.session import Session, Turn
from envfarm.tools import Action, Malformed, ToolCall, as_call, parse_text, to_text

if TYPE_CHECKING:
    from envfarm.spec import Instance


class PerturbedSession:
    """A `Session` around a `Session`. Counts turns itself, since an intercepted call takes one too."""

    def __init__(self, inner: Session):
        self.inner, self.env_spec = inner, inner.env_spec
        self.channels: list[Channel] = []

    @property
    def turn_limit(self) -> int:
        return self.inner.turn_limit

    def reset(self, instance: Instance) -> Turn:
        drawn = instance.perturbation
        self.channels = [
            channel_class(key)(drawn[key], Draws(instance.hash, key)) for key in CHANNELS if key in drawn
        ]  # fmt: skip
        self._write = writer(drawn.get("observation.format", "plain"))
        self._calls, self._clock, self._shown = 0, 0.0, 0
        turn = self.inner.reset(instance)
        self._role = turn.role
        plain = [t.signature for t in turn.tools]
        self._set_tools(turn)
        blocks = turn.blocks
        if [t.signature for t in self._tools.values()] != plain:
            blocks = (*blocks, Text(f"Actions: {self._signatures()}", exact=True))
        return self._finish(turn, blocks, tools_done=True)

    def step(self, action: Action) -> Turn:
        self._calls += 1
        try:
            call = as_call(action, self._tools, self._text_tool)
        except Malformed as error:
            return self._instead((Text(str(error)),), malformed=True)
        for channel in reversed(self.channels):
            call = channel.from_agent(call)
        for channel in self.channels:
            self._clock += channel.elapse(self._calls)
            blocks = channel.intercept(call, self._calls)
            if blocks is not None:
                return self._instead(blocks)
        turn = self.inner.step(call)
        if not turn.over and self._spent():
            return self._out_of_turns()
        return self._finish(turn, turn.blocks)

    def finish(self, reason: str) -> Turn:
        turn = self.inner.finish(reason)
        return self._finish(turn, turn.blocks)

    def oracle(self) -> str:
        return self._translated(self.inner.oracle())

    def random(self, seed: int) -> str:
        return self._translated(self.inner.random(seed))

    def close(self) -> None:
        self.inner.close()

    # Inside.

    def _signatures(self) -> str:
        return "; ".join(t.signature for t in self._tools.values())

    def _set_tools(self, turn: Turn) -> None:
        """Take over the tools below as the agent sees them, when a turn brings some."""
        if not turn.tools:
            return
        self._inner_tools = {t.name: t for t in turn.tools}
        self._inner_text_tool = turn.text_tool
        visible = dict(self._inner_tools)
        for channel in self.channels:
            visible = dict(channel.show_tools(visible))
        self._tools = visible
        self._text_tool = self._visible_name(turn.text_tool)
        turn.tools, turn.text_tool = tuple(visible.values()), self._text_tool

    def _visible_name(self, name: str | None) -> str | None:
        if name is None:
            return None
        call = ToolCall(name)
        for channel in self.channels:
            call = channel.to_agent(call)
        return call.name

    def _translated(self, text: str) -> str:
        call = parse_text(text, self._inner_tools, self._inner_text_tool)
        for channel in self.channels:
            call = channel.to_agent(call)
        return to_text(call, self._tools, self._text_tool)

    def _spent(self) -> bool:
        return self._calls >= self.turn_limit

    def _instead(self, blocks: Blocks, *, malformed: bool = False) -> Turn:
        """The world's answer where the call below was not made; the same role is still on turn."""
        if self._spent():
            return self._out_of_turns(malformed=malformed)
        return self._finish(Turn(role=self._role, malformed=malformed), blocks)

    def _out_of_turns(self, *, malformed: bool = False) -> Turn:
        turn = self.inner.finish("turn_limit")
        turn.malformed = malformed
        return self._finish(turn, turn.blocks)

    def _finish(self, turn: Turn, blocks: Blocks, *, tools_done: bool = False) -> Turn:
        """Pass what comes from below through the channels, inside out, and write it down."""
        if not tools_done:
            self._set_tools(turn)
        components = turn.components
        for channel in self.channels:
            blocks = channel.observe(blocks, self._shown)
            components = channel.reward(components, self._calls, turn.over)
        self._shown += 1
        self._role = turn.role
        text, spans = self._write(blocks)
        events = tuple(event for channel in self.channels for event in channel.events)
        for channel in self.channels:
            channel.events = []
        return msgspec.structs.replace(
            turn, blocks=blocks, text=text, command_output=spans, components=components, events=events,
            rewards={role: parts["env"] for role, parts in components.items() if "env" in parts},
            virtual_time_s=round(self._clock, 6),
        )  # fmt: skip
