"""One live bubblewrap box: its processes, its shell and its files, freed together."""

from __future__ import annotations

import asyncio
import builtins
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress

from envfarm.backends import rootfs
from envfarm.backends.files import Tree
from envfarm.backends.limits import Meter
from envfarm.backends.live_box import SNAPSHOT_BYTES, LiveBox
from envfarm.backends.shell import Shell
from envfarm.backends.tarball import pack, unpack
from envfarm.backends.watch import Watch
from envfarm.box import WORKDIR, BoxSpec, Entry, ExecResult, Snapshot
from envfarm.errors import BoxDied, InfraError

_STOP_S = 5.0


class BubblewrapBox(LiveBox):
    """See `envfarm.box.Box`. Owns what it is given from its construction on: `stop` frees it all."""

    def __init__(
        self,
        box_id: str,
        spec: BoxSpec,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        output: tuple[int, int],
        meter: Meter,
        watch: Watch,
        on_stop: Callable[[BubblewrapBox], None],
    ):
        super().__init__(box_id, spec)
        self._process, self._control, self._output, self._meter = process, control, output, meter
        self._shell = Shell(spec, control, *output, meter, watch)
        self._on_stop = on_stop
        self._trees: dict[str, Tree] = {}
        self._first_process = -1  # pidfd of process 1: it ends last
        self.said = ""  # bwrap's complaint, where the box did not come up

    async def up(self) -> None:
        """Wait until the shell answers, then take hold of the box's files. Raises InfraError."""
        try:
            supervisor = await self._shell.up(self._process.pid)
            self._first_process = os.pidfd_open(supervisor)
            for mount in (*rootfs.sizes(self.spec), rootfs.STDIN_DIR):
                fd = os.open(f"/proc/{supervisor}/root{mount}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._trees[mount] = Tree(fd, mount)
        except (BoxDied, ProcessLookupError, FileNotFoundError) as error:
            self.said = self._shell.said()
            raise InfraError(f"box {self.id} did not come up: {error}") from None

    async def _stop(self) -> None:
        """Process 1 dies with bwrap's monitor, and with process 1 everything in its namespace."""
        self._shell.close("the box was stopped")
        self._process.kill()
        if self._first_process >= 0:
            await _end_of(self._first_process)
            os.close(self._first_process)
        self._process.wait()
        for tree in self._trees.values():
            tree.close()
        for fd in self._output:
            os.close(fd)
        self._control.close()
        self._meter.close()
        self._on_stop(self)

    async def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        if not stdin:
            return await self._shell.run(command, "/dev/null", timeout_s)
        async with self._dropped(stdin) as path:
            return await self._shell.run(command, path, timeout_s)

    async def _put(self, name: str, data: bytes) -> None:
        self._shell.require()
        self._trees[rootfs.STDIN_DIR].write(name, data, 0o600)

    async def _remove(self, name: str) -> None:
        if self._stopping is None:
            self._trees[rootfs.STDIN_DIR].remove(name)

    def _tree(self, path: str) -> Tree:
        self._shell.require()
        others = (self._trees[mount] for mount in ("/tmp", *self.spec.writable) if path.startswith("/"))
        return next((tree for tree in others if tree.names(path) is not None), self._trees[WORKDIR])

    async def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        return self._tree(path).read(path, max_bytes)

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._tree(path).write(path, data, mode)

    async def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> builtins.list[Entry]:
        return self._tree(path).list(path, max_entries)

    async def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        self._shell.require()
        found: dict[str, bytes] = {}
        for path in paths:
            found |= self._trees[WORKDIR].archive(path, max_bytes - sum(map(len, found.values())))
        return found

    async def snapshot(self) -> Snapshot:
        self._shell.require()
        packed: dict[str, bytes] = {}
        for mount in (WORKDIR, *self.spec.writable):
            packed[mount] = pack(self._trees[mount].fd, SNAPSHOT_BYTES - sum(map(len, packed.values())))
        return Snapshot(files=packed.pop(WORKDIR), shell=await self._shell_state(), more=packed)

    async def restore(self, snapshot: Snapshot) -> None:
        """Files and shell state of a snapshot, into a box that nobody has used yet."""
        self._shell.require()
        for mount, data in snapshot.trees().items():
            unpack(self._trees[mount].fd, data)
        await self._restore_shell(snapshot.shell)


async def _end_of(pidfd: int) -> None:
    """Wait until a process has ended; give up after `_STOP_S`, as nothing more can be done for it."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), _STOP_S)
    loop.remove_reader(pidfd)
