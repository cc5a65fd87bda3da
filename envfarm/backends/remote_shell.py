"""The worker's end of a remote box's shell: `shell.Shell` over `Streams`.

The life of a command: its frame is sent; output is collected as it comes; both streams show the end mark, or that the shell
itself ended; the second shell kills leftovers and reads the counters, which say whether a limit explains the end
(`remote_pair`). While a command runs it is looked at every `TICK_S` for wall clock, CPU seconds and what nobody counts here.

Attribution. A box that dies because of its limits, or because the agent tampered with process 1, is the agent's doing: that
command and every later one ends by the limit. So is a box that stops to answer once it has run a command of the agent's. Only
an end from outside (the container was killed, the engine is gone) or a box that never came up is BoxDied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from envfarm.backends import shell_loop
from envfarm.backends.outcome import KILLED
from envfarm.backends.remote_pair import SETTLE_S, Pair, Spent
from envfarm.backends.remote_running import Running
from envfarm.backends.remote_side import Answer, SideLost, State
from envfarm.backends.remote_streams import Death, Lost, Streams
from envfarm.backends.shell import FLOOD
from envfarm.box import BoxSpec, ExecResult, LimitKind
from envfarm.errors import BoxDied

TICK_S = 0.1
_FIRST_TICK_S = 0.03
_LOOK_S = 4.0  # a second shell that takes longer to count is replaced
_GIVE_UP_S = 30.0  # beyond a command's time limit, for ending it
_TRIES = 4


class RemoteShell:
    """One command at a time. `close` makes every later call raise BoxDied."""

    def __init__(self, spec: BoxSpec, streams: Streams):
        self._spec, self._streams = spec, streams
        self._loop = asyncio.get_running_loop()
        self._pair = Pair(streams, spec.output_bytes)
        self._main = self._pair.main
        self._gone: Death | None = None
        self._running: Running | None = None
        self._state: State | None = None  # as of the last command; None where files were moved since
        self._whole = False  # both shells have answered
        self._used = False  # a command of the agent's has run

    # --- coming up and going away ---------------------------------------------------------------------------------

    async def up(self) -> None:
        """Connect and wait until the agent's shell answers. The second one comes up meanwhile. Raises: BoxDied."""
        await self._rise(self._pair.up())

    async def _be_whole(self) -> None:
        """Before anything of the agent's or of the environment's. Raises: BoxDied, as where `up` had waited for it."""
        if not self._whole:
            await self._rise(self._count())
            self._whole = True

    async def _count(self) -> None:
        self._state = await self._pair.first_count()

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

    async def ended(self) -> None:
        """After `close`, and once the container or pod is removed: until nothing of this is under way. Never raises."""
        await self._pair.second.ended()

    def close(self, why: str) -> None:
        """Idempotent. The container is its owner's to remove."""
        if self._gone is None:
            self._gone = Death(why)
        self._pair.close()

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
            return await self._pair.second.ask(text, data, timeout_s=timeout_s)
        except Lost:
            await self._learn()
        except SideLost:
            self._spend("idle", "its second shell does not answer")
        raise BoxDied(self._gone.why if self._gone else "")

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
                running.before = await self._pair.count("count; state")
            self._state = await self._pair.renewed(used=self._used) or self._state
            self._used = True
            running.deadline = self._loop.time() + limit_s
            async with asyncio.timeout(limit_s + _GIVE_UP_S):
                self._pair.start(command, stdin_path)
                self._state = after = await self._pair.see_through(lambda over: self._watch(over, running))
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

    async def _watch(self, over: Callable[[float], Awaitable[bool]], running: Running) -> None:
        """Until it is over, whatever that takes. Raises: Lost, SideLost, Spent."""
        tick = _FIRST_TICK_S
        while not await over(tick):
            tick = TICK_S
            if running.limit is None:
                running.limit = await self._exceeded(running)
                self._pair.follow()
            if running.limit is not None:
                if running.attempts >= _TRIES:
                    raise Spent
                running.attempts, tick = running.attempts + 1, SETTLE_S
                await self._pair.clear()

    async def _abandon(self) -> None:
        """The caller was cancelled: end the command all the same, so that the box stays usable."""
        try:
            if self._gone is None:
                await self._pair.cut_off()
            self._state = None
        except Lost:
            await self._learn()
        except (SideLost, Spent):
            self._spend("idle", "it stopped to answer after a command was cancelled")

    # --- what it came to ------------------------------------------------------------------------------------------

    async def _exceeded(self, running: Running) -> LimitKind | None:
        if self._main.seen > FLOOD * self._spec.output_bytes:
            return "output"
        return running.exceeds(await self._pair.count("look", _LOOK_S), self._loop.time())

    def _last_words(self, running: Running | None = None) -> ExecResult:
        """Of a box that is gone. Raises: BoxDied where that is not the agent's doing."""
        assert self._gone is not None
        if not self._gone.by_agent:
            raise BoxDied(self._gone.why) from None
        out, err = (self._main.out.take()[0], self._main.err.take()[0]) if running is not None else (b"", b"")
        code = self._gone.exit_code if self._gone.limit is None else KILLED
        return ExecResult(exit_code=code, stdout=out, stderr=err, limit=self._gone.limit)
