"""Tools: methods to schemas, and the two ways to call them."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.tools import Malformed, ToolCall, check_arguments, check_encodable, parse_text, to_text, tool, tools_of


class Desk:
    @tool
    def put(self, where: Literal["left", "right"], count: int, fast: bool, label: str = "none") -> str:
        """Put something down.

        where: which side
        """
        return ""

    @tool
    def done(self) -> str:
        """Finish."""
        return ""


TOOLS = tools_of(Desk)


def test_schema_has_mcp_shape() -> None:
    shape = TOOLS["put"].as_mcp()
    assert set(shape) == {"name", "description", "inputSchema"}
    assert shape["description"] == "Put something down."
    schema = shape["inputSchema"]
    assert schema["required"] == ["where", "count", "fast"]
    assert schema["properties"]["where"] == {"type": "string", "enum": ["left", "right"], "description": "which side"}
    assert schema["properties"]["label"] == {"type": "string", "default": "none"}
    assert schema["additionalProperties"] is False


def test_signature_is_what_text_agents_read() -> None:
    assert TOOLS["put"].signature == "put <where: left|right> <count> <fast> [label]"


words = st.text(st.characters(categories=["L", "N"]), min_size=1)


@given(st.sampled_from(["left", "right"]), st.integers(-99, 99), st.booleans(), st.lists(words, min_size=1).map(" ".join))
def test_text_and_native_calls_say_the_same(where: str, count: int, fast: bool, label: str) -> None:
    call = ToolCall("put", {"where": where, "count": count, "fast": fast, "label": label})
    assert parse_text(to_text(call, TOOLS), TOOLS) == call


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lift 1", "Unknown action 'lift'. Actions: put"),
        ("put up 1 true", "where must be one of left, right, not 'up'"),
        ("put left x true", "count must be integer, not 'x'"),
        ("put left 1", "put needs 'fast'. Usage: put"),
        ("done now", "done takes no more than 0 argument(s)"),
        ("", "Unknown action ''"),
    ],
)
def test_malformed_text_says_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(Malformed, match=says.replace("(", r"\(").replace(")", r"\)").replace("|", r"\|")):
        parse_text(text, TOOLS)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    good = {"where": "left", "count": 1, "fast": True}
    assert check_arguments(TOOLS["put"], {**good, "count": "7"})["count"] == 7
    for bad in ({"count": True}, {"count": 1.5}, {"fast": "maybe"}, {"where": 3}, {"label": 5}, {"colour": 1}):
        with pytest.raises(Malformed):
            check_arguments(TOOLS["put"], {**good, **bad})


class Shell:
    @tool
    def shell(self, command: str) -> str:
        """Run a command."""
        return ""

    @tool
    def submit(self) -> str:
        """Hand in."""
        return ""

    @tool
    def read(self, path: str) -> str:
        """Read a file."""
        return ""


def test_a_text_tool_takes_the_whole_text() -> None:
    tools = tools_of(Shell)
    assert parse_text("read x; submit", tools, "shell") == ToolCall("shell", {"command": "read x; submit"})
    assert parse_text("submit", tools, "shell") == ToolCall("submit", {})
    assert parse_text("read", tools, "shell") == ToolCall("shell", {"command": "read"})
    with pytest.raises(Malformed):
        parse_text("  ", tools, "shell")


def test_an_untyped_or_undocumented_tool_is_refused() -> None:
    class Untyped:
        @tool
        def go(self, where):  # type: ignore[no-untyped-def]
            """Go."""

    class Silent:
        @tool
        def go(self, where: str) -> None: ...

    with pytest.raises(TypeError, match="'where' has no type"):
        tools_of(Untyped)
    with pytest.raises(TypeError, match="no docstring"):
        tools_of(Silent)


@pytest.mark.parametrize(
    "action",
    ["put left \ud800", ToolCall("put", {"label": "\udc80"}), ToolCall("put", {"x": [{"\ud83d": 1}]}), ToolCall("\ud800")],
)
def test_half_a_character_is_no_action(action: str | ToolCall) -> None:
    with pytest.raises(Malformed, match="half a character"):
        check_encodable(action)
    check_encodable(ToolCall("put", {"label": "\N{GRINNING FACE}", "count": 3, "fast": None}))
