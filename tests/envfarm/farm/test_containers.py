"""Workers as containers of a real engine: what is left of one that was called off."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from envfarm.backends.docker import connect
from envfarm.farm import FARM_LABEL
from envfarm.farm.places.containers import Containers

NAME = f"test-{secrets.token_hex(3)}"


class Told(Containers):
    """Says when it is asking the engine for a container."""

    asked: asyncio.Event

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()

        def telling(*args: Any, **kwargs: Any) -> Any:
            if function.__name__ == "create_container":
                loop.call_soon_threadsafe(self.asked.set)
            return function(*args, **kwargs)

        return await super()._call(telling, *args, **kwargs)


@pytest.mark.docker
def test_nothing_is_left_of_a_container_that_is_called_off_as_it_is_made() -> None:
    image = "envfarm/base"  # it is never started

    async def main() -> None:
        place = Told(NAME, image, [["games/*"]], [1], token="t", variables=lambda pool: {}, changed=lambda: None)
        place.asked = asyncio.Event()
        starting = asyncio.ensure_future(place.start())
        await place.asked.wait()
        starting.cancel()
        await asyncio.wait([starting])
        await place.close()
        place._threads.shutdown()  # whatever is under way in the engine

    asyncio.run(main())
    assert connect().containers(all=True, filters={"label": f"{FARM_LABEL}={NAME}"}) == []
