"""verifiers 0.1: our environments through its own `evaluate`, against a server that plays the oracle, or does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import UnknownIdError, UserError
from envfarm.registry import default_registry
from envfarm.spec import EnvSpec
from tests.trainer.adapters.chat_server import ChatServer
from tests.trainer.adapters.pages import follow

pytestmark = [pytest.mark.verifiers0, pytest.mark.timeout(600)]

TOYS = str(Path(__file__).resolve().parents[2] / "toy")
SETTING = {"rung": 1, "perturb": "off"}


@pytest.fixture(scope="module")
def lamp() -> EnvSpec:
    return default_registry([TOYS]).get("toy/lamp-v0")


@pytest.fixture(scope="module")
def server(lamp: EnvSpec) -> Iterator[ChatServer]:
    instances = [lamp.instance(split, i, SETTING) for split in ("train", "heldout") for i in range(8)]
    with ChatServer(lamp, instances).serving() as serving:
        yield serving


def load(**options: Any) -> Any:
    import verifiers as vf

    given = {"env": "toy/lamp-v0", "env_paths": [TOYS], "setting": SETTING, "examples": 8, "eval_examples": 8} | options
    return vf.load_environment("trainer.adapters.verifiers", **given)


def evaluate(env: Any, server: ChatServer, model: str, **options: Any) -> Any:
    import verifiers as vf

    client = vf.ClientConfig(api_base_url=server.url, api_key_var="NO_KEY", max_retries=0)
    given = {"num_examples": 4, "rollouts_per_example": 2, "max_concurrent": 8, "sampling_args": {"max_tokens": 64}} | options
    return asyncio.run(env.evaluate(client=client, model=model, **given))


@pytest.mark.parametrize("model", ["oracle", "oracle-native"])
def test_oracle_earns_everything(server: ChatServer, lamp: EnvSpec, model: str) -> None:
    results = evaluate(load(), server, model)
    assert len(results["outputs"]) == 8 and results["metadata"]["avg_reward"] == 1.0
    for output in results["outputs"]:
        assert output["reward"] == 1.0 and output["error"] is None and output["stop_condition"] == "has_final_env_response"
        assert output["metrics"]["success"] == 1.0 and output["metrics"]["num_turns"] == 2.0
        instance = lamp.instance("heldout", output["example_id"], SETTING)
        assert output["info"]["instance_hash"] == instance.hash
        assert output["prompt"][0]["content"].startswith(f"Lamp {instance.params['serial']} in the {instance.params['room']}")
        roles = [m["role"] for m in output["completion"]]
        assert roles == ["assistant", "tool" if model == "oracle-native" else "user"] * 2
        assert output["completion"][-1]["content"] == "The lamp shines."


def test_silence_earns_nothing(server: ChatServer) -> None:
    results = evaluate(load(), server, "null")
    assert results["metadata"]["avg_reward"] == 0.0
    for output in results["outputs"]:
        assert output["error"] is None and output["metrics"]["success"] == 0.0
        assert output["metrics"]["num_turns"] == output["metrics"]["malformed"] == 12.0  # the environment's own limit


def test_an_empty_reply_is_an_error_to_verifiers(server: ChatServer) -> None:
    """Its client refuses a completion without content, whoever's environment it is."""
    output = evaluate(load(), server, "empty", num_examples=1, rollouts_per_example=1)["outputs"][0]
    assert output["error"]["error"] == "EmptyModelResponseError" and output["metrics"] == {}


def test_tools_are_offered_as_the_episode_names_them(server: ChatServer) -> None:
    before = len(server.requests)
    evaluate(load(), server, "oracle-native", num_examples=1, rollouts_per_example=1)
    offered = [tool["function"]["name"] for tool in server.requests[before]["tools"]]
    assert offered == ["adjust", "note", "switch"]
    before = len(server.requests)
    evaluate(load(tools=False), server, "oracle", num_examples=1, rollouts_per_example=1)
    assert "tools" not in server.requests[before]


def test_groups_share_their_instance_and_tokens_add_up(server: ChatServer) -> None:
    """Advantages by verifiers against ours, on the tokens that the server says it sampled."""
    import numpy as np

    from rollout.advantages import group_mean

    env = load()
    results = evaluate(env, server, "mixed", num_examples=6, rollouts_per_example=4, state_columns=["trajectory", "advantage"])
    groups: dict[int, list[Any]] = {}
    for output in results["outputs"]:
        groups.setdefault(output["example_id"], []).append(output)
    assert len(groups) == 6 and all(len(members) == 4 for members in groups.values())
    trained, total = 0, 0.0
    for members in groups.values():
        assert len({m["info"]["instance_hash"] for m in members}) == 1
        ours = group_mean(np.array([m["reward"] for m in members]))
        assert [m["advantage"] for m in members] == pytest.approx(list(ours))
        for member, advantage in zip(members, ours, strict=True):
            count = sum(sum(step["tokens"]["completion_mask"]) for step in member["trajectory"])
            theirs = sum(step["advantage"] * sum(step["tokens"]["completion_mask"]) for step in member["trajectory"])
            assert theirs == pytest.approx(advantage * count)
            said = [m for m in member["completion"] if m["role"] == "assistant"]
            assert count == sum(len(m["content"].encode()) + 1 for m in said)  # one token per byte and the stop token
            trained, total = trained + count, total + abs(theirs)
    assert trained > 200 and total > 1.0


def test_what_broke_is_no_reward(server: ChatServer, tmp_path: Path) -> None:
    """An environment whose code raises: an error of the rollout, and no part of its siblings' mean."""
    yaml, code = Path(TOYS, "lamp.yaml").read_text(), Path(TOYS, "lamp.py").read_text()
    (tmp_path / "faulty.yaml").write_text(yaml.replace("toy/lamp-v0", "toy/faulty-v0").replace("./lamp.py", "./faulty.py"))
    written = 'return f"The label reads: {text}"'
    assert written in code
    (tmp_path / "faulty.py").write_text(code.replace(written, 'raise RuntimeError("out of ink")'))
    spec = default_registry([tmp_path]).get("toy/faulty-v0")
    with NoteTaker(spec, [spec.instance("heldout", i, SETTING) for i in range(8)]).serving() as notes:
        results = evaluate(
            load(env="toy/faulty-v0", env_paths=[str(tmp_path)]), notes, "mixed", num_examples=1, rollouts_per_example=4,
            state_columns=["advantage"],
        )  # fmt: skip
    broken = [o for o in results["outputs"] if o["error"] is not None]
    fine = [o for o in results["outputs"] if o["error"] is None]
    assert len(broken) == 2 and len(fine) == 2
    assert all("out of ink" in str(o["error"]) and o["advantage"] == 0.0 for o in broken)
    assert [o["reward"] for o in fine] == [1.0, 1.0] and [o["advantage"] for o in fine] == [0.0, 0.0]


class NoteTaker(ChatServer):
    """The oracle, but every second conversation begins with a note."""

    def _say(self, messages: Any, model: str) -> tuple[str, list[tuple[str, str]]]:
        if not any(m["role"] == "assistant" for m in messages):
            self._asked["notes"] += 1
            if self._asked["notes"] % 2:
                return "note hello", []
        return super()._say(messages, "oracle")


def test_dead_model_is_an_error_not_a_reward(server: ChatServer) -> None:
    import verifiers as vf

    with pytest.raises(Exception, match=r"on fire") as raised:
        results = evaluate(load(), server, "broken", num_examples=1, rollouts_per_example=1)
        raise vf.ModelError(str(results["outputs"][0]["error"]))
    assert not isinstance(raised.value, AssertionError)


@pytest.mark.box
def test_a_box_inside(tmp_path: Path) -> None:
    """coding/shell: the agent's commands run in bubblewrap, below verifiers' own loop."""
    spec = default_registry().get("coding/shell-v0")
    setting = {"rung": 0, "perturb": "off"}
    with ChatServer(spec, [spec.instance("heldout", 0, setting)]).serving() as serving:
        env = load(env="coding/shell-v0", env_paths=[], setting=setting, eval_examples=1, examples=1)
        results = evaluate(env, serving, "oracle", num_examples=1, rollouts_per_example=2)
    assert [o["reward"] for o in results["outputs"]] == [1.0, 1.0]


def test_several_roles_against_scripts() -> None:
    """Kuhn poker: the model's seat must be said; the other is played by a script."""
    spec = default_registry().get("games/kuhn-v0")
    with pytest.raises(RuntimeError, match="seat") as raised:
        load(env=spec.id, env_paths=[], setting={})
    assert isinstance(raised.value.__cause__, UserError)
    instances = [spec.instance("heldout", i, {"perturb": "off"}) for i in range(2)]
    env = load(env=spec.id, env_paths=[], setting={"perturb": "off"}, seat="first", others="oracle", eval_examples=2)
    with ChatServer(spec, instances).serving() as serving:
        results = evaluate(env, serving, "null", num_examples=2, rollouts_per_example=1)
    assert all(o["error"] is None and o["is_completed"] for o in results["outputs"])


def test_unknown_environment() -> None:
    with pytest.raises(RuntimeError, match="did you mean") as raised:
        load(env="toy/lump-v0")
    assert isinstance(raised.value.__cause__, UnknownIdError)


def test_package_by_name(lamp: EnvSpec, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python -m trainer.adapters.verifiers_package` writes is found as verifiers finds the hub's."""
    import verifiers as vf

    from trainer.adapters.verifiers_package import write_package

    assert write_package(lamp, tmp_path / "p", named=lamp.path) == "toy-lamp"
    monkeypatch.syspath_prepend(tmp_path / "p")
    env = vf.load_environment("toy-lamp", setting=SETTING, examples=2, eval_examples=2)
    assert evaluate(env, server, "oracle", num_examples=2)["metadata"]["avg_reward"] == 1.0
    assert 'name = "toy-lamp"' in (tmp_path / "p" / "pyproject.toml").read_text()
    with pytest.raises(UserError, match="is there already"):
        write_package(lamp, tmp_path / "p")


def test_the_page_as_it_stands(tmp_path: Path) -> None:
    """The commands of docs/trainers/verifiers.md for 0.1, against a server that plays the oracle."""
    spec, setting = default_registry().get("games/maze-v0"), {"rung": 0}
    with ChatServer(spec, [spec.instance("heldout", i, setting) for i in range(4)]).serving() as serving:
        said = follow(tmp_path, "0.1", serving.url)
    assert "reward: avg - 1.0" in said or "reward: avg - 0.9" in said, said
