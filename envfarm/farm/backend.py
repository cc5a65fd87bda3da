"""The backend of a farm's workers: boxes are leased from the keeper, and spoken to directly.

A box that the keeper has made already is handed over in one request; the worker then speaks to its container or pod itself, and
needs no right to make one. While a box is used a heartbeat keeps its lease; when it is stopped it is given back, which ends it.

The keeper is where `KEEPER_VARIABLE` says: the URL of the worker's pool.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from contextlib import suppress

from envfarm.backends.local import backend_class
from envfarm.backends.remote_backend import Attached, Bare, Made, RemoteBackend, patience_of
from envfarm.backends.remote_box import RemoteBox
from envfarm.backends.remote_streams import Death, Pipe
from envfarm.box import BoxSpec, Snapshot
from envfarm.errors import BoxUnavailableError, InfraError, UserError
from envfarm.farm import KEEPER_VARIABLE, TOKEN_VARIABLE
from envfarm.farm.client import KeeperLost, LeaseClient
from envfarm.farm.leases import BEAT_S, EXPIRY_S
from envfarm.farm.status import LeaseRequest

PATIENCE_S = 600.0
"""How long a session that has a box waits for a further one while others have them all. One without may ask again."""
_AGAIN_S = 0.5


class LeasedStreams:
    """See `remote_backend.Made`: made by taking a lease, removed by giving it back."""

    def __init__(self, farm: LeasedBackend, spec: BoxSpec, owner: str):
        self._farm, self._spec, self._owner = farm, spec, owner
        self._box = ""
        self._streams: Attached | None = None

    async def create(self) -> None:
        self._box = await self._farm.lease(self._spec, self._owner)
        self._streams = self._farm.attached(self._spec, self._box)

    async def open_main(self) -> Pipe:
        assert self._streams is not None
        return await self._streams.open_main()

    async def open_side(self, *, crowded: bool, silent: bool) -> Pipe:
        assert self._streams is not None
        return await self._streams.open_side(crowded=crowded, silent=silent)

    async def death(self) -> Death:
        assert self._streams is not None
        return await self._streams.death() or await self._farm.death(self._box)

    async def remove(self) -> None:
        if self._streams is not None:
            self._streams.disconnect()
        box, self._box = self._box, ""
        if box:
            await self._farm.give_back(box)


class LeasedBackend(RemoteBackend):
    name = "farm"

    def __init__(self) -> None:
        super().__init__(makes=False)
        url, token = os.environ.get(KEEPER_VARIABLE), os.environ.get(TOKEN_VARIABLE)
        if not url or not token:
            raise UserError(
                f"the backend 'farm' is for the workers of one: {KEEPER_VARIABLE} must be the URL of a pool at the farm's keeper "
                f"(http://HOST:PORT/pools/0), and {TOKEN_VARIABLE} its token"
            )
        self._keeper = LeaseClient(url, token)
        self._holder = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._held: dict[str, str] = {}  # box -> the session that has it
        self._beating: asyncio.Task[None] | None = None
        self._reached: RemoteBackend | None = None
        self._probing = asyncio.Lock()

    async def probe(self) -> None:
        async with self._probing:
            if self._reached is not None:
                return
            kind = await self._keeper.kind()
            if kind == "bubblewrap":
                raise BoxUnavailableError("a farm on bubblewrap has no boxes to lease: its workers make their own")
            reached = backend_class(kind)(makes=False)  # type: ignore[call-arg]
            assert isinstance(reached, RemoteBackend)
            await reached.probe()
            self._reached = reached
            self._beating = asyncio.create_task(self._beat())

    def enforcement(self) -> dict[str, str]:
        """Before `probe` nothing is known."""
        ours = {"lifetime": f"the farm's keeper, {EXPIRY_S:.0f} s after the last heartbeat"}
        return {**(self._reached.enforcement() if self._reached is not None else {}), **ours}

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> RemoteBox:
        await self.probe()
        name = f"{self._prefix}-{next(self._count)}"  # the box's own is known once it is leased
        bare = Bare(name, LeasedStreams(self, spec, owner), float("inf"))
        return await self._begun(await self._up(spec, bare), snapshot)

    def _streams(self, spec: BoxSpec, name: str) -> Made:
        return LeasedStreams(self, spec, owner="")

    def attached(self, spec: BoxSpec, name: str) -> Attached:
        assert self._reached is not None
        return self._reached.attached(spec, name)

    async def live(self) -> set[str]:
        return set(self._held)

    async def delete(self, name: str) -> None:
        await self.give_back(name)

    async def _disconnect(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None
        if self._reached is not None:
            await self._reached.close()
            self._reached = None
        await self._keeper.close()

    # --- used by the streams --------------------------------------------------------------------------------------------

    async def lease(self, spec: BoxSpec, owner: str) -> str:
        """The name of a box that is `owner`'s now, a session. Raises: BoxUnavailableError, InfraError."""
        further = owner in self._held.values()
        patience_s = PATIENCE_S if further else patience_of(spec)
        while True:
            try:
                box = await self._keeper.lease(LeaseRequest(spec, self._holder, patience_s, further))
            except KeeperLost:
                await self._until_kept()
            else:
                self._held[box] = owner
                return box

    async def _until_kept(self) -> None:
        """A keeper may be started again. Raises: KeeperLost."""
        until = time.monotonic() + EXPIRY_S
        while True:
            await asyncio.sleep(_AGAIN_S)
            try:
                await self._keeper.kind()
                return
            except KeeperLost:
                if time.monotonic() > until:
                    raise

    async def death(self, box: str) -> Death:
        try:
            return await self._keeper.death(box)
        except KeeperLost:
            return Death("its farm's keeper does not answer, and so is gone with its boxes")

    async def give_back(self, box: str) -> None:
        """Where the keeper cannot be told, the lease expires."""
        self._held.pop(box, None)
        with suppress(InfraError):
            await self._keeper.give_back(box, self._holder)

    async def _beat(self) -> None:
        """A lease that is over is not told of here: its box ends, and whoever uses that sees it."""
        while True:
            await asyncio.sleep(BEAT_S)
            if self._held:
                with suppress(InfraError, UserError):
                    for lost in await self._keeper.beat(sorted(self._held), self._holder):
                        self._held.pop(lost, None)
