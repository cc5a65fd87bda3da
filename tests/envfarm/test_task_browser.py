"""`tools: [browser]` in real boxes: pages that are files, forms that become lines, and an oracle that finds its way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import VerifierFault
from envfarm.session import Session, Turn
from envfarm.spec import EnvSpec, load_spec
from envfarm.task.browser import MAX_SENT_BYTES
from envfarm.task.forms import sent_forms, sent_line
from envfarm.testing.check_env import check_env
from tests.envfarm.task_files import Opened, task_spec

pytestmark = pytest.mark.box
DESK = Path(__file__).parent / "toys" / "desk" / "desk.yaml"
FILES = {
    "/task/site/index.html": '<p>Size {{ size }}</p><a href="form.html">Form</a> <a href="large.txt">Large</a>',
    "/task/site/form.html": '<form method=post action="/done.html"><input name=size><button>Go</button></form>',
    "/task/site/done.html": '<p>Done.</p><a href="/">Front</a>',
    "/task/site/large.txt": "x" * 40_000,
}
SOLUTION = "open /\nclick Form\ntype size {{ size }}\nsend"


def spec_of(folder: Path, **task: Any) -> EnvSpec:
    keys = {"tools": [{"browser": {"site": "/task/site"}}], "files": FILES, "solution": SOLUTION}
    return task_spec(folder, prompt="p", limits={"turns": 30}, **{**keys, **task})


def finish(session: Session) -> Turn:
    turn = session.step(session.oracle())
    while not turn.over:
        turn = session.step(session.oracle())
    return turn


def test_an_environment_of_yaml_alone_passes_the_conformance_suite() -> None:
    findings = list(check_env(load_spec(DESK), episodes=2, contents=40))
    assert [f for f in findings if not f.ok] == [] and len(findings) == 7


def test_pages_are_files_and_mistakes_are_observations(tmp_path: Path, opened: Opened) -> None:
    session, turn = opened(spec_of(tmp_path), "open /")
    assert turn.text == "Size 3\n[1] Form [2] Large"
    assert session.step("click 1").text == "size = - [1] Go"
    assert session.step("type size 7").text == "size = 7"
    for action, says in (
        ("click Nobody", "No link Nobody."), ("type colour red", "No field colour."),
        ("open http://example.com/", "only http://site.example can be reached"), ("select size 7", "takes text"),
    ):  # fmt: skip
        turn = session.step(action)
        assert says in turn.text and not turn.malformed and not turn.over
    assert session.step("back").text.startswith("Size 3")
    assert session.step("click Large").text == "There is no page /large.txt."  # more than a page may have
    assert session.step("open").malformed


def test_forms_become_lines_in_the_box(tmp_path: Path, opened: Opened) -> None:
    spec = spec_of(tmp_path, tools=["shell", {"browser": {"site": "site", "sent": "/task/out/{{ size }}.jsonl"}}])
    session, _ = opened(spec, "open /form.html", "type size é", "send", "open /form.html", "click Go")
    lines = session.step("shell cat out/3.jsonl").text.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"to": "/done.html", "fields": {"size": "é"}}, {"to": "/done.html", "fields": {"size": ""}},
    ]  # fmt: skip


def test_links_of_the_agent_lead_nowhere(tmp_path: Path, opened: Opened) -> None:
    spec = spec_of(tmp_path, tools=["shell", {"browser": {"site": "/task/site"}}])
    links = "shell ln -s /etc/passwd site/passwd; ln -s /etc site/etc; ln -s /etc/motd sent.jsonl"
    session, turn = opened(spec, links, "open /passwd")
    assert turn.text == "There is no page /passwd."
    assert session.step("open /etc/passwd").text == "There is no page /etc/passwd."
    session.step("open /form.html")
    assert "leaves /task" in session.step("send").text


def test_who_sends_without_end_is_stopped(tmp_path: Path, opened: Opened) -> None:
    spec = spec_of(tmp_path, tools=["shell", {"browser": {"site": "/task/site"}}])
    session, _ = opened(spec, f"shell head -c {MAX_SENT_BYTES} /dev/zero > sent.jsonl", "open /form.html")
    for _ in range(3):
        turn = session.step("send")
        assert turn.text == "Too much was sent."
    assert turn.stop == "agent_limit"


@pytest.mark.parametrize(
    "check",
    [{"same_as_solution": ["/task/sent.jsonl"]}, {"expr": 'sent == [{"to": "/done.html", "fields": {"size": size | string}}]'}],
)
def test_the_oracle_returns_to_its_way(tmp_path: Path, opened: Opened, check: dict[str, Any]) -> None:
    spec = spec_of(tmp_path, check=check)
    assert finish(opened(spec)[0]).rewards == {"agent": 1.0}
    session, _ = opened(spec, "open /", "click Form", "back")
    assert session.oracle() == "open /"
    assert finish(session).rewards == {"agent": 1.0}
    session, _ = opened(spec, *SOLUTION.replace("{{ size }}", "3").splitlines(), "open /")
    assert session.oracle() == "submit"  # what is sent is sent
    session, _ = opened(spec, "open /form.html", "send")
    assert finish(session).rewards == {"agent": 0.0}


def test_a_solution_that_loses_its_way_is_told(tmp_path: Path, opened: Opened) -> None:
    with pytest.raises(VerifierFault, match=r"solution line 'click Form': No link Form\."):
        opened(spec_of(tmp_path, solution="click Form\nsend"), "submit")


def test_fools_use_what_the_page_has(tmp_path: Path, opened: Opened) -> None:
    session, _ = opened(spec_of(tmp_path), "open /form.html")
    assert {session.random(seed) for seed in range(80)} == {"open /", "back", "send", "click 1", "type size hello", "submit"}


def test_lines_that_no_form_wrote_are_left_out() -> None:
    text = sent_line("/a", {"x": "1"}) + 'nonsense\n[1]\n{"to": 3, "fields": {}}\n\n' + sent_line("/b", {})
    assert sent_forms(text) == [{"to": "/a", "fields": {"x": "1"}}, {"to": "/b", "fields": {}}]
