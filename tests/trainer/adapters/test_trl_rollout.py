"""GRPO with TRL on live rollouts: its batches hold exactly what was played, and nothing of the environment is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envfarm.errors import CapabilityError, UserError
from rollout.export.base import played, totals
from rollout.rows import rows_of
from rollout.store import Store
from rollout.types import Episode, SamplingParams
from tests.trainer.adapters import lamps
from tests.trainer.adapters.conftest import Farm

pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("one_thread")]

GROUP, BATCH = 4, 16


@pytest.fixture(autouse=True)
def lamps_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ENVFARM_PATH", str(lamps.LAMP.parent))


def recorder() -> Any:
    """GRPOTrainer that keeps what its loss was given."""
    from trl import GRPOTrainer

    class Recorder(GRPOTrainer):
        seen: list[dict[str, Any]]

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            kept = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages")
            self.seen.append({k: inputs[k].clone() for k in kept})
            return super()._compute_loss(model, inputs)

    return Recorder


def train(folder: Path, rollout: Any, model: Any, tokenizer: Any, *, steps: int = 4, **more: Any) -> Any:
    from trl import GRPOConfig

    from tests.trainer.adapters.trl_models import QUIET
    from trainer.adapters.trl import environment_reward

    args = GRPOConfig(
        output_dir=str(folder / "run"), per_device_train_batch_size=BATCH, num_generations=GROUP, max_steps=steps,
        learning_rate=3e-3, scale_rewards="none", max_completion_length=256, temperature=1.0, **(QUIET | more),
    )  # fmt: skip
    trainer = recorder()(
        model=model, args=args, reward_funcs=environment_reward, rollout_func=rollout, train_dataset=rollout.dataset(32),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.seen = []
    trainer.train()
    return trainer


def trained_model(farm: Farm, folder: Path) -> tuple[Any, Any]:
    """The farm's model as a Hugging Face one, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    from tests.trainer.adapters.trl_models import fast_tokenizer

    farm.model.save(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), fast_tokenizer(farm.tokenizer, folder, eos="<|end|>")


def func(tmp_path: Path, **more: Any) -> Any:
    from trainer.adapters.trl import make_rollout_func

    options: dict[str, Any] = {"setting": lamps.EASY, "renderer": "compact", "max_tokens": 12, "store": tmp_path / "store"}
    return make_rollout_func(["toy/lamp-v0"], **(options | more))


def test_grpo_on_live_rollouts(farm: Farm, tmp_path: Path) -> None:
    model, tokenizer = trained_model(farm, tmp_path / "model")
    with func(tmp_path) as rollout:
        trainer = train(tmp_path, rollout, model, tokenizer)
    history = [entry for entry in trainer.state.log_history if "rewards/environment_reward/mean" in entry]
    assert len(history) == 4 and all(0 < entry["reward"] < 1 for entry in history)
    groups = list(played(Store.open(tmp_path / "store").episodes()))
    assert [len(g.group.episodes) for g in groups] == [GROUP] * (4 * BATCH // GROUP)
    assert all(len({e.instance_hash for e in g.group.episodes}) == 1 for g in groups)
    assert {e.seats["agent"].number for g in groups for e in g.group.episodes} == {0, 1, 2, 3}  # the weights of each step
    assert len({e.seats["agent"].checksum for g in groups for e in g.group.episodes}) == 4
    for step, seen in enumerate(trainer.seen):
        mine = [g for g in groups if g.group.episodes[0].step == step]
        check_batch(seen, mine)


def check_batch(seen: dict[str, Any], groups: list[Any]) -> None:
    """TRL's batch of one step against our rows: same tokens, same mask, same advantages."""
    rows = {tuple(row.token_ids.tolist()): row for g in groups for row in g.rows}
    given = 0.0
    for i in range(len(seen["advantages"])):
        ids = seen["prompt_ids"][i][seen["prompt_mask"][i].bool()].tolist()
        said = seen["completion_mask"][i].bool()
        ids += seen["completion_ids"][i][said].tolist()
        mask = seen["tool_mask"][i][said].bool().numpy()
        found = [row for tokens, row in rows.items() if list(tokens[: len(ids)]) == ids]
        assert found, "a row that nobody played"
        row = found[0]
        start = len(ids) - len(mask)
        assert np.array_equal(row.mask[start : len(ids)], mask) and not row.mask[:start].any() and not row.mask[len(ids) :].any()
        assert not mask.all() or row.turns == 1
        given += float(seen["advantages"][i]) * int(mask.sum())
    want = totals(row for g in groups for row in g.rows)
    assert int((seen["completion_mask"] * seen["tool_mask"]).sum()) == want.tokens > 0
    assert given == pytest.approx(want.advantage, abs=1e-4)


def test_the_same_run_twice_is_the_same(farm: Farm, tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        model, tokenizer = trained_model(farm, tmp_path / "model")
        with func(tmp_path, store=tmp_path / f"store-{number}") as rollout:
            train(tmp_path, rollout, model, tokenizer, steps=2)
        ends.append(
            [(e.id, e.reward, [n.token_ids for n in e.nodes]) for e in Store.open(tmp_path / f"store-{number}").episodes()]
        )
    assert ends[0] == ends[1]


def test_lora_of_another_family(farm: Farm, tmp_path: Path) -> None:
    """A Llama with an adapter on it: what acts is what is trained, adapter included."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tests.trainer.adapters.trl_models import fast_tokenizer, tiny

    tokenizer = fast_tokenizer(farm.tokenizer, tmp_path / "model", eos="<|end|>")
    base = tiny("llama", farm.tokenizer.vocab_size, tmp_path / "model")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False))
    with func(tmp_path) as rollout:
        trainer = train(tmp_path, rollout, model, tokenizer, steps=2)
        rollout([p for row in rollout.dataset(3) for p in [row["prompt"]] * GROUP], trainer)
        assert logprobs_differ(rollout.episodes, trainer.model) < 1e-4
    numbers = {e.seats["agent"].number for e in Store.open(tmp_path / "store").episodes()}
    assert numbers <= {0, 1, 2} and 0 in numbers  # a step without a signal changes nothing
    assert len(trainer.seen) == 2
    first = [e for e in Store.open(tmp_path / "store").episodes() if e.step == 0]
    assert logprobs_differ(first, base_of(tmp_path, farm)) > 1e-3  # the bare model would have said otherwise


def base_of(tmp_path: Path, farm: Farm) -> Any:
    from tests.trainer.adapters.trl_models import tiny

    return tiny("llama", farm.tokenizer.vocab_size, tmp_path / "base")


def logprobs_differ(episodes: list[Episode], model: Any) -> float:
    import torch

    worst = 0.0
    for row in [row for e in episodes for row in rows_of(e)]:
        ids = torch.tensor([row.token_ids.tolist()])
        with torch.no_grad():
            given = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(given - row.logprobs[1:])[row.mask[1:]].max()))
    return worst


def test_logprobs_are_the_trainers_own(farm: Farm, tmp_path: Path) -> None:
    model, tokenizer = trained_model(farm, tmp_path / "model")
    with func(tmp_path) as rollout:
        trainer = train(tmp_path, rollout, model, tokenizer, steps=1)
        prompts = [row["prompt"] for row in rollout.dataset(3)]
        rollout([p for p in prompts for _ in range(GROUP)], trainer)
        assert logprobs_differ(rollout.episodes, trainer.model) < 1e-4


class Client:
    """What a vLLM server of TRL's would say: ids and logprobs of a model that another engine serves."""

    def __init__(self, answers: Any):
        self.answers, self.asked = answers, list[dict[str, Any]]()

    def generate(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        ids, logprobs = self.answers(asked)
        return {"completion_ids": [ids], "logprobs": [[[p] for p in logprobs]], "prompt_ids": asked["prompts"]}


def test_a_server_of_the_trainers_is_asked_as_it_wants() -> None:
    import asyncio

    from rollout.types import PolicyVersion
    from trainer.adapters.trl_engine import ServerEngine

    client = Client(lambda asked: ([5, 6, 9], [-0.5, -0.25, -1.0]))
    engine = ServerEngine(client, PolicyVersion("learner", number=3))
    params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=8, stop_ids=(9,), seed=2**40 + 1)
    said = asyncio.run(engine.generate([1, 2], params, policy="learner"))
    assert (said.token_ids, said.logprobs, said.finish, said.version.number) == ([5, 6, 9], [-0.5, -0.25, -1.0], "stop", 3)
    [asked] = client.asked
    assert asked["prompts"] == [[1, 2]] and (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.7, 0.9, 8)
    assert asked["generation_kwargs"]["stop_token_ids"] == [9] and 0 <= asked["generation_kwargs"]["seed"] < 2**31


def test_what_cannot_be_is_refused(farm: Farm, tmp_path: Path) -> None:
    from trainer.adapters.trl import make_rollout_func

    model, tokenizer = trained_model(farm, tmp_path / "model")
    with func(tmp_path) as rollout:
        trainer = train(tmp_path, rollout, model, tokenizer, steps=1)
        with pytest.raises(UserError, match="names no instance"):
            rollout(["What is 1 + 1?"], trainer)
        with pytest.raises(UserError, match="not among: toy/lamp-v0"):
            rollout(["games/maze-v0 train 3"], trainer)
        trainer.args.top_k = 5
        with pytest.raises(UserError, match="top_k=5"):
            rollout(["toy/lamp-v0 train 3"], trainer)
    with pytest.raises(UserError, match="exactly one"):
        make_rollout_func(["games/kuhn-v0"])
    with pytest.raises(UserError, match="for evaluation alone"):
        func(tmp_path).dataset(3, split="real")
    with func(tmp_path, store=None) as rollout, pytest.raises(UserError, match="do not belong together"):
        tokenizer.add_tokens([f"<extra {i}>" for i in range(9)])
        train(tmp_path, rollout, model, tokenizer, steps=1)


def test_vllm_inside_the_trainer_is_refused(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from rollout.types import PolicyVersion
    from trainer.adapters.trl_engine import make_engine

    trainer = SimpleNamespace(use_vllm=True, vllm_generation=SimpleNamespace(mode="colocate"))
    with pytest.raises(CapabilityError, match='vllm_mode="server"'):
        make_engine(trainer, tmp_path, PolicyVersion("learner"), max_in_flight=4)
