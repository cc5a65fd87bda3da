"""Recorded actions give the same bytes; one changed byte is found and placed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from envfarm.blocks import Output, Text
from envfarm.comparison import masked
from envfarm.errors import BoxDied, EnvironmentFault, InfraError
from envfarm.session import LocalSession, Turn
from envfarm.tools import tool
from envfarm.worker.fresh import ATTEMPTS
from rollout.inprocess import LocalAsyncSession
from rollout.policies import EnginePolicy, ScriptedPolicy
from rollout.renderers.compact import CompactRenderer
from rollout.replay import ReplayReport, replay_all
from rollout.types import Episode, PolicyVersion, RewardEntry, SamplingParams, StopReason
from tests.rollout.scenes import COUNT, NIM, SPECS, CharTokenizer, Count, HashEngine, local_pool, make_session
from tests.rollout.test_episode import play

TOKENIZER = CharTokenizer()


def learner(*replies: str) -> EnginePolicy:
    return EnginePolicy(PolicyVersion("learner"), HashEngine(TOKENIZER, replies), CompactRenderer(TOKENIZER))


def replay(*episodes: Episode, make: Callable[[str], Any] = make_session) -> ReplayReport:
    return asyncio.run(replay_all(episodes, local_pool(make), SPECS))


EPISODES = [
    play({"agent": learner("add 1", "add 2", "dance")}, index=2),
    play({"agent": ScriptedPolicy("expert", "oracle")}, index=3),
    play({"agent": learner("add 1")}, sampling=SamplingParams(max_tokens=2)),
    play({"first": learner("take 1", "take 2"), "second": ScriptedPolicy("rival", "random")}, spec=NIM, index=4),
]


def test_every_kind_of_episode_repeats_itself() -> None:
    report = replay(*EPISODES)
    assert report.same and report.episodes == 4 and report.partial == 0 and report.masked_chars == 0
    assert EPISODES[2].stop is StopReason.TOKEN_LIMIT and report.text_chars > 100


def step_changed(**change: Any) -> Episode:
    steps = list(EPISODES[0].steps)
    steps[1] = msgspec.structs.replace(steps[1], **change)
    return msgspec.structs.replace(EPISODES[0], steps=steps)


@pytest.mark.parametrize(
    ("episode", "where"),
    [
        (step_changed(observation=EPISODES[0].steps[1].observation + " "), "after step 0, observation"),
        (step_changed(action="add 3" if EPISODES[0].steps[1].action != "add 3" else "add 1"), "step 1"),
        (step_changed(reward={"agent": 0.5}), "after step 1, reward"),
        (step_changed(malformed=not EPISODES[0].steps[1].malformed), "after step 1, malformed"),
        (step_changed(seat="other"), "step 1, who acts"),
        (msgspec.structs.replace(EPISODES[0], final_observation="x"), "observation"),
        (msgspec.structs.replace(EPISODES[0], reward={"agent": 0.125}), "reward"),
        (msgspec.structs.replace(EPISODES[0], stop=StopReason.AGENT_LIMIT), "stop"),
        (msgspec.structs.replace(EPISODES[0], perturbations=[{"x": 1}]), "perturbations"),
        (msgspec.structs.replace(EPISODES[0], instance={**EPISODES[0].instance, "seed": 1}), "instance hash"),
        (msgspec.structs.replace(EPISODES[0], steps=EPISODES[0].steps[:-1]), "reward"),
        (msgspec.structs.replace(EPISODES[0], rewards=[
            *EPISODES[0].rewards, RewardEntry(seat="agent", turn=0, component="style", value=1.0)
        ]), "rewards"),
    ],
)  # fmt: skip
def test_one_change_is_found_and_placed(episode: Episode, where: str) -> None:
    report = replay(msgspec.structs.replace(EPISODES[1], id="untouched"), episode)
    assert not report.same
    assert all(d.episode == EPISODES[0].id for d in report.differences)
    assert any(where in d.where for d in report.differences), [str(d) for d in report.differences]


def test_a_difference_says_at_which_character() -> None:
    changed = step_changed(observation="Tot" + EPISODES[0].steps[1].observation[3:-1] + "!")
    assert "differs at character" in str(replay(changed).differences[0])


def test_appended_rewards_of_other_graders_are_not_the_environments() -> None:
    late = RewardEntry(seat="agent", turn=0, component="style", value=1.0, grader="judge")
    assert replay(msgspec.structs.replace(EPISODES[0], rewards=[*EPISODES[0].rewards, late])).same


def test_an_episode_that_failed_is_compared_as_far_as_it_went() -> None:
    failed = msgspec.structs.replace(
        EPISODES[0], steps=EPISODES[0].steps[:2], stop=StopReason.TIMEOUT, rewards=[], reward={}, final_observation=""
    )
    report = replay(failed)
    assert report.same and report.partial == 1
    wrong = [msgspec.structs.replace(failed.steps[0], observation="else"), *failed.steps[1:]]
    assert not replay(msgspec.structs.replace(failed, steps=wrong)).same


def test_an_environment_that_now_fails_is_a_difference() -> None:
    class Failing(LocalSession):
        def step(self, action: Any) -> Turn:
            raise EnvironmentFault("it broke")

    report = replay(EPISODES[1], make=lambda env_id: Failing(SPECS[env_id], Count(COUNT)))
    assert "it broke" in report.differences[0].replayed


@pytest.mark.parametrize("times", [2, 3])
def test_a_box_that_dies_says_nothing_about_the_episode_which_is_replayed_again(times: int) -> None:
    left = times

    class Dying(LocalSession):
        def step(self, action: Any) -> Turn:
            nonlocal left
            left -= 1
            if left >= 0:
                raise BoxDied("the box is gone")
            return super().step(action)

    def again() -> ReplayReport:
        return replay(EPISODES[1], make=lambda env_id: Dying(SPECS[env_id], Count(COUNT)))

    if times < ATTEMPTS:
        assert again().same
    else:
        with pytest.raises(InfraError, match=f"episode {EPISODES[1].id} could not be played: the box is gone"):
            again()


class Clock(Count):
    """Its tool prints what a command would: a time of day, which the mask covers."""

    now = "10:11:12"

    def add(self, number: int) -> Any:  # type: ignore[override]
        return (Text(super().add(number)), Output(f"at {self.now}"))


def test_command_output_is_compared_under_the_mask_and_other_text_is_not() -> None:
    def session(env_id: str) -> LocalSession:
        return LocalSession(COUNT, Clock(COUNT))

    Clock.now = "10:11:12"
    episode = play({"agent": ScriptedPolicy("expert", "oracle")}, index=2, session=LocalAsyncSession(session(COUNT.id)))
    assert episode.steps[0].command_output
    Clock.now = "23:59:59"
    report = replay(episode, make=session)
    assert report.same and report.masked_chars == 8 * len(episode.steps)
    assert 0 < report.masked_share < 1
    Clock.now = "noon"
    assert not replay(episode, make=session).same


class Sink(Count):
    """Its tool prints what two processes of one pipeline wrote to one stream at once."""

    now = "rm: rm: ab"

    @tool
    def run(self, command: str) -> Any:
        """Run a command.

        command: what to run
        """
        return (Text(command), Output(self.now))


def test_what_processes_wrote_at_once_is_compared_without_its_order_and_counted() -> None:
    def session(env_id: str) -> LocalSession:
        return LocalSession(COUNT, Sink(COUNT))

    def played(command: str) -> Episode:
        return play({"agent": learner(f"run {command}")}, index=2, session=LocalAsyncSession(session(COUNT.id)))

    Sink.now = "rm: rm: ab"
    piped, plain = played("rm a | rm b"), played("rm a b")
    assert piped.steps[0].command_output
    again = replay(piped, make=session)
    assert again.same and again.masked_chars == 0  # equal to the letter: the order is not given away for nothing
    Sink.now = "rm: arm: b"
    assert not replay(plain, make=session).same
    Sink.now = "rm: crm: b"
    assert not replay(piped, make=session).same
    Sink.now = "rm: arm: b"
    report = replay(piped, make=session)
    assert report.masked_chars > 0 and report.same


def test_the_mask_keeps_to_its_spans() -> None:
    text = "10:11:12 at 10:11:12"
    assert masked(text, ((12, 20),), "date") == ("10:11:12 at \0<time>\0", 8)
    assert masked(text, (), "date") == (text, 0)
