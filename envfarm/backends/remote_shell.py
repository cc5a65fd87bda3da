"""The worker's end of a remote box's shell: `shell.Shell` over `Streams`.

The life of a command: its frame is sent; output is collected as it comes; both streams show the end mark, or that the shell
itself ended; the side shell kills leftovers and reads the counters, which say whether a limit explains the end: it is asked once
standard output has shown its end, and what it says counts where standard error has, too, by then. While a command
runs it is looked at every `TICK_S` for wall clock, CPU seconds and what nobody counts here.

Attribution. A box that dies because of its limits, or because the agent tampered with process 1, is the agent's doing: that
command and every later one ends by the limit. So is a box that stops to answer once it has run a command of the agent's. Only
an end from outside (the container was killed, the engine is gone) or a box that never came up is BoxDied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from envfarm.backends import remote_loop, shell_loop
from envfarm.backends.outcome import KILLED
from envfarm.backends.remote_main import Main
from envfarm.backends.remote_running import Running
from envfarm.backends.remote_second import Second
from envfarm.backends.remote_side import Answer, SideLost, State
from envfarm.backends.remote_streams import Death, Lost, Streams
from envfarm.backends.shell import FLOOD, START_TIMEOUT_S
from envfarm.box import WORKDIR, BoxSpec, ExecResult, LimitKind
from envfarm.errors import BoxDied

TICK_S = 0.1
_FIRST_TICK_S = 0.03
_LOOK_S = 4.0  # a second shell that takes longer to count is replaced
_SETTLE_S = 10.0
_GIVE_UP_S = 30.0  # beyond a command's time limit, for ending it
_TRIES = 4
_HEARD_S = 0.2  # twice as long with every try


class Spent(Exception):
    """The box is of no more use, and that is the agent's doing."""


class RemoteShell:
    """One command at a time. `close` makes every later call raise BoxDied."""

    def __init__(self, spec: BoxSpec, streams: Streams):
        self._spec, self._streams = spec, streams
        self._loop = asyncio.get_running_loop()
        self._second = Second(streams)
        self._main = Main(streams, spec.output_bytes, self._second.close)
        self._gone: Death | None = None
        self._running: Running | None = None
        self._state: State | None = None  # as of the last command; None where files were moved since
        self._cwd = WORKDIR.encode()
        self._supervisor, self._pid = 1, 0  # and the agent's shell, as the box numbers them
        self._whole = False  # both shells have answered
        self._used = False  # a command of the agent's has run

    # --- coming up and going away ---------------------------------------------------------------------------------

    async def up(self) -> None:
        """Connect and wait until the agent's shell answers. The second one comes up meanwhile. Raises: BoxDied."""
        await self._rise(self._first_shell())

    async def _be_whole(self) -> None:
        """Before anything of the agent's or of the environment's. Raises: BoxDied, as where `up` had waited for it."""
        if not self._whole:
            await self._rise(self._first_count())
            self._whole = True

    async def _rise(self, step: Awaitable[None]) -> None:
        """Nothing of the agent's has run yet: nothing is its doing. Raises: BoxDied."""
        try:
            await step
        except (Lost, SideLost):
            await self._learn()
            self._gone = Death(self._gone.why if self._gone else "")
        except Spent:
            self._gone = Death("it did not answer as it came up")
        self.require()

    async def _first_shell(self) -> None:
        """Raises: Lost, SideLost, Spent, BoxUnavailableError."""
        await self._main.open()
        self._second.open_soon()
        self._main.ask_for_shell(used=False)
        again, until = _HEARD_S, self._loop.time() + START_TIMEOUT_S
        while not await self._introduced(again):
            self._second.require()
            if self._loop.time() > until:
                raise Spent
            again *= 2

    async def _first_count(self) -> None:
        """Raises: Lost, SideLost, Spent."""
        self._state = await self._count("living 0; state")
        if self._state.left != (self._pid,):
            raise Spent

    async def ended(self) -> None:
        """After `close`, and once the container or pod is removed: until nothing of this is under way. Never raises."""
        await self._second.ended()

    def close(self, why: str) -> None:
        """Idempotent. The container is its owner's to remove."""
        if self._gone is None:
            self._gone = Death(why)
        self._second.close()
        self._main.close()

    def require(self) -> None:
        """Raises: BoxDied where the box is gone, whoever did it."""
        if self._gone is not None:
            raise BoxDied(self._gone.why)

    @property
    def death(self) -> Death | None:
        return self._gone

    async def _learn(self) -> None:
        """A stream ended: ask why, once."""
        if self._gone is None:
            death = await self._streams.death()
            if self._gone is None:
                self._gone = death
            self._main.close()

    def _spend(self, limit: LimitKind | None, why: str) -> None:
        """Before any command of the agent's has run, it is not its doing."""
        if self._gone is None:
            self._gone = Death(why, by_agent=self._used, limit=limit)
            self._main.close()

    async def ask(self, text: str, data: bytes = b"", *, timeout_s: float) -> Answer:
        """For file requests. Raises: Refused, BoxDied."""
        self.require()
        await self._be_whole()
        self._state = None
        try:
            return await self._second.ask(text, data, timeout_s=timeout_s)
        except Lost:
            await self._learn()
        except SideLost:
            self._spend("idle", "its second shell does not answer")
        raise BoxDied(self._gone.why if self._gone else "")

    async def _count(self, text: str, timeout_s: float = _SETTLE_S) -> State:
        """Raises: Lost, SideLost."""
        answer = await self._second.ask(f"P={self._supervisor}; {text}", timeout_s=timeout_s)
        try:
            return State.of(answer.words)
        except ValueError:
            raise SideLost from None

    # --- one command ----------------------------------------------------------------------------------------------

    async def run(self, command: str, stdin_path: str, timeout_s: float | None) -> ExecResult:
        """See `Box.exec`."""
        if self._gone is None:
            await self._be_whole()
        if self._gone is not None:
            return self._last_words()
        if self._running is not None:
            raise RuntimeError("a command is still running in this box; it takes one at a time")
        limit_s = self._spec.exec_timeout_s if timeout_s is None else min(timeout_s, self._spec.exec_timeout_s)
        shell_loop.check(command)
        before = self._state or State(0, 0, 0, 0.0, 0, 0, ())
        running = self._running = Running(self._spec, self._loop.time() + limit_s, before)
        try:
            if self._state is None:
                running.before = await self._count("count; state")
            await self._have_shell()
            self._used = True
            running.deadline = self._loop.time() + limit_s
            async with asyncio.timeout(limit_s + _GIVE_UP_S):
                self._main.start(command, stdin_path)
                self._state = after = await self._see_through(running)
        except asyncio.CancelledError:
            await asyncio.shield(self._abandon())
            raise
        except Lost:
            await self._learn()
            return self._last_words(running)
        except (Spent, SideLost, TimeoutError):
            self._spend(running.limit or "idle", "it stopped to answer after a command of the agent's")
            await self._streams.remove()
            return self._last_words(running)
        finally:
            self._running = None
        return running.outcome(self._main, after)

    async def _see_through(self, running: Running) -> State:
        """A command to its end and that of what it left. Raises: Lost, SideLost, Spent.

        The second shell is asked while standard error's end is still under way. Where that is not there when the answer comes,
        the command may not have been over: then it is asked again.
        """
        await self._watch(self._main.output_over, running)
        state = await self._settle()
        if not self._main.over:
            await self._watch(self._main.command_over, running)
            state = await self._settle()
        return state

    async def _watch(self, over: Callable[[float], Awaitable[bool]], running: Running) -> None:
        """Until it is over, whatever that takes. Raises: Lost, SideLost, Spent."""
        tick = _FIRST_TICK_S
        while not await over(tick):
            tick = TICK_S
            if running.limit is None:
                running.limit = await self._exceeded(running)
            if running.limit is not None:
                if running.attempts >= _TRIES:
                    raise Spent
                running.attempts, tick = running.attempts + 1, _SETTLE_S
                await self._count("settle 0")

    async def _settle(self) -> State:
        """End what the command left behind. Raises: Lost, SideLost, Spent."""
        spare = 0 if self._main.shell_ended() else self._pid
        state = await self._count(f"settle {spare}")
        if set(state.left) - {spare}:
            raise Spent
        if spare not in state.left:
            await self._both_dead()
        elif self._main.ended.cwd is not None:
            self._cwd = self._main.ended.cwd
        return state

    async def _both_dead(self) -> None:
        """Process 1 says on both streams that the shell ended. Raises: Lost, Spent."""
        if not await self._main.shell_over(_SETTLE_S):
            raise Spent

    async def _have_shell(self) -> None:
        """The shell, or a new one in the last one's directory. Raises: Lost, SideLost, Spent."""
        if not self._main.shell_ended():
            return
        await self._both_dead()
        await self._count("settle 0")
        self._main.ask_for_shell(used=self._used)
        if not await self._main.command_over(_SETTLE_S):
            raise Spent
        self._state = await self._count("living 0; state")
        if len(self._state.left) != 1:  # nothing but that shell
            raise Spent
        self._pid = self._state.left[0]
        self._main.start(shell_loop.go_to(self._cwd))
        if not await self._main.command_over(_SETTLE_S):
            raise Spent

    async def _introduced(self, timeout_s: float) -> bool:
        """Ask the first shell for its number and the supervisor's. False where that was not heard: a cluster says that it
        attaches before it does. Raises: Lost."""
        self._main.start(remote_loop.WHO)
        if not await self._main.command_over(timeout_s):
            return False
        try:
            self._supervisor, self._pid = map(int, self._main.out.take()[0].split())
        except ValueError:  # cut off
            return False
        return True

    async def _abandon(self) -> None:
        """The caller was cancelled: end the command all the same, so that the box stays usable."""
        try:
            if self._gone is None and not self._main.shell_ended() and self._pid:
                await self._count("settle 0")
                await self._both_dead()
            self._state = None
        except Lost:
            await self._learn()
        except (SideLost, Spent):
            self._spend("idle", "it stopped to answer after a command was cancelled")

    # --- what it came to ------------------------------------------------------------------------------------------

    async def _exceeded(self, running: Running) -> LimitKind | None:
        if self._main.seen > FLOOD * self._spec.output_bytes:
            return "output"
        return running.exceeds(await self._count("look", _LOOK_S), self._loop.time())

    def _last_words(self, running: Running | None = None) -> ExecResult:
        """Of a box that is gone. Raises: BoxDied where that is not the agent's doing."""
        assert self._gone is not None
        if not self._gone.by_agent:
            raise BoxDied(self._gone.why) from None
        out, err = (self._main.out.take()[0], self._main.err.take()[0]) if running is not None else (b"", b"")
        code = self._gone.exit_code if self._gone.limit is None else KILLED
        return ExecResult(exit_code=code, stdout=out, stderr=err, limit=self._gone.limit)
