"""The conformance suite finds what is wrong with an environment: each mistake fails its check, and only an honest one passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envfarm.cli import main
from envfarm.scaffold import scaffold
from envfarm.spec import load_spec
from envfarm.testing.check_env import CHECKS, Finding, check_env

ONE = "splits: {train: {seeds: {start: 0, count: 1}}}\n"


def room(tmp_path: Path, code: tuple[str, str] = ("", ""), yaml: tuple[str, str] = ("", "")) -> Path:
    """The environment that `envfarm new` makes, with one mistake in it."""
    path = scaffold(tmp_path / "room")
    for file, (old, new) in ((path.with_suffix(".py"), code), (path, yaml)):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    return path


def failed(path: Path, **options: int) -> dict[str, Finding]:
    return {f.check: f for f in check_env(load_spec(path), **{"episodes": 2, "contents": 12, **options}) if not f.ok}


def test_a_new_environment_has_no_finding(tmp_path: Path) -> None:
    assert failed(room(tmp_path)) == {}


@pytest.mark.parametrize(
    ("old", "new", "check", "says"),
    [
        ("self.end(1.0 if", "self.end(float('nan') if", "oracle", "reward nan is not finite"),
        ("self.end(1.0 if", "self.end(1.5 if", "oracle", "reward 1.5 of agent lies outside reward.range [0.0, 1.0]"),
        ("self.end(1.0 if", "self.end(0.5 if", "oracle", "oracle reached 0.5 < 1.0 on train seed"),
        ("unseen = [", "unseen = 1 / 0 + [", "oracle", "division by zero (at FOLDER/room.py:61:"),
        ("number == self._solution()", "True", "floor", "random agent solved"),
        ("self.looked.add(shelf)", "__import__('random').random()", "isolation", "global random generator"),
        ("return \"Thank you.\"", "return 7", "api", "expected text, a block or a list of blocks to show, found 7"),
        ("{self.params['goods']} on", "things on", "seeds", ""),
    ],
)  # fmt: skip
def test_each_mistake_is_found(tmp_path: Path, old: str, new: str, check: str, says: str) -> None:
    found = failed(room(tmp_path, (old, new)))
    assert check in found and says.replace("FOLDER", str(tmp_path / "room")) in found[check].detail


def test_what_cannot_be_made_is_told_once(tmp_path: Path) -> None:
    found = failed(room(tmp_path, yaml=(":Room", ":Roon")))
    assert list(found) == ["api"] and "room.yaml:5:8: entry: ./room.py has no class 'Roon'" in found["api"].detail


def test_splits_of_one_instance_and_no_split_that_may_be_trained_on(tmp_path: Path) -> None:
    path = room(tmp_path)
    head = path.read_text().partition("splits:")[0]
    path.write_text(head + ONE)
    assert failed(path) == {}
    (path.parent / "real.jsonl").write_text('{"id": 1}\n')
    path.write_text(head + "splits: {real: {rows: real.jsonl, key: id}}\n")
    assert failed(path)


def test_one_lucky_hit_is_looked_at_again(tmp_path: Path) -> None:
    """A guesser that has it in one of 25: below the floor, and above it wherever it is lucky in two of six."""
    path = room(tmp_path, ("number == self._solution()", "int(self.rng.integers(25)) == 0"))
    [finding] = check_env(load_spec(path), episodes=2, contents=1, only=("floor",))
    assert "/150" in finding.detail or "of 150" in finding.detail


def test_the_command_prints_json_only_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = room(tmp_path, ("self.end(1.0 if", "self.end(0.5 if"))
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path), "games/kuhn-v0", "--only", "api", "--only", "oracle", "--episodes", "1", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 2
    assert [(f["check"], f["ok"]) for f in findings] == [("api", True), ("oracle", False), ("api", True), ("oracle", True)]
    assert {f["check"] for f in findings} <= set(CHECKS)
