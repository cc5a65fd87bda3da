"""The worker's end of a box's shell: a command goes in, an outcome comes out, and nothing of the command stays.

The life of a command: its frame is sent; output is collected as it comes; the answer, or the end of the shell, arrives;
leftovers are killed; what is still in the pipes is drained; the limits' counters say whether a limit explains it.
A `Watch` has every command looked at many times a second for what the kernel does not enforce by itself: wall clock, CPU seconds
of the whole command and, without control groups, memory and processes.

Rule for background processes: they live until the end of the command that started them.
After a limit ended a command, or the agent ended its shell, the next one starts with fresh variables in the directory where
the last command that came to its end had left it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from envfarm.backends import processes, shell_loop
from envfarm.backends.command import Running, Stream
from envfarm.backends.control import Control
from envfarm.backends.limits import Meter
from envfarm.backends.outcome import last_words, outcome
from envfarm.backends.shell_loop import Answer, ShellEnded
from envfarm.backends.watch import Watch
from envfarm.box import WORKDIR, BoxSpec, ExecResult, LimitKind
from envfarm.errors import BoxDied

FLOOD = 64
"""A command that writes this many times its kept output is ended for it."""

START_TIMEOUT_S = 30.0
_SETTLE_S = 5.0


class Shell:
    """One command at a time. `close` or the end of the processes makes every later call raise BoxDied."""

    def __init__(self, spec: BoxSpec, control: socket.socket, stdout: int, stderr: int, meter: Meter, watch: Watch):
        self._spec, self._meter, self._watch = spec, meter, watch
        self._stdout, self._stderr = Stream(stdout, spec.output_bytes), Stream(stderr, spec.output_bytes)
        self._loop = asyncio.get_running_loop()
        self._gone: str | None = None
        self._running: Running | None = None
        self._control = Control(control, self._loop, self.close)
        self._rate_held = False
        self._cwd = WORKDIR.encode()
        self._monitor = self._supervisor = self._pid = 0
        self._callbacks = {
            control.fileno(): self._control.read_ready,
            stdout: self._stdout.read_ready,
            stderr: self._stderr.read_ready,
        }
        for fd, callback in self._callbacks.items():
            self._loop.add_reader(fd, callback)

    async def up(self, monitor: int) -> int:
        """Wait for the supervisor; returns its pid. The shell comes up meanwhile, before the first command. Raises BoxDied."""
        await self._within(self._control.up, START_TIMEOUT_S)
        self._monitor = monitor
        below = processes.children(monitor)
        if not below:
            self.close("it ended as it came up")
            self.require()
        self._supervisor = below[0]
        return self._supervisor

    async def _within(self, waiter: asyncio.Future[None], timeout_s: float) -> None:
        """A cancelled call leaves the waiter to the next one."""
        try:
            async with asyncio.timeout(timeout_s):  # not `wait_for`, which swallows a cancellation that meets the result
                await asyncio.shield(waiter)
        except TimeoutError:
            self.close(f"no shell was up within {timeout_s:.0f} s")
            self.require()

    def said(self) -> str:
        """What came on standard error that no command took: bwrap's own complaint, where it did not come up."""
        return self._stderr.take()[0].decode("utf-8", "replace").strip()

    def close(self, why: str) -> None:
        """No command can run any more; whoever waits is told. Idempotent. The descriptors stay the owner's."""
        if self._gone is not None:
            return
        self._gone = why
        for fd in self._callbacks:
            self._loop.remove_reader(fd)
        self._watch.discard(self)
        self._control.fail(why)

    def require(self) -> None:
        """Raises BoxDied where the box is gone."""
        if self._gone is not None:
            raise BoxDied(self._gone)

    # --- one command ----------------------------------------------------------------------------------------------

    async def run(self, command: str, stdin_path: str, timeout_s: float | None) -> ExecResult:
        """See `Box.exec`."""
        self.require()
        if self._running is not None:
            raise RuntimeError("a command is still running in this box; it takes one at a time")
        limit_s = self._spec.exec_timeout_s if timeout_s is None else min(timeout_s, self._spec.exec_timeout_s)
        shell_loop.check(command)
        running = self._running = Running(
            deadline=self._loop.time() + limit_s,
            cpu_until=self._meter.cpu_s() + self._spec.exec_cpu_s,
            before=self._meter.counts(),
        )
        self._watch.add(self)
        try:
            await self._have_shell()
            answer = await self._control.converse(command, stdin_path)
            await self._clear(answer)
        except asyncio.CancelledError:
            await asyncio.shield(self._abandon())
            raise
        except BoxDied:
            if (explained := last_words(self._meter, running, self._stdout, self._stderr)) is not None:
                return explained
            raise BoxDied(self._gone) from None
        finally:
            self._running = None
            self._watch.discard(self)
        return outcome(self._meter, running, answer.exit_code, self._stdout, self._stderr)

    async def _clear(self, answer: Answer | ShellEnded) -> None:
        """End what the command left behind."""
        if isinstance(answer, Answer):
            self._cwd = answer.cwd
            if self._meter.idle():
                return
            self._end_processes(spare_shell=True)
            await self._until(lambda: self._control.shell_ended or not self._others({self._pid}))
        if not self._control.shell_ended:
            await self._reaped()
            return
        self._end_processes(spare_shell=False)
        await self._until(lambda: not self._others(set()))

    def _end_processes(self, *, spare_shell: bool) -> None:
        spare = {self._monitor, self._supervisor} | ({self._pid} if spare_shell else set())
        processes.end_all(self._supervisor, self._meter.members, frozenset(spare))

    def _others(self, own: set[int]) -> list[int]:
        """Living processes of the box beside its first ones and `own`."""
        own = own | {self._monitor, self._supervisor}
        return [p for p in self._meter.members() if p not in own and processes.alive(p)]

    async def _reaped(self) -> None:
        """Zombies are gone as soon as bash has seen them; dash looks only at its next command, which is not waited for."""
        for _ in range(20):
            if self._meter.idle():
                return
            await asyncio.sleep(0.0005)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Killed processes are gone in a moment, which is waited for here. Raises BoxDied where they do not."""
        until = self._loop.time() + _SETTLE_S
        while not holds():
            self.require()
            if self._loop.time() > until:
                self.close("its processes could not be ended")
            await asyncio.sleep(0.0005)

    async def _have_shell(self) -> None:
        """The first shell, or a new one in the last one's directory. Its pid is known, as nothing else lives just then."""
        renewed = self._control.shell_ended
        if renewed:
            self._pid = 0
            await self._control.renew()
        if not self._pid:
            await self._within(self._control.ready, START_TIMEOUT_S)
            shells = [p for p in processes.children(self._supervisor) if processes.alive(p)]
            if not shells:
                self.close("its first processes ended")
                self.require()
            self._pid = shells[0]
            processes.prefer_to_end(self._pid)
            self._meter.adopt((self._supervisor, self._pid))
        if renewed:
            await self._control.converse(shell_loop.go_to(self._cwd))

    async def _abandon(self) -> None:
        """The caller was cancelled: end the command all the same, so that the box stays usable."""
        with suppress(BoxDied):
            self.require()
            if not self._control.shell_ended:
                await self._have_shell()
                self._end_processes(spare_shell=False)
                await self._until(lambda: self._control.shell_ended)
            self._end_processes(spare_shell=False)
            await self._until(lambda: not self._others(set()))
            self._stdout.take(), self._stderr.take()

    # --- called by the watch --------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """One look at the running command."""
        running = self._running
        if running is None or not self._control.answering:
            return
        if self._meter.rate_is_late and not self._rate_held:
            self._rate_held = True
            self._loop.run_in_executor(None, self._meter.hold_rate)
        if running.attempts == 0:
            running.limit = self._exceeded(running, now)
            if running.limit is None:
                return
        elif now < running.ended_at + 1:
            return
        running.attempts += 1
        running.ended_at = now
        if running.attempts > _SETTLE_S:
            self.close("its processes could not be ended")
        else:
            self._end_processes(spare_shell=False)

    def _exceeded(self, running: Running, now: float) -> LimitKind | None:
        if max(self._stdout.seen, self._stderr.seen) > FLOOD * self._spec.output_bytes:
            return "output"
        if self._meter.cpu_s() > running.cpu_until:
            return "cpu"
        return self._meter.exceeded() or ("idle" if now > running.deadline else None)
