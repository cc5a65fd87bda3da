"""The command line: what it prints, its exit codes, and that help is instant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from envfarm.cli import main
from envfarm.spec import load_spec
from tests.envfarm.specs import REPAIR, write

BOXLESS = REPAIR.replace("box: true", "box: false")


@pytest.fixture(autouse=True)
def _clean_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """--env-path is handed on through the process's environment; each test starts without."""
    monkeypatch.setenv("ENVFARM_PATH", "")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_help_imports_nothing_heavy() -> None:
    """Measured by what is loaded, because a time would depend on the machine."""
    code = """
import sys
from envfarm.cli import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert not stopped.code
heavy = set("torch transformers vllm ray pyarrow duckdb numpy gymnasium pettingzoo pydantic jinja2 rich yaml".split())
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout and "show" in done.stdout and done.stdout.strip().endswith("[]")


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path, BOXLESS.replace("coding/repair-v0", "mine/repair-v0"))
    code, out, _ = run(capsys, "--env-path", str(tmp_path), "list", "--json")
    rows = {row["id"]: row for row in json.loads(out)}
    assert code == 0 and {"mine/repair-v0", "games/maze-v0"} <= set(rows)
    assert rows["mine/repair-v0"]["tags"] == ["coding", "python", "tools"]
    assert rows["mine/repair-v0"]["file"] == str(tmp_path / "repair.yaml")
    code, out, _ = run(capsys, "list", "mine/*")
    assert code == 0 and "mine/repair-v0" in out and "games" not in out, "worker processes find it too"


def test_show_is_the_instance(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, BOXLESS)
    spec = load_spec(path)
    options = ("--seed", "4", "--split", "heldout", "--rung", "2", "--set", "domain=[payroll, weather]", "--perturb", "off")
    code, out, _ = run(capsys, "show", str(path), *options, "--json")
    shown = json.loads(out)
    setting = {"rung": 2, "set": {"domain": ["payroll", "weather"]}, "perturb": "off"}
    assert code == 0 and shown["hash"] == spec.instance("heldout", 4, setting).hash
    assert shown["instance"]["seed"] == 2_000_004 and shown["instance"]["setting"] == setting
    params = shown["instance"]["params"]
    assert shown["observation"] == f"modules: {params['modules']} {params['bug']}"
    assert [tool["name"] for tool in shown["tools"]] == ["guess"] and shown["files"] == []
    code, out, _ = run(capsys, "show", str(path), *options)
    assert code == 0 and shown["observation"] in out and "guess <number>" in out and "Guess how many" in out


@pytest.mark.parametrize("python", [True, False])
def test_new_makes_what_loads_and_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path, python: bool) -> None:
    folder = tmp_path / "tool_shed"
    code, out, _ = run(capsys, "new", str(folder), *([] if python else ["--no-python"]))
    assert code == 0 and str(folder / "tool_shed.yaml") in out
    spec = load_spec(folder / "tool_shed.yaml")
    assert spec.id == "local/tool_shed-v0" and spec.kind == ("entry" if python else "task") and len(spec.ladder) == 3
    assert "stockroom" not in "".join(p.read_text().lower() for p in folder.iterdir())
    code, _, err = run(capsys, "new", str(folder))
    assert code == 2 and "exists and is not empty" in err


def test_the_new_environment_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from envfarm.testing import agents

    run(capsys, "new", str(tmp_path / "shed"))
    spec = load_spec(tmp_path / "shed" / "shed.yaml")
    from envfarm.session import local_session

    session = local_session(spec)
    played = [
        agents.play(session, spec.instance(s, i, {"rung": r}), agents.oracle)
        for s in spec.splits
        for i in (0, 1)
        for r in (0, 1, 2)
    ]
    assert {p.rewards["agent"] for p in played} == {1.0}
    nothing = [agents.play(session, spec.instance("train", i, {"rung": 1}), agents.random) for i in range(40)]
    assert sum(p.rewards["agent"] for p in nothing) <= 2
    texts = {session.reset(spec.instance("train", i)).text for i in range(200)}
    assert len(texts) >= 190


@pytest.mark.box
def test_the_new_environment_without_python_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from envfarm.session import local_session
    from envfarm.testing import agents

    run(capsys, "new", str(tmp_path / "shed"), "--no-python")
    spec = load_spec(tmp_path / "shed" / "shed.yaml")
    code, out, _ = run(capsys, "show", str(tmp_path / "shed"), "--json")
    assert code == 0 and {"logs", "out", "logs/a.log"} <= {file["path"] for file in json.loads(out)["files"]}
    session = local_session(spec)
    try:
        for split, rung in (("train", 0), ("train", 2), ("heldout", 1)):
            assert agents.play(session, spec.instance(split, 3, {"rung": rung}), agents.oracle).rewards == {"agent": 1.0}
        assert agents.play(session, spec.instance("train", 3), agents.null).rewards.get("agent", 0.0) == 0.0
    finally:
        session.close()


def test_completion_knows_ids(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("_ENVFARM_COMPLETE", "complete_bash"), ("COMP_WORDS", "envfarm show games/"), ("COMP_CWORD", "2")):
        monkeypatch.setenv(name, value)
    assert "games/maze-v0" in run(capsys)[1].split()


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0 and json.loads(out)["properties"]["randomize"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "coding/shel"], "no environment 'coding/shel'"),
        (["show", "FILE", "--split", "trian"], "no split 'trian' (did you mean 'train'?)"),
        (["show", "FILE", "--seed", "1000000"], "counted from 0; there is no 1000000"),
        (["play", "FILE", "--seed", "1000000"], "counted from 0; there is no 1000000"),
        (["show", "shop"], "did you mean 'web/shop-v0'?"),
        (["check", "FILE", "--only", "flor"], "no check 'flor' (did you mean 'floor'?)"),
        (["show", "FILE", "--rung", "7"], "its ladder has 3 rungs"),
        (["show", "FILE", "--set", "modules"], "expected AXIS=VALUE"),
        (["show", "FILE", "--set", "modules=[1, 2"], "--set modules:2:1: not valid YAML"),
        (["show", "FILE", "--set", "modles=1"], "no axis 'modles' (did you mean 'modules'"),
        (["--env-path", "/no/such/folder", "list"], "no such folder or file of environments: /no/such/folder"),
        (["new", "Not-A-Name"], "cannot name an environment"),
        (["show", "FILE", "--sed", "1"], "No such option"),
        (["shwo"], "No such command"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    path = str(write(tmp_path, BOXLESS))
    code, out, err = run(capsys, *[path if a == "FILE" else a for a in arguments])
    assert code == 2 and says in err and "Traceback" not in err and out == ""


def test_a_mistake_in_the_file_is_told_at_its_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, BOXLESS.replace("limits:  {turns", "limits:  {turn"))
    code, _, err = run(capsys, "show", str(path))
    assert code == 2 and err.startswith(f"error: {path}:29:11: unknown key 'turn' (did you mean 'turns'?)")


def test_an_environment_that_raises(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, BOXLESS)
    (tmp_path / "words.py").write_text("class Word:\n    def __format__(self, _):\n        return 1 / 0\n\nWORD = Word()\n")
    code, _, err = run(capsys, "show", str(path))
    assert code == 2 and "ZeroDivisionError" in err and "words.py:3" in err and "Traceback" not in err
    monkeypatch.setenv("ENVFARM_TRACEBACK", "1")
    assert "Traceback" in run(capsys, "show", str(path))[2]


def test_interrupt_and_full_disk(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, BOXLESS)
    (tmp_path / "words.py").write_text("raise KeyboardInterrupt\n")
    assert run(capsys, "show", str(path))[0] == 130
    (tmp_path / "words.py").write_text("import errno\nraise OSError(errno.ENOSPC, 'full', '/data/x')\n")
    code, _, err = run(capsys, "show", str(path))
    assert code == 2 and "no space is left on the disk for /data/x" in err
