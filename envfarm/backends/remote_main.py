"""The worker's end of process 1: its two output streams, taken apart, and what is sent to it. Knows nothing of limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from envfarm.backends import remote_loop, shell_loop
from envfarm.backends.remote_loop import Channel, Clearer, Ended
from envfarm.backends.remote_streams import Lost, Pipe, Streams


class Main:
    """`on_end`: called once, where the streams end by themselves. After that, or `close`, everything raises Lost."""

    def __init__(self, streams: Streams, keep_bytes: int, on_end: Callable[[], None]):
        self._streams, self._on_end = streams, on_end
        self._secret = secrets.token_hex(16)
        self.out = Channel(keep_bytes, self._secret)
        self.err = Channel(keep_bytes, self._secret)
        self._loop = asyncio.get_running_loop()
        self._awaited: Callable[[], bool] = lambda: False
        self._waiting: asyncio.Future[None] | None = None
        self._pipe: Pipe | None = None
        self._over = False

    async def open(self) -> None:
        """Raises: Lost."""
        self._pipe = await self._streams.open_main()
        self._pipe.listen(self._feed(self.out), self._feed(self.err), self._end)

    def close(self) -> None:
        """Idempotent."""
        self._over = True
        if self._pipe is not None:
            self._pipe.close()
        self._wake()

    def _feed(self, channel: Channel) -> Callable[[bytes], None]:
        def feed(data: bytes) -> None:
            channel.feed(data)
            if self._awaited():
                self._wake()

        return feed

    def _end(self) -> None:
        self._over = True
        self._on_end()
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # --- asking ---------------------------------------------------------------------------------------------------

    def start(self, command: str, stdin_path: str = "/dev/null", *, marked: bool = True, clearer: Clearer | None = None) -> None:
        """`marked`: something may still be on its way that is not of this command. `clearer`: who is told of its end.
        Raises: Lost."""
        nonce = self._expect(marked=marked, key=clearer.key if clearer else "")
        self._send(shell_loop.encode(nonce, command, stdin_path + (clearer.frame() if clearer else "")))

    def say_again(self) -> None:
        """Whoever was to say the end of the command is gone: the agent's shell says it once more, or then first. Raises: Lost."""
        nonce = secrets.token_hex(8)
        for channel in (self.out, self.err):
            channel.expect_also(nonce)
        self._send(shell_loop.encode(nonce, shell_loop.AGAIN))

    def ask_for_shell(self, *, used: bool) -> None:
        """`used`: the agent may have left half a line in the pipe. Raises: Lost."""
        for channel in (self.out, self.err):
            channel.renewed()
        self._send((b"\n" if used else b"") + remote_loop.handshake(self._secret, self._expect()))

    def _expect(self, *, marked: bool = True, key: str = "") -> str:
        nonce = secrets.token_hex(8) + ("s" if marked else "")
        for channel in (self.out, self.err):
            channel.expect(nonce, marked=marked, key=key)
        return nonce

    def _send(self, data: bytes) -> None:
        if self._pipe is None or self._over:
            raise Lost
        self._pipe.send(data)

    # --- what came ------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> Ended:
        """Of a command that is over."""
        assert self.out.ended is not None
        return self.out.ended

    @property
    def seen(self) -> int:
        """Bytes of the longer output so far."""
        return max(self.out.seen, self.err.seen)

    def shell_ended(self) -> bool:
        """Process 1 has said on one of the streams, or both, that the agent's shell ended."""
        return any(c.ended is not None and c.ended.shell_too for c in (self.out, self.err))

    @property
    def over(self) -> bool:
        """Whether both streams have shown an end."""
        return self.out.ended is not None and self.err.ended is not None

    @property
    def cleared(self) -> bool:
        """Whether the second shell has said on both streams that nothing is left of the command."""
        return all(c.ended is not None and c.ended.cleared for c in (self.out, self.err))

    async def command_over(self, timeout_s: float) -> bool:
        """Whether both streams have shown an end within that time. Raises: Lost."""
        return await self._until(lambda: self.over, timeout_s)

    async def shell_over(self, timeout_s: float) -> bool:
        """Whether both streams have said within that time that the shell ended. Raises: Lost."""
        both = (self.out, self.err)
        return await self._until(lambda: all(c.ended is not None and c.ended.shell_too for c in both), timeout_s)

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """One waking, and no task or context for the time limit: this is what a command waits in."""
        if holds():
            return True
        if self._over:
            raise Lost
        self._awaited, self._waiting = holds, self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._wake)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None
        if self._over and not holds():
            raise Lost
        return holds()
