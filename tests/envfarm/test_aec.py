"""Scenes with several roles pass PettingZoo's own tests and agree with the session underneath."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from pettingzoo.test import api_test, seed_test

from envfarm.aec import TEXT_BYTES
from envfarm.registry import default_registry, make_scene
from envfarm.session import LocalSession

SPEC = default_registry().get("games/kuhn-v0")


def test_pettingzoo_checkers_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on space types and agent names
        api_test(make_scene(SPEC), num_cycles=100)
        seed_test(lambda: make_scene(SPEC), num_cycles=100)


def test_same_actions_as_in_a_session():
    env, session = make_scene(SPEC), LocalSession(SPEC, make_scene(SPEC))
    instance = SPEC.instance("train", 4, {"rung": 2, "perturb": "off"})
    env.reset(options={"instance": instance})
    turn = session.reset(instance)
    while not turn.over:
        observation, *_ = env.last()
        assert (env.agent_selection, observation["text"]) == (turn.role, turn.text)
        action = session.oracle()
        turn = session.step(action)
        env.step(action)
        assert env.rewards == {role: turn.rewards.get(role, 0.0) for role in ("first", "second")}
    assert env.terminations == {"first": True, "second": True}
    for _ in range(2):
        env.step(None)
    assert env.agents == []


def test_observation_is_the_text_as_bytes_and_observing_changes_nothing():
    env = make_scene(SPEC)
    env.reset(seed=3)
    for agent in (*env.agents, *env.agents):
        seen = env.observe(agent)
        assert env.observation_space(agent).contains(seen)
        assert bytes(seen["observation"]).rstrip(b"\0").decode() == seen["text"] and len(seen["observation"]) == TEXT_BYTES
    np.testing.assert_equal(env.observe("first"), env.observe("first"))


def test_seed_decides_and_unseeded_resets_go_on():
    env = make_scene(SPEC)
    texts = []
    for seed in (7, None, None, 7, None, None):
        env.reset(seed=seed)
        texts.append(env.instance.hash)
    assert texts[:3] == texts[3:] and len(set(texts)) == 3


def test_malformed_actions_keep_the_role_on_turn():
    env = make_scene(SPEC)
    env.reset(seed=1)
    agent = env.agent_selection
    env.step("what?")
    assert env.agent_selection == agent and env.infos[agent]["malformed"]
    assert env.last()[0]["text"].startswith("Unknown action")


def test_acting_after_the_end_is_refused():
    env = make_scene(SPEC)
    env.reset(options={"instance": SPEC.instance("train", 0, {"rung": 0})})
    while not all(env.terminations.values()):
        env.step(env._session.oracle())
    with pytest.raises(ValueError, match="only valid action is None"):
        env.step("play check")
