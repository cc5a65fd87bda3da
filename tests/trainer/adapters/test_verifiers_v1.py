"""verifiers 0.4: the taskset, its env and its harness through verifiers' own runner, up to the tokens of a trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envfarm.registry import default_registry
from envfarm.spec import EnvSpec
from rollout.tokenizers import SPECIAL_TOKENS, BPETokenizer, HFTokenizer
from tests.trainer.adapters.chat_server import ChatServer
from tests.trainer.adapters.pages import follow
from trainer.adapters.verifiers_package import write_package

pytestmark = [pytest.mark.verifiers1, pytest.mark.timeout(600)]

TOYS = str(Path(__file__).resolve().parents[2] / "toy")
SETTING = {"rung": 1, "perturb": "off"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def lamp() -> EnvSpec:
    return default_registry([TOYS]).get("toy/lamp-v0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer's folder with the marks of Qwen3's template, as far as renderers ask for them."""
    marks = ("<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    folder = tmp_path_factory.mktemp("model")
    text = ["Lamp in the kitchen: red at level 1, then on. adjust green 2 switch"]
    BPETokenizer.train(text, vocab_size=300, special_tokens=(*SPECIAL_TOKENS, *marks)).save(folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def server(lamp: EnvSpec, model: str) -> Iterator[ChatServer]:
    instances = [lamp.instance("train", i, SETTING) for i in range(6)]
    with ChatServer(lamp, instances, HFTokenizer(model)).serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def package(lamp: EnvSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The lamp as an installed package, found by its name."""
    folder = tmp_path_factory.mktemp("packages") / "lamp"
    name = write_package(lamp, folder, named=lamp.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield name


def play(
    package: str, server: ChatServer, name: str, *, repeats: int = 1, client: Any = None, taskset: Any = None, **env: Any
) -> Any:
    """Episodes by `Env.run_slot`, as `eval` and the env servers of prime-rl run them."""
    import verifiers.v1 as vf

    given = {"id": package, "setting": SETTING, "count": 4} | (taskset or {})
    config = vf.resolve_env_config({"taskset": given, **env})
    loaded = vf.load_environment(config)
    client = client or vf.EvalClientConfig(base_url=server.url, api_key_var="NO_KEY")
    context = vf.ModelContext(model=name, client=client, sampling=vf.SamplingConfig(max_tokens=64))

    async def run() -> list[Any]:
        async with loaded.serving():
            slots = [slot for task in loaded.taskset for slot in loaded.slots(task, repeats)]
            return list(await asyncio.gather(*(loaded.run_slot(slot, context) for slot in slots)))

    return asyncio.run(run())


def test_exactly_one_of_each(package: str) -> None:
    import verifiers.v1 as vf

    module = vf.import_taskset(package)
    classes = [getattr(module, name) for name in module.__all__]
    for base in (vf.Taskset, vf.Env, vf.Harness):
        assert sum(issubclass(c, base) for c in classes) == 1
    assert vf.default_harness_id(package) == package
    assert vf.environment_class(package).__name__ == "EnvfarmEnv"


def test_tasks_are_instances(package: str, lamp: EnvSpec) -> None:
    import verifiers.v1 as vf

    config = vf.taskset_config_type(package).model_validate({"id": package, "setting": SETTING, "split": "heldout", "first": 3})
    taskset = vf.load_taskset(config)
    tasks = list(taskset.take(5))
    assert [t.key for t in tasks] == [lamp.instance("heldout", 3 + i, SETTING).hash for i in range(5)]
    assert [t.data.idx for t in tasks] == list(range(5)) and tasks[0].data.name == "toy/lamp-v0 heldout 3"
    again = list(vf.load_taskset(config).take(5))
    assert [t.hash for t in again] == [t.hash for t in tasks] and len({t.hash for t in tasks}) == 5


@pytest.mark.parametrize("name", ["oracle", "oracle-native"])
def test_oracle_earns_everything(package: str, server: ChatServer, name: str) -> None:
    for episode in play(package, server, name):
        assert episode.ok and not episode.errors
        (trace,) = episode.traces
        assert trace.is_completed and trace.reward == 1.0 and trace.rewards["env"].weight == 1.0
        assert trace.metrics["success"] == 1.0 and trace.metrics["turns"] == 2.0 and trace.metrics["reward_colour"] == 0.25
        assert trace.stop_condition == "terminated" and trace.num_turns == 2 and trace.num_branches == 1
        between = "tool" if name == "oracle-native" else "user"
        assert [m.role for m in trace.messages] == ["user", "assistant", between, "assistant"]
        assert [t.name for t in trace.branches[0].tools] == ["adjust", "note", "switch"]
        assert episode.task.key == trace.task.data.instance_hash


def test_silence_earns_nothing(package: str, server: ChatServer) -> None:
    for episode in play(package, server, "null"):
        (trace,) = episode.traces
        assert episode.ok and trace.reward == 0.0 and trace.metrics["malformed"] == 12.0
        assert trace.stop_condition == "turn_limit"


@pytest.mark.parametrize("renderer", ["default", "qwen3"])
def test_tokens_of_a_trace(package: str, server: ChatServer, model: str, renderer: str) -> None:
    """With the client that training uses: exact ids, what was sampled, with which logprobs; and sums as in our rows."""
    import numpy as np
    import verifiers.v1 as vf

    from rollout.advantages import group_mean

    client = vf.TrainClientConfig(
        base_url=server.url, api_key_var="NO_KEY", renderer_model_name=model, renderer={"name": renderer}
    )  # fmt: skip
    server.requests.clear()
    episodes = play(package, server, "mixed", repeats=4, client=client, tools=False)
    asked = [r["token_ids"] for r in server.requests]
    groups: dict[str, list[Any]] = {}
    for episode in episodes:
        assert episode.ok, episode.errors
        groups.setdefault(episode.task.key, []).append(episode.traces[0])
    assert len(groups) == 4 and all(len(g) == 4 for g in groups.values())
    total, trained = 0.0, 0
    for traces in groups.values():
        advantages = group_mean(np.array([t.reward for t in traces]))
        for trace, advantage in zip(traces, advantages, strict=True):
            (branch,) = trace.branches
            ids, mask = branch.token_ids, branch.sampled_mask
            assert len(ids) == len(mask) == len(branch.logprobs)
            assert all((p != 0.0) == sampled for p, sampled in zip(branch.logprobs, mask, strict=True))
            first = mask.index(True)
            assert ids[:first] in asked  # what the engine continued is what stands there
            last = len(mask) - mask[::-1].index(False) if False in mask[first:] else first
            assert ids[:last] in asked
            for node in trace.nodes:
                if node.sampled:
                    assert sum(node.mask) == len(node.logprobs) > 0
                    node.advantages = [float(advantage)] * len(node.logprobs)
            assert sum(branch.advantages) == pytest.approx(advantage * sum(mask))
            total, trained = total + abs(sum(branch.advantages)), trained + sum(mask)
    assert trained > 200 and total > 1.0


def test_traces_survive_json(package: str, server: ChatServer) -> None:
    import verifiers.v1 as vf

    (episode,) = play(package, server, "oracle", taskset={"count": 1})
    record = episode.traces[0].to_record()
    again = vf.WireTrace.model_validate(json.loads(json.dumps(record)))
    assert again.reward == 1.0 and again.task.data.instance_hash == episode.task.key
    assert "tools" not in record.get("state", {})


def test_dead_model_is_an_error_not_a_reward(package: str, server: ChatServer) -> None:
    for episode in play(package, server, "broken", taskset={"count": 1}):
        assert not episode.ok and "on fire" in str(episode.traces[0].errors)
        assert episode.traces[0].rewards == {}


def test_broken_environment_is_an_error_not_a_reward(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml, code = Path(TOYS, "lamp.yaml").read_text(), Path(TOYS, "lamp.py").read_text()
    (tmp_path / "faulty.yaml").write_text(yaml.replace("toy/lamp-v0", "toy/faulty-v0").replace("./lamp.py", "./faulty.py"))
    assert 'return "The lamp shines."' in code
    (tmp_path / "faulty.py").write_text(code.replace('return "The lamp shines."', 'raise RuntimeError("no power")'))
    spec = default_registry([tmp_path]).get("toy/faulty-v0")
    name = write_package(spec, tmp_path / "package", named=spec.path)
    monkeypatch.syspath_prepend(tmp_path / "package")
    with ChatServer(spec, [spec.instance("train", 0, SETTING)]).serving() as serving:
        (episode,) = play(name, serving, "oracle", taskset={"count": 1})
    assert not episode.ok and "no power" in episode.errors[0].message and not episode.traces[0].ok
    assert episode.traces[0].rewards == {}


@pytest.mark.box
def test_a_box_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, setting = default_registry().get("coding/shell-v0"), {"rung": 0, "perturb": "off"}
    name = write_package(spec, tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path / "package")
    with ChatServer(spec, [spec.instance("train", 0, setting)]).serving() as serving:
        episodes = play(name, serving, "oracle", repeats=2, taskset={"count": 1, "setting": setting})
    assert [e.traces[0].reward for e in episodes] == [1.0, 1.0]


def test_limits_of_verifiers_still_get_the_verdict(package: str, server: ChatServer) -> None:
    """A cap on turns ends the episode; the environment is asked for its verdict, and the trace says whose limit it was."""
    for episode in play(package, server, "null", taskset={"count": 1}, agent={"max_turns": 2}):
        (trace,) = episode.traces
        assert episode.ok and trace.rewards["env"].score == 0.0 and trace.metrics["turns"] == 2.0
        assert trace.stop_condition == "max_turns"


def test_the_page_as_it_stands(server: ChatServer, tmp_path: Path) -> None:
    """The commands of docs/trainers/verifiers.md for 0.4, against a server that plays the oracle."""
    spec, setting = default_registry().get("games/maze-v0"), {"rung": 0}
    with ChatServer(spec, [spec.instance("heldout", i, setting) for i in range(8)]).serving() as serving:
        said = follow(tmp_path, "0.4", serving.url)
    (traces,) = (tmp_path / "outputs").glob("*/traces.jsonl")
    rewards = [t["rewards"]["env"]["score"] for line in traces.open() for t in json.loads(line)["traces"]]
    assert len(rewards) == 8 and min(rewards) >= 0.5, said
