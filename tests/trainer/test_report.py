"""The report says what the run directory holds, whatever environments and policies wrote into it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import UserError
from rollout.store import Store
from rollout.tokenizers import BPETokenizer
from tests.trainer.report_run import ENVS, HOSTILE, PER_ENV, STEPS, make_run
from trainer.report import curves, episodes, sensitivity, tables
from trainer.report.build import build, contents
from trainer.report.data import Played, RunData, read_run_dir
from trainer.report.page import embedded, visible
from trainer.report.transcripts import Pieces, choose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "small")


@pytest.fixture(scope="module")
def data(run_dir: Path) -> RunData:
    return read_run_dir(run_dir)


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return build(run_dir).read_text(encoding="utf-8")


def payload_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_the_page_is_one_small_file_and_the_same_when_built_again(run_dir: Path, page: str) -> None:
    assert build(run_dir) == run_dir / "report.html"
    assert (run_dir / "report.html").read_text(encoding="utf-8") == page
    assert len(page) < 1_500_000
    assert not re.search(r"(src|href)=.?(https?:)?//|@import|url\(", page), "nothing is loaded from elsewhere"


def test_no_text_of_the_run_becomes_markup(page: str) -> None:
    assert "window.pwned=1" in page, "the hostile text is shown"
    assert "<img" not in page and "<script>window" not in page and "<b>bell" not in page
    assert page.count("<script") == 2 and page.count("</script>") == 2, "the data and our own"
    shown = page + "".join(strings(payload_of(page)))
    assert not re.search("[\u202e\x07]", shown), "direction and control characters became visible ones"


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value, *value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def test_tables_hold_the_figures_of_the_summary(run_dir: Path, data: RunData, page: str) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = {(r["stage"], r["split"], r["env"]): r for r in tables.figures(data)}
    assert len(rows) == 3 * 3 * 3
    for stage, splits in summary["stages"].items():
        for split, cell in splits.items():
            row = rows[stage, split, tables.OVERALL]
            assert (row["success"], [row["low"], row["high"]], row["episodes"]) == (cell["success"], cell["ci95"], 2 * PER_ENV)
            assert f"<b>{cell['success']:.3f}</b>" in page
    assert rows["rl", "heldout", ENVS[1]]["success"] == summary["stages"]["rl"]["heldout"]["by_env"][ENVS[1]]["success"]
    pair = next(
        r
        for r in tables.paired_rows(data)
        if (r["key"], r["split"], r["env"]) == ("rl_minus_imitation", "heldout", tables.OVERALL)
    )
    assert pair["mean"] == summary["paired"]["rl_minus_imitation"]["heldout"]["mean"]


def test_the_first_sentences_say_what_was_learned_and_what_was_not_measured(data: RunData) -> None:
    said = tables.headline(data)
    held = data.summary["stages"]["rl"]["heldout"]
    assert (
        f"After rl, the policy solves {held['success']:.3f}" in said["sentences"][0]
        and "48 heldout instances" in said["sentences"][0]
    )
    assert any("Against imitation" in s and "a gain" in s for s in said["sentences"])
    assert any("not measured" in s for s in said["sentences"])
    assert next(c["value"] for c in said["cards"] if c["label"] == "real") == "not measured"


def test_a_measured_real_split_is_shown_as_such(data: RunData) -> None:
    stages = {s: {**row, "real": row["heldout"]} for s, row in data.summary["stages"].items()}
    with_real = RunData(data.run_dir, {**data.summary, "stages": stages}, True, data.metrics, data.stages, played=data.played)
    said = tables.headline(with_real)
    assert not any("not measured" in s for s in said["sentences"])
    assert next(c["value"] for c in said["cards"] if c["label"] == "real, rl") == f"{stages['rl']['real']['success']:.3f}"
    assert {g["split"] for g in tables.gaps(with_real)} == {"validation", "heldout", "real"}


def test_gaps_are_train_minus_the_other_split(data: RunData) -> None:
    for gap in tables.gaps(data):
        cells = data.summary["stages"][gap["stage"]]
        if gap["env"] == tables.OVERALL:
            assert gap["mean"] == pytest.approx(cells["train"]["success"] - cells[gap["split"]]["success"])
        assert gap["low"] <= gap["mean"] <= gap["high"]


def test_training_points_pool_steps_and_count_groups_not_episodes(data: RunData) -> None:
    found = curves.learning_curves(data)
    assert [(b["name"], b["from"], b["to"]) for b in found["bands"]] == [
        ("untrained", 0, 0), ("imitation", 0, STEPS), ("rl", STEPS, 2 * STEPS),
    ]  # fmt: skip
    series = {
        s["window"]: s["points"] for s in found["series"] if (s["kind"], s["env"], s["measure"]) == ("training", "all", "success")
    }
    assert [p[0] for p in series[1]] == list(range(STEPS, 2 * STEPS)) and [p[4] for p in series[1]] == [16] * STEPS
    assert [p[4] for p in series[5]] == [16, 32, 48, 64, 80, 80, 80, 80]
    x, mean, low, high, _ = series[1][0]
    assert (x, mean, low, high) == (STEPS, 0.5, 0.5, 0.5), "every group of that step has the same mean: no spread between groups"


def test_evaluation_points_stand_where_the_stages_end(data: RunData) -> None:
    series = curves.learning_curves(data)["series"]
    held = next(s for s in series if (s["kind"], s["env"], s["measure"], s["name"]) == ("eval", "all", "success", "heldout"))
    figures = data.summary["stages"]
    assert [p[0] for p in held["points"]] == [0, STEPS, 2 * STEPS]
    assert [p[1] for p in held["points"]] == pytest.approx([figures[s]["heldout"]["success"] for s in data.stages], abs=1e-4)
    assert [p[2] for p in held["points"]] == pytest.approx([figures[s]["heldout"]["ci95"][0] for s in data.stages], abs=1e-4)


def test_health_has_a_chart_for_each_stage_and_number(data: RunData) -> None:
    charts = {(h["stage"], h["key"]): h["points"] for h in curves.health(data)}
    assert charts["imitation", "loss"][:2] == [[1, 1.0], [2, 0.5]] and ("imitation", "mismatch_mean") not in charts
    assert charts["rl", "zero_variance"] == [[s, 0.25] for s in range(1, STEPS + 1)], "as a share of the groups drawn"
    assert charts["rl", "rollout_s"] == [[s, 2.0] for s in range(2, STEPS + 1)], "per step, where the row holds the sum so far"


def test_a_planted_cost_comes_first_and_noise_is_called_chance(data: RunData) -> None:
    lamp = next(e for e in sensitivity.sensitivity(data) if e["env"] == ENVS[0])
    rows = next(r["rows"] for r in lamp["results"] if (r["stage"], r["split"]) == ("rl", "all"))
    ranked = [lamp["factors"][r["factor"]]["name"] for r in rows]
    assert ranked[0] == "colour" and rows[0]["p"] < 0.001 and rows[0]["cost"][1] > 0.3
    assert {"level", "serial", "observation.format", "transition.latency_s"} < set(ranked) and lamp["fixed"] == ["shape"]
    assert all(r["p"] > 0.05 for r in rows[1:])
    colour = lamp["factors"][rows[0]["factor"]]
    assert dict(zip(colour["labels"], colour["unseen"], strict=True)) == {"blue": True, "green": False, "red": False}
    assert sum(n for n, _ in rows[0]["counts"]) == 3 * PER_ENV
    assert "colour" in sensitivity.findings([lamp], "rl")[0]


values = st.one_of(st.integers(-50, 50), st.floats(-1, 1), st.sampled_from(["a", "b", "<c>"]), st.booleans(), st.none())


@given(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_episode_is_in_exactly_one_bin(drawn: list[tuple[Any, bool]]) -> None:
    played = [played_with({"x": v} if v is not None else {}, success) for v, success in drawn]
    found, fixed = sensitivity.factors(played)
    assert len(found) + len(fixed) == (any(v is not None for v, _ in drawn))
    for factor in found:
        places = [factor.bin_of(v) for v, _ in drawn]
        assert all(0 <= p < len(factor.labels) for p in places)
        if not factor.labels[-1].endswith("others"):
            assert set(places) == set(range(len(factor.labels))), "no bin is empty"


def played_with(params: dict[str, Any], success: bool) -> Played:
    from rollout.types import StopReason

    return Played(
        id="e", stage="eval/rl/train", step=0, group="g", env="e-v0", split="train", seat="agent", policy="learner",
        stop=StopReason.TERMINATED, success=success, reward=0.0, turns=1, tokens=1, malformed=0, error="", spec_hash="",
        params=params, perturbation={}, timings={},
    )  # fmt: skip


def test_faults_are_listed_and_counted_apart(data: RunData) -> None:
    assert [(e["stop"], e["count"]) for e in episodes.errors(data)] == [("infra_error", 1)]
    shown = next(e for e in episodes.lengths_and_stops(data) if (e["phase"], e["env"]) == ("rl, evaluation", "all"))
    assert shown["episodes"] == 6 * PER_ENV + 1 and shown["stops"][-1] == ["infra_error", 1, False]
    assert sum(bar[2] for bar in shown["turns"]["bars"]) == 6 * PER_ENV


@given(st.lists(st.integers(0, 500), min_size=1, max_size=80))
def test_a_histogram_loses_nothing(lengths: list[int]) -> None:
    bars = episodes.histogram(lengths)["bars"]
    assert len(bars) <= episodes.MOST_BARS and sum(b[2] for b in bars) == len(lengths)
    assert all(b[2] == sum(b[0] <= v <= b[1] for v in lengths) for b in bars)


def test_transcripts_cover_every_policy_with_a_success_and_a_failure(data: RunData) -> None:
    chosen = {(p.env, p.phase, p.success) for p in choose(data)}
    for env in ENVS:
        for phase in (("logs", ""), ("training", "rl"), ("eval", "imitation"), ("eval", "rl")):
            assert (env, phase, True) in chosen and (env, phase, False) in chosen, phase
        assert (env, ("eval", "untrained"), False) in chosen
    members = [p for p in choose(data) if p.phase == ("training", "rl") and p.env == ENVS[0]]
    assert len({p.group for p in members}) == 1, "two members of one group"


def test_tokens_keep_ids_logprobs_and_versions(run_dir: Path, page: str) -> None:
    shown = next(t for t in payload_of(page)["transcripts"] if t["phase"] == "rl, training" and t["success"])
    episode = Store.open(run_dir / "store").get(shown["id"])
    prompt, reply = shown["branches"][0]["nodes"]
    assert reply["ids"] == episode.nodes[1].token_ids and len(reply["text"]) == len(reply["ids"])
    assert reply["logprobs"] == [p for p, m in zip(episode.nodes[1].logprobs, episode.nodes[1].mask, strict=True) if m]
    assert reply["versions"] == [[0, f"learner@0.{STEPS - 1}"]] and reply["text"][0] == "<|act|>"
    assert "".join(reply["text"][1:]) == visible(episode.nodes[1].message.content)
    assert prompt["mask"].count("1") == 0 and prompt["logprobs"] == []


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_pieces_of_tokens_are_the_whole_text(run_dir: Path, text: str) -> None:
    tokenizer = BPETokenizer.load(run_dir / "tokenizer")
    ids = tokenizer.encode(text.encode("utf-8", "replace").decode())
    found = Pieces(run_dir).of(ids)
    assert len(found) == len(ids) and "".join(found) == tokenizer.decode(ids)


@given(st.text())
def test_embedded_text_comes_back_and_cannot_end_its_element(text: str) -> None:
    written = embedded({"t": text})
    assert not set(written) & set("<>&") and written.isascii() and json.loads(written)["t"] == text


def test_a_run_under_way_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    page = build(make_run(tmp_path / "half", finished=False)).read_text(encoding="utf-8")
    assert "has not finished" in page and "After rl" in page


def test_a_run_of_nothing_but_metrics_is_reported(run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / "metrics.jsonl", tmp_path / "metrics.jsonl")
    page = build(tmp_path).read_text(encoding="utf-8")
    assert "No policy of this run was evaluated yet" in page and payload_of(page)["health"]


def test_a_damaged_store_is_left_out_and_said_to_be(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "copy")
    segment = next((tmp_path / "copy" / "store" / "segments").iterdir())
    (segment / "episodes.parquet").write_bytes(b"PAR1 no more")
    page = build(tmp_path / "copy").read_text(encoding="utf-8")
    assert "since it is damaged" in page and "episodes.parquet" in page and "After rl" in page


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (None, "", "neither summary.json nor metrics.jsonl"),
        ("summary.json", "{", "damaged"),
        ("summary.json", "[]", "expected an object"),
    ],
)
def test_what_is_no_run_directory_is_refused(tmp_path: Path, file: str | None, text: str, expected: str) -> None:
    if file:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        build(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        build(tmp_path / "missing")


def test_the_script_draws_all_that_the_page_is_given(data: RunData) -> None:
    _, payload = contents(data)
    text = "".join((ROOT / "trainer/report/assets" / name).read_text() for name in ("page.js", "transcripts.js"))
    assert [key for key in payload if f"data.{key}" not in text] == []
    assert "innerHTML" not in text and HOSTILE not in text


@pytest.mark.slow
def test_training_ends_with_a_report_of_a_real_run(run_file: Callable[..., Path], tmp_path: Path, toys: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from envfarm.cli import main; main()",
        "train",
        str(run_file()),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    shown = payload_of((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert {t["phase"] for t in shown["transcripts"]} >= {"logs", "rl, training", "rl, evaluation"}
    assert {h["key"] for h in shown["health"] if h["stage"] == "rl"} >= {"mismatch_mean", "staleness_max", "zero_variance"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    held = next(s for s in shown["curves"]["series"] if (s["env"], s["measure"], s["name"]) == ("all", "success", "heldout"))
    assert held["points"][-1][1] == pytest.approx(summary["stages"]["rl"]["heldout"]["success"], abs=1e-4)
