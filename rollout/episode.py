"""The one loop. A session, a policy per role, and an `Episode` that fills up as they talk.

The episode is handed in blank and completed in place, so that whatever interrupts the loop (a timeout, a
cancellation, a dead worker) leaves what was recorded up to there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envfarm.errors import EnvfarmError, EpisodeError, NoRoomError
from envfarm.seeding import derive_seed
from envfarm.session import Turn
from envfarm.tools import ToolCall
from rollout.policies import AsyncSession, Moment, Policy, Reply
from rollout.recorder import Recorder
from rollout.types import Episode, Message, RewardEntry, SamplingParams, Step, StopReason


@dataclass(frozen=True)
class Terms:
    """What an episode is played under, besides its instance."""

    run_seed: int
    seed_key: tuple[str | int, ...]  # the group's name, as far as sampling seeds depend on it
    sampling: SamplingParams
    solved_at: float = 1.0
    timeout_s: float | None = None  # wall clock of the whole episode
    token_budget: int = 0  # sampled tokens per seat and episode; 0 is none


def reply_seed(terms: Terms, member: int, seat: str, number: int) -> int:
    """The seed of one reply. Neither the attempt nor an incarnation is part of it: what is run again is the same."""
    return derive_seed("reply", terms.run_seed, *terms.seed_key, member, seat, number)


async def run_episode(
    episode: Episode, instance: Any, session: AsyncSession, policies: Mapping[str, Policy], terms: Terms
) -> Episode:
    """Play `instance` to its end and fill in `episode`. Errors of the episode become its status; the session stays
    its owner's to close.

    Raises: asyncio.CancelledError, with the episode marked `aborted`; NoRoomError where it could not begin; whatever else
    is no `EpisodeError`.
    """
    recorder, started = Recorder(), time.perf_counter()
    episode.nodes, episode.branches, episode.drift = recorder.nodes, recorder.branches, recorder.drift
    clock = asyncio.timeout(terms.timeout_s)
    try:
        async with clock:
            await _play(episode, instance, session, policies, recorder, terms)
    except TimeoutError:
        if not clock.expired():
            raise
        episode.stop, episode.error = StopReason.TIMEOUT, f"the episode's {terms.timeout_s} s were over"
    except EpisodeError as error:
        fail(episode, StopReason(error.status), error)
    except NoRoomError as error:
        if not has_begun(episode):
            raise
        fail(episode, StopReason.INFRA_ERROR, error)
    except asyncio.CancelledError:
        episode.stop, episode.error = StopReason.ABORTED, "called off"
        raise
    finally:
        episode.timings.total_s = time.perf_counter() - started
    return episode


def fail(episode: Episode, stop: StopReason, error: EnvfarmError) -> None:
    episode.stop, episode.error = stop, f"{type(error).__name__}: {error}"


def has_begun(episode: Episode) -> bool:
    """Whether there was a first observation."""
    return episode.timings.env_s > 0.0


async def _play(
    episode: Episode,
    instance: Any,
    session: AsyncSession,
    policies: Mapping[str, Policy],
    recorder: Recorder,
    terms: Terms,
) -> None:
    timings, now = episode.timings, time.perf_counter
    started = now()
    turn = await session.reset(instance)
    timings.env_s += now() - started
    episode.opening_output = turn.command_output
    episode.tools = [tool.as_mcp() for tool in turn.tools]
    taken = dict.fromkeys(policies, 0)
    sampled = dict.fromkeys(policies, 0)
    messages: dict[str, list[Message]] = {role: [] for role in policies}
    _note(episode, turn, taken)
    while not turn.over:
        role = turn.role
        moment = Moment(
            session=session, recorder=recorder, role=role, turn=turn, number=taken[role],
            seed=reply_seed(terms, episode.member, role, taken[role]), sampling=terms.sampling,
            tools=episode.tools, episode_id=episode.id, messages=messages[role], used_tokens=sampled[role],
            token_budget=terms.token_budget,
        )  # fmt: skip
        started = now()
        reply = await policies[role].reply(moment)
        answered = now()
        timings.engine_s += answered - started
        sampled[role] += reply.sampled_tokens
        if reply.stop is not None:
            turn = await session.finish(reply.stop)
            timings.env_s += now() - answered
            _note(episode, turn, taken)
            break
        shown, turn = turn, await session.step(reply.action)
        timings.env_s += now() - answered
        taken[role] += 1
        episode.steps.append(_step(role, shown, reply, turn))
        _note(episode, turn, taken)
    _conclude(episode, turn, terms)


def _step(role: str, shown: Turn, reply: Reply, after: Turn) -> Step:
    calls = (reply.action,) if isinstance(reply.action, ToolCall) else ()
    return Step(
        seat=role, observation=shown.text, action=reply.text, tool_calls=calls, reward=dict(after.rewards),
        malformed=after.malformed, command_output=after.command_output,
    )  # fmt: skip


def _note(episode: Episode, turn: Turn, taken: Mapping[str, int]) -> None:
    """Rewards, events and counters that a turn brought."""
    episode.malformed += turn.malformed
    episode.perturbations.extend(turn.events)
    episode.virtual_time_s = turn.virtual_time_s
    components = turn.components or {seat: {"env": value} for seat, value in turn.rewards.items()}
    for seat, parts in components.items():
        number = max(taken.get(seat, 0) - 1, 0)
        for component, value in parts.items():
            episode.rewards.append(RewardEntry(seat=seat, turn=number, component=component, value=value))


def _conclude(episode: Episode, turn: Turn, terms: Terms) -> None:
    episode.final_observation, episode.error = turn.text, ""
    episode.terminated, episode.truncated = turn.terminated, turn.truncated
    episode.stop = StopReason(turn.stop) if turn.stop else StopReason.TERMINATED
    totals = dict.fromkeys(episode.seats, 0.0)
    for entry in episode.rewards:
        if entry.component == "env":
            totals[entry.seat] = totals.get(entry.seat, 0.0) + entry.value
    episode.reward = totals
    episode.success = {seat: total >= terms.solved_at - 1e-9 for seat, total in totals.items()}
