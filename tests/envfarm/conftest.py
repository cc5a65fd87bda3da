"""What tests of environments share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envfarm.session import Session, Turn, local_session
from envfarm.spec import EnvSpec
from envfarm.tools import ToolCall
from tests.envfarm.backends.shared import Shared
from tests.envfarm.task_files import Opened


@pytest.fixture(scope="session")
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Plays actions on a task of `task_files`, size 3; its sessions are closed at the end."""
    sessions: list[Session] = []

    def play(spec: EnvSpec, *actions: str | ToolCall) -> tuple[Session, Turn]:
        session = local_session(spec)
        sessions.append(session)
        turn = session.reset(spec.instance("train", 0, {"set": {"size": [3, 3]}}))
        for action in actions:
            turn = session.step(action)
        return session, turn

    yield play
    for session in sessions:
        session.close()
