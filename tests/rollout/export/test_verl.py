"""verl's parquet: prompts that are instances, rows cut as verl cuts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from envfarm.errors import UserError
from envfarm.spec import Instance
from rollout.export import export
from rollout.export.base import Played, played
from rollout.export.verl import PROMPTS, Verl, main, padded, read_rows, split_row
from rollout.store import Store
from tests.rollout.export.stores import SMALL, chatty, maze, oracle, play


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Played]:
    return list(played(Store.open(play(tmp_path_factory.mktemp("verl") / "store", chatty(), groups=5, size=3)).episodes()))


def test_one_prompt_per_instance(groups: list[Played], tmp_path: Path) -> None:
    assert export(Verl(), groups, tmp_path / "out") == 5
    prompts = pq.read_table(tmp_path / "out" / PROMPTS).to_pylist()
    for index, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        extra, episode = prompt["extra_info"], group.group.episodes[0]
        assert Instance.from_json(extra["instance"]).hash == extra["instance_hash"] == episode.instance_hash
        assert (extra["index"], extra["seat"], extra["split"]) == (index, "agent", "train")
        assert prompt["prompt"] == [{"role": "user", "content": episode.steps[0].observation}]
        assert (prompt["data_source"], prompt["ability"], prompt["agent_name"]) == ("games/maze-v0", "games", "envfarm")


def test_rows_are_whole(groups: list[Played], tmp_path: Path) -> None:
    export(Verl(), groups, tmp_path / "out")
    ours = [row for g in groups for row in g.rows]
    for record, row in zip(read_rows(tmp_path / "out"), ours, strict=True):
        ids = record["prompt_ids"] + record["response_ids"]
        assert ids == row.token_ids[: len(ids)].tolist() and not row.mask[len(ids) :].any()
        assert not row.mask[: len(record["prompt_ids"])].any() and record["response_mask"][0] == record["response_mask"][-1] == 1
        trained = [p for p, m in zip(record["rollout_log_probs"], record["response_mask"], strict=True) if m]
        assert trained == row.logprobs[row.mask].tolist()
        assert record["uid"] == f"{row.group}/agent" and record["num_turns"] == 2 * row.turns
    assert any(record["branch"] > 0 for record in read_rows(tmp_path / "out"))


def test_padded_rows(groups: list[Played]) -> None:
    rows = [row for g in groups for row in g.rows][:7]
    cut = [split_row(row) for row in rows]
    P, Q = max(len(c[0]) for c in cut) + 3, max(len(c[1]) for c in cut) + 2
    arrays = padded(rows, prompt_length=P, response_length=Q, pad_id=99)
    for r, (row, (prompt, response, _, _)) in enumerate(zip(rows, cut, strict=True)):
        whole = arrays["input_ids"][r][arrays["attention_mask"][r].astype(bool)].tolist()
        assert whole == prompt + response
        assert arrays["position_ids"][r][P - len(prompt)] == 0 and arrays["prompts"][r][0] == 99
        assert arrays["rm_scores"][r].sum() == np.float32(row.reward)
        assert arrays["response_mask"][r][np.flatnonzero(arrays["rm_scores"][r])].all()
        assert arrays["advantages"][r].sum() == pytest.approx(row.advantage * row.trained, rel=1e-5)
    with pytest.raises(UserError, match="do not fit"):
        padded(rows, prompt_length=P, response_length=3)


def test_logs_give_prompts_alone(tmp_path: Path) -> None:
    store = play(tmp_path / "logs", oracle(0.0), groups=3, size=2, stage="logs")
    assert export(Verl(), played(Store.open(store).episodes()), tmp_path / "out") == 3
    assert list(read_rows(tmp_path / "out")) == []


def test_prompts_without_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m rollout.export.verl`: as many instances as asked for, or as there are."""
    out = tmp_path / "maze"
    main(
        ["games/maze-v0", "--count", "4", "--first", "998", "--split", "heldout", "--setting", json.dumps(SMALL), "-o", str(out)]
    )
    assert "2 prompts in" in capsys.readouterr().out
    for index, prompt in enumerate(pq.read_table(out / PROMPTS).to_pylist()):
        assert prompt["extra_info"]["instance_hash"] == maze().instance("heldout", 998 + index, SMALL).hash
        assert prompt["prompt"][0]["content"]
    assert "trainer.adapters.verl.EnvfarmAgentLoop" in (out / "agent.yaml").read_text()
    with pytest.raises(UserError, match="no role 'third'"):
        main(["games/kuhn-v0", "--seat", "third", "-o", str(tmp_path / "kuhn")])


@pytest.mark.verl
def test_verl_reads_what_a_store_gives(groups: list[Played], tmp_path: Path) -> None:
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from tests.trainer.adapters.verl_server import model_folder

    export(Verl(), groups, tmp_path / "out")
    config = OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "max_prompt_length": 2000, "filter_overlong_prompts": True})
    tokenizer = AutoTokenizer.from_pretrained(model_folder(tmp_path / "model"))
    dataset = RLHFDataset(str(tmp_path / "out" / PROMPTS), tokenizer, config)
    assert len(dataset) == 5
    for index, group in enumerate(groups):
        row = dataset[index]
        assert row["index"] == index and row["extra_info"]["instance_hash"] == group.group.instance_hash
        assert row["raw_prompt"][0]["content"] == group.group.episodes[0].steps[0].observation
