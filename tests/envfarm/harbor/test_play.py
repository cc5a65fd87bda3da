"""Harbor's tasks played in real boxes: the oracle, agents that do nothing, and agents that cheat, under both runners."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from envfarm.errors import SpecError, VerifierFault
from envfarm.harbor import runner
from envfarm.harbor.env import HarborEnv
from envfarm.harbor.folder import read_task
from envfarm.session import Session, Turn, local_session
from envfarm.spec import EnvSpec, load_spec
from envfarm.testing import agents
from envfarm.testing.boxes import RecordingBox
from envfarm.testing.check_env import check_env
from envfarm.tools import ToolCall
from tests.envfarm.harbor.folders import DOCKERFILE, HERE, TOML, one, spec_of

box = pytest.mark.box
RUNNERS = pytest.mark.parametrize("verify", ["runner_fresh", "runner_shared"])
SUBMIT = ToolCall("submit")


@pytest.fixture
def play() -> Iterator:
    """Play actions on a task of an environment; the last turn."""
    sessions: list[Session] = []

    def play(spec: EnvSpec, task: str, *actions: str | ToolCall) -> Turn:
        session = local_session(spec)
        sessions.append(session)
        split = "heldout" if task == "seal" else "train"
        index = next(i for i in range(spec.size(split)) if spec.instance(split, i).row_key == task)
        turn = session.reset(spec.instance(split, index))
        for action in actions:
            turn = session.step(session.oracle() if action == "oracle" else action)
        return turn

    yield play
    for session in sessions:
        session.close()


def played(spec: EnvSpec, backend: str, agent: agents.Agent) -> dict[str, float]:
    """Reward of each task."""
    session, found = local_session(spec, backend=backend), {}
    try:
        for split in spec.splits:
            for instance in (spec.instance(split, i) for i in range(spec.size(split))):
                found[instance.row_key or ""] = agents.play(session, instance, agent).rewards["agent"]
    finally:
        session.close()
    return found


BACKENDS = ["bubblewrap", *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("docker", "kubernetes"))]


@box
@RUNNERS
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_oracle_solves_every_task_and_nobody_else(tmp_path: Path, backend: str, verify: str) -> None:
    spec = spec_of(tmp_path, verify)
    assert played(spec, backend, agents.oracle) == {"greet": 1.0, "count": 1.0, "seal": 1.0}
    assert played(spec, backend, agents.null) == {"greet": 0.0, "count": 0.0, "seal": 0.0}


@box
def test_they_pass_the_checks_of_environments() -> None:
    findings = list(check_env(load_spec(HERE / "harbor.yaml"), episodes=2, contents=3))
    assert [f for f in findings if not f.ok] == [] and len(findings) == 7


@box
@RUNNERS
def test_every_reward_says_which_runner_gave_it_and_what_else_it_said(tmp_path: Path, verify: str) -> None:
    env = HarborEnv(spec_of(tmp_path, verify))
    try:
        env.reset(options={"instance": env.env_spec.instance("train", 1)})
        env.step("printf '3\\n3\\n' >answer.txt; echo 3 >answer.txt; echo >>answer.txt")
        _, reward, over, _, info = env.step(SUBMIT)
    finally:
        env.close()
    assert over and reward == 1.0
    assert info["components"]["agent"] == {"env": 1.0, verify: 1.0, f"{verify}.tidy": 0.0, "tampering": 0.0}


# What is in the box.


@box
def test_the_box_begins_as_the_dockerfile_says(tmp_path: Path, play) -> None:
    turn = play(spec_of(tmp_path), "count", "pwd; cat customers.txt region.txt; echo $CUSTOMER $REGION; ls /logs")
    assert turn.text.split() == [
        "/app",
        "alder",
        "juniper",
        "rowan",
        "north",
        "juniper",
        "north",
        "agent",
        "artifacts",
        "verifier",
    ]
    first = play(spec_of(tmp_path / "again"), "count")
    assert first.text.startswith("The file /app/orders.csv"), "the canary is not for agents"


@box
@RUNNERS
def test_neither_tests_nor_solution_are_there_while_an_agent_acts(tmp_path: Path, play, verify: str) -> None:
    hidden = "grep -rls 'name.strip\\|EXPECTED' / --include=*.sh --include=*.py 2>/dev/null"
    look = f"ls -A /tests /solution /logs/verifier; {hidden}; env"
    spec = spec_of(tmp_path, verify)
    seen = play(spec, "greet", look).text
    assert "solve" not in seen and "greeting" not in seen and "EXPECTED" not in play(spec, "count", look).text
    after = play(spec, "seal", "oracle", "ls -A /solution; echo nothing").text
    assert after == "nothing", "the expert takes the solution away with it"


@box
def test_a_run_that_fails_is_told_at_its_line(tmp_path: Path, play) -> None:
    spec = load_spec(one(tmp_path, "greet", {DOCKERFILE: "FROM debian\nWORKDIR /app\nRUN echo no room; touch /usr/x\n"}))
    with pytest.raises(SpecError, match=r"Dockerfile:3:1: RUN, in the box .* failed \(exit 1\): no room"):
        play(spec, "greet")


@box
def test_a_task_without_a_solution_has_no_oracle_and_plays(tmp_path: Path, play) -> None:
    spec = load_spec(one(tmp_path, "greet", {"solution/solve.sh": None}))
    assert play(spec, "greet", "ls", SUBMIT).rewards == {"agent": 0.0}
    with pytest.raises(SpecError, match=r"no solution/solve\.sh"):
        play(spec, "greet", "oracle")


# Cheats.

REWARD = "echo 1 >/logs/verifier/reward.txt"
EVERYWHERE = f"printf '#!/bin/sh\\n{REWARD}\\n' >/tests/test.sh; chmod +x /tests/test.sh; {REWARD}"
HOSTILE = {
    "another test.sh and a reward": EVERYWHERE,
    "a test.sh that cannot be replaced": f"{EVERYWHERE}; mkdir /tests/test.sh; chmod 500 /tests /logs/verifier",
    "a folder in the place of the test": "rm -f /tests/test.sh; mkdir -p /tests/test.sh/x; chmod 0 /tests/test.sh",
    "a link in the place of the reward": "ln -s /etc/hostname /logs/verifier/reward.txt",
    "a file in the place of the verdicts": "rm -r /logs/verifier; echo 1 >/logs/verifier",
    "a link in the place of the verdicts": f"mkdir /app/v; rm -r /logs/verifier; ln -s /app/v /logs/verifier; {REWARD}",
    "a process that waits": f"(sleep 1; while :; do {EVERYWHERE}; done) >/dev/null 2>&1 &",
    "functions of the shell": "python3() { return 0; }; cd() { :; }; export -f python3",
    "a file that shells read": "export BASH_ENV=/app/e; echo 'python3() { return 0; }' >/app/e",
    "a program in PATH": "mkdir bin; cp /bin/true bin/python3; export PATH=/app/bin:$PATH",
}
UNSEEN = ("a process that waits", "functions of the shell", "a file that shells read", "a program in PATH")
"""Nothing of them lies in the places of the runner: a process ends with the command that started it."""


@box
@RUNNERS
@pytest.mark.parametrize("attempt", HOSTILE)
def test_what_lies_outside_of_the_task_s_files_gains_nothing(tmp_path: Path, play, verify: str, attempt: str) -> None:
    turn = play(spec_of(tmp_path, verify), "greet", HOSTILE[attempt], SUBMIT)
    assert turn.rewards == {"agent": 0.0} and turn.stop == "terminated"
    assert turn.components["agent"]["tampering"] == float(attempt not in UNSEEN), "and is recorded"


SITE = "p=~/.local/lib/$(python3 -c 'import sys; print(\"python%d.%d\" % sys.version_info[:2])')/site-packages; mkdir -p $p"


@box
@pytest.mark.parametrize(("verify", "reward"), [("runner_fresh", 0.0), ("runner_shared", 1.0)])
def test_what_hides_at_home_cheats_the_shared_runner_alone(tmp_path: Path, play, verify: str, reward: float) -> None:
    """The risk that `runner_shared` names."""
    turn = play(spec_of(tmp_path, verify), "greet", f"{SITE}; echo 'import os; os._exit(0)' >$p/usercustomize.py", SUBMIT)
    assert turn.rewards == {"agent": reward} and turn.components["agent"][verify] == reward


@box
@RUNNERS
def test_code_that_tests_load_can_speak_for_them_and_the_reward_says_which_runner_it_was(tmp_path, play, verify) -> None:
    """The risk that both name: only `verify: outputs` is free of it."""
    turn = play(spec_of(tmp_path, verify), "greet", "echo 'import os; os._exit(0)' >greet.py", SUBMIT)
    assert turn.rewards == {"agent": 1.0} and turn.components["agent"][verify] == 1.0


@box
@pytest.mark.parametrize("size", ["70M", "60M"], ids=["for a snapshot", "for its directory"])
def test_more_than_a_fresh_box_can_be_given_is_the_agent_s_doing(tmp_path: Path, play, size: str) -> None:
    turn = play(spec_of(tmp_path), "greet", f"truncate -s {size} big", SUBMIT)
    assert turn.rewards == {"agent": 0.0} and turn.stop == "agent_limit"


# The runner's own faults.


@box
@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("echo what; exit 3", "neither reward.json nor reward.txt .* exit code 3: what"),
        ("sleep 100", "ran into a limit of time"),
        ("echo 2 >/logs/verifier/reward.txt", "outside reward.range"),
        ("echo nan >/logs/verifier/reward.txt", "finite"),
        ('echo \'{"a": 1, "b": 0}\' >/logs/verifier/reward.json', "none of a, b is called 'reward'"),
        ("ln -s /etc/passwd /logs/verifier/reward.txt", "cannot be read"),
        ("cd /logs/verifier; echo yes >reward.json; echo 1 >reward.txt", "reward.json is no reward"),
    ],
)
@RUNNERS
def test_a_verdict_that_is_none_is_never_a_reward(tmp_path: Path, play, verify: str, test: str, said: str) -> None:
    files = {"tests/test.sh": f"#!/bin/sh\n{test}\n", TOML: "[verifier]\ntimeout_sec = 2.0\n"}
    spec = load_spec(one(tmp_path, "greet", files, reward=f"{{verify: {verify}}}"))
    with pytest.raises(VerifierFault, match=said):
        play(spec, "greet", SUBMIT)


@pytest.mark.parametrize(
    ("name", "text", "rewards", "total"),
    [
        ("reward.txt", "0.25\n", {"reward": 0.25}, 0.25),
        ("reward.json", "1", {"reward": 1.0}, 1.0),
        ("reward.json", '{"score": true}', {"score": 1.0}, 1.0),
        ("reward.json", '{"style": 0.5, "reward": 0}', {"style": 0.5, "reward": 0.0}, 0.0),
    ],
)
def test_rewards_are_read_as_the_format_says(name: str, text: str, rewards: dict[str, float], total: float) -> None:
    place = RecordingBox()
    place.write(f"/logs/verifier/{name}", text.encode())
    found = runner.run(read_task(HERE / "tasks/greet"), place)
    assert found == rewards and runner.total(found) == total


@pytest.mark.parametrize("text", ["", "{}", "[1]", '"1"', "Infinity", '{"reward": null}', '{"reward": 1e999}', "1" * 70_000])
def test_what_is_no_reward_is_the_verifier_s_fault(text: str) -> None:
    place = RecordingBox()
    place.write("/logs/verifier/reward.json", text.encode())
    with pytest.raises(VerifierFault):
        runner.run(read_task(HERE / "tasks/greet"), place)
