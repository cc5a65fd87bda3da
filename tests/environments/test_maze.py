"""The maze: mazes are what they claim to be, the oracle finds out of any state, thoughtless agents do not."""

from __future__ import annotations

import copy
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import envfarm  # noqa: F401 (registers ids)
from envfarm.registry import default_registry, make_scene
from envfarm.session import LocalSession
from envfarm.testing import agents
from environments.games.maze import carve
from environments.games.maze.grid import OPPOSITE, STEPS, Grid, beyond

SPEC = default_registry().get("games/maze-v0")
RUNGS = range(len(SPEC.ladder))


def session():
    return LocalSession(SPEC, make_scene(SPEC))


@pytest.mark.parametrize("how", sorted(carve.CARVERS))
@given(width=st.integers(2, 9), height=st.integers(2, 9), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_carvers_make_trees_that_reach_every_cell(how, width, height, seed):
    grid = Grid.walled(width, height)
    carve.CARVERS[how](grid, np.random.default_rng(seed))
    assert len(grid.distances((0, 0))) == width * height
    assert sum(len(ways) for ways in grid.passages.values()) == 2 * (width * height - 1)  # a tree, counted from both ends
    assert all(OPPOSITE[d] in grid.passages[beyond(c, d)] for c, ways in grid.passages.items() for d in ways)


@given(seed=st.integers(0, 10_000), doors=st.integers(1, 2), loops=st.sampled_from(sorted(carve.LOOP_SHARE)))
@settings(max_examples=30, deadline=None)
def test_every_door_must_be_opened(seed, doors, loops):
    grid, start, goal = carve.lay_out(7, 8, "prim", loops, "far", doors, np.random.default_rng(seed))
    route = grid.route(start, frozenset(), goal)
    assert route.count("take") == doors == len(set(grid.doors.values()))
    grid.keys = {cell: key for cell, key in grid.keys.items() if key != "red"}
    with pytest.raises(AssertionError, match="without a way"):
        grid.route(start, frozenset(), goal)


@given(
    split=st.sampled_from(["train", "validation", "heldout"]), rung=st.sampled_from(RUNGS), index=st.integers(0, 999),
    wandered=st.integers(0, 25), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_oracle_finds_out_of_any_state(split, rung, index, wandered, seed):
    played = session()
    turn = played.reset(SPEC.instance(split, index, {"rung": rung}))
    scene = played.scene
    scene.budget = scene.turn_limit = 10_000
    for n in range(wandered):
        if not turn.over:
            turn = played.step(played.random(seed + n))
    left = scene.grid.route(scene.cell, scene.held, scene.goal) if not turn.over else []
    for _ in left:
        turn = played.step(played.oracle())
    assert turn.stop == "terminated"


def test_shortest_way_brings_all_and_detours_less():
    played = session()
    instance = SPEC.instance("train", 3, {"rung": 1})
    straight = agents.play(played, instance, agents.oracle)
    assert straight.rewards == {"agent": 1.0}
    for bumps in (1, 2, 5):
        turn = played.reset(instance)
        wall = next(d for d in STEPS if d not in played.scene.grid.passages[played.scene.cell])
        for _ in range(bumps):
            turn = played.step(f"move {wall}")
            assert turn.text.startswith("A wall.") and not turn.over
        while not turn.over:
            turn = played.step(played.oracle())
        assert 0.6 <= turn.rewards["agent"] < 1.0


def test_budget_ends_the_episode_without_reward():
    played = session()
    turn = played.reset(SPEC.instance("train", 0, {"rung": 0}))
    wall = next(d for d in STEPS if d not in played.scene.grid.passages[played.scene.cell])
    for _ in range(played.scene.budget):
        turn = played.step(f"move {wall}")
    assert turn.stop == "terminated" and turn.rewards == {"agent": 0.0}


@pytest.mark.parametrize(("rung", "most"), [(0, 0.1), (1, 0.05), (2, 0.05), (3, 0.05)])
def test_thoughtless_agents_stay_at_the_floor(rung, most):
    played, solved, tried = session(), 0, 60
    for index in range(tried):
        result = agents.play(played, SPEC.instance(("train", "heldout")[index % 2], index, {"rung": rung}), agents.random)
        solved += result.rewards["agent"] >= SPEC.reward.solved_at
    assert solved / tried <= most


def test_view_is_partial():
    """At a cell nothing is told about walls elsewhere: two mazes that differ only there read the same."""
    played = session()
    turn = played.reset(SPEC.instance("train", 5, {"rung": 0}))
    scene = played.scene
    before = scene._seen()
    far = next(c for c in scene.grid.passages if abs(c[0] - scene.cell[0]) + abs(c[1] - scene.cell[1]) > 2 and c != scene.goal)
    for direction in scene.grid.ways(far):
        scene.grid.unlink(far, direction)
    assert scene._seen() == before and "torn map" not in turn.text


def test_heldout_mazes_have_one_way_and_trained_ones_more():
    played = session()
    for split, tree in (("train", False), ("heldout", True)):
        for index in range(20):
            played.reset(SPEC.instance(split, index, {"rung": 0}))
            grid = played.scene.grid
            passages = sum(len(ways) for ways in grid.passages.values()) // 2
            assert (passages == len(grid.passages) - 1) is tree


def test_contents_are_distinct_and_not_shared():
    played = session()
    seen = {s: {played.reset(SPEC.instance(s, i)).text for i in range(300)} for s in ("train", "validation", "heldout")}
    assert all(len(texts) >= 285 for texts in seen.values())
    assert len(set().union(*seen.values())) == sum(map(len, seen.values()))


def test_a_copy_goes_on_by_itself():
    played = session()
    played.reset(SPEC.instance("train", 8, {"rung": 3}))
    fork = copy.deepcopy(played.scene)
    for _ in range(5):
        played.step(played.oracle())
    assert fork.used == 0 and played.scene.used == 5
    assert len(fork.grid.route(fork.cell, fork.held, fork.goal)) == fork.shortest


def test_gymnasium_checker_passes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on text spaces
        check_env(gymnasium.make("games/maze-v0", disable_env_checker=True).unwrapped, skip_render_check=True)
