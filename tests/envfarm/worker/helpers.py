"""What the worker tests share: toy specs, how they are played, a worker in this process's loop, boxes that are dictionaries."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from envfarm.box import Box, BoxSpec, Entry, ExecResult, Snapshot
from envfarm.errors import BoxDied
from envfarm.perturbation import perturbed
from envfarm.registry import make_scene
from envfarm.session import LocalSession, Turn
from envfarm.spec import EnvSpec, load_spec
from envfarm.worker.address import Address
from envfarm.worker.client import AsyncSession, connect
from envfarm.worker.serving import Listen, Worker

TOYS = Path(__file__).parent / "toys"
LAMP = Path(__file__).parent.parent.parent / "toy" / "lamp.yaml"
GONE_WITHIN_S = 20.0


def toy(name: str) -> EnvSpec:
    return load_spec(TOYS / f"{name}.yaml")


class PaperBox:
    """A box that runs nothing: `put NAME TEXT`, `cat NAME`, `ls`, `kill` (the box dies), `hang` (until it is stopped)."""

    def __init__(self, backend: PaperBackend, spec: BoxSpec, files: dict[str, bytes]):
        self.id, self.spec, self.files, self.stopped = f"paper-{len(backend.boxes)}", spec, files, False
        self._backend, self._released = backend, asyncio.Event()

    async def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        if self.stopped:
            raise BoxDied("the box was stopped")
        word, _, rest = command.partition(" ")
        if word == "kill":
            raise BoxDied("somebody killed the box")
        if word == "hang":
            self._backend.hanging.set()
            await self._released.wait()
            raise BoxDied("the box was stopped")
        out = b""
        if word == "put":
            name, _, text = rest.partition(" ")
            self.files[name] = text.encode()
        elif word == "cat":
            out = self.files[rest]
        elif word == "ls":
            out = " ".join(sorted(self.files)).encode()
        return ExecResult(exit_code=0, stdout=out, stderr=b"")

    async def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self.files[path] = data

    async def list(self, path: str = "/task", *, max_entries: int = 10_000) -> list[Entry]:
        return [Entry(path=n, kind="file", size=len(c), mode=0o644) for n, c in sorted(self.files.items())]

    async def archive(self, paths: Iterable[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        return dict(self.files)

    async def snapshot(self) -> Snapshot:
        return Snapshot(files="\n".join(f"{n} {c.decode()}" for n, c in self.files.items()).encode(), shell=b"")

    async def stop(self) -> None:
        self.stopped = True
        self._released.set()


class PaperBackend:
    """Boxes as dictionaries, and how many of them are open."""

    name = "paper"

    def __init__(self) -> None:
        self.boxes: list[PaperBox] = []
        self.hanging = asyncio.Event()

    @property
    def open(self) -> int:
        return sum(not box.stopped for box in self.boxes)

    async def probe(self) -> None:
        pass

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> Box:
        lines = snapshot.files.decode().splitlines() if snapshot else []
        box = PaperBox(self, spec, {n: t.encode() for n, _, t in (line.partition(" ") for line in lines)})
        self.boxes.append(box)
        return box  # type: ignore[return-value]

    async def close(self) -> None:
        for box in self.boxes:
            await box.stop()

    def enforcement(self) -> dict[str, str]:
        return {}


@asynccontextmanager
async def running(
    *specs: EnvSpec, backend: PaperBackend | str = "bubblewrap", max_sessions: int = 64, token: str | None = None
) -> AsyncIterator[tuple[Worker, str]]:
    """A worker on a loopback port, and its URL."""
    worker = Worker(list(specs), backend=backend, max_sessions=max_sessions)  # type: ignore[arg-type]
    try:
        yield worker, await worker.start(Listen(token=token))
    finally:
        await worker.close()


async def session(url: str, spec: EnvSpec, *, token: str | None = None) -> AsyncSession:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return AsyncSession(spec, (await connect(Address(host=host, port=int(port), token=token))).open())


def wait_gone(pid: int) -> bool:
    """Whether the process ends in time; it need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], GONE_WITHIN_S)[0])
    finally:
        os.close(fd)


async def play(on: AsyncSession, instance: Any) -> list[Turn]:
    """An episode in which every third action is the oracle's."""
    turns = [await on.reset(instance)]
    for seed in range(20):
        if turns[-1].over:
            break
        turns.append(await on.step(await (on.oracle() if seed % 3 == 2 else on.random(seed))))
    return turns


def play_here(spec: EnvSpec, instance: Any) -> list[Turn]:
    """As `play`, without a worker."""
    here = perturbed(LocalSession(spec, make_scene(spec)))
    turns = [here.reset(instance)]
    for seed in range(20):
        if turns[-1].over:
            break
        turns.append(here.step(here.oracle() if seed % 3 == 2 else here.random(seed)))
    return turns


async def until(true: Any) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.005)
