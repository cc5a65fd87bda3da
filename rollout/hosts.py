"""Where episodes are played: in this process, with sessions from a pool (`Here`), or elsewhere (`rollout.distributed`).

The scheduler decides what is played, when and how often; a host plays one attempt and does nothing else. So order,
permits, retries, the error budget and the store are the same wherever an episode was played.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from envfarm.errors import EpisodeError, NoRoomError
from envfarm.spec import Instance
from rollout.engines.base import Restarting
from rollout.episode import Terms, fail, run_episode
from rollout.policies import AsyncSession, EnginePolicy, Policy
from rollout.room import Room
from rollout.types import Episode, StopReason


class Pool(Protocol):
    """Where sessions come from: `envfarm.worker.pool.WorkerPool`, or sessions in this process."""

    async def session(self, env_id: str) -> AsyncSession:
        """Raises: InfraError where no worker can be had."""
        ...


@runtime_checkable
class Host(Protocol):
    """Plays attempts."""

    async def play(self, episode: Episode, instance: Instance, policies: Mapping[str, Policy], terms: Terms) -> Episode:
        """Complete `episode`, which comes in blank, with `policies` (role -> policy) in its seats. What ends an episode
        becomes its status; a host that dies under it is an `infra_error`.

        Raises: asyncio.CancelledError, with the episode left `aborted`; NoRoomError where there has been no room for a box
        for too long, with the episode an `infra_error`; whatever else is no `EpisodeError`.
        """
        ...


@dataclass(frozen=True)
class Here:
    """This process, with sessions from `pool` and the policies as they are."""

    pool: Pool
    room: Room = field(default_factory=Room)

    async def play(self, episode: Episode, instance: Instance, policies: Mapping[str, Policy], terms: Terms) -> Episode:
        with self.room.holds(episode):
            while True:
                try:
                    return await _play(self.pool, episode, instance, policies, terms)
                except NoRoomError as error:
                    if self.room.is_hopeless(error):
                        fail(episode, StopReason.INFRA_ERROR, error)
                        raise


async def _play(pool: Pool, episode: Episode, instance: Instance, policies: Mapping[str, Policy], terms: Terms) -> Episode:
    """One attempt in a session of its own, which is closed whatever happens. Raises: NoRoomError where it could not begin."""
    asked = time.perf_counter()
    try:
        for policy in policies.values():
            if isinstance(policy, EnginePolicy) and isinstance(policy.engine, Restarting):
                await policy.engine.ready(policy.version.policy)
        session = await pool.session(episode.env)
    except EpisodeError as error:
        fail(episode, StopReason(error.status), error)
        return episode
    finally:
        episode.timings.queue_s += time.perf_counter() - asked
    try:
        return await run_episode(episode, instance, session, policies, terms)
    finally:
        await asyncio.shield(session.close())
