"""The two shells of a remote box, asked in turn: the agent's, behind process 1, and the second one, which clears up and counts.

Knows nothing of limits, and nothing of why a box went: what goes wrong is raised as Lost (the streams ended), SideLost (no second
shell can be had) or Spent (the box does not do what process 1 and our script do).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from envfarm.backends import remote_loop, shell_loop
from envfarm.backends.remote_loop import Clearer
from envfarm.backends.remote_main import Main
from envfarm.backends.remote_second import Second
from envfarm.backends.remote_side import Side, SideLost, State
from envfarm.backends.remote_streams import Streams
from envfarm.backends.shell import START_TIMEOUT_S
from envfarm.box import WORKDIR

SETTLE_S = 10.0
_HEARD_S = 0.2  # twice as long with every try


class Spent(Exception):
    """The box is of no more use."""


class Pair:
    """One question at a time."""

    def __init__(self, streams: Streams, output_bytes: int):
        self._loop = asyncio.get_running_loop()
        self.second = Second(streams)
        self.main = Main(streams, output_bytes, self.second.close)
        self._cwd = WORKDIR.encode()
        self._supervisor, self._pid = 1, 0  # and the agent's shell, as the box numbers them
        self._quiet = False  # since the last command ended, nobody could write
        self._told: Side | None = None  # that of the second shell's which is to say the command's end
        self._cut = False  # its processes were killed, and the agent's shell with them
        self._counted = False  # by control groups: then it is no sandbox within one, whose /proc is another's

    def close(self) -> None:
        """Idempotent."""
        self.second.close()
        self.main.close()

    # --- coming up ------------------------------------------------------------------------------------------------

    async def up(self) -> None:
        """Until the agent's shell answers. The second one comes up meanwhile. Raises: Lost, SideLost, Spent,
        BoxUnavailableError."""
        await self.main.open()
        self.second.open_soon()
        self.main.ask_for_shell(used=False)
        again, until = _HEARD_S, self._loop.time() + START_TIMEOUT_S
        while not await self._introduced(again):
            self.second.require()
            if self._loop.time() > until:
                raise Spent
            again *= 2

    async def _introduced(self, timeout_s: float) -> bool:
        """Ask the first shell for its number and the supervisor's. False where that was not heard: a cluster says that it
        attaches before it does. Raises: Lost."""
        self.main.start(remote_loop.WHO)
        if not await self.main.command_over(timeout_s):
            return False
        try:
            self._supervisor, self._pid = map(int, self.main.out.take()[0].split())
        except ValueError:  # cut off
            return False
        return True

    async def first_count(self) -> State:
        """Before anything has run: there is the agent's shell and nothing else, also where a second shell that nobody waited for
        any more has not ended yet. Raises: Lost, SideLost, Spent."""
        state = await self.count(f"settle {self._pid}")
        if state.left != (self._pid,):
            raise Spent
        self._counted = state.counters > 0
        return state

    # --- a command ------------------------------------------------------------------------------------------------

    async def renewed(self, *, used: bool) -> State | None:
        """Where the agent's shell has ended, a new one in the last one's directory. Raises: Lost, SideLost, Spent."""
        if not self.main.shell_ended():
            return None
        await self._both_dead()
        await self.clear()
        self.main.ask_for_shell(used=used)
        if not await self.main.command_over(SETTLE_S):
            raise Spent
        state = await self.count("living 0; state")
        if len(state.left) != 1:  # nothing but that shell
            raise Spent
        self._pid = state.left[0]
        self.main.start(shell_loop.go_to(self._cwd))
        if not await self.main.command_over(SETTLE_S):
            raise Spent
        return state

    def start(self, command: str, stdin_path: str) -> None:
        """Raises: Lost."""
        side = self._told = self.second.here if self._counted else None
        clearer = Clearer(side.pid, side.key, self._pid) if side is not None else None
        self.main.start(command, stdin_path, marked=not self._quiet, clearer=clearer)
        self._quiet = self._cut = False

    def follow(self) -> None:
        """While a command runs, now and then. Raises: Lost."""
        if self._told is not None and self._told is not self.second.here:
            self._told = None
            self.main.say_again()

    async def see_through(self, watch: Callable[[Callable[[float], Awaitable[bool]]], Awaitable[None]]) -> State:
        """A command to its end and that of what it left; `watch`: until that holds. Raises: Lost, SideLost, Spent."""
        await watch(self.main.command_over)
        ended = self.main.ended
        if self.main.cleared and not self._cut:
            state = State.of(ended.state)
            await self._require_nothing_left(state, self._pid)
            self._quiet = state.left == (self._pid,)
        else:
            state = await self._settle()
        self._cwd = ended.cwd or self._cwd
        return state

    async def _settle(self) -> State:
        """End what the command left behind. Raises: Lost, SideLost, Spent."""
        spare = 0 if self.main.shell_ended() else self._pid
        state = await self.count(f"settle {spare}")
        await self._require_nothing_left(state, spare)
        return state

    async def _require_nothing_left(self, state: State, spare: int) -> None:
        """But the agent's shell, `spare`, where that is alive. Raises: Lost, Spent."""
        if set(state.left) - {spare}:
            raise Spent
        if spare not in state.left:
            await self._both_dead()

    async def cut_off(self) -> None:
        """End a command, and the shell with it. Raises: Lost, SideLost, Spent."""
        if self._pid and not self.main.shell_ended():
            await self.clear()
            await self._both_dead()

    async def _both_dead(self) -> None:
        """Process 1 says on both streams that the shell ended. Raises: Lost, Spent."""
        if not await self.main.shell_over(SETTLE_S):
            raise Spent

    # --- the second shell -----------------------------------------------------------------------------------------

    async def clear(self) -> None:
        """End every process but process 1, the supervisor and the second shell. Raises: Lost, SideLost."""
        self._cut = True
        await self.count("settle 0")

    async def count(self, text: str, timeout_s: float = SETTLE_S) -> State:
        """Raises: Lost, SideLost."""
        answer = await self.second.ask(f"P={self._supervisor}; {text}", timeout_s=timeout_s)
        try:
            return State.of(answer.words)
        except ValueError:
            raise SideLost from None
