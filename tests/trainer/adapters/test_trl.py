"""SFT, DPO and KTO, really trained by TRL on exports of a store: the tokens that are trained are those that were sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import UserError
from rollout.export import export, exporter
from rollout.export.base import Totals, played, totals
from rollout.store import Store
from tests.trainer.adapters.conftest import Farm
from trainer.adapters.trl import exact, load_exact

pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("one_thread")]


def write(store: Path, name: str, folder: Path) -> Totals:
    """Export; what its rows add up to."""
    to = exporter(name)
    export(to, played(Store.open(store).episodes()), folder)
    return totals(row for group in played(Store.open(store).episodes()) for row in to.select(group))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(farm: Farm, tmp_path: Path) -> tuple[str, Any]:
    """(path, tokenizer) of a fresh Qwen3."""
    from tests.trainer.adapters.trl_models import fast_tokenizer, tiny

    tiny("qwen3", farm.tokenizer.vocab_size, tmp_path / "model")
    return str(tmp_path / "model"), fast_tokenizer(farm.tokenizer, tmp_path / "model")


def trained_tokens(trainer: Any, mask: str) -> int:
    """How many tokens TRL's own batches train, over the whole data set."""
    return sum(int((batch[mask][:, 1:] > 0).sum()) for batch in trainer.get_train_dataloader())


def test_sft_on_exact_tokens(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    want = write(farm.store, "trl-sft", tmp_path / "out")
    data = load_exact(tmp_path / "out", tokenizer)
    args = SFTConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=12, max_steps=12, learning_rate=1e-2, **QUIET)
    trainer = SFTTrainer(model=path, args=args, train_dataset=data, processing_class=tokenizer)
    batches = list(trainer.get_train_dataloader())
    assert sum(int((b["labels"][:, 1:] >= 0).sum()) for b in batches) == want.tokens > 0
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 1.0


def test_sft_on_conversations_and_on_replies_of_logs(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    write(farm.logs, "trl-sft", tmp_path / "out")
    said = {}
    for name, more in (("messages", {"assistant_only_loss": True}), ("replies", {})):
        data = load_dataset("json", data_files=str(tmp_path / "out" / f"{name}.jsonl"), split="train", cache_dir=str(tmp_path))
        args = SFTConfig(
            output_dir=str(tmp_path / "run"), per_device_train_batch_size=16, max_steps=8, learning_rate=1e-2, **QUIET, **more
        )
        trainer = SFTTrainer(model=path, args=args, train_dataset=data, processing_class=tokenizer)
        said[name] = [ids for batch in trainer.get_train_dataloader() for ids in batch["labels"].tolist()]
        trainer.train()
        assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    replies = [tokenizer.decode([i for i in ids if i >= 0]) for ids in said["messages"]]
    assert max(r.count("<|im_end|>") for r in replies) > 1  # of several turns, every reply and nothing else
    assert all(part.split()[0] in ("adjust", "switch", "note") for r in replies for part in r.split("<|im_end|>") if part)
    assert all("Lamp" not in tokenizer.decode([i for i in ids if i >= 0]) for ids in said["replies"] + said["messages"])


def test_dpo_on_exact_pairs(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    want = write(farm.store, "trl-dpo", tmp_path / "out")
    data = load_exact(tmp_path / "out", tokenizer)
    assert all(r["chosen_reward"] > r["rejected_reward"] and r["chosen_ids"] != r["rejected_ids"] for r in data)
    args = DPOConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=12, max_steps=8, learning_rate=1e-2, **QUIET)
    trainer = exact(DPOTrainer)(model=path, args=args, train_dataset=data, processing_class=tokenizer)
    assert trained_tokens(trainer, "completion_mask") == want.tokens > 0
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.693, abs=0.01) and losses(trainer)[-1] < 0.6
    assert losses(trainer, "rewards/margins")[-1] > 0


def test_dpo_on_text_pairs_of_logs(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    write(farm.logs, "trl-dpo", tmp_path / "out")
    data = load_dataset("json", data_files=str(tmp_path / "out" / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
    args = DPOConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, **QUIET)
    trainer = DPOTrainer(model=path, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.05


def test_kto_on_exact_replies(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    want = write(farm.store, "trl-kto", tmp_path / "out")
    data = load_exact(tmp_path / "out", tokenizer)
    assert {r["label"] for r in data} == {True, False}
    args = KTOConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=16, max_steps=10, learning_rate=1e-2, **QUIET)
    trainer = exact(KTOTrainer)(model=path, args=args, train_dataset=data, processing_class=tokenizer)
    assert trained_tokens(trainer, "completion_mask") == want.tokens > 0
    trainer.train()
    assert min(losses(trainer)[-3:]) < losses(trainer)[0] - 0.02


def test_kto_on_text_replies_of_logs(farm: Farm, model: tuple[str, Any], tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import KTOConfig, KTOTrainer

    from tests.trainer.adapters.trl_models import QUIET, losses

    path, tokenizer = model
    write(farm.logs, "trl-kto", tmp_path / "out")
    data = load_dataset("json", data_files=str(tmp_path / "out" / "replies.jsonl"), split="train", cache_dir=str(tmp_path))
    args = KTOConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=16, max_steps=10, learning_rate=1e-2, **QUIET)
    trainer = KTOTrainer(model=path, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert min(losses(trainer)[-3:]) < losses(trainer)[0] - 0.02


def test_ids_of_another_tokenizer_are_refused(farm: Farm, tmp_path: Path) -> None:
    from rollout.tokenizers import BPETokenizer
    from tests.trainer.adapters.trl_models import fast_tokenizer

    for name in ("trl-sft", "trl-dpo", "trl-kto"):
        write(farm.store, name, tmp_path / name)
        for vocab, text in ((262, "x"), (300, "something else entirely, entirely else, in the end something is left")):
            other = fast_tokenizer(BPETokenizer.train([text], vocab_size=vocab), tmp_path / f"{name}-{vocab}")
            with pytest.raises(UserError, match="another tokenizer's"):
                load_exact(tmp_path / name, other)


def test_logs_have_no_exact_form(farm: Farm, tmp_path: Path) -> None:
    write(farm.logs, "trl-sft", tmp_path / "out")
    with pytest.raises(UserError, match="scripted policies have no tokens"):
        load_exact(tmp_path / "out", None)
