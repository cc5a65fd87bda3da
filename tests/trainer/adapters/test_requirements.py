"""What whoever lacks a package, or has two that do not go together, is told. And sessions from loops that are not ours."""

from __future__ import annotations

import asyncio
import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from envfarm.errors import MissingDependencyError
from envfarm.registry import default_registry
from envfarm.tools import ToolCall
from rollout.policies import MALFORMED_CALL
from trainer.adapters.chat import action_of
from trainer.adapters.requirements import importing, unmet
from trainer.adapters.sessions import RemoteSession, Sessions, shared_sessions

TOYS = Path(__file__).resolve().parents[2] / "toy"


def there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("trainer.adapters.verl", "verl", r"pip install 'envfarm\[verl\]'"),
        ("trainer.adapters.verifiers", "verifiers", "pip install envfarm 'verifiers==0.4.0'"),
    ],
)
def test_a_missing_package_is_one_error_with_its_command(module: str, package: str, command: str) -> None:
    if there(package):
        importlib.import_module(module)
        return
    with pytest.raises(MissingDependencyError, match=f"needs {package}, which is not installed: {command}"):
        importlib.import_module(module)
    assert module not in sys.modules


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where distributions are installed, as far as metadata goes."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, name: str, number: str, *requires: str, code: str | None = None) -> None:
    info = site / f"{name}-{number}.dist-info"
    info.mkdir()
    wants = "".join(f"Requires-Dist: {r}\n" for r in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{wants}")
    if code is not None:
        (site / f"{name}.py").write_text(code)


def test_two_that_do_not_go_together_are_named(site: Path) -> None:
    install(site, "oldfarm", "0.1.14", "rows<4.7,>=3", "gpu>=1; extra == 'gpu'", "absent", code="from rows import gone\n")
    install(site, "rows", "5.2.0", code="")
    assert unmet("oldfarm") == ["absent (here is none)", "rows<4.7,>=3 (here is 5.2.0)"]
    with (
        pytest.raises(MissingDependencyError, match=r"oldfarm 0\.1\.14 cannot be imported here .*gone.*wants .*rows<4\.7,>=3"),
        importing("oldfarm", install="pip install oldfarm"),
    ):
        import oldfarm  # type: ignore[import-not-found]  # noqa: F401


def test_one_session_serves_loop_after_loop() -> None:
    """Workers outlast the loops that ask: what verifiers, TRL and Ray actors do."""
    spec = default_registry([TOYS]).get("toy/lamp-v0")
    instance = spec.instance("train", 0, {"perturb": "off"})
    sessions = Sessions()

    async def begin() -> RemoteSession:
        session = await sessions.open(spec)
        await session.reset(instance)
        return session

    try:
        session = asyncio.run(begin())
        action = asyncio.run(session.oracle())
        turn = sessions.wait(session.step(action))
        assert turn.text.startswith("Lamp\ncolour: ")
        asyncio.run(session.close())
    finally:
        sessions.close()
        sessions.close()
    assert shared_sessions() is shared_sessions() is not shared_sessions(workers=2)


@pytest.mark.parametrize(
    ("content", "calls", "action"),
    [
        ("move north", [], "move north"),
        ("", [("move", '{"direction": "north"}')], ToolCall("move", {"direction": "north"})),
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', [], ToolCall("look", {})),
        ("", [("look", "")], ToolCall("look", {})),
        ("", [("move", "[1]")], ToolCall(MALFORMED_CALL, {})),
        ("", [("move", "{north")], ToolCall(MALFORMED_CALL, {})),
        ("", [("look", "{}"), ("look", "{}")], ToolCall(MALFORMED_CALL, {})),
        ("<tool_call>\nlook", [], ToolCall(MALFORMED_CALL, {})),
    ],
)
def test_what_a_reply_does(content: str, calls: list[tuple[str, str]], action: object) -> None:
    assert action_of(content, calls) == action
