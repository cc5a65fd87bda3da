"""The connection to a worker: that it ends when the worker's machine is gone, which nobody tells."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from envfarm.worker.address import Address


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know fewer of these limits")
def test_silence_of_the_other_machine_ends_a_connection_after_half_a_minute() -> None:
    async def dial() -> dict[str, int]:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1")
        made: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

        class Client(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set_result(transport.get_extra_info("socket"))

        host, port = server.sockets[0].getsockname()
        await Address.of(f"http://{host}:{port}").dial(Client())
        sock = await made
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        found = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
        found["SO_KEEPALIVE"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        server.close()
        return found

    found = asyncio.run(dial())
    assert found["SO_KEEPALIVE"] == 1
    assert found["TCP_KEEPIDLE"] + found["TCP_KEEPINTVL"] * found["TCP_KEEPCNT"] == 30
    assert found["TCP_USER_TIMEOUT"] == 30_000, "also while there is something to say"
