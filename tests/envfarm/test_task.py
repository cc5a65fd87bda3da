"""Environments without Python, played in real boxes: tools, the oracle, and the three checks."""

from __future__ import annotations

import pytest

from envfarm.blocks import Output, Text
from envfarm.box import ExecResult
from envfarm.errors import InfraError, SpecError, VerifierFault
from envfarm.session import local_session
from envfarm.task.checks import relative
from envfarm.task.env import TaskEnv
from envfarm.task.stock import clip, show
from envfarm.testing import agents
from envfarm.tools import ToolCall
from tests.envfarm.task_files import task_spec

box = pytest.mark.box


@pytest.fixture
def play(opened):
    """Play actions on a task; the last turn. Several calls share the folder's last spec."""
    return lambda spec, *actions: opened(spec, *actions)[1]


def reward(turn):
    assert turn.over
    return turn.rewards["agent"]


# Tools.


def test_tools_are_those_named_and_submit(tmp_path):
    scene = TaskEnv(task_spec(tmp_path, prompt="p", tools=["files", "shell"]))
    assert list(scene.tools) == ["list_files", "read_file", "write_file", "shell", "submit"]
    assert scene.text_tool == "shell"
    files = TaskEnv(task_spec(tmp_path, prompt="p", tools=["files"]))
    assert list(files.tools) == ["list_files", "read_file", "write_file", "submit"] and files.text_tool is None


@box
@pytest.mark.parametrize("command", ["echo a\0b", "echo a\ud800", "echo \udc80", ToolCall("shell", {"command": "a\0"})])
def test_what_no_command_can_hold_is_malformed_and_the_shell_goes_on(play, tmp_path, command):
    spec = task_spec(tmp_path, prompt="p", tools=["shell", "files"])
    turn = play(spec, "x=3", command)
    assert turn.malformed and not turn.over and ("NUL" in turn.text or "half a character" in turn.text)
    turn = play(spec, "x=3", command, ToolCall("write_file", {"path": "a\0", "content": "c"}), "echo $x")
    assert turn.text == "3" and not turn.malformed


def test_output_is_shown_briefly():
    assert show(ExecResult(exit_code=0, stdout=b"", stderr=b"")) == (Text("ok"),)
    assert show(ExecResult(exit_code=2, stdout=b"a\n", stderr=b"b\n")) == (Output("a\nb"), Text("exit 2"))
    assert show(ExecResult(exit_code=137, stdout=b"", stderr=b"", limit="memory")) == (Text("stopped: memory limit"),)
    long = clip("x" * 5000 + "end")
    assert len(long) < 2100 and long.endswith("end") and "3003 characters left out" in long


@box
def test_the_shell_keeps_its_place_and_shows_what_commands_print(tmp_path, play):
    spec = task_spec(tmp_path, prompt="size {{ size }}", setup="mkdir d; echo hello > d/f")
    turn = play(spec, "cd d", "cat f nothing")
    assert "hello" in turn.text and turn.text.endswith("exit 1")
    (start, end), *_ = turn.command_output
    assert turn.text[start:end].startswith("hello")


@box
def test_file_tools_answer_what_is_wrong_with_a_path(tmp_path, play):
    spec = task_spec(tmp_path, prompt="p", tools=["files"], files={"/task/a/b": "text {{ size }}\n"})
    read = lambda path: play(spec, ToolCall("read_file", {"path": path})).text  # noqa: E731
    assert read("a/b") == "text 3"
    assert "No such file" in read("gone")
    assert "gone" in read("gone")
    assert play(spec, ToolCall("list_files")).text == "a/\na/b"
    assert play(spec, "write_file c some words", "read_file c").text == "some words"
    assert "/etc/x" in play(spec, ToolCall("write_file", {"path": "/etc/x", "content": ""})).text


@box
def test_three_commands_that_hit_a_limit_end_the_episode(tmp_path, play):
    spec = task_spec(tmp_path, prompt="p", limits={"exec_timeout_s": 0.2})
    assert not play(spec, "sleep 9", "sleep 9").over
    turn = play(spec, "sleep 9", "sleep 9", "sleep 9")
    assert turn.stop == "agent_limit" and turn.text == "stopped: idle limit" and reward(turn) == 0.0


# The start.


@box
def test_files_and_setup_make_the_start_and_nothing_else_is_there(tmp_path, play):
    (tmp_path / "line.j2").write_text("{{ size }} of {{ rng.randint(5, 5) }}\n")
    files = {"/task/{{ 'x' * size }}.txt": "line.j2", "{% if size > 5 %}/task/large{% endif %}": "never"}
    solution = "echo answer-{{ size * 1111 }} > out"
    spec = task_spec(tmp_path, prompt="p", files=files, setup="echo made > by_setup", solution=solution)
    turn = play(spec, "find . -type f | sort | xargs tail -n +1; set; env; cat /proc/*/cmdline")
    assert "3 of 5" in turn.text and "./xxx.txt" in turn.text and "made" in turn.text
    assert "large" not in turn.text and "answer" not in turn.text and "3333" not in turn.text


@box
def test_a_failing_setup_is_the_authors_error(tmp_path, play):
    with pytest.raises(SpecError, match=r"task\.setup failed \(exit 3\): oh"):
        play(task_spec(tmp_path, prompt="p", setup="echo oh; (exit 3)"))


@box
def test_a_setup_that_stands_still_is_the_machines_doing_and_run_again(tmp_path, play):
    with pytest.raises(InfraError, match=r"task\.setup stood still"):
        play(task_spec(tmp_path, prompt="p", setup="sleep 100", limits={"exec_timeout_s": 0.5}))


# The checks.


@box
@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["echo 3 > out"], 1.0),
        (["printf '3\\n' > o", "mv o out"], 1.0),
        ([], 0.0),
        (["echo 4 > out"], 0.0),
        (["echo 3 > out", "touch more"], 0.0),
        (["echo 3 > out", "mkdir more"], 0.0),
        (["echo 3 > out", "chmod 600 out"], 0.0),
        (["echo 3 > /tmp/out", "ln -s /tmp/out out"], 0.0),
    ],
)
def test_same_as_solution_compares_names_kinds_modes_and_contents(tmp_path, play, commands, expected):
    assert reward(play(task_spec(tmp_path, prompt="p"), *commands, "submit")) == expected


@box
def test_only_the_named_paths_are_compared(tmp_path, play):
    spec = task_spec(tmp_path, prompt="p", solution="mkdir a; echo 1 > a/b; echo 2 > c", check={"same_as_solution": ["/task/a"]})
    assert reward(play(spec, "mkdir a", "echo 1 > a/b", "touch noise", "submit")) == 1.0
    assert reward(play(spec, "mkdir a", "echo 2 > a/b", "submit")) == 0.0


@box
def test_the_verdict_does_not_need_submit(tmp_path, play):
    spec = task_spec(tmp_path, prompt="p", limits={"turns": 2})
    turn = play(spec, "echo 3 > out", "ls")
    assert turn.stop == "turn_limit" and turn.truncated and reward(turn) == 1.0


@box
def test_the_solution_runs_once_for_all_episodes_of_an_instance(tmp_path):
    spec = task_spec(tmp_path, prompt="p")
    instance = spec.instance("train", 0)
    session = local_session(spec)
    make, started = session._make_box, []
    session._make_box = lambda *given: started.append(1) or make(*given)
    for _ in range(4):
        assert agents.play(session, instance, agents.oracle).rewards == {"agent": 1.0}
    session.close()
    assert len(started) == 5  # one for each episode, and one for the solution


@box
def test_a_solution_that_fails_is_a_verifier_error(tmp_path, play):
    with pytest.raises(VerifierFault, match="solution line 'false'"):
        play(task_spec(tmp_path, prompt="p", solution="false"), "submit")


@box
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import pathlib; assert pathlib.Path('a/out').read_text() == '3\\n'", 1.0),
        ("assert False", 0.0),
        ("raise SystemExit(1)", 0.0),
        ("print('so so'); print(0.25)", 0.25),
        ("import json, os; print(json.loads(os.environ['ENVFARM_INSTANCE'])['params']['size'] / 10)", 0.3),
        ("import os; print(float(os.path.exists('a/b') and not os.path.exists('/task/a/out')))", 1.0),
    ],
)
def test_a_script_judges_a_copy_of_the_artifacts(tmp_path, play, script, expected):
    (tmp_path / "check.py").write_text(script)
    spec = task_spec(tmp_path, prompt="p", check={"script": "check.py"})
    assert reward(play(spec, "mkdir -p a/b", "echo 3 > a/out", "submit")) == pytest.approx(expected)


@box
@pytest.mark.parametrize(
    "script", ["1 / 0", "import gone", "raise SystemExit('no')", "print('good')", "print(float('nan'))", "print(2)"]
)
def test_a_script_that_goes_wrong_is_a_verifier_error(tmp_path, play, script):
    (tmp_path / "check.py").write_text(script)
    with pytest.raises(VerifierFault):
        play(task_spec(tmp_path, prompt="p", check={"script": "check.py"}), "submit")


@box
@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ('files["out"] == "3\\n"', 1.0),
        ('files["out"] | trim | int == size', 1.0),
        ('files["gone"] == "3\\n"', 0.0),
        ('"d" in paths and "gone" not in paths', 1.0),
        ("(paths | length) / 4", 0.5),
    ],
)
def test_an_expression_judges_the_final_state(tmp_path, play, expr, expected):
    spec = task_spec(tmp_path, prompt="p", check={"expr": expr})
    assert reward(play(spec, "echo 3 > out", "mkdir d", "submit")) == expected


@box
@pytest.mark.parametrize(("expr", "error"), [("'text'", VerifierFault), ("nobody > 1", SpecError), ("1 // 0", SpecError)])
def test_an_expression_that_makes_no_sense_is_said(tmp_path, play, expr, error):
    with pytest.raises(error, match="expr"):
        play(task_spec(tmp_path, prompt="p", check={"expr": expr}), "submit")


@box
def test_other_reward_ranges_are_kept(tmp_path, play):
    spec = task_spec(tmp_path, prompt="p", reward={"range": [-1, 2], "solved_at": 2})
    assert reward(play(spec, "submit")) == -1.0
    assert reward(play(spec, "echo 3 > out", "submit")) == 2.0


@pytest.mark.parametrize("path", ["/etc/passwd", "/task/../etc", "a/../../b"])
def test_artifacts_lie_below_the_workdir(path):
    with pytest.raises(SpecError, match="artifact"):
        relative(path)


# The oracle.


@box
def test_the_oracle_waits_for_lines_that_did_not_run_and_removes_what_is_too_much(tmp_path):
    spec = task_spec(tmp_path, prompt="p", setup="echo 1 > keep", solution="mkdir a\n# a comment\n\necho {{ size }} > a/b")
    session = local_session(spec)
    session.reset(spec.instance("train", 0, {"set": {"size": [3, 3]}}))
    assert session.oracle() == session.oracle() == "mkdir a"
    session.step("mkdir 'some junk'")
    session.step(session.oracle())
    assert session.oracle() == "echo 3 > a/b"
    session.step(session.oracle())
    assert session.oracle() == "rm -r 'some junk'"
    session.step(session.oracle())
    assert session.oracle() == "submit"
    assert reward(session.step("submit")) == 1.0
    session.close()


@box
def test_without_a_shell_the_oracle_writes_the_files(tmp_path):
    spec = task_spec(tmp_path, prompt="p", tools=["files"], setup="echo old > out", solution="echo {{ size }} > out; echo x > y")
    session = local_session(spec)
    played = agents.play(session, spec.instance("train", 0), agents.oracle)
    session.close()
    assert played.rewards == {"agent": 1.0} and len(played.actions) == 3


@box
@pytest.mark.parametrize(("solution", "says"), [("printf x > out", "without a newline"), ("printf '\\377\\n' > out", "no text")])
def test_what_no_file_tool_can_write_is_the_authors_mistake(tmp_path, solution, says):
    session = local_session(spec := task_spec(tmp_path, prompt="p", tools=["files"], solution=solution))
    session.reset(spec.instance("train", 0))
    with pytest.raises(VerifierFault, match=says):
        session.oracle()
    session.close()


@box
def test_noise_is_what_the_template_says_and_repeats_with_its_seed(tmp_path):
    spec = task_spec(tmp_path, prompt="p", noise="ls\ncat out{{ size }}\nsubmit")
    session = local_session(spec)
    session.reset(spec.instance("train", 0, {"set": {"size": [3, 3]}}))
    drawn = [session.random(seed) for seed in range(30)]
    assert set(drawn) == {"ls", "cat out3", "submit"} and drawn == [session.random(seed) for seed in range(30)]
    session.close()
