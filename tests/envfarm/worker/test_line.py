"""The connection that sessions share."""

from __future__ import annotations

import asyncio

import pytest

from envfarm.errors import WorkerDied
from envfarm.worker.address import Address
from envfarm.worker.line import Line


def test_who_waits_for_a_connection_that_is_closed_is_told_and_not_cancelled() -> None:
    async def wait() -> None:
        asked = asyncio.Event()

        async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
        line = Line(Address.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ""), lambda: "it died")
        waiting = asyncio.ensure_future(line.connection())
        await asked.wait()
        line.close()
        with pytest.raises(WorkerDied, match="it died"):
            await waiting
        server.close()

    asyncio.run(wait())
