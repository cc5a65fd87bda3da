"""Text worlds as vectors and numbers: which fit, that the numbers mean what they say, and that the rest is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envfarm.errors import UserError
from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.spec import EnvSpec
from envfarm.tools import ToolCall
from rollout.flat import Encoding, FlatEnv, features
from tests.rollout.scenes import NIM

MAZE = "games/maze-v0"
SETTING = {"rung": 0}
TOY = Path(__file__).resolve().parents[1] / "toy"
LAMP_ACTIONS = [*(f"adjust {colour} {level}" for colour in ("red", "green") for level in (1, 2)), "switch"]


def spec(name: str = MAZE) -> EnvSpec:
    return default_registry([TOY]).get(name)


def test_every_call_of_the_maze_has_a_number_and_the_last_is_nothing() -> None:
    encoding = Encoding.of(spec())
    assert encoding.labels == ["move north", "move south", "move east", "move west", "take", ""]
    assert encoding.action_space.n == 6 and encoding.nothing == 5
    assert [encoding.number(label) for label in encoding.labels[:-1]] == [0, 1, 2, 3, 4]
    assert encoding.number(ToolCall("move", {"direction": "west"})) == 3, "native calls are the same actions"
    assert pickle.loads(pickle.dumps(encoding)) == encoding


def test_it_is_a_gymnasium_environment_and_a_seed_decides() -> None:
    check_env(FlatEnv(spec(), setting=SETTING), skip_render_check=True)

    def course(seed: int) -> list[Any]:
        env, rng = FlatEnv(spec(), setting=SETTING), np.random.default_rng(seed)
        seen = [env.reset(seed=seed)[0].tobytes()]
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(int(rng.integers(6)))
            seen.append((observation.tobytes(), reward))
            over = terminated or truncated
        return seen

    assert course(1) == course(1) and course(1) != course(2)


def test_the_oracles_numbers_solve_what_its_text_solves() -> None:
    env = FlatEnv(spec(), setting=SETTING)
    for index in range(5):
        env.reset(options={"instance": env.env_spec.instance("heldout", index, SETTING)})
        assert env._session is not None
        over, total = False, 0.0
        while not over:
            number = env.encoding.number(env._session.oracle())
            _, reward, terminated, truncated, info = env.step(number)
            assert not info["malformed"]
            total, over = total + reward, terminated or truncated
        assert total == 1.0 and terminated


def test_what_a_vector_holds() -> None:
    env = FlatEnv(spec(), setting=SETTING)
    first, info = env.reset(seed=3)
    n, size = 6, env.encoding.size
    assert first.shape == env.observation_space.shape == (2 * size + 2 * n,)
    assert (first[:size] == first[size : 2 * size]).all() and (first[:size] == features(info["text"], size)).all()
    assert not first[2 * size : 2 * size + n].any(), "no action came before"
    assert first[-n:].tolist() == [1, 1, 1, 1, 0, 1], "without doors there is nothing to take"
    second, *_, told = env.step(2)
    assert second[2 * size : 2 * size + n].tolist() == [0, 0, 1, 0, 0, 0]
    assert (second[:size] == features(told["text"], size)).all() and (second[size : 2 * size] == first[:size]).all()
    *_, told = env.step(env.encoding.nothing)
    assert told["malformed"], "the last number is no action"


def test_words_of_different_lines_are_told_apart() -> None:
    one, other = "goal: north\nopen: east", "goal: east\nopen: north"
    assert (features(one, 512) != features(other, 512)).any()
    assert (features("goal: north", 512) == features("goal:   NORTH", 512)).all()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("games/kuhn-v0", "single-agent"),
        ("coding/shell-v0", "free text"),
        ("toy/lamp-v0", r"'level' of the action 'adjust' is any integer.*actions="),
    ],
)
def test_what_cannot_be_numbered_is_refused(env: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Encoding.of(spec(env))


def test_several_roles_are_refused_before_any_code_is_loaded() -> None:
    with pytest.raises(UserError, match="first, second"):
        Encoding.of(NIM)


def test_named_actions_make_an_environment_fit() -> None:
    encoding = Encoding.of(spec("toy/lamp-v0"), actions=LAMP_ACTIONS)
    assert encoding.labels == [*LAMP_ACTIONS, ""]
    with pytest.raises(UserError, match="'adjust red 7' is none of the 5 numbered actions"):
        encoding.number("adjust red 7")
    with pytest.raises(UserError, match="'adjust mauve 1' is no action"):
        Encoding.of(spec("toy/lamp-v0"), actions=["adjust mauve 1", "switch"])
    with pytest.raises(UserError, match="has 1 actions"):
        Encoding.of(spec("toy/lamp-v0"), actions=["switch"])


def test_text_is_read_in_the_order_of_arguments_that_was_shown() -> None:
    lamp = spec("toy/lamp-v0")
    encoding = Encoding.of(lamp, actions=LAMP_ACTIONS)
    turned = {"perturb": {"action.argument_order": True, "action.tool_aliases": False}}
    turn = local_session(lamp).reset(lamp.instance("train", 0, turned))
    (adjust,) = [t for t in turn.tools if t.name == "adjust"]
    assert list(adjust.parameters) == ["level", "colour"]
    assert encoding.number("adjust 2 green", turn.tools) == LAMP_ACTIONS.index("adjust green 2")


def test_tools_under_other_names_are_refused() -> None:
    encoding = Encoding.of(spec("toy/lamp-v0"), actions=LAMP_ACTIONS)
    aliased = {"perturb": {"action.tool_aliases": True}}
    with pytest.raises(UserError, match="under other names"):
        FlatEnv(spec("toy/lamp-v0"), encoding=encoding, setting=aliased).reset(seed=0)
    FlatEnv(spec("toy/lamp-v0"), encoding=encoding, setting={"perturb": {"action.tool_aliases": False}}).reset(seed=0)
