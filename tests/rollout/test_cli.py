"""The commands, as a person or a script would use them: worker processes, stores on disk, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envfarm.cli import main
from rollout.export.jsonl import read
from rollout.store import Store

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "toy"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFARM_PATH", str(TOY))


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(a) for a in arguments])
    return int(done.value.code or 0)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> Any:
    capsys.readouterr()
    assert command(*arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "store"
    os.environ["ENVFARM_PATH"] = str(TOY)
    assert (
        command("rollout", "--env", "toy/lamp", "--policy", "oracle:0.3", "--episodes", "12", "--group", "2", "--out", folder)
        == 0
    )
    return folder


def test_a_rollout_is_stored_and_not_played_twice(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = answer(
        capsys, "rollout", "--env", "toy/lamp", "--policy", "oracle:0.3", "--episodes", "12", "--group", "2", "--out", store
    )
    assert again["episodes"] == again["reused"] == 12 and again["by_env"]["toy/lamp-v0"]["ok"] == 12
    info = answer(capsys, "store", "info", store)
    assert info["episodes"] == 12 and info["stages"] == {"rollout": 12}
    rows = answer(capsys, "store", "info", store, "--sql", "select env, count(*) as n from episodes group by env")
    assert rows == [{"env": "toy/lamp-v0", "n": 12}]


def test_replay_in_a_fresh_process_of_another_hash_seed_zone_and_date(store: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "ENVFARM_PATH": str(TOY)}
    done = subprocess.run(
        [sys.executable, "-c", "from envfarm.cli import main; main()", "replay", str(store), "--json", "--workers", "1"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["same"] and report["episodes"] == 12 and report["masked_share"] == 0.0


def test_replay_of_a_changed_episode_fails_and_says_where(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.create(tmp_path / "changed") as changed:
        for number, episode in enumerate(Store.open(store).episodes()):
            if number == 5:
                episode.steps[1].observation = episode.steps[1].observation.replace("level", "lever")
            changed.append(episode)
    report = answer(capsys, "replay", tmp_path / "changed", code=1)
    assert not report["same"] and {d["episode"] for d in report["differences"]} == {report["differences"][0]["episode"]}
    assert report["differences"][0]["where"] == "after step 0, observation"
    assert command("store", "check", tmp_path / "changed") == 0, "a store that was written so is a whole store"


def test_store_check_finds_a_flipped_value(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "store", "check", store) == {"store": str(store), "episodes": 12, "ok": True, "findings": []}
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", str(store), str(copy)], check=True)
    file = copy / "segments" / "000001" / "rewards.parquet"
    table = pq.read_table(file)
    values = table["value"].to_pylist()
    values[2] += 0.5
    pq.write_table(table.set_column(table.schema.get_field_index("value"), table.schema.field("value"), pa.array(values)), file)
    report = answer(capsys, "store", "check", copy, code=1)
    where = {f["where"].split(",")[-1].strip() for f in report["findings"]}
    assert any(w.startswith("reward") for w in where) and any("damaged" in f["problem"] for f in report["findings"])
    assert answer(capsys, "store", "repair", copy)["set_aside"][0].startswith("segment 000001")


def test_export_to_jsonl_gives_every_episode_back(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "out"
    assert answer(capsys, "export", "--to", "jsonl", store, "--output", out)["records"] == 12
    assert list(read(out / "episodes.jsonl")) == list(Store.open(store).episodes())
    assert command("export", "--to", "jsnol", store, "--output", out) == 2
    assert "did you mean 'jsonl'" in capsys.readouterr().err
    assert command("export", store, "--output", tmp_path / "none", "--env", "toy/lump-v0") == 2
    assert "environments: toy/lamp-v0" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert command("export", store, "--output", out) == 2, "what is there is not overwritten"


def test_eval_counts_by_split_and_environment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = answer(
        capsys, "eval", "oracle", "--env", "toy/*", "--split", "heldout", "--split", "train", "--episodes", "6",
        "--out", tmp_path / "s",
    )  # fmt: skip
    assert set(report["splits"]) == {"heldout", "train"}
    heldout = report["splits"]["heldout"]
    assert heldout["success"] == 1.0 and heldout["episodes"] == 6 and heldout["ci95"][1] == 1.0
    assert heldout["by_env"]["toy/lamp-v0"]["episodes"] == 6
    assert sorted(Store.open(tmp_path / "s").stats()["stages"]) == ["eval/heldout", "eval/train"]


def test_the_table_of_an_evaluation_is_whole_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    envs = ("--env", "toy/lamp", "--env", "coding/repair")
    assert command("eval", "oracle", *envs, "--split", "validation", "--episodes", "2") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    for words in ("validation", "coding/repair-v0", "success [95 %]", "malformed", "1.000 [0.34, 1.00]"):
        assert words in shown, shown


BROKEN = """\
envfarm: 1
id: toy/broken-v0
entry: ./broken.py:Broken
splits: {heldout: {seeds: {start: 0, count: 10}}}
"""


def test_where_no_episode_came_to_its_end_there_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    (tmp_path / "broken.py").write_text(
        "from envfarm.env import Scene\nclass Broken(Scene):\n    def start(self):\n        raise ZeroDivisionError\n"
    )
    asked = ("--env", tmp_path / "broken.yaml", "--split", "heldout", "--episodes", "2")
    played = answer(capsys, "rollout", *asked, "--out", tmp_path / "s")["by_env"]["toy/broken-v0"]
    assert (played["ok"], played["success"], played["turns"], played["stops"]) == (0, None, None, {"env_error": 2})
    assert answer(capsys, "eval", "oracle", *asked)["splits"]["heldout"]["success"] is None
    for words in (("rollout", *asked, "--out", tmp_path / "s"), ("eval", "oracle", *asked)):
        assert command(*words) == 0
        shown = capsys.readouterr().out
        assert "–" in shown and "0.0" not in shown, shown


@pytest.mark.parametrize("arguments", [("rollout",), ("eval", "oracle", "--split", "train")])
def test_a_run_that_is_refused_leaves_nothing(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENVFARM_IMAGES", str(tmp_path / "images"))
    assert command(*arguments, "--env", "coding/shell", "--episodes", "3", "--out", tmp_path / "runs" / "s") == 2
    assert "run `envfarm image build`" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


RUN = """\
envfarm: 1
run: trial
environments: [{id: toy/lamp-v0, setting: {rung: 0}}]
policies: {learner: {model: tiny, trainable: true}, other: {scripted: random}}
workers: 1
stages: []
"""


def test_a_version_that_is_not_saved_yet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = RUN.replace("other: {scripted: random}", "other: {version: learner@imitation}") + f"output: {tmp_path / 'out'}\n"
    (tmp_path / "run.yaml").write_text(text.replace("workers", "seats: {toy/lamp-v0: {agent: other}}\nworkers"))
    assert command("rollout", tmp_path / "run.yaml", "--out", tmp_path / "s") == 2
    error = capsys.readouterr().err
    assert f"version 'learner@imitation': there is no {tmp_path / 'out' / 'policies' / 'imitation'}" in error


def test_a_run_file_rolls_out_with_a_policy_in_the_learners_seat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    report = answer(capsys, "rollout", tmp_path / "run.yaml", "--policy", "oracle", "--episodes", "4", "--out", tmp_path / "s")
    assert report["by_env"]["toy/lamp-v0"]["success"] == 1.0
    (episode, *_) = Store.open(tmp_path / "s").episodes()
    assert episode.run == "trial" and episode.instance["setting"] == {"rung": 0} and episode.seats["agent"].policy == "learner"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout"], "give a run file, or environments with --env"),
        (["rollout", "--env", "toy/lmap"], "did you mean 'toy/lamp-v0'"),
        (["rollout", "--env", "toy/lamp", "--policy", "orcale", "--out", "x"], "did you mean 'oracle'"),
        (["rollout", "--env", "toy/lamp", "--policy", "oracle:2", "--out", "x"], "a number from 0 to 1"),
        (["rollout", "--env", "toy/lamp", "--split", "reel", "--out", "x"], "has no split 'reel'"),
        (["rollout", "--env", "toy/lamp", "--rung", "7", "--out", "x"], "no rung 7"),
        (["rollout", "missing.yaml"], "missing.yaml"),
        (["rollout", "--env", "toy/lamp", "--backend", "bubblewarp", "--out", "x"], "did you mean 'bubblewrap'"),
        (["eval", "oracle", "--env", "toy/lamp", "--backend", "bubblewarp"], "did you mean 'bubblewrap'"),
        (["eval", "m", "--env", "toy/lamp", "--engine", "opanai"], "did you mean 'openai'"),
        (["replay", ".", "--backend", "bubblewarp"], "did you mean 'bubblewrap'"),
        (["eval", "oracle"], "which environments?"),
        (["eval", "m", "--engine", "openai", "--env", "toy/lamp"], "needs --url"),
        (["eval", "oracle", "--env", "toy/lamp", "--split", "test"], "no split 'test'"),
        (["replay", "."], "is not a store"),
        (["store", "check", "nowhere"], "is not a store: no such directory"),
        (["store", "info", "."], "is not a store"),
        (["export", ".", "--output", "x"], "is not a store"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.startswith("error: ")
    assert not (tmp_path / "x").exists(), "nothing is left behind"
