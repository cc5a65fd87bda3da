"""Containers and pods as boxes, beside containers and pods without us (`benchmarks.raw_boxes`), in turns, by medians:

    start               until the box's shell has answered, over the raw one's
    lease               a box that is there already, less a round trip (`benchmarks.leases`)
    command             `ls` in a live box, its streams apart and with its exit code, over the raw loop
    many                the last ten of so many live boxes over the first ten, each started four at a time, by the clock and
                        by the CPU of this process, and raw ones started so beside all over beside ten, which is the
                        engine's or the cluster's own; a command with all of them live over the same with ten, and one in
                        a raw shell beside them, too

Both run in an event loop as a worker's, where boxes live. Where there is no engine (DOCKER_HOST) or cluster (KUBECONFIG), its
rows are left out and the reason is printed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.harness import Row, finish, row
from benchmarks.leases import keeper_row, warm_pool_row
from benchmarks.raw_boxes import RawContainer, RawPod, Shell
from envfarm.backends.docker import DockerBackend
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.backends.kubernetes_api import connect
from envfarm.backends.remote_backend import RemoteBackend
from envfarm.box import Box, BoxSpec
from envfarm.errors import UserError

SPEC = BoxSpec(memory_bytes=48 << 20, disk_bytes=8 << 20)
COMMANDS = 20
TEN = 10
AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    name: str
    program: str
    backend: Callable[..., RemoteBackend]
    raw: Callable[[BoxSpec], RawContainer | RawPod]
    target: Callable[[], dict[str, Any]]
    """Of a farm that has such boxes, its workers processes of this machine."""
    starts: int
    lease_ms: float
    many: int


def docker_farm() -> dict[str, Any]:
    return {"docker": {"workers": "process"}}


def kubernetes_farm() -> dict[str, Any]:
    """In the namespace of the other rows."""
    namespace = connect()[1]
    return {"kubernetes": {"namespace": namespace, "box_namespace": namespace, "workers": "process"}}


CONTAINERS = Kind("container", "docker", DockerBackend, RawContainer, docker_farm, starts=20, lease_ms=20, many=100)
PODS = Kind("pod", "kubectl", KubernetesBackend, RawPod, kubernetes_farm, starts=10, lease_ms=50, many=150)


async def ms(work: Callable[[], Awaitable[object]]) -> float:
    before = time.perf_counter()
    await work()
    return (time.perf_counter() - before) * 1e3


async def start_row(kind: Kind, backend: RemoteBackend) -> Row:
    ours, raw = [], []
    for number in range(kind.starts + 1):
        made: list[Box] = []

        async def start(made: list[Box] = made) -> None:
            made.append(await backend.start(SPEC))

        ours.append(await ms(start))
        await made[0].stop()
        other = kind.raw(SPEC)
        raw.append(await ms(other.start))
        await other.stop()
        if number == 0:
            ours, raw = [], []  # warm caches
    of = "docker run" if kind is CONTAINERS else "pod creation"
    return row(f"{kind.name} start over raw {of}", statistics.median(ours), statistics.median(raw), unit="ms", goal="<=1.2")


async def command_row(kind: Kind, backend: RemoteBackend) -> Row:
    box, other = await backend.start(SPEC), kind.raw(SPEC)
    await other.start()
    shell = await other.shell()
    ours, raw = [], []
    for number in range(kind.starts + 1):
        ours.append(await _command_ms(box))
        raw.append(await _raw_command_ms(shell))
        if number == 0:
            ours, raw = [], []
    await asyncio.gather(box.stop(), other.stop())
    name = f"command in a live {kind.name} over the raw loop"
    return row(name, statistics.median(ours), statistics.median(raw), unit="ms", goal="<=1.3")


async def _command_ms(box: Box) -> float:
    return await ms(lambda: _repeat(lambda: box.exec("ls"))) / COMMANDS


async def _raw_command_ms(shell: Shell) -> float:
    return await ms(lambda: _repeat(lambda: shell.run(b"ls"))) / COMMANDS


async def _medians_ms(box: Box, shell: Shell) -> tuple[float, float]:
    """Of commands in a box of ours and in a raw one, in turns."""
    both = [(await _command_ms(box), await _raw_command_ms(shell)) for _ in range(TEN)]
    ours, raw = zip(*both, strict=True)
    return statistics.median(ours), statistics.median(raw)


async def _repeat(work: Callable[[], Awaitable[object]]) -> None:
    for _ in range(COMMANDS):
        await work()


async def many_rows(kind: Kind, backend: RemoteBackend) -> list[Row]:
    permits, boxes = asyncio.Semaphore(AT_ONCE), []

    async def start() -> None:
        async with permits:
            boxes.append(await backend.start(SPEC))

    async def more(count: int) -> tuple[float, float]:
        """Milliseconds for each, and those of this process's CPU."""
        cpu = time.process_time()
        took = await ms(lambda: asyncio.gather(*(start() for _ in range(count))))
        return took / count, (time.process_time() - cpu) / count * 1e3

    other = kind.raw(SPEC)
    await other.start()
    shell = await other.shell()
    first, first_cpu = await more(TEN)
    beside_ten = await raw_ms(kind)
    with_ten, raw_with_ten = await _medians_ms(boxes[0], shell)
    await more(kind.many - 2 * TEN)
    last, last_cpu = await more(TEN)
    beside_all = await raw_ms(kind)
    with_all, raw_with_all = await _medians_ms(boxes[0], shell)
    said = await asyncio.gather(*(box.exec("echo $HOSTNAME lives") for box in boxes))
    assert [result.exit_code for result in said] == [0] * kind.many, "not all of them answer"
    await asyncio.gather(*(box.stop() for box in boxes), other.stop())
    n = kind.many
    return [
        row(f"{kind.name}s {n - TEN + 1} to {n} over 1 to {TEN}, start of each", last, first, unit="ms", goal="<=1.2"),
        row(f"our CPU for each of them over the first {TEN}", last_cpu, first_cpu, unit="ms", goal="<=1.2"),
        row(f"raw {kind.name}s beside {n} of ours over beside {TEN}, start of each", beside_all, beside_ten, unit="ms"),
        row(f"command with {n} {kind.name}s live over {TEN}", with_all, with_ten, unit="ms", goal="<=1.2"),
        row(f"raw command beside {n} of our {kind.name}s over beside {TEN}", raw_with_all, raw_with_ten, unit="ms"),
    ]


async def raw_ms(kind: Kind) -> float:
    """The start of each of ten without us, as many at once as of ours: what an engine or cluster takes by itself."""
    permits, made = asyncio.Semaphore(AT_ONCE), [kind.raw(SPEC) for _ in range(TEN)]

    async def start(one: RawContainer | RawPod) -> None:
        async with permits:
            await one.start()

    took = await ms(lambda: asyncio.gather(*(start(one) for one in made))) / TEN
    await asyncio.gather(*(one.stop() for one in made))
    return took


async def rows_of(kind: Kind) -> list[Row]:
    """Raises: UserError where there is no engine or cluster, or no program for the raw side."""
    if shutil.which(kind.program) is None:
        raise UserError(f"`{kind.program}` is not installed")
    if kind is PODS and "KUBECONFIG" not in os.environ:  # never by chance the cluster that somebody works with
        raise UserError("KUBECONFIG names no cluster")
    backend = kind.backend()
    try:
        await (await backend.start(SPEC)).stop()
        rows = [await start_row(kind, backend), await command_row(kind, backend), *await many_rows(kind, backend)]
    finally:
        await backend.close()
    leases = [
        await warm_pool_row(kind.name, kind.backend, SPEC, kind.starts, kind.lease_ms),
        await keeper_row(kind.name, kind.target(), kind.starts, kind.lease_ms),
    ]
    return [rows[0], *leases, *rows[1:]]


def main() -> None:
    found: list[Row] = []
    for kind in (CONTAINERS, PODS):
        try:
            found += uvloop.run(rows_of(kind))
        except UserError as error:
            print(f"boxes: no {kind.name}s: {error}")
    if found:
        finish("boxes", found)


if __name__ == "__main__":
    main()
