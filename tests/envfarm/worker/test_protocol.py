"""Messages survive the wire; an error comes out as the class that went in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envfarm import errors
from envfarm.blocks import Code, Fields, Image, Output, Table, Text
from envfarm.session import Turn
from envfarm.tools import ToolCall, ToolSpec
from envfarm.worker import protocol
from envfarm.worker.protocol import Attach, Failed, Finish, Fork, Leave, Oracle, Random, Release, Reset, Said, Step, Words
from tests.envfarm.worker.helpers import toy


def tree(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


@pytest.mark.parametrize("cls", list(tree(errors.EnvfarmError)), ids=lambda c: c.__name__)
def test_every_error_of_ours_comes_back_as_its_class(cls: type[Exception]) -> None:
    back = protocol.decode_reply(protocol.encode(protocol.failed(cls("what happened"))))
    assert isinstance(back, Failed)
    raised = protocol.as_exception(back)
    assert type(raised) is cls and str(raised) == "what happened"


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file"), PermissionError(13, "denied"), OSError(28, "No space left"), ValueError("too large")],
)
def test_what_a_box_raises_comes_back(error: Exception) -> None:
    raised = protocol.as_exception(protocol.failed(error))
    assert type(raised) is type(error) and getattr(raised, "errno", None) == getattr(error, "errno", None)


def test_an_unknown_class_is_an_infrastructure_error() -> None:
    raised = protocol.as_exception(Failed("SystemExit", "no"))
    assert type(raised) is errors.InfraError and "SystemExit: no" in str(raised)


def test_every_request_survives() -> None:
    instance = toy("shared").instance("train", 5)
    requests = [
        Reset("a-v0", instance), Step("north"), Step(ToolCall("move", {"to": ["n", 1, None]}), "first"), Finish("token_limit"),
        Oracle(), Random(7), Fork(), Release(), Attach("key"), Leave(),
    ]  # fmt: skip
    assert [protocol.decode_message(protocol.encode(r)) for r in requests] == requests


def test_every_reply_survives() -> None:
    blocks = (
        Text("a", exact_spans=((0, 1),)), Fields((("k", "v"),)), Table(("c",), (("1",),)), Code("x = 1"), Output("é\n"),
        Image(b"\x89PNG", "a dot"),
    )  # fmt: skip
    turn = Turn(
        role="first", blocks=blocks, text="a", rewards={"first": 0.5}, components={"first": {"env": 0.5, "speed": 0.1}},
        terminated=True, stop="terminated", malformed=True, tools=(ToolSpec("t", "d", {"type": "object"}),), text_tool="t",
        command_output=((0, 1),), events=({"channel": "c", "n": 1},), virtual_time_s=2.5,
    )  # fmt: skip
    for reply in (Said(turn), Words("north"), Failed("BoxDied", "gone")):
        assert protocol.decode_reply(protocol.encode(reply)) == reply
