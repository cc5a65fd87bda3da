"""RLlib for real: PPO on a live environment, BC and MARWIL on stored episodes, in the same numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from envfarm.cli import main
from envfarm.errors import UserError
from envfarm.spec import Instance
from rollout.export.rllib import FILE, read, state_of
from rollout.flat import Encoding, FlatEnv
from rollout.store import Store
from tests.rollout.export.stores import MAZE, SMALL, chatty, maze, play

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
"""Minutes: the first update from stored episodes alone takes one to two (Ray Data's plan), on a busy machine more."""

ROOT = Path(__file__).resolve().parents[2]
LOCAL_RAY = """\
import ray, torch
torch.set_num_threads(1)
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
"""
INSTANCES = 60
"""Validation mazes that policies are compared on, each with the same draws."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray for what runs in this process. Small matrices want one thread."""
    import ray
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of an expert that errs one time in four, as RLlib's offline episodes: the page's commands."""
    folder = tmp_path_factory.mktemp("rllib")
    for line in re.findall(r"^envfarm (.+)$", (ROOT / "docs" / "trainers" / "rllib.md").read_text("utf-8"), re.MULTILINE):
        words = [str(folder / w) if w in ("logs", "offline") else w for w in shlex.split(line)]
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
    return folder / "offline"


def returns(choose: Callable[[np.ndarray, np.random.Generator], int], setting: dict[str, Any]) -> np.ndarray:
    """float64 [INSTANCES]: what a policy earns on each maze, its draws numbered by the maze."""
    env, earned = FlatEnv(maze(), setting=setting, split="validation"), []
    for index in range(INSTANCES):
        rng = np.random.default_rng(index)
        observation, _ = env.reset(options={"instance": maze().instance("validation", index, setting)})
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(choose(observation, rng))
            total, over = total + reward, terminated or truncated
        earned.append(total)
    env.close()
    return np.array(earned)


def of_module(module: Any) -> Callable[[np.ndarray, np.random.Generator], int]:
    """Samples from the module's distribution."""
    import torch

    def choose(observation: np.ndarray, rng: np.random.Generator) -> int:
        with torch.no_grad():
            logits = module.forward_inference({"obs": torch.from_numpy(observation[None])})["action_dist_inputs"][0]
        return int(rng.choice(len(logits), p=torch.softmax(logits.double(), 0).numpy()))

    return choose


def clearly_better(after: np.ndarray, before: np.ndarray, by: float) -> bool:
    """The mean of the differences, maze by maze, is above `by`, two standard errors included."""
    gain = after - before
    print(f"{before.mean():.3f} -> {after.mean():.3f}")
    return bool(gain.mean() - 2 * gain.std() / np.sqrt(len(gain)) > by)


def page(*names: str) -> str:
    """The code of `docs/trainers/rllib.md` in the fences of these names."""
    text = (ROOT / "docs" / "trainers" / "rllib.md").read_text("utf-8")
    fences = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return "\n".join(fences[name] for name in names)


def test_ppo_trains_on_a_live_maze_as_the_page_says(cluster: None) -> None:
    names: dict[str, Any] = {}
    exec(page("named.py", "ppo.py"), names)
    algorithm = names["algorithm"]
    before = returns(of_module(algorithm.get_module()), SMALL)
    exec(page("train.py"), names)
    after = returns(of_module(algorithm.get_module()), SMALL)
    algorithm.stop()
    assert clearly_better(after, before, by=0.1)


@pytest.mark.parametrize("name", ["BC", "MARWIL"])
def test_stored_episodes_train_as_the_page_says(name: str, exported: Path, tmp_path: Path) -> None:
    """In a process of its own: Ray Data reads ahead in a thread, and ends the process where that outlives Ray."""
    from ray.rllib.core.rl_module.rl_module import RLModule

    script = page("bc.py").replace("algorithms.bc", f"algorithms.{name.lower()}").replace("BCConfig", f"{name}Config")
    (tmp_path / "offline").symlink_to(exported)
    (tmp_path / "script.py").write_text(LOCAL_RAY + script + page("end.py"))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    policy = RLModule.from_checkpoint(str(tmp_path / "trained/learner_group/learner/rl_module/default_policy"))
    actions = Encoding.of(maze()).action_space.n
    at_random = returns(lambda _, rng: int(rng.integers(actions)), {"rung": 0})
    assert clearly_better(returns(of_module(policy), {"rung": 0}), at_random, by=0.1)


# The format.


def test_states_are_what_rays_own_class_gives(tmp_path: Path) -> None:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from rollout.export.base import Totals

    encoding = Encoding.of(maze())
    path = play(tmp_path / "store", chatty(), groups=4, size=2)
    episodes = [e for e in Store.open(path).episodes() if e.steps]
    assert any(e.malformed for e in episodes), "also replies that are no action"
    for episode in episodes:
        ours = state_of(episode, encoding, Totals(7, 0.5))
        theirs = SingleAgentEpisode(
            id_=episode.id, observations=list(ours["observations"]["data"]), actions=list(ours["actions"]["data"]),
            rewards=list(ours["rewards"]["data"]), infos=[{} for _ in ours["observations"]["data"]],
            terminated=episode.terminated, truncated=not episode.terminated, t_started=0, len_lookback_buffer=0,
        ).to_numpy()  # fmt: skip
        expected = theirs.get_state()
        assert set(ours) == set(expected)
        for key in set(ours) - {"custom_data", "_start_time", "_last_step_time"}:
            np.testing.assert_equal(_plain(ours[key]), _plain(expected[key]), err_msg=key)
        back = SingleAgentEpisode.from_state(ours)
        assert back.is_done and back.get_return() == pytest.approx(episode.reward["agent"]) and len(back) == len(episode.steps)


def _plain(part: Any) -> Any:
    """Without the spaces, which we leave out and Ray does not ask for when it reads."""
    return {k: v for k, v in part.items() if k != "space"} if isinstance(part, dict) else part


def test_an_exported_log_is_the_episode_that_the_live_environment_plays(exported: Path) -> None:
    """The same instance and the same numbers give the same vectors and rewards: offline and online are one encoding."""
    episodes = {e.id: e for e in Store.open(exported.parent / "logs").episodes()}
    for state in read(exported / MAZE / FILE)[:20]:
        episode = episodes[state["id_"]]
        env = FlatEnv(maze())
        seen = [env.reset(options={"instance": msgspec.convert(episode.instance, Instance)})[0]]
        rewards = []
        for number in state["actions"]["data"]:
            observation, reward, *_ = env.step(int(number))
            seen.append(observation)
            rewards.append(reward)
        np.testing.assert_array_equal(np.stack(seen), state["observations"]["data"])
        np.testing.assert_allclose(rewards, state["rewards"]["data"])


# What does not fit.


def test_what_cannot_be_registered_or_read_is_refused(tmp_path: Path) -> None:
    from trainer.rllib import offline, register

    with pytest.raises(UserError, match="games/maze-v0"):
        register("games/maxe-v0")
    with pytest.raises(UserError, match="single-agent"):
        register("games/kuhn-v0")
    with pytest.raises(UserError, match="no split 'trian'"):
        register(MAZE, split="trian")
    with pytest.raises(UserError, match="rung"):
        register(MAZE, setting={"rung": 99})
    toy = Path(__file__).resolve().parents[1] / "toy"
    named = [f"adjust {colour} {level}" for colour in ("red", "green") for level in (1, 2)]
    with pytest.raises(UserError, match="under other names"):
        register("toy/lamp-v0", actions=[*named, "switch"], env_paths=[toy])
    with pytest.raises(UserError, match="envfarm export STORE --to rllib"):
        offline(tmp_path)


def test_offline_names_the_environment_that_was_meant(exported: Path) -> None:
    from trainer.rllib import offline

    with pytest.raises(UserError, match=f"did you mean .*{MAZE}"):
        offline(exported)
