"""Channels: recorded, keyed, truthful, and never inside what is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from envfarm.perturbation import CHANNELS, channel_class, perturbed
from envfarm.registry import make_scene
from envfarm.session import LocalSession, Session, Turn
from envfarm.spec import EnvSpec, Instance, load_spec
from envfarm.testing import agents

TOY = Path(__file__).parent.parent / "toy" / "lamp.yaml"


@pytest.fixture(scope="module")
def spec() -> EnvSpec:
    return load_spec(TOY)


def instance(spec: EnvSpec, index: int = 0, **channels: Any) -> Instance:
    made = spec.instance("train", index)
    return msgspec.structs.replace(made, perturbation={k.replace("__", "."): v for k, v in channels.items()})


def session(spec: EnvSpec) -> Session:
    return perturbed(LocalSession(spec, make_scene(spec)))


def test_without_channels_nothing_changes(spec: EnvSpec) -> None:
    plain = agents.play(LocalSession(spec, make_scene(spec)), instance(spec), agents.mixed(0.5))
    wrapped = agents.play(session(spec), instance(spec), agents.mixed(0.5))
    assert plain == wrapped


def test_the_oracle_solves_every_perturbed_instance(spec: EnvSpec) -> None:
    live = session(spec)
    drawn: dict[str, set[str]] = {}
    for index in range(60):
        made = spec.instance("train", index)
        for key, value in made.perturbation.items():
            drawn.setdefault(key, set()).add(repr(value))
        assert agents.play(live, made, agents.oracle).rewards == {"agent": 1.0}
    assert set(drawn) == set(CHANNELS) and all(len(values) > 1 for values in drawn.values())


def test_same_instance_same_episode_and_events(spec: EnvSpec) -> None:
    for index in range(10):
        runs = [_events(session(spec), spec.instance("train", index)) for _ in range(2)]
        assert runs[0] == runs[1]


def _events(live: Session, made: Instance) -> list[Any]:
    turn, seen, n = live.reset(made), [], 0
    seen.append((turn.text, turn.events, turn.virtual_time_s))
    while not turn.over:
        turn = live.step(live.random(n) if n < 3 else live.oracle())
        seen.append((turn.text, turn.events, turn.virtual_time_s))
        n += 1
    return seen


def test_aliases_are_shown_and_old_names_are_gone(spec: EnvSpec) -> None:
    live = session(spec)
    turn = live.reset(instance(spec, action__tool_aliases=True))
    names = {t.name for t in turn.tools}
    assert not names & {"adjust", "note", "switch"}
    assert all(name in turn.text for name in names)
    assert live.step("switch").malformed
    assert [e["tool"] for e in turn.events] == ["adjust", "note", "switch"]
    assert live.oracle().split()[0] in names


def test_argument_order_changes_text_but_not_native_calls(spec: EnvSpec) -> None:
    orders = set()
    for index in range(20):
        live = session(spec)
        made = instance(spec, index, action__argument_order=True)
        turn = live.reset(made)
        adjust = next(t for t in turn.tools if t.name == "adjust")
        orders.add(tuple(adjust.parameters))
        words = {"colour": "red", "level": "4"}
        after = live.step("adjust " + " ".join(words[p] for p in adjust.parameters))
        assert "red" in after.text and "4" in after.text
    assert orders == {("colour", "level"), ("level", "colour")}


def test_an_injected_error_does_nothing_and_takes_a_turn(spec: EnvSpec) -> None:
    live = session(spec)
    turn = live.reset(instance(spec, transition__tool_error=1.0))
    for _ in range(spec.limits.turns):
        assert not turn.over
        turn = live.step("switch")
    assert turn.truncated and turn.stop == "turn_limit" and turn.rewards == {}


def test_error_events_do_not_shift_when_a_call_is_added(spec: EnvSpec) -> None:
    made = instance(spec, transition__tool_error=0.5)

    def hits(first: str) -> list[bool]:
        live = session(spec)
        live.reset(made)
        live.step(first)
        return [bool(live.step("note x").events) for _ in range(8)]

    assert hits("note y") == hits("adjust red 3") == hits("not an action")


def test_latency_runs_on_a_virtual_clock(spec: EnvSpec) -> None:
    live = session(spec)
    live.reset(instance(spec, transition__latency_s=3600.0))
    turn = live.step("note x")
    assert turn.virtual_time_s > 60 and turn.events[0]["seconds"] == turn.virtual_time_s
    assert live.step("note x").virtual_time_s > turn.virtual_time_s


def test_delayed_reward_keeps_its_sum(spec: EnvSpec) -> None:
    for delay in (0, 1, 5):
        played = agents.play(session(spec), instance(spec, reward__delay_turns=delay), agents.oracle)
        assert played.rewards == {"agent": 1.0}


def test_reward_delay_hands_out_later_and_all_by_the_end() -> None:
    from envfarm.perturbation.base import Draws
    from envfarm.perturbation.reward_delay import RewardDelay

    channel = RewardDelay(2, Draws("h", "reward.delay_turns"))
    given = [channel.reward({"a": {"env": float(t)}}, t, over=t == 5) for t in range(1, 6)]
    assert [g.get("a", {}).get("env", 0.0) for g in given] == [0.0, 0.0, 1.0, 2.0, 12.0]


def test_distractors_never_touch_a_block(spec: EnvSpec) -> None:
    live = session(spec)
    calm = live.reset(instance(spec))
    noisy = live.reset(instance(spec, observation__distractors=1.0))
    assert [b for b in noisy.blocks if b in calm.blocks] == list(calm.blocks)
    assert len(noisy.blocks) == 2 * len(calm.blocks) + 1 == len(calm.blocks) + len(noisy.events)


@pytest.mark.parametrize("name", ["plain", "markdown", "json", "xml"])
def test_format_channel_writes_in_that_format(spec: EnvSpec, name: str) -> None:
    turn: Turn = session(spec).reset(instance(spec, observation__format=name))
    assert turn.text.startswith({"plain": "Lamp", "markdown": "Lamp", "json": "[", "xml": "<observation>"}[name])


def test_every_channel_refuses_nonsense() -> None:
    for key in CHANNELS:
        assert channel_class(key).check("nonsense") is not None


def test_a_limit_of_the_episodes_own_counts_what_is_malformed(spec: EnvSpec) -> None:
    class Hurried(type(make_scene(spec))):  # type: ignore[misc]
        def start(self) -> Any:
            self.turn_limit = 3 if self.params["level"] else None
            return super().start()

    for live in (LocalSession(spec, Hurried(spec)), perturbed(LocalSession(spec, Hurried(spec)))):
        for made in (instance(spec), instance(spec, transition__tool_error=0.5)):
            turn, taken = live.reset(made), 0
            while not turn.over:
                turn, taken = live.step(("gibberish", "note a")[taken % 2]), taken + 1
            assert (taken, turn.stop) == (3, "turn_limit")
    plain = session(spec)
    plain.reset(instance(spec))
    assert plain.turn_limit == spec.limits.turns
