"""Rows of `benchmarks.boxes` about boxes that are there already: out of a backend's own warm pool, or leased at a farm's keeper.

The clock runs until the box's shell has answered. From that is taken one round trip of the protocol: a built-in command in a live
box. The farm has its workers as processes of this machine; the lease is taken as they take it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, row
from envfarm.backends.remote_backend import RemoteBackend
from envfarm.box import BoxSpec
from envfarm.farm import KEEPER_VARIABLE, TOKEN_VARIABLE
from envfarm.farm.backend import LeasedBackend
from envfarm.farm.client import KeeperClient
from envfarm.farm.daemon import bring_up, take_down
from envfarm.farm.file import read_farm
from envfarm.farm.status import Status
from envfarm.registry import default_registry

SERVED = "coding/shell-v0"
WARM = 3
_LOOK_S = 0.05


async def over_a_round_trip_ms(
    backend: RemoteBackend, spec: BoxSpec, ready: Callable[[], Awaitable[object]], rounds: int
) -> float:
    """`ready` waits until a box is there to be had."""
    box = await backend.start(spec)
    leases, round_trips = [], []
    for _ in range(rounds):
        await ready()
        before = time.perf_counter()
        leased = await backend.start(spec)
        leases.append(time.perf_counter() - before)
        before = time.perf_counter()
        await box.exec(":")
        round_trips.append(time.perf_counter() - before)
        await leased.stop()
    return (statistics.median(leases) - statistics.median(round_trips)) * 1e3


async def warm_pool_row(name: str, make: Callable[..., RemoteBackend], spec: BoxSpec, rounds: int, goal_ms: float) -> Row:
    backend = make(warm=WARM)
    try:
        over = await over_a_round_trip_ms(backend, spec, lambda: asyncio.gather(*backend._ready[spec]), rounds)
    finally:
        await backend.close()
    return row(f"{name} out of a warm pool, over a round trip", over, unit="ms", goal=f"<={goal_ms:g}")


def has_warm_ones(status: Status) -> bool:
    boxes = status.pools[0].boxes
    return boxes is not None and boxes.free >= WARM


async def keeper_row(name: str, target: dict[str, Any], rounds: int, goal_ms: float) -> Row:
    """`target`: the farm's."""
    served = default_registry().get(SERVED)
    async with farm(target) as keeper:

        async def ready() -> None:
            while not has_warm_ones(await keeper.status()):
                await asyncio.sleep(_LOOK_S)

        os.environ |= {KEEPER_VARIABLE: f"{keeper.url}/pools/0", TOKEN_VARIABLE: keeper.token}
        backend = LeasedBackend()
        try:
            over = await over_a_round_trip_ms(backend, served.sandbox.box_spec(served.limits), ready, rounds)
        finally:
            await backend.close()
            del os.environ[KEEPER_VARIABLE], os.environ[TOKEN_VARIABLE]
    return row(f"{name} leased at a keeper, over a round trip", over, unit="ms", goal=f"<={goal_ms:g}")


@asynccontextmanager
async def farm(target: dict[str, Any]) -> AsyncIterator[KeeperClient]:
    """Up as long as this is open."""
    name = f"bench-{os.getpid()}"
    pool = {"environments": [SERVED], "boxes": {"warm": WARM, "max": 2 * WARM + 2}}
    described = {"envfarm": 1, "farm": name, "pools": [pool], "target": target}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "farm.yaml")
        file.write_text(json.dumps(described))
        await asyncio.to_thread(bring_up, file, read_farm(file), None)
    try:
        async with KeeperClient.of(name) as keeper:
            yield keeper
    finally:
        await asyncio.to_thread(take_down, name)
