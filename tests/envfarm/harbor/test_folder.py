"""What a Harbor folder must be, and where it is told what is wrong in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from envfarm.bundle import bundle, unpack
from envfarm.errors import SpecError
from envfarm.harbor.network import needing
from envfarm.spec import load_spec
from tests.envfarm.harbor.folders import DOCKERFILE, HERE, TOML, copied, one


def test_tasks_are_rows_and_ask_for_one_box_together() -> None:
    spec = load_spec(HERE / "harbor.yaml")
    assert [spec.instance("train", i).row_key for i in range(spec.size("train"))] == ["greet", "count"]
    assert spec.kind == "harbor" and spec.reward.verify == "runner_fresh"
    assert spec.sandbox.image == "envfarm/python", "one of the tasks needs Python"
    assert spec.sandbox.writable == ("/app", "/logs", "/solution", "/tests", "/work")
    assert spec.limits.episode_timeout_s == 300 + 600, "of the agent and of the tests, where they leave it to us"
    assert spec.limits.exec_timeout_s == 60, "what the YAML says holds"


def test_limits_and_sizes_are_the_task_s(tmp_path: Path) -> None:
    spec = load_spec(one(tmp_path, "count", {}, limits="{turns: 3}", sandbox="{box: true, memory: 96MiB}"))
    assert spec.limits.exec_timeout_s == 60 and spec.limits.episode_timeout_s == 90 and spec.limits.turns == 3
    assert spec.sandbox.image == "envfarm/base" and spec.sandbox.disk_bytes == 64 << 20
    assert spec.sandbox.memory_bytes == 96 << 20
    assert spec.splits.keys() == {"train"} and spec.instance("train", 0).row_key == "count"


def test_one_task_is_an_environment_as_well(tmp_path: Path) -> None:
    spec = load_spec(one(tmp_path, "greet", {}, harbor="tasks/greet"))
    assert spec.size("train") == 1 and spec.instance("train", 0).row == {"name": "greet"}


def test_it_travels_and_an_edited_test_is_another_environment(tmp_path: Path) -> None:
    spec = load_spec(copied(tmp_path / "here"))
    there = load_spec(unpack(bundle(spec), tmp_path / "there"))
    assert there.hash == spec.hash and there.instance("train", 0) == spec.instance("train", 0)
    with (tmp_path / "here/tasks/count/tests/test.sh").open("a") as test:
        test.write("# stricter\n")
    assert load_spec(spec.path).hash != spec.hash


@pytest.mark.parametrize("part", ["task.toml", "instruction.md", "environment/Dockerfile", "tests/test.sh"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    with pytest.raises(SpecError, match=f"tasks/greet has no {part}"):
        load_spec(one(tmp_path, "greet", {part: None}))


FILES = [
    (TOML, "[agent]\ntimeout_sec = \n", "2:15", "not valid TOML: Invalid value"),
    (TOML, 'schema_version = "2.0"\n', "1:1", "schema_version: '2.0' is not one of 1.0"),
    (TOML, '[metadata]\n\n[agent]\ntimeout_sec = "long"\n', "4:1", "agent.timeout_sec: expected a valid number, found 'long'"),
    (TOML, "[verifier]\ntimeout_sec = 0\n", "2:1", "verifier.timeout_sec: expected greater than 0"),
    (TOML, "[environment]\nmemory_mb = 1.5\n", "2:1", "environment.memory_mb: expected a valid integer"),
    (TOML, '[environment]\nnetwork_mode = "allowlist"\n', "2:1", "environment.network_mode: the task needs a network"),
    (TOML, "[environment]\ngpus = 1\n", "2:1", "no GPU"),
    (TOML, '[verifier]\nenvironment_mode = "separate"\n', "2:1", "a verifier of its own"),
    (TOML, '[agent]\nuser = "root"\n', "2:1", "not root"),
    (TOML, '[[steps]]\nname = "a"\n', "1:1", "several steps"),
    (TOML, '[verifier.env]\nKEY = "${KEY}"\n', "1:1", "variable of the machine"),
    (TOML, '[environment]\nworkdir = "/usr/src"\n', "2:1", "'/usr/src' is not a directory that boxes can have writable"),
    ("instruction.md", "# canary 1\n\n", "1:1", "the instruction is empty"),
    (DOCKERFILE, "FROM rust:1\n", "1:1", "FROM rust:1: there is no registry"),
    (DOCKERFILE, "WORKDIR /app\n", "1:1", "expected FROM first"),
    (DOCKERFILE, "FROM debian\n\nRUN apt-get update \\\n  && apt-get install -y git\n", "3:1", "`apt-get` needs a network"),
    (DOCKERFILE, "FROM debian\nFROM debian\n", "2:1", "second stage"),
    (DOCKERFILE, "FROM debian\nUSER root\n", "2:1", "USER: not understood"),
    (DOCKERFILE, "FROM debian\nCOPY gone /app/\n", "2:1", "there is no 'gone'"),
    (DOCKERFILE, "FROM debian\nCOPY ../tests /app/\n", "2:1", "there is no '../tests'"),
    (DOCKERFILE, "FROM debian\nCOPY greet.py /usr/bin/\n", "2:1", "COPY to /usr/bin/: not a directory that boxes"),
    (DOCKERFILE, "FROM debian\nWORKDIR /root\n", "2:1", "WORKDIR /root: not a directory that boxes"),
    (DOCKERFILE, "FROM debian\nENV $A\n", "2:1", "ENV: expected NAME=VALUE"),
    ("environment/docker-compose.yaml", "services: {}\n", "1:1", "several containers"),
    ("environment/.hidden", "x", "1:1", "do not travel"),
    ("tests/test.sh", "#!/bin/bash\n\ncd /app && pip install pytest\n", "3:1", "`pip install` needs a network"),
    ("solution/solve.sh", "curl -O https://a.example/b\n", "1:1", "`curl` needs a network"),
]


@pytest.mark.parametrize(("name", "text", "place", "said"), FILES, ids=lambda value: str(value)[:40])
def test_what_is_wrong_in_a_task_is_told_at_its_line(tmp_path: Path, name: str, text: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as told:
        load_spec(one(tmp_path, "greet", {name: text}))
    assert f"tasks/greet/{name}:{place}: " in str(told.value) and said in str(told.value)


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"harbor": "tusks"}, "6:9", "no such folder"),
        ({"harbor": "."}, "6:9", "expected a folder below"),
        ({"harbor": "../tasks"}, "6:9", "expected a folder below"),
        ({"sandbox": "{box: false}"}, "4:9", "add `sandbox: {box: true}`"),
        ({"randomize": "{a: {choice: [1, 2]}}"}, "7:1", "`randomize` does not go with `harbor`"),
        ({"reward": "{verify: outputs}"}, "7:18", "runner_fresh or runner_shared"),
        ({"splits": "{train: {rows: [gret]}}"}, "7:25", "no row 'gret' (did you mean 'greet'?)"),
        ({"isolation": "process"}, "7:12", "leave `isolation` out"),
        ({"roles": "{a: {}, b: {}}"}, "7:8", "one role"),
    ],
)
def test_what_is_wrong_in_the_yaml_is_told_there(tmp_path: Path, changes: dict[str, str], place: str, said: str) -> None:
    path = one(tmp_path, "greet", {}, **changes)
    with pytest.raises(SpecError) as told:
        load_spec(path)
    assert f"{path}:{place}: " in str(told.value) and said in str(told.value)


def test_folders_that_are_no_tasks_say_so(tmp_path: Path) -> None:
    path = one(tmp_path, "greet", {}, harbor="empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"is no Harbor task .* and holds none"):
        load_spec(path)
    with pytest.raises(SpecError, match=r"tasks/notes has no task\.toml"):
        load_spec(one(tmp_path / "more", "greet", {"../notes/todo.md": ""}))
    with pytest.raises(SpecError, match="Terminal-Bench's first format"):
        load_spec(one(tmp_path / "old", "greet", {"task.toml": None, "task.yaml": "instruction: x\n"}))


def test_a_link_that_leaves_the_task_is_refused(tmp_path: Path) -> None:
    path = copied(tmp_path, "greet")
    (tmp_path / "tasks/greet/tests/data").symlink_to("/etc/hostname")
    with pytest.raises(SpecError, match="tests/data:1:1: a link that leaves"):
        load_spec(path)


def test_an_image_that_is_named_is_trusted_to_hold_what_only_an_image_can(tmp_path: Path) -> None:
    text = "FROM rust:1\nWORKDIR /app\nRUN apt-get install -y git\nCOPY greet.py /usr/bin/\nCOPY greet.py .\nRUN touch made\n"
    files = {DOCKERFILE: text, "tests/test.sh": "pip install pytest\n"}
    spec = load_spec(one(tmp_path, "greet", files, sandbox="{box: true, image: some/rust}"))
    assert spec.sandbox.image == "some/rust" and "/app" in spec.sandbox.writable


@pytest.mark.parametrize(
    "line", ["apt-get update", "x=1 pip3 install a", "if ! wget a; then", "(cd /; git clone b)", "uvx pytest"]
)
def test_commands_that_need_a_network(line: str) -> None:
    assert needing(f"#!/bin/sh\n  {line}\n") is not None


@pytest.mark.parametrize(
    "line", ["# curl a", "echo apt-get", "grep -q curl f", "curl http://127.0.0.1:80/", "git status", "pipx"]
)
def test_commands_that_do_not(line: str) -> None:
    assert needing(line) is None
