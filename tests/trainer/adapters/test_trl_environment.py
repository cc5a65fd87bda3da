"""GRPO where TRL plays itself: our tools answer, their answers are not trained, a group shares its instance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import UserError
from envfarm.tools import ToolCall
from rollout.export import export, exporter
from rollout.export.base import played
from rollout.policies import Moment, Reply
from rollout.store import Store
from rollout.types import PolicyVersion
from tests.trainer.adapters import lamps
from trainer.adapters.trl import environment_factory

pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("one_thread")]

TOYS = Path(__file__).parent / "toys"
OFF: dict[str, Any] = {"perturb": "off"}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ENVFARM_PATH", f"{TOYS}:{lamps.LAMP.parent}")


class Presser:
    """Calls the tool natively, with one button or the other."""

    version = PolicyVersion("p")

    async def reply(self, moment: Moment) -> Reply:
        return Reply("", ToolCall("press", {"button": ("left", "right")[moment.seed % 2]}))


def test_an_episode_by_hand() -> None:
    from transformers.utils import get_json_schema

    with environment_factory("toy/buttons-v0") as factory:
        [row, *_] = factory.dataset(1)
        live: Any = factory()
        assert get_json_schema(live.press)["function"] == {
            "name": "press", "description": "Press it.",
            "parameters": {
                "type": "object", "required": ["button"],
                "properties": {"button": {"type": "string", "enum": ["left", "right"], "description": "which"}},
            },
        }  # fmt: skip
        for wrong in (0, 1, 2):
            shown = live.reset(**row)
            for press in range(2):
                wanted = shown.removeprefix("Press ").removesuffix(".")
                shown = live.press(button=wanted if press >= wrong else {"left": "right", "right": "left"}[wanted])
            assert (shown, live.get_reward(), live.get_reward()) == ("Done.", 1.0 - wrong / 2, 1.0 - wrong / 2)
            assert live.press(button="left") == "The episode is over."
        first = live.reset(**row)
        assert first == live.reset(**row) and live.get_reward() == 0.0  # not over: it ends there
        live.reset(**row)
        assert "button" in live.press(knob="left") and "button" in live.press(
            button="middle"
        )  # the environment says what is wrong


def warm(folder: Path, factory: Any) -> tuple[Any, Any]:
    """A model that spells calls, by SFT on the conversations of logs, and its tokenizer; rendered by Qwen3's template."""
    import trl
    from datasets import load_dataset
    from transformers.utils import get_json_schema
    from trl import SFTConfig, SFTTrainer

    from rollout.tokenizers import BPETokenizer
    from tests.trainer.adapters.trl_models import QUIET, fast_tokenizer, tiny

    lamps.play(Presser(), groups=24, size=2, stage="logs", store=folder / "logs", spec=factory.spec, setting=OFF)
    export(exporter("trl-sft"), played(Store.open(folder / "logs").episodes()), folder / "out")
    data = load_dataset("json", data_files=str(folder / "out" / "messages.jsonl"), split="train", cache_dir=str(folder))
    schemas = [get_json_schema(getattr(factory(), name)) for name in factory.tools]
    data = data.map(lambda _: {"tools": json.dumps(schemas)})
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    plain = fast_tokenizer(BPETokenizer.train(["x"], vocab_size=262), folder / "plain", template=template)
    texts = [plain.apply_chat_template(r["messages"], tools=schemas, tokenize=False) for r in data]
    tokenizer = BPETokenizer.train([line for text in texts for line in text.split("\n")], vocab_size=500)
    fast = fast_tokenizer(tokenizer, folder / "model", template=template)
    tiny("qwen3", tokenizer.vocab_size, folder / "model", length=1024, width=48)
    args = SFTConfig(
        output_dir=str(folder / "sft"), per_device_train_batch_size=8, max_steps=60, learning_rate=1e-2,
        assistant_only_loss=True, **QUIET,
    )  # fmt: skip
    trainer = SFTTrainer(model=str(folder / "model"), args=args, train_dataset=data, processing_class=fast)
    trainer.train()
    return trainer.model, fast


def test_grpo_on_tools(tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    from tests.trainer.adapters.trl_models import QUIET

    class Recorder(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            kept = {k: inputs[k].clone() for k in ("completion_ids", "completion_mask", "tool_mask")}
            batches.append((kept, [str(e._address) for e in self.environments]))
            return super()._compute_loss(model, inputs)

    batches: list[Any] = []
    with environment_factory("toy/buttons-v0") as factory:
        model, tokenizer = warm(tmp_path, factory)
        args = GRPOConfig(
            output_dir=str(tmp_path / "grpo"), per_device_train_batch_size=8, num_generations=4, max_steps=3,
            learning_rate=1e-3, max_completion_length=160, max_tool_calling_iterations=3, **QUIET,
        )  # fmt: skip
        trainer = Recorder(
            model=model, args=args, environment_factory=factory, train_dataset=factory.dataset(16), processing_class=tokenizer
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/Buttons/mean" in entry]
    assert len(logged) == 3 and max(entry["tools/call_frequency"] for entry in logged) > 0
    assert max(entry["rewards/Buttons/mean"] for entry in logged) > 0
    for batch, instances in batches:
        assert all(len(set(instances[i : i + 4])) == 1 for i in range(0, len(instances), 4)), instances
        for ids, said, mask in zip(batch["completion_ids"], batch["completion_mask"], batch["tool_mask"], strict=True):
            spoken = tokenizer.decode(ids[(said * mask).bool()])
            heard = tokenizer.decode(ids[(said * (1 - mask)).bool()])
            assert "<tool_response>" not in spoken and ("Press" in heard or "Done" in heard or not heard)
    assert any((b["tool_mask"] == 0).any() for b, _ in batches), "no answer of a tool was ever in a completion"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="roles first, second"):
        environment_factory("games/kuhn-v0")
    with environment_factory("toy/buttons-v0", setting={"perturb": {"action.tool_aliases": True}}) as factory:
        with pytest.raises(UserError, match="the trainer knows press"):
            factory().reset(**factory.dataset(1)[0])
        with pytest.raises(UserError, match="lacks the column 'env'"):
            factory().reset(prompt="x")
