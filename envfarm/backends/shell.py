"""The worker's end of a box's shell: a command goes in, an outcome comes out, and nothing of the command stays.

The life of a command: its frame is sent; output is collected as it comes; the answer, or the end of the shell, arrives;
leftovers are killed; what is still in the pipes is drained; the limits' counters say whether a limit explains it.
A `Watch` looks at running commands many times a second for what the kernel does not enforce by itself: wall clock, CPU seconds of
the whole command and, without control groups, memory and processes.

Rule for background processes: they live until the end of the command that started them.
After a limit ended a command, or the agent ended its shell, the next one starts with fresh variables in the directory where
the last command that came to its end had left it.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from envfarm.backends import processes, shell_loop
from envfarm.backends.command import Running, Stream
from envfarm.backends.limits import Meter
from envfarm.backends.shell_loop import Answer, ShellEnded, SupervisorUp
from envfarm.box import WORKDIR, BoxSpec, ExecResult, LimitKind
from envfarm.errors import BoxDied

TICK_S = 0.05
FLOOD = 64
"""A command that writes this many times its kept output is ended for it."""

START_TIMEOUT_S = 30.0
_SETTLE_S = 5.0
_CHUNK = 1 << 16
_KILLED = 128 + signal.SIGKILL


class Watch:
    """One timer for all running commands of a backend; it rests while there are none."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._shells: set[Shell] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, shell: Shell) -> None:
        self._shells.add(shell)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def discard(self, shell: Shell) -> None:
        self._shells.discard(shell)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._tick_s, self._tick) if self._shells else None
        for shell in list(self._shells):
            shell.check(loop.time())


class Shell:
    """One command at a time. `close` or the end of the processes makes every later call raise BoxDied."""

    def __init__(self, spec: BoxSpec, control: socket.socket, stdout: int, stderr: int, meter: Meter, watch: Watch):
        self._spec, self._control, self._meter, self._watch = spec, control, meter, watch
        self._stdout, self._stderr = Stream(stdout, spec.output_bytes), Stream(stderr, spec.output_bytes)
        self._loop = asyncio.get_running_loop()
        self._gone: str | None = None
        self._running: Running | None = None
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._answer: asyncio.Future[Answer | ShellEnded] | None = None
        self._nonce = self._pending = b""
        self._rate_held = False
        self._ended = False  # the agent's shell is gone and the supervisor waits for `go`
        self._cwd = WORKDIR.encode()
        self._monitor = self._supervisor = self._pid = 0
        self._callbacks = {
            control.fileno(): self._on_control,
            stdout: self._stdout.read_ready,
            stderr: self._stderr.read_ready,
        }
        for fd, callback in self._callbacks.items():
            self._loop.add_reader(fd, callback)

    async def up(self, monitor: int) -> int:
        """Wait for the supervisor; returns its pid. The shell comes up meanwhile, before the first command. Raises BoxDied."""
        await self._within(self._up, START_TIMEOUT_S)
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
        for waiter in (self._up, self._ready, self._answer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(BoxDied(why))
                waiter.exception()  # seen: nobody may be waiting for it

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
            frame = self._frame(command, stdin_path)
            answer = await self._converse(frame)
            await self._clear(answer)
        except asyncio.CancelledError:
            await asyncio.shield(self._abandon())
            raise
        except BoxDied:
            return self._last_words(running)
        finally:
            self._running = None
            self._watch.discard(self)
        return self._result(running, answer.exit_code)

    def _frame(self, command: str, stdin_path: str = "/dev/null") -> bytes:
        nonce = secrets.token_hex(8)
        frame = shell_loop.encode(nonce, command, stdin_path)
        self._nonce = nonce.encode()
        return frame

    async def _converse(self, frame: bytes) -> Answer | ShellEnded:
        self._answer = self._loop.create_future()
        await self._send(frame)
        return await self._answer

    async def _send(self, data: bytes) -> None:
        try:
            sent = self._control.send(data)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return  # the control callback sees the end and tells why
        if sent < len(data):
            await self._loop.sock_sendall(self._control, data[sent:])

    async def _clear(self, answer: Answer | ShellEnded) -> None:
        """End what the command left behind."""
        if isinstance(answer, Answer):
            self._cwd = answer.cwd
            if self._meter.idle():
                return
            self._end_processes(spare_shell=True)
            await self._until(lambda: self._ended or not self._others({self._pid}))
        if not self._ended:
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
        renewed = self._ended
        if renewed:
            self._ended, self._pid = False, 0
            self._ready = self._loop.create_future()
            await self._send(shell_loop.GO)
        if not self._pid:
            await self._within(self._ready, START_TIMEOUT_S)
            shells = [p for p in processes.children(self._supervisor) if processes.alive(p)]
            if not shells:
                self.close("its first processes ended")
                self.require()
            self._pid = shells[0]
            processes.prefer_to_end(self._pid)
            self._meter.adopt((self._supervisor, self._pid))
        if renewed:
            await self._converse(self._frame(shell_loop.go_to(self._cwd)))

    async def _abandon(self) -> None:
        """The caller was cancelled: end the command all the same, so that the box stays usable."""
        with suppress(BoxDied):
            self.require()
            if not self._ended:
                await self._have_shell()
                self._end_processes(spare_shell=False)
                await self._until(lambda: self._ended)
            self._end_processes(spare_shell=False)
            await self._until(lambda: not self._others(set()))
            self._stdout.take(), self._stderr.take()

    # --- what became of it ----------------------------------------------------------------------------------------

    def _result(self, running: Running, exit_code: int) -> ExecResult:
        stdout, cut_out = self._stdout.take()
        stderr, cut_err = self._stderr.take()
        now = self._meter.counts()
        limit = running.limit
        if now.memory > running.before.memory:
            limit = "memory"
        elif limit is None or limit in ("idle", "cpu"):
            if now.pids > running.before.pids:
                limit = "pids"
            elif cut_out or cut_err:
                limit = "output"
            else:
                limit = self._told(exit_code, stderr) or limit
        return ExecResult(exit_code=exit_code, stdout=stdout, stderr=stderr, limit=limit)

    def _told(self, exit_code: int, stderr: bytes) -> LimitKind | None:
        """Limits that the kernel answers with an error code: read from the words of those who got it."""
        if not self._meter.kernel_counts and b"fork: " in stderr and b"Resource temporarily unavailable" in stderr:
            return "pids"
        if exit_code in (0, _KILLED):
            return None
        if b"No space left on device" in stderr:
            return "disk"
        if not self._meter.kernel_counts and (b"annot allocate" in stderr or b"MemoryError" in stderr):
            return "memory"
        return None

    def _last_words(self, running: Running) -> ExecResult:
        """The box ended under a command. Out of memory is the agent's doing; anything else stays a BoxDied."""
        if running.limit == "memory" or self._meter.counts().memory > running.before.memory:
            return ExecResult(exit_code=_KILLED, stdout=self._stdout.take()[0], stderr=self._stderr.take()[0], limit="memory")
        raise BoxDied(self._gone)

    # --- called by the event loop ---------------------------------------------------------------------------------

    def _on_control(self) -> None:
        try:
            data = self._control.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.close("its processes ended, and no limit explains it")
            return
        *frames, rest = (self._pending + data).split(b"\0")
        self._pending = rest[-_CHUNK:]
        for frame in frames:
            self._on_answer(shell_loop.decode(frame))

    def _on_answer(self, answer: Answer | ShellEnded | SupervisorUp | None) -> None:
        """A frame that is not expected is the agent's own invention, or late: ignored."""
        if isinstance(answer, SupervisorUp) or (isinstance(answer, Answer) and not answer.nonce):
            waiting = self._up if isinstance(answer, SupervisorUp) else self._ready
            if not waiting.done():
                waiting.set_result(None)
            return
        if isinstance(answer, ShellEnded):
            self._ended = True
        elif answer is None or answer.nonce != self._nonce:
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def check(self, now: float) -> None:
        """One look at the running command."""
        running = self._running
        if running is None or self._answer is None or self._answer.done():
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
