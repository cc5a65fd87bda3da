"""Two roles, trained: the learner against itself, against an older version, against a script; killed and resumed."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envfarm.registry import default_registry
from rollout.run import read_run
from rollout.store import Store
from rollout.types import Episode, Group
from tests.rollout.test_cli import answer
from tests.trainer.test_resume import finish, kill_after
from trainer.groups import make_batch
from trainer.metrics import read
from trainer.run import RunFile
from trainer.run_check import check
from trainer.stages import train

MODEL = "{init: {vocab: 300, width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, max_len: 256}}"
RUN_FILE = """\
envfarm: 1
run: kuhn
seed: 1
environments: [{id: games/kuhn-v0, setting: {set: {hands: 1}, perturb: off}}]
policies:
  learner: {model: MODEL, trainable: true}
  expert: {scripted: oracle}
  imitator: {version: learner@imitation}
  younger: {version: learner@62}
seats: {games/kuhn-v0: {first: self, second: OTHER}}
engine: {kind: torch, max_in_flight: 32, threads: 1}
workers: 1
sampling: {temperature: 1.0, max_tokens: 16}
stages:
  - {imitation: {logs: {policy: {scripted: {oracle: {random: 0.3}}}, episodes: 120}, steps: 60, batch: 16, lr: 0.01}}
  - {online: {algorithm: grpo, group: 4, batch: 16, steps: 4, lr: 0.003}}
evaluate: {splits: [heldout], episodes: 12, every: 1, curve: {heldout: 4}, seats: {games/kuhn-v0: SEATINGS}}
""".replace("MODEL", MODEL)

BOTH_ENDS = "[{second: expert}, {first: expert}]"


def written(folder: Path, other: str, seatings: str = BOTH_ENDS) -> Path:
    path = folder / f"{other}.yaml"
    path.write_text(RUN_FILE.replace("OTHER", other).replace("SEATINGS", seatings))
    return path


def run_to_the_end(file: Path, out: Path) -> tuple[dict[str, Any], list[Episode]]:
    run, source = read_run(file, RunFile)
    specs = check(run, source, default_registry())
    run = run.model_copy(update={"output": str(out)})
    summary = train(run, specs, Console(file=io.StringIO()), report=False)
    return summary, episodes_of(out)


def episodes_of(out: Path) -> list[Episode]:
    with Store.open(out / "store") as store:
        return list(store.episodes())


def trained_tokens(episodes: list[Episode], step: int, seats: list[str]) -> int:
    """Of one online step, if `seats` are the trained ones."""
    groups: dict[str, list[Episode]] = defaultdict(list)
    for e in episodes:
        if (e.stage, e.step) == ("rl", step):
            groups[e.group].append(e)
    made = [
        make_batch(
            Group(id=g, env=members[0].env, instance_hash=members[0].instance_hash, episodes=members), seats,
            discount=1.0, baseline="group_mean", divide_by_std=False, divisor=1.0,
        )
        for g, members in groups.items()
    ]  # fmt: skip
    return sum(row.trained for batch in made for row in batch.rows)


def metric(out: Path, key: str) -> list[float]:
    return [r[key] for r in read(out) if r["stage"] == "rl" and r["kind"] == "train"]


def test_against_itself_both_seats_are_trained_and_it_is_judged_against_a_script(tmp_path: Path) -> None:
    summary, episodes = run_to_the_end(written(tmp_path, "self"), tmp_path / "out")
    played = [e for e in episodes if e.stage == "rl"]
    assert {seat: v.policy for e in played for seat, v in e.seats.items()} == {"first": "learner", "second": "learner"}
    tokens = metric(tmp_path / "out", "tokens")
    for step, trained in enumerate(tokens):
        assert trained == trained_tokens(episodes, step, ["first", "second"])
        assert trained > trained_tokens(episodes, step, ["first"]), "the other seat's tokens count, too"
    assert metric(tmp_path / "out", "staleness_max") == [0.0] * 4 == metric(tmp_path / "out", "withheld_tokens")
    assert metric(tmp_path / "out", "staleness/0") == tokens

    judged = [e for e in episodes if e.stage == "eval/rl/heldout"]
    assert {(e.seats["first"].policy, e.seats["second"].policy) for e in judged} == {("learner", "expert"), ("expert", "learner")}
    assert summary["stages"]["rl"]["heldout"]["episodes"] == 12, "the learner's seats alone are counted"
    assert summary["report"] is None
    assert "rl_minus_imitation" in summary["paired"]


def test_against_a_script_one_seat_is_trained(tmp_path: Path) -> None:
    _, episodes = run_to_the_end(written(tmp_path, "expert"), tmp_path / "out")
    played = [e for e in episodes if e.stage == "rl"]
    assert {v.policy for e in played for v in e.seats.values()} == {"learner", "expert"}
    assert {n.seat for e in played for n in e.nodes} == {"first"}, "a script leaves no tokens"
    assert metric(tmp_path / "out", "tokens") == [trained_tokens(episodes, step, ["first"]) for step in range(4)]


@pytest.mark.slow
def test_against_older_versions_which_a_resumed_run_seats_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`imitator` in training; `younger`, the learner after 62 updates, in evaluations and on the curve. Until there are
    such weights the untrained ones act."""
    file = written(tmp_path, "imitator", "[{second: younger}]")
    undisturbed, out = finish(file, tmp_path / "undisturbed"), tmp_path / "undisturbed"
    sums = {n: about(out / "policies" / n)["version"]["checksum"] for n in ("untrained", "imitation", "rl")}
    snapshot = about(out / "snapshots" / "62")["version"]
    assert snapshot["number"] == 62 and snapshot["checksum"] not in sums.values()

    episodes = episodes_of(out)
    played = [e for e in episodes if e.stage == "rl"]
    assert {e.seats["second"].checksum for e in played} == {sums["imitation"]}
    for e in played:
        assert {n.version for n in e.nodes if n.seat == "second" and n.version} <= {e.seats["second"]}
    assert metric(out, "tokens") == [trained_tokens(episodes, step, ["first"]) for step in range(4)]
    early, late = {sums["untrained"]}, {snapshot["checksum"]}
    curve = {n: {e.seats["second"].checksum for e in episodes if (e.stage, e.step) == ("curve/rl/heldout", n)} for n in (1, 2, 3)}
    assert curve == {1: early, 2: late, 3: late}, "60 updates of imitation and one of each step"
    judges = {s: {e.seats["second"].checksum for e in episodes if e.stage == f"eval/{s}/heldout"} for s in sums}
    assert judges == {"untrained": early, "imitation": early, "rl": late}
    assert undisturbed["paired"] == {}, "they met other opponents: no pairs"

    figures = answer(capsys, "eval", out / "policies" / "rl")
    assert figures["splits"]["heldout"]["by_env"] == undisturbed["stages"]["rl"]["heldout"]["by_env"]
    again = tmp_path / "again.yaml"
    again.write_text(file.read_text() + f"output: {out}\n")
    answer(capsys, "rollout", again, "--policy", out / "policies" / "rl", "--episodes", "8", "--out", tmp_path / "rolled")
    with Store.open(tmp_path / "rolled") as rolled:
        assert {e.seats["second"].checksum for e in rolled.episodes()} == {sums["imitation"]}

    kill_after(file, tmp_path / "killed", "rl: 3/4")
    killed = finish(file, tmp_path / "killed")
    assert killed["checksums"] == undisturbed["checksums"] and killed["stages"] == undisturbed["stages"]
    assert about(tmp_path / "killed" / "snapshots" / "62")["version"] == snapshot
    assert who_sat(episodes_of(tmp_path / "killed")) == who_sat(episodes)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "envfarm.json").read_text())


def who_sat(episodes: list[Episode]) -> dict[Any, Any]:
    return {
        (e.stage, e.step, e.index, e.member): {seat: (v.policy, v.number, v.checksum) for seat, v in e.seats.items()}
        for e in episodes
        if e.ok
    }


def test_against_a_frozen_model_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    first = written(tmp_path, "expert")
    run_to_the_end(first, tmp_path / "first")
    stranger = f"stranger: {{model: {tmp_path / 'first' / 'policies' / 'imitation'}}}"
    second = written(tmp_path, "stranger", "[{second: stranger}]")
    changes = (("seed: 1", "seed: 2"), ("vocab: 300", "vocab: 310"), ("  expert: ", f"  {stranger}\n  expert: "))
    text = second.read_text()
    for old, new in changes:
        text = text.replace(old, new)
    second.write_text(text)
    _, episodes = run_to_the_end(second, tmp_path / "second")
    frozen = about(tmp_path / "first" / "policies" / "imitation")["version"]["checksum"]
    played = [e for e in episodes if e.stage in ("rl", "eval/rl/heldout")]
    assert {e.seats["second"].checksum for e in played} == {frozen}
    assert metric(tmp_path / "second", "tokens") == [trained_tokens(episodes, step, ["first"]) for step in range(4)]
    said = [n for e in played for n in e.nodes if n.seat == "second" and n.version]
    assert said and {n.version.policy for n in said if n.version} == {"stranger"}
