"""The box: one isolated, passive place where an agent's commands and code run. Nothing of ours is inside.

`Backend.start(BoxSpec)` makes a `Box`; a box runs commands in one persistent shell (its working directory and
variables stay), reads, writes and lists files, and takes snapshots that new boxes can start from. The methods are
coroutines; environments, which are synchronous, see the same box through `SyncBox`.

What the agent's own command brought on itself comes back in `ExecResult.limit`. A box that dies without such an
explanation raises `BoxDied` (an `InfraError`): never a reward.
"""

from __future__ import annotations

import builtins
import re
from typing import Literal, Protocol

import msgspec

LimitKind = Literal["memory", "pids", "disk", "output", "cpu", "idle"]
"""Which limit the agent's command ran into: killed for memory, fork refused, file system full, output cut,
CPU seconds spent, or still running after `exec_timeout_s`."""

WORKDIR = "/task"
"""The working directory of every box: a tmpfs of `disk_bytes`, owned by the agent, empty at the start. Also HOME."""

WRITABLE = re.compile(
    r"/(?!(?:bin|boot|dev|etc|lib\w*|opt|proc|root|run|sbin|sys|task|tmp|usr|var)$)[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
)
"""What `BoxSpec.writable` may name: one name below `/`, and no directory that programs of the image need."""

MAX_DEPTH = 64
"""Directories inside each other, of those that are listed, archived or kept in a snapshot."""

MAX_ARTIFACTS = 4096
"""Files of one archive: each costs a verifier a write."""

NOT_ENFORCED = "not enforced"
"""How a text of `Backend.enforcement` begins that says what this place does not stop, and why."""


class BoxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a box may use. Picklable and JSON-able; part of the environment's hash."""

    image: str = "envfarm/base"
    cpu: float = 1.0  # cores
    memory_bytes: int = 512 << 20
    pids: int = 64
    disk_bytes: int = 256 << 20  # size of the workdir, of /tmp and of `writable`, together
    output_bytes: int = 1 << 20  # kept per stream and command; more is read and dropped, `limit="output"`
    network: Literal["none", "loopback"] = "none"
    exec_cpu_s: float = 5.0  # CPU seconds of one command and its children
    exec_timeout_s: float = 20.0  # wall-clock seconds of one command
    lifetime_s: float = 300.0  # at least this long it may live; what outlives its owner is removed some time later
    writable: tuple[str, ...] = ()
    """Further directories (`WRITABLE`) that are a tmpfs of the agent's, empty at the start, each of the workdir's size. What
    the image has there is hidden."""


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one command did. Streams are separate and undecoded."""

    exit_code: int  # of the shell command; 128+signal where it was killed
    stdout: bytes
    stderr: bytes
    limit: LimitKind | None = None

    @property
    def text(self) -> str:
        """Both streams as an agent sees them: stdout, then stderr, undecodable bytes replaced."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file-system entry below the listed directory."""

    path: str  # relative to the listed directory
    kind: Literal["file", "directory", "link", "other"]
    size: int  # bytes, 0 for anything but a file
    mode: int  # permission bits
    target: str = ""  # of a link


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A box's files and shell state (variables, functions, working directory). Background processes are not in it."""

    files: bytes  # a tar of the workdir; nothing where it stays empty
    shell: bytes  # what the shell sources to get its state back
    more: dict[str, bytes] = {}  # directory of `BoxSpec.writable` -> its tar; one that is missing stays empty

    def trees(self) -> dict[str, bytes]:
        """Directory -> its tar, of those that are not empty."""
        return {place: tar for place, tar in {WORKDIR: self.files, **self.more}.items() if tar}


class Box(Protocol):
    """One live box. Not safe for concurrent calls: one command at a time."""

    id: str
    spec: BoxSpec

    async def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        """Run `command` in the box's persistent shell.

        Limits: `spec.exec_timeout_s` (or `timeout_s` if smaller), `spec.exec_cpu_s`, `spec.output_bytes` per stream.
        After a limit ended the command the shell is still usable: every process that the command left is gone.
        Raises: BoxDied where the box ended and no limit explains it.
        """
        ...

    async def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """The content of a regular file. `path` is absolute or relative to `WORKDIR`.

        Raises: FileNotFoundError, IsADirectoryError, PermissionError (also for links that leave the workdir),
        ValueError where the file is larger than `max_bytes`, BoxDied.
        """
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Create or replace a file and its parent directories, owned by the agent.

        Raises: OSError(ENOSPC) where the disk limit does not allow it, PermissionError outside workdir, /tmp and
        `spec.writable`, BoxDied.
        """
        ...

    async def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> list[Entry]:
        """All entries below `path`, sorted by path, links not followed.

        Raises: FileNotFoundError, ValueError where there are more than `max_entries` or more than `MAX_DEPTH` directories
        inside each other, BoxDied.
        """
        ...

    async def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        """Artifacts, copied out for verification: `{path relative to WORKDIR: content}` for every regular file at or
        below `paths` (absolute). Links, devices and sockets are refused, not followed.

        Raises: VerifierFault never; PermissionError naming the link or special file, ValueError where it is larger
        than `max_bytes`, more than `MAX_ARTIFACTS` or deeper than `MAX_DEPTH`, BoxDied. Missing paths are simply absent.
        """
        ...

    async def snapshot(self) -> Snapshot:
        """The workdir, `spec.writable` and the shell's state.

        Raises: ValueError above 64 MiB or deeper than `MAX_DEPTH`, BoxDied."""
        ...

    async def stop(self) -> None:
        """End every process and free everything. Idempotent, never raises, shielded from cancellation."""
        ...


class Backend(Protocol):
    """Starts and stops boxes."""

    name: str

    async def probe(self) -> None:
        """Raises BoxUnavailableError where no box can be made here: what to install, which kernel setting."""
        ...

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> Box:
        """A fresh box, ready for `exec`. Raises: BoxUnavailableError, InfraError (it did not come up)."""
        ...

    async def close(self) -> None:
        """Stop every box that this backend started. Idempotent."""
        ...

    def enforcement(self) -> dict[str, str]:
        """How each limit is enforced here: `{"memory": "cgroup v1" | "rlimit" | ...}`; for people and for `check`. What is
        not enforced here says so: its text begins with `NOT_ENFORCED`."""
        ...


class SyncBox(Protocol):
    """The same box as an `Env` sees it: `Box` with blocking methods."""

    def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult: ...
    def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes: ...
    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None: ...
    def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> list[Entry]: ...
    def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]: ...
    def snapshot(self) -> Snapshot: ...


BACKENDS: dict[str, str] = {
    "bubblewrap": "envfarm.backends.bubblewrap:BubblewrapBackend",
    "docker": "envfarm.backends.docker:DockerBackend",
    "docker-runsc": "envfarm.backends.docker:GvisorBackend",
    "kubernetes": "envfarm.backends.kubernetes:KubernetesBackend",
    "farm": "envfarm.farm.backend:LeasedBackend",
}
"""Name -> `module:Class`, imported late. A new backend costs one file and one line."""
