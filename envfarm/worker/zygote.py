"""`python -m envfarm.worker.zygote CONTROL LIFE`: imports environments once, then forks a process per session.

One thread, no event loop: so a fork is a faithful copy. Sessions stay in this process's group, which the kernel kills
when the worker is gone. A session that is asked to fork does so twice, and the one in between ends at once: the copy
belongs to the zygote, not to the session that it came from.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import socket
import sys
import time
from typing import Any

import msgspec
import numpy as np

from envfarm.box import WORKDIR, Entry, ExecResult, Snapshot
from envfarm.errors import EnvfarmError, InfraError, WorkerDied
from envfarm.seeding import derive_seed
from envfarm.session import Session
from envfarm.spec import EnvSpec
from envfarm.worker import lifetime, pipe, protocol
from envfarm.worker.pipe import BoxCall, ChildPipe, Hello
from envfarm.worker.protocol import Failed, Fork, Reset, Words
from envfarm.worker.sessions import new_session, perform, preload

CHEAP_S = 0.02
"""A reset that takes longer is not done for nothing in each spare process."""
_PR_SET_CHILD_SUBREAPER = 36


class PipeBox:
    """A session's box, which lives in the worker: `envfarm.box.SyncBox` over the pipe, with `stop`."""

    def __init__(self, wire: ChildPipe, number: int):
        self._wire, self._number = wire, number

    def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return self._call("exec", command=command, stdin=stdin, timeout_s=timeout_s)

    def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        return self._call("read", path=path, max_bytes=max_bytes)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._call("write", path=path, data=data, mode=mode)

    def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> list[Entry]:
        return self._call("list", path=path, max_entries=max_entries)

    def archive(self, paths: list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:  # type: ignore[valid-type]
        return self._call("archive", paths=paths, max_bytes=max_bytes)

    def snapshot(self) -> Snapshot:
        return self._call("snapshot")

    def stop(self) -> None:
        self._call("stop")

    def _call(self, method: str, **arguments: Any) -> Any:
        return box_call(self._wire, self._number, method, arguments)


def box_call(wire: ChildPipe, number: int, method: str, arguments: dict[str, Any]) -> Any:
    """Raises: what the box's method raised in the worker."""
    wire.send(BoxCall(number, method, arguments))
    result = wire.receive()
    if isinstance(result, Failed):
        raise protocol.as_exception(result)
    assert isinstance(result, pipe.BoxResult)
    return msgspec.convert(result.value, pipe.RESULTS[method])


class SessionProcess:
    """The loop of one session's process. Ends with the pipe."""

    def __init__(self, spec: EnvSpec, sock: socket.socket):
        self._spec, self._wire = spec, ChildPipe(sock)
        self._session: Session | None = None

    def make_box(self, snapshot: Snapshot | None = None) -> PipeBox:
        return PipeBox(self._wire, box_call(self._wire, 0, "start", {"snapshot": snapshot}))

    def run(self) -> None:
        self._wire.send(Hello(os.getpid()))
        try:
            while True:
                request = self._wire.receive()
                if isinstance(request, Fork):
                    self._fork()
                else:
                    self._wire.send(self._perform(request))
        except (WorkerDied, ConnectionError):
            if self._session is not None:
                self._session.close()

    def _perform(self, request: Any) -> protocol.Reply:
        if self._session is None:
            try:
                self._session = new_session(self._spec, self.make_box if self._spec.sandbox.box else None)
            except EnvfarmError as error:
                return protocol.failed(error)
        if isinstance(request, Reset):
            seed_global_state(request.instance.hash)
        return perform(self._session, request)

    def _fork(self) -> None:
        """In this process: answer. In the copy: go on with a pipe of its own."""
        sock = socket.socket(fileno=self._wire.fd)
        state = random.getstate()  # Python draws a new one in every forked child
        try:
            between = os.fork()
        except OSError as error:
            sock.close()
            self._wire.send(protocol.failed(InfraError(f"cannot fork the session: {error}")))
            return
        if between == 0:
            if os.fork() > 0:
                os._exit(0)
            random.setstate(state)
            self._wire.sock.close()
            self._wire.sock = sock
            self._wire.send(Hello(os.getpid()))
            return
        os.waitpid(between, 0)
        sock.close()
        self._wire.send(Words(""))


def warm_up(spec: EnvSpec) -> bool:
    """Run once what every session runs first: memory that a fork would copy then is copied before anybody waits.

    Returns whether it was cheap. An environment with a box is left alone, since a box is needed to begin.
    """
    if spec.sandbox.box:
        return False
    start = time.perf_counter()
    instance = spec.instance(next(iter(spec.splits)), 0)
    seed_global_state(instance.hash)
    session = new_session(spec, None)
    protocol.encode(perform(session, Reset(spec.id, instance)))  # a fault comes again in the session, and is told there
    session.close()
    return time.perf_counter() - start < CHEAP_S


def seed_global_state(instance_hash: str) -> None:
    """Give code that draws from process-wide generators the same draws in every episode of an instance."""
    random.seed(derive_seed("global random", instance_hash))
    np.random.seed(derive_seed("global numpy", instance_hash) % 2**32)


def serve(control: socket.socket, specs: dict[str, EnvSpec], cheap: set[str]) -> None:
    """Fork a session for each message on `control`, until the worker closes it. A `SPARE` will not be used at once."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        kind, _, env_id = message.decode().partition(" ")
        try:
            pid = os.fork()
        except OSError as error:  # no process or memory left: the closed pipe tells the worker
            print(f"cannot fork a session: {error}", file=sys.stderr, flush=True)
            pid = -1
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.set_inheritable(fds[0], False)
            code = 1
            try:
                if kind == pipe.SPARE and env_id in cheap:
                    warm_up(specs[env_id])
                SessionProcess(specs[env_id], socket.socket(fileno=fds[0])).run()
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(fds[0])


def main() -> None:
    control, life = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    os.set_inheritable(control.fileno(), False)
    os.set_inheritable(life, False)
    lifetime.kill_group_with(life)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended sessions leave no zombies
    specs = msgspec.json.decode(sys.stdin.buffer.read(), type=list[EnvSpec])
    try:
        for spec in specs:
            preload(spec)
        cheap = {spec.id for spec in specs if warm_up(spec)}
    except EnvfarmError as error:
        control.send(protocol.encode(protocol.failed(error)))
        return
    gc.collect()
    gc.freeze()
    control.send(protocol.encode(Words("ready")))
    serve(control, {spec.id: spec for spec in specs}, cheap)


if __name__ == "__main__":
    main()
