"""`docs/serve.md`, as somebody would follow it: the command, both clients, the validator, and the way back."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openenv.cli.__main__ import app as openenv_cli
from typer.testing import CliRunner

from envfarm.session import local_session
from envfarm.spec import load_spec
from tests.envfarm.test_serve import serving
from tests.test_docs import ROOT, Snippet, snippets

PAGE = ROOT / "docs" / "serve.md"
SNIPPETS = {s.name or s.text.strip(): s for s in snippets(PAGE)}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    (command,) = [text for text in SNIPPETS if text.startswith("envfarm serve")]
    with serving(*shlex.split(command)[2:]) as (url, _):
        yield url


def defined(snippet: Snippet) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(snippet.text, str(snippet), "exec"), names)
    return names


def test_the_official_client_plays(url: str) -> None:
    reward, stop = asyncio.run(defined(SNIPPETS["client.py"])["play"](url))
    assert stop == "terminated" and reward in (0.0, 1.0)


def test_the_validator_is_content(url: str) -> None:
    (command,) = [text for text in SNIPPETS if text.startswith("openenv validate")]
    done = CliRunner().invoke(openenv_cli, [*shlex.split(command)[1:-1], url])
    verdicts = re.findall(r"^ *(PASS|FAIL)  (\w+)$", done.output, re.MULTILINE)
    assert done.exit_code == 0 and len(verdicts) == 6 and {verdict for verdict, _ in verdicts} == {"PASS"}, done.output


def test_a_stock_mcp_client_walks(url: str) -> None:
    tools, seen = asyncio.run(defined(SNIPPETS["tools.py"])["walk"](url))
    assert "move" in tools and seen


def test_the_way_back(url: str, tmp_path: Path) -> None:
    path = tmp_path / "remote.yaml"
    path.write_text(re.sub(r"http://\S+", url, SNIPPETS["remote.yaml"].text))
    spec = load_spec(path)
    session = local_session(spec)
    first = session.reset(spec.instance("train", 3))
    maze = load_spec(ROOT / "environments" / "games" / "maze" / "maze.yaml")
    assert first.text == local_session(maze).reset(maze.instance("heldout", 3, {"rung": 0})).text
    turn = first
    while not turn.over:
        turn = session.step(f"move {turn.text.split('open: ')[-1].split()[-1]}")
    assert turn.stop == "terminated"
    session.close()
