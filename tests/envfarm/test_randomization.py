"""Sampling: purity, independence, rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import UserError
from envfarm.randomization import sample
from envfarm.spec import EnvSpec, Instance, load_spec
from tests.envfarm.specs import REPAIR, small, write


@pytest.fixture(scope="module")
def repair(tmp_path_factory: pytest.TempPathFactory) -> EnvSpec:
    return load_spec(write(tmp_path_factory.mktemp("repair")))


SEEDS = st.integers(0, 999_999)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "rung": st.integers(0, 2),
        "perturb": st.just("off"),
        "set": st.fixed_dictionaries({}, optional={"bug": st.just("off_by_one"), "domain": st.just(["payroll", "weather"])}),
    },
)


@given(SEEDS, SETTINGS)
@settings(max_examples=60, deadline=None)
def test_sampling_is_pure_and_instances_survive_json(repair: EnvSpec, seed: int, setting: dict[str, Any]) -> None:
    instance = sample(repair, "train", seed, setting)
    other = sample(EnvSpec.from_json(repair.to_json()), "train", seed, dict(reversed(setting.items())))
    assert instance == other and instance.hash == other.hash
    assert Instance.from_json(instance.to_json()) == instance and Instance.from_json(instance.to_json()).hash == instance.hash
    assert repair.instance("train", seed, setting) == instance


@given(SEEDS, SETTINGS)
@settings(max_examples=60, deadline=None)
def test_split_rung_and_set_hold_at_once(repair: EnvSpec, seed: int, setting: dict[str, Any]) -> None:
    instance = sample(repair, "train", seed, setting)
    low, high = repair.ladder[setting["rung"]]["modules"] if "rung" in setting else (1, 4)
    assert low <= instance.params["modules"] <= high
    assert instance.params["bug"] in ("off_by_one", "wrong_operator")
    assert ("decoys" in instance.params) == (instance.params["modules"] >= 2)
    narrowed = setting.get("set", {})
    assert instance.params["domain"] in narrowed.get("domain", ["inventory", "payroll", "weather", "library"])
    assert bool(instance.perturbation) == (setting.get("perturb") != "off")


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_narrowing_one_axis_leaves_the_others(repair: EnvSpec, seed: int) -> None:
    plain, narrowed = sample(repair, "train", seed), sample(repair, "train", seed, {"set": {"domain": "library"}})
    assert narrowed.params == {**plain.params, "domain": "library"}
    assert narrowed.perturbation == plain.perturbation and narrowed.hash != plain.hash
    off = sample(repair, "train", seed, {"perturb": "off"})
    assert off.params == plain.params and off.perturbation == {}


def test_a_new_axis_leaves_the_others(repair: EnvSpec, tmp_path: Path) -> None:
    text = REPAIR.replace("randomize:\n", "randomize:\n  extra:    {normal: {mu: 0, sigma: 1}}\n")
    more = load_spec(write(tmp_path, text))
    assert more.hash != repair.hash
    for seed in range(50):
        params = sample(more, "train", seed).params
        assert params.pop("extra") and params == sample(repair, "train", seed).params


def test_seeds_splits_and_settings_decide(repair: EnvSpec) -> None:
    shown = {str(sample(repair, "train", seed).params) for seed in range(200)}
    assert len(shown) > 40
    hashes = {sample(repair, s, seed).hash for s, first in (("train", 0), ("heldout", 2_000_000)) for seed in (first, first + 1)}
    assert len(hashes) == 4
    assert sample(repair, "train", 3).hash != sample(repair, "train", 3, {"rung": 2}).hash
    assert sample(repair, "train", 3).hash == sample(repair, "train", 3, {"set": {}}).hash, "an empty setting is none"


def test_the_draws_are_those_of_yesterday(repair: EnvSpec) -> None:
    """Stored trajectories name instances by seed: a change of these values needs a new version of every environment."""
    assert sample(repair, "train", 7, {"perturb": "off"}).params == {
        "modules": 1, "bug": "off_by_one", "naming": "snake_case", "domain": "inventory",
    }  # fmt: skip
    assert sample(repair, "train", 7).perturbation["observation.distractors"] == pytest.approx(0.14649820420961746)


def test_narrowing_an_axis_that_may_be_absent_makes_it_present(repair: EnvSpec) -> None:
    """An absent axis meets no condition, so the condition of its `if` holds too."""
    for seed in range(50):
        params = sample(repair, "train", seed, {"set": {"decoys": [1, 2]}}).params
        assert params["decoys"] in (1, 2) and params["modules"] >= 2
    with pytest.raises(UserError, match="set leaves no instance after split 'train' and rung 0: modules"):
        sample(repair, "train", 1, {"rung": 0, "set": {"decoys": [1, 2]}})


def test_rows_give_axes_and_the_rest(repair: EnvSpec) -> None:
    assert repair.size("real") == 2
    first, second = repair.instance("real", 0), repair.instance("real", 1, {"rung": 0})
    assert (first.seed, first.row_key, first.row) == (None, "r1", {"id": "r1", "note": "seen in the wild"})
    assert first.params["bug"] == "off_by_one" and first.params["modules"] == 3 and "naming" in first.params
    assert second.row_key == "2" and "decoys" not in second.params, "null in the data: the axis is absent"
    assert first == sample(repair, "real", "r1") and first.row_hash != second.row_hash


@pytest.mark.parametrize(
    ("split", "chosen", "setting", "says"),
    [
        ("train", 1_000_000, None, "'train' has the seeds 0 to 999999; 1000000 is not one of them"),
        ("train", "r1", None, "'r1' is not one of them"),
        ("trian", 0, None, "no split 'trian' (did you mean 'train'?); it has: train"),
        ("real", "r9", None, "no row 'r9' (did you mean 'r1'?)"),
        ("real", 0, None, "no row 0"),
        ("train", True, None, "expected a seed"),
        ("train", 0, {"rungs": 1}, "unknown key 'rungs' in a setting (did you mean 'rung'?)"),
        ("train", 0, {"rung": 3}, "no rung 3: its ladder has 3 rungs"),
        ("train", 0, {"rung": -1}, "no rung -1"),
        ("train", 0, {"set": {"module": 1}}, "no axis 'module' (did you mean 'modules'?)"),
        ("train", 0, {"set": {"bug": ["swapped_arguments"]}}, "set leaves no instance after split 'train': bug"),
        ("train", 0, {"rung": 0, "set": {"modules": [2, 4]}}, "after split 'train' and rung 0: modules: [2, 4] leaves nothing"),
        ("train", 0, {"perturb": "on"}, "expected `off`"),
        ("train", 0, {"perturb": {"observation.fromat": "json"}}, "no channel 'observation.fromat'"),
        ("train", 0, {"perturb": {"observation.format": "yaml"}}, "'yaml' is not among"),
    ],
)
def test_what_is_not_there_is_named(repair: EnvSpec, split: str, chosen: Any, setting: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        sample(repair, split, chosen, setting)
    assert says in str(caught.value)


def test_index_outside(repair: EnvSpec) -> None:
    with pytest.raises(IndexError, match="1000 instances, index 1000"):
        repair.instance("validation", 1000)
    with pytest.raises(IndexError):
        repair.instance("validation", -1)


def test_channels_can_be_narrowed(repair: EnvSpec) -> None:
    setting = {"perturb": {"observation.format": "json", "action.tool_aliases": True}}
    plain, pinned = sample(repair, "train", 5), sample(repair, "train", 5, setting)
    wanted = {"observation.format": "json", "action.tool_aliases": True}
    assert pinned.perturbation == {**plain.perturbation, **wanted} and pinned.params == plain.params


CASES = "".join(f'{{"id": "c{i}", "level": {i % 3}, "text": "case {i}"}}\n' for i in range(9))


def test_instances_from_rows_with_seeds(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text(CASES)
    body = (
        "randomize: {level: {uniform_int: [0, 2]}, style: {choice: [a, b]}}\n"
        "ladder: [{level: 0}, {level: [1, 2]}]\ninstances: {rows: cases.jsonl, key: id}\n"
        "splits:\n  train: {seeds: {start: 0, count: 100}, where: {level: [0, 1]}}\n  hard: {rows: [c2, c5]}\n"
        "  rest: {rows: {start: 6, count: 3}, where: {level: 2}}\n"
    )
    spec = small(tmp_path, body)
    drawn = [spec.instance("train", i) for i in range(100)]
    assert {i.row_key for i in drawn} == {"c0", "c1", "c3", "c4", "c6", "c7"}, "every row that `where` leaves"
    assert all(i.params["level"] == int(i.row_key[1:]) % 3 for i in drawn if i.row_key)
    assert {i.params["style"] for i in drawn} == {"a", "b"}, "axes apply on top"
    assert {spec.instance("train", i, {"rung": 0}).row_key for i in range(20)} == {"c0", "c3", "c6"}
    assert [spec.instance("hard", i).row_key for i in range(spec.size("hard"))] == ["c2", "c5"]
    assert spec.size("rest") == 1 and spec.instance("rest", 0).row == {"id": "c8", "text": "case 8"}


def test_an_axis_drawn_from_rows(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text(CASES)
    (tmp_path / "notes").mkdir()
    for name in ("b", "a"):
        (tmp_path / "notes" / f"{name}.txt").write_text(f"note {name}")
    body = "randomize: {case: {rows: cases.jsonl, key: id}, note: {rows: 'notes/*.txt'}}\nladder: [{case: [c1, c2]}]\n"
    spec = small(tmp_path, body)
    cases = [spec.instance("train", i).params["case"] for i in range(60)]
    assert {c["id"] for c in cases} == {f"c{i}" for i in range(9)} and cases[0]["text"].startswith("case")
    assert {spec.instance("train", i, {"rung": 0}).params["case"]["id"] for i in range(30)} == {"c1", "c2"}
    notes = {(n["name"], n["text"]) for n in (spec.instance("train", i).params["note"] for i in range(30))}
    assert notes == {("notes/a.txt", "note a"), ("notes/b.txt", "note b")}
    (tmp_path / "cases.jsonl").write_text(CASES + '{"id": "c9"}\n')
    from envfarm.rows import cached_rows

    cached_rows.cache_clear()
    with pytest.raises(UserError, match="changed after the environment was loaded"):
        spec.instance("train", 0)
    assert small(tmp_path, body).hash != spec.hash


def test_parquet_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["x", "y"], "level": [1, 2]}), tmp_path / "cases.parquet")
    spec = small(tmp_path, "randomize: {level: {uniform_int: [0, 2]}}\nsplits: {real: {rows: cases.parquet, key: id}}\n")
    assert [spec.instance("real", i).params for i in range(2)] == [{"level": 1}, {"level": 2}]
