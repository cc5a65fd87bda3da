"""Episodes that are played to be compared: each in a fresh session, some at once, and again where the machine is to blame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from envfarm.errors import InfraError, NoRoomError, first_failure

ATTEMPTS = 3
"""At one episode, where the machine and not the episode is to blame for its end."""
ROOM_S = 600.0
"""How long one episode may wait for a box."""


class Closes(Protocol):
    async def close(self) -> None: ...


Session = TypeVar("Session", bound=Closes)
SessionOut = TypeVar("SessionOut", bound=Closes, covariant=True)
Played = TypeVar("Played")


class Pool(Protocol[SessionOut]):
    """`envfarm.worker.pool.WorkerPool`, or what stands in for it."""

    async def session(self, env_id: str) -> SessionOut:
        """Raises: InfraError where no worker can be had."""
        ...


@dataclass(frozen=True)
class Job(Generic[Session, Played]):
    """One episode. `play` may be called more than once, each time with a session of its own."""

    episode: str
    env_id: str
    play: Callable[[Session], Awaitable[Played]]


async def play_all(jobs: Iterable[Job[Session, Played]], pool: Pool[Session], *, at_once: int) -> list[Played]:
    """What `play` gave, in the order of `jobs`.

    Raises: InfraError where a session cannot be had or its worker or box dies, `ATTEMPTS` times in a row: that says nothing
    about the episode. NoRoomError where there is no room for a box for `ROOM_S`. Whatever else `play` raises.
    """
    permits = asyncio.Semaphore(at_once)

    async def one(job: Job[Session, Played]) -> Played:
        async with permits:
            return await _play(job, pool)

    try:
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(one(job)) for job in jobs]
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from None
    return [done.result() for done in playing]


async def _play(job: Job[Session, Played], pool: Pool[Session]) -> Played:
    attempt, until = 1, time.monotonic() + ROOM_S
    while True:
        session = await pool.session(job.env_id)
        try:
            return await job.play(session)
        except NoRoomError:
            if time.monotonic() > until:
                raise
        except InfraError as error:
            if attempt == ATTEMPTS:
                raise InfraError(f"episode {job.episode} could not be played: {error}") from error
            attempt += 1
        finally:
            await asyncio.shield(session.close())
