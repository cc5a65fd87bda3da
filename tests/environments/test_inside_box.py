"""What an agent can find from inside its box: nothing of envfarm, the instance, the solution or the expected outputs.

Every secret is a string that exists nowhere else, so that a search for it can only find a leak; and the search itself is
shown to find what does lie in the box.
"""

from __future__ import annotations

import os
import re
import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfarm.registry import default_registry
from envfarm.session import Session, local_session
from envfarm.spec import Instance, load_spec

pytestmark = pytest.mark.box

TASK = """\
envfarm: 1
id: hidden/answer-v0
randomize: {number: {uniform_int: [100000, 999999]}, code: {choice: [OPENING-4417]}}
task:
  prompt: "Write the answer into answer.txt. The case is {{ code }}."
  files: {/task/case.txt: "case {{ code }}\\n"}
  solution: 'echo EXPECTED-93{{ number }} > answer.txt'
  artifacts: [/task/answer.txt]
  check: {same_as_solution: [/task/answer.txt]}
sandbox: {box: true, image: envfarm/python, memory: 256MiB}
limits: {turns: 40, exec_cpu_s: 60, exec_timeout_s: 200}
"""
SEARCHED = "/bin /etc /home /lib /lib64 /mnt /opt /root /run /sbin /srv /task /tmp /usr/local /var"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Session, Instance]]:
    (tmp_path / "answer.yaml").write_text(TASK)
    spec = load_spec(tmp_path / "answer.yaml")
    instance = spec.instance("train", 31337)
    session = local_session(spec)
    session.reset(instance)
    # The solution has run in its own box, so its output exists in the worker by now.
    session.step("echo wrong > answer.txt")
    yield session, instance
    session.close()


def shown(session: Session, command: str) -> str:
    turn = session.step(command)
    assert not turn.over, turn
    return turn.text


def test_no_file_holds_a_secret(live: tuple[Session, Instance]) -> None:
    session, instance = live
    assert "/task/case.txt" in shown(session, f"grep -rlIs OPENING-4417 {SEARCHED}"), "the search finds what is there"
    secrets = [f"EXPECTED-93{instance.params['number']}", "EXPECTED-93", instance.hash, instance.spec_hash, "hidden/answer"]
    assert "/" not in shown(session, f"grep -rlIs {' '.join('-e ' + s for s in secrets)} {SEARCHED}")


def test_no_process_variable_or_socket_leads_out(live: tuple[Session, Instance]) -> None:
    session, instance = live
    probe = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    assert "PATH=" in shown(session, "env")
    secrets = ("envfarm", "EXPECTED", instance.hash, "31337", str(instance.params["number"]), str(os.getpid()))
    places = ("/proc/net/unix", "/proc/net/tcp", "/proc/1/mountinfo")
    for command in ("env", probe, "ls -l /proc/[0-9]*/fd 2>/dev/null", *(f"cat {place}" for place in places)):
        text = shown(session, command)
        for secret in secrets:
            assert not re.search(rf"\b{re.escape(secret)}\b", text), f"{command} shows {secret}: {text[:500]}"
    assert len(shown(session, "cat /proc/net/unix").splitlines()) <= 1, "no Unix socket, abstract or not, but the header"
    numbers = shown(session, "ls -d /proc/[0-9]*").split()
    assert len(numbers) < 10, "only the box's own processes"


def test_python_in_the_box_cannot_import_envfarm_or_its_packages(live: tuple[Session, Instance]) -> None:
    session, _ = live
    for module in ("envfarm", "environments", "rollout", "trainer", "msgspec", "gymnasium"):
        text = shown(session, f"python3 -c 'import {module}' 2>&1 | tail -1")
        assert f"No module named '{module}'" in text, text
    found = shown(session, "find / -name '*envfarm*' -not -path '/proc/*' 2>/dev/null")
    assert "envfarm" not in found


def test_a_system_wide_installation_is_masked(live: tuple[Session, Instance], tmp_path: Path) -> None:
    """Where packages of the host's interpreter are installed, a box sees an empty directory."""
    session, _ = live
    folders = {*site.getsitepackages([sysconfig.get_config_var("prefix")]), "/usr/lib/python3/dist-packages", "/usr/local/lib"}
    for folder in sorted(folders):
        listed = shown(session, f"find {folder} \\( -name '*.py' -o -name '*.pth' \\) 2>/dev/null | head -3")
        assert ".py" not in listed and ".pth" not in listed, f"{folder}: {listed}"


def test_the_repair_task_keeps_its_original_and_hidden_inputs_outside() -> None:
    spec = default_registry().get("coding/repair-v0")
    instance = spec.instance("train", 7, {"rung": 0})
    session = local_session(spec)
    try:
        session.reset(instance)
        assert "/" not in shown(session, f"grep -rlIs -e {instance.hash} -e {instance.spec_hash} -e hidden_inputs {SEARCHED}")
    finally:
        session.close()
