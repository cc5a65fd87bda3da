"""Run a stored episode again from its recorded actions, in a fresh session, and compare to the byte.

Observations, rewards of every component, who acts, malformed replies, injected events, the virtual clock and the end
must be the same. What a box's command printed is compared under `envfarm.masking`, whose share is counted: a mask that
grows hides differences. Episodes that were not `ok` are compared as far as they were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from envfarm.comparison import Comparison, Pair, Spans
from envfarm.errors import EpisodeError, InfraError
from envfarm.session import Turn
from envfarm.spec import EnvSpec, Instance
from envfarm.worker.fresh import Job, play_all
from rollout.hosts import Pool
from rollout.policies import AsyncSession
from rollout.types import Episode, RewardEntry


@dataclass
class ReplayReport(Comparison):
    """What a replay of many episodes found."""

    episodes: int = 0
    partial: int = 0  # not-ok episodes, compared as far as they went

    def to_json(self) -> dict[str, Any]:
        return {"episodes": self.episodes, "partial": self.partial, "same": self.same} | super().to_json()


async def replay_all(
    episodes: Iterable[Episode], pool: Pool, specs: Mapping[str, EnvSpec], *, at_once: int = 8,
    progress: Callable[[Episode], None] | None = None,
) -> ReplayReport:  # fmt: skip
    """Replay episodes, `at_once` at a time; differences in the order of `episodes`. Raises: as `play_all`."""

    def job(episode: Episode) -> Job[AsyncSession, ReplayReport]:
        async def play(session: AsyncSession) -> ReplayReport:
            replayed = await _Replay(episode, specs[episode.env]).run(session)
            if progress is not None:
                progress(episode)
            return replayed

        return Job(episode.id, episode.env, play)

    report = ReplayReport()
    for replayed in await play_all([job(episode) for episode in episodes], pool, at_once=at_once):
        report.add(replayed)
    return report


class _Replay:
    """One episode's comparison. Stops at the first turn that differs: what follows from it says nothing new."""

    def __init__(self, episode: Episode, spec: EnvSpec):
        self.episode, self.spec = episode, spec
        self.report = ReplayReport(episodes=1, partial=int(not episode.ok))
        self.differences = self.report.differences
        self._pair = Pair(episode.id, self.report)
        self._same = self._pair.same
        self._events: list[dict[str, Any]] = []
        self._rewards: list[RewardEntry] = []
        self._taken: dict[str, int] = {}

    async def run(self, session: AsyncSession) -> ReplayReport:
        """Raises: InfraError."""
        await self._compare(session)
        return self.report

    async def _compare(self, session: AsyncSession) -> None:
        episode = self.episode
        instance = msgspec.convert(episode.instance, Instance)
        self._same("instance hash", episode.instance_hash, instance.hash)
        self._same("environment's hash", instance.spec_hash, self.spec.hash)
        try:
            turn = await session.reset(instance)
            self._heard(turn)
            self._turn("first observation", turn, 0, "reset", episode.opening_output)
            for index, step in enumerate(episode.steps):
                if self.differences:
                    return
                if not self._same(f"step {index}, who acts", step.seat, turn.role) or not self._goes_on(index, turn):
                    return
                turn = await session.step(step.tool_calls[0] if step.tool_calls else step.action)
                self._taken[step.seat] = self._taken.get(step.seat, 0) + 1
                self._heard(turn)
                where = f"after step {index}"
                self._same(f"{where}, reward", step.reward, turn.rewards)
                self._same(f"{where}, malformed", step.malformed, turn.malformed)
                self._turn(f"{where}, observation", turn, index + 1, step.action, step.command_output)
            if episode.ok and not self.differences:
                if not turn.over:
                    turn = await session.finish(episode.stop)
                    self._heard(turn)
                    self._text("last observation", episode.final_observation, (), turn, "")
                self._end(turn)
        except EpisodeError as error:
            if str(error.status) != episode.stop:
                if isinstance(error, InfraError):
                    raise
                self._same("end", str(episode.stop), f"{error.status}: {error}")

    def _goes_on(self, index: int, turn: Turn) -> bool:
        return self._same(f"step {index}", "another action", "another action" if not turn.over else f"over: {turn.stop}")

    def _heard(self, turn: Turn) -> None:
        self._events.extend(turn.events)
        components = turn.components or {seat: {"env": value} for seat, value in turn.rewards.items()}
        for seat, parts in components.items():
            number = max(self._taken.get(seat, 0) - 1, 0)
            self._rewards.extend(RewardEntry(seat=seat, turn=number, component=c, value=v) for c, v in parts.items())

    def _turn(self, where: str, turn: Turn, index: int, command: str, spans: Spans) -> None:
        """Compare a turn's text with what was shown at `steps[index]`, or at the end."""
        steps = self.episode.steps
        if index < len(steps):
            self._text(where, steps[index].observation, spans, turn, command)
        elif self.episode.ok and turn.over:
            self._text(where, self.episode.final_observation, spans, turn, command)

    def _text(self, where: str, recorded: str, spans: Spans, turn: Turn, command: str) -> None:
        self._pair.text(where, recorded, spans, turn.text, turn.command_output, command)

    def _end(self, turn: Turn) -> None:
        episode = self.episode
        graded = [r for r in episode.rewards if r.grader == "env"]
        self._same("rewards", msgspec.to_builtins(graded), msgspec.to_builtins(self._rewards))
        totals = dict.fromkeys(episode.seats, 0.0)
        for entry in self._rewards:
            if entry.component == "env":
                totals[entry.seat] = totals.get(entry.seat, 0.0) + entry.value
        self._same("reward", episode.reward, totals)
        self._same("stop", str(episode.stop), turn.stop or "terminated")
        self._same("terminated, truncated", [episode.terminated, episode.truncated], [turn.terminated, turn.truncated])
        self._same("perturbations", episode.perturbations, msgspec.to_builtins(self._events))
        self._same("virtual time", episode.virtual_time_s, turn.virtual_time_s)
