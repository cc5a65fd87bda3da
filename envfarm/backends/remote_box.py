"""One live box behind `Streams`: its shell and its files, freed together."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable

from envfarm.backends import remote_files, remote_side
from envfarm.backends.live_box import SNAPSHOT_BYTES, LiveBox
from envfarm.backends.remote_files import RemoteFiles
from envfarm.backends.remote_loop import environment
from envfarm.backends.remote_shell import RemoteShell
from envfarm.backends.remote_streams import Streams
from envfarm.backends.rootfs import STDIN_DIR
from envfarm.backends.tarball import canonical
from envfarm.box import WORKDIR, BoxSpec, Entry, ExecResult, Snapshot
from envfarm.errors import InfraError

_TAR_BYTES = 2 * SNAPSHOT_BYTES  # with its headers


def variables(address_space_bytes: int | None = None) -> dict[str, str]:
    """What a container or pod must have in its environment, beside `rootfs.PINNED_ENV` and PATH."""
    return {**environment(address_space_bytes), "__f": remote_side.SCRIPT + remote_files.SCRIPT + remote_side.SERVE}


class RemoteBox(LiveBox):
    """See `envfarm.box.Box`. Owns its streams from its construction on: `stop` frees all.

    A box that the agent ended itself behaves like an empty one whose every command hits the limit.
    """

    def __init__(self, box_id: str, spec: BoxSpec, streams: Streams, on_stop: Callable[[RemoteBox], None]):
        super().__init__(box_id, spec)
        self._streams = streams
        self._shell = RemoteShell(spec, streams)
        self._files = RemoteFiles(self._shell.ask, spec.writable)
        self._on_stop = on_stop

    async def up(self) -> None:
        """Raises: InfraError."""
        try:
            await self._shell.up()
        except InfraError as error:
            raise InfraError(f"box {self.id} did not come up: {error}") from None

    async def _stop(self) -> None:
        self._shell.close("the box was stopped")
        await self._streams.remove()
        await self._shell.ended()
        self._on_stop(self)

    async def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        if not stdin or self._spent():
            return await self._shell.run(command, "/dev/null", timeout_s)
        async with self._dropped(stdin) as path:
            return await self._shell.run(command, path, timeout_s)

    async def _put(self, name: str, data: bytes) -> None:
        await self._files.put(STDIN_DIR, name, data, 0o600)

    async def _remove(self, name: str) -> None:
        if self._shell.death is None:
            await self._files.remove(STDIN_DIR, name)

    def _spent(self) -> bool:
        return self._shell.death is not None and self._shell.death.by_agent

    def _nothing(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    async def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        if self._spent():
            raise self._nothing(path)
        return await self._files.read(path, max_bytes)

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        if self._spent():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        await self._files.write(path, data, mode)

    async def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> builtins.list[Entry]:
        if self._spent():
            raise self._nothing(path)
        return await self._files.list(path, max_entries)

    async def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for path in paths if not self._spent() else ():
            found |= await self._files.archive(path, max_bytes - sum(map(len, found.values())))
        return found

    async def snapshot(self) -> Snapshot:
        self._shell.require()
        packed: dict[str, bytes] = {}
        for mount in (WORKDIR, *self.spec.writable):
            left = SNAPSHOT_BYTES - sum(map(len, packed.values()))
            if sum(entry.size for entry in await self._files.list(mount, 1_000_000)) > left:
                raise ValueError(f"a snapshot holds at most {SNAPSHOT_BYTES} bytes")
            packed[mount] = canonical(await self._files.tar(mount, ".", _TAR_BYTES), left)
        return Snapshot(files=packed.pop(WORKDIR), shell=await self._shell_state(), more=packed)

    async def restore(self, snapshot: Snapshot) -> None:
        """Files and shell state of a snapshot, into a box that nobody has used yet."""
        for mount, data in snapshot.trees().items():
            await self._files.untar(mount, data)
        await self._restore_shell(snapshot.shell)
