"""Run a stored episode again from its recorded actions, in a fresh session, and compare to the byte.

Observations, rewards of every component, who acts, malformed replies, injected events, the virtual clock and the end
must be the same. What a box's command printed is compared under `envfarm.masking`, whose share is counted: a mask that
grows hides differences. Episodes that were not `ok` are compared as far as they were recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from envfarm.errors import EpisodeError, InfraError, first_failure
from envfarm.masking import mask, side_by_side
from envfarm.session import Turn
from envfarm.spec import EnvSpec, Instance
from rollout.hosts import Pool
from rollout.policies import AsyncSession
from rollout.types import Episode, RewardEntry

Spans = tuple[tuple[int, int], ...]
ATTEMPTS = 3
"""At one episode, where the machine and not the episode is to blame for its end."""


@dataclass(frozen=True)
class Difference:
    """One place where an episode did not repeat itself."""

    episode: str
    where: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"episode {self.episode}, {self.where}: recorded {_cut(self.recorded)}, replayed {_cut(self.replayed)}"


@dataclass
class ReplayReport:
    """What a replay of many episodes found."""

    episodes: int = 0
    partial: int = 0  # not-ok episodes, compared as far as they went
    differences: list[Difference] = field(default_factory=list)
    text_chars: int = 0  # of all observations
    output_chars: int = 0  # of these, printed by commands in boxes
    masked_chars: int = 0  # of these, replaced by the mask

    @property
    def same(self) -> bool:
        return not self.differences

    @property
    def masked_share(self) -> float:
        """Of all compared characters."""
        return self.masked_chars / self.text_chars if self.text_chars else 0.0

    def add(self, other: ReplayReport) -> None:
        """Count another report's episodes as well."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes, "partial": self.partial, "same": self.same, "text_chars": self.text_chars,
            "output_chars": self.output_chars, "masked_chars": self.masked_chars, "masked_share": self.masked_share,
            "differences": [vars(d) for d in self.differences],
        }  # fmt: skip


async def replay_all(
    episodes: Iterable[Episode], pool: Pool, specs: Mapping[str, EnvSpec], *, at_once: int = 8,
    progress: Callable[[Episode], None] | None = None,
) -> ReplayReport:  # fmt: skip
    """Replay episodes, `at_once` at a time; differences in the order of `episodes`.

    Raises: InfraError where a session cannot be had or its worker or box dies, `ATTEMPTS` times in a row: that says nothing
    about the episode.
    """
    permits = asyncio.Semaphore(at_once)

    async def one(episode: Episode) -> ReplayReport:
        async with permits:
            for attempt in range(1, ATTEMPTS + 1):
                session = await pool.session(episode.env)
                try:
                    replayed = await _Replay(episode, specs[episode.env]).run(session)
                    break
                except InfraError as error:
                    if attempt == ATTEMPTS:
                        raise InfraError(f"episode {episode.id} could not be replayed: {error}") from error
                finally:
                    await asyncio.shield(session.close())
        if progress is not None:
            progress(episode)
        return replayed

    try:
        async with asyncio.TaskGroup() as tasks:
            replays = [tasks.create_task(one(episode)) for episode in episodes]
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from None
    report = ReplayReport()
    for done in replays:
        report.add(done.result())
    return report


class _Replay:
    """One episode's comparison. Stops at the first turn that differs: what follows from it says nothing new."""

    def __init__(self, episode: Episode, spec: EnvSpec):
        self.episode, self.spec = episode, spec
        self.report = ReplayReport(episodes=1, partial=int(not episode.ok))
        self.differences = self.report.differences
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
        self.report.text_chars += len(turn.text)
        self.report.output_chars += sum(end - start for start, end in turn.command_output)
        left, _ = masked(recorded, spans, command)
        right, count = masked(turn.text, turn.command_output, command)
        if left != right and side_by_side(command):  # their processes may have written at once: the same without its order?
            loose, _ = masked(recorded, spans, command, unordered=True)
            other, whole = masked(turn.text, turn.command_output, command, unordered=True)
            if loose == other:
                left, right, count = loose, other, whole
        self.report.masked_chars += count
        self._same(where, left, right)

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

    def _same(self, where: str, recorded: Any, replayed: Any) -> bool:
        if recorded == replayed:
            return True
        self.differences.append(Difference(self.episode.id, where, *_apart(recorded, replayed)))
        return False


def masked(text: str, spans: Spans, command: str, *, unordered: bool = False) -> tuple[str, int]:
    """`text` with the mask over its command output, and how many characters that replaced."""
    parts, count, at = [], 0, 0
    for start, end in spans:
        covered, replaced = mask(command, text[start:end], unordered=unordered)
        parts += [text[at:start], "\0" + covered + "\0"]  # so that a span's borders are compared, too
        count += replaced
        at = end
    return "".join([*parts, text[at:]]), count


def _apart(recorded: Any, replayed: Any) -> tuple[str, str]:
    """Both sides as text; of long texts what follows their common beginning."""
    if not (isinstance(recorded, str) and isinstance(replayed, str)):
        return repr(recorded), repr(replayed)
    same = next((i for i, (a, b) in enumerate(zip(recorded, replayed, strict=False)) if a != b), None)
    if same is None:
        same = min(len(recorded), len(replayed))
    start = max(0, same - 20)
    return repr(recorded[start:]) + f" (differs at character {same})", repr(replayed[start:])


def _cut(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
