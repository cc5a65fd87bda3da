"""A server that breaks the protocol, or is not there, is a clear infrastructure error; never a reward of 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import CapabilityError, EnvironmentFault, EpisodeError, InfraError, SpecError, VerifierFault
from envfarm.openenv.actions import plain
from envfarm.openenv.env import blocks
from envfarm.session import Session, Turn, local_session
from envfarm.spec import load_spec
from tests.envfarm.openenv.servers import scripted, spec_of

NO_TOOLS = {"type": "mcp", "data": {"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "none here"}}}


def seen(reward: Any = None, done: Any = False, **observation: Any) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": observation or {"said": "hello"}, "reward": reward, "done": done}}


def tools(listed: Any) -> dict[str, Any]:
    return {"type": "mcp", "data": {"result": {"tools": listed}}}


def error(code: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": "sorry", "code": code, **more}}


def opened(folder: Path, url: str, **more: Any) -> tuple[Session, Turn]:
    spec = spec_of(folder, url, **more)
    session = local_session(spec)
    return session, session.reset(spec.instance("train", 0))


def test_a_server_that_behaves(tmp_path: Path) -> None:
    bad_action = error("VALIDATION_ERROR", errors=[{"loc": ["word"], "msg": "too rude"}])
    with scripted(seen(reward=0.5), NO_TOOLS, seen(0.25), bad_action, seen(True, True, said="bye", left=2)) as url:
        session, first = opened(tmp_path, url)
        assert first.text == "hello" and first.rewards == {}
        assert session.step("tea").rewards == {"agent": 0.25}
        rude = session.step("coffee")
        assert rude.malformed and "too rude" in rude.text and not rude.over
        last = session.step("bye")
        assert last.rewards == {"agent": 1.0} and last.stop == "terminated" and "left" in last.text
        session.close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{no json", "breaks the protocol"),
        (b"\xff\xfe", "breaks the protocol"),
        ([1, 2], "breaks the protocol"),
        ({"type": "surprise", "data": {}}, "breaks the protocol"),
        ({"type": "observation"}, "breaks the protocol"),
        ({"type": "observation", "data": {"observation": {}, "done": False}}, "breaks the protocol"),
        (seen("high"), "breaks the protocol"),
        (seen(0.0, "maybe"), "breaks the protocol"),
        (json.dumps(seen(float("nan"))), "breaks the protocol"),
        ({"type": "observation", "data": {"observation": "hi", "reward": 0, "done": False}}, "breaks the protocol"),
        (NO_TOOLS, "answered 'step' with an MCP message"),
        (error("SESSION_ERROR"), "refuses the session: SESSION_ERROR sorry"),
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_an_infra_error_that_shows_it(answer: Any, says: str, tmp_path: Path) -> None:
    with scripted(seen(), NO_TOOLS, answer) as url:
        session, _ = opened(tmp_path, url)
        with pytest.raises(InfraError) as raised:
            session.step("tea")
        assert says in str(raised.value) and url in str(raised.value)
        session.close()


def test_hanging_up_silence_and_absence_are_infra_errors(tmp_path: Path) -> None:
    with scripted(seen(), NO_TOOLS) as url:
        session, _ = opened(tmp_path, url)
        with pytest.raises(InfraError, match="closed the connection instead of answering 'step'"):
            session.step("tea")
        session.close()
    with pytest.raises(InfraError, match="cannot be reached"):
        opened(tmp_path, url)
    with scripted(None) as url, pytest.raises(InfraError, match="did not answer 'reset' within 5 s"):
        opened(tmp_path, url, answers_within_s=5)


def test_what_a_server_says_before_it_hangs_up_is_told(tmp_path: Path) -> None:
    with scripted(unasked=error("CAPACITY_REACHED")) as url, pytest.raises(InfraError, match="CAPACITY_REACHED sorry"):
        opened(tmp_path, url)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ((error("EXECUTION_ERROR"),), EnvironmentFault),
        ((error("VALIDATION_ERROR"),), EnvironmentFault),
        ((error("CAPACITY_REACHED"),), InfraError),
        ((seen(), tools("many")), InfraError),
        ((seen(), seen()), InfraError),
        (
            (seen(), tools([{"name": "t", "inputSchema": {"properties": [1]}}])),
            CapabilityError,
        ),
        ((seen(), tools([{"description": "nameless"}])), CapabilityError),
    ],
    ids=str,
)
def test_a_reset_that_fails_says_whose_fault_it_is(answers: Any, kind: type[EpisodeError], tmp_path: Path) -> None:
    with scripted(*answers) as url, pytest.raises(kind):
        opened(tmp_path, url)


def test_a_reward_out_of_range_is_the_verifier_s_fault(tmp_path: Path) -> None:
    with scripted(seen(), NO_TOOLS, seen(7.0)) as url:
        session, _ = opened(tmp_path, url)
        with pytest.raises(VerifierFault, match=r"outside reward\.range"):
            session.step("tea")
        session.close()


def test_an_action_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    schema = {"properties": {"where": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}, "required": ["where"]}
    with scripted(seen(), NO_TOOLS, schema=schema) as url, pytest.raises(CapabilityError, match="needs 'where'"):
        opened(tmp_path, url)


def test_fields_as_pydantic_writes_them() -> None:
    made = plain(
        {
            "properties": {
                "way": {"$ref": "#/$defs/Way", "description": "where to"},
                "far": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                "kind": {"const": "move"},
                "notes": {"type": "array", "items": {"type": "string"}},
                "any": {},
            },
            "required": ["way"],
            "$defs": {"Way": {"enum": ["up", "down"], "title": "Way"}},
        },
        "step",
    )
    assert made["properties"] == {
        "way": {"type": "string", "enum": ["up", "down"], "description": "where to"},
        "far": {"type": "integer"},
        "kind": {"type": "string", "enum": ["move"]},
        "notes": {"type": "array", "items": {"type": "string"}},
    }
    assert made["required"] == ["way"]


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        ({"text": "a door", "role": "agent", "available_tools": []}, "a door"),
        ({"tool_name": "t", "result": {"content": [{"type": "text", "text": "x"}], "data": 3}, "error": None}, "3"),
        ({"tool_name": "t", "result": {"content": [{"type": "text", "text": "x"}], "data": None}}, "x"),
        ({"tool_name": "t", "result": None, "error": {"error_type": "timeout", "message": "slow"}}, "slow"),
        ({"metadata": {"secret": 1}, "echo": "hi", "none": None}, "hi"),
        ({"metadata": {}}, ""),
    ],
)
def test_observations_are_shown_without_their_frame(observation: dict[str, Any], text: str) -> None:
    assert "".join(block.text for block in blocks(observation)) == text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("openenv: echo:latest", "expected the URL of a running OpenEnv server"),
        ("openenv: http://host:99999", "expected the URL"),
        ("openenv: http://host:1\nsandbox: {box: true}", "leave `box` out"),
        ("openenv: http://host:1\nisolation: process", "leave `isolation` out"),
        ("openenv: http://host:1\nroles: {a: {}, b: {}}", "one role"),
    ],
)
def test_the_yaml_is_checked(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "remote.yaml"
    path.write_text(f"envfarm: 1\nid: local/remote-v0\n{line}\n")
    with pytest.raises(SpecError, match=says) as raised:
        load_spec(path)
    assert raised.value.location is not None
