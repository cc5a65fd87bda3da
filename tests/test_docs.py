"""What the documents say is there, and their snippets do what they are shown to do.

A fence whose info string names a file (```python safe.py) is that file, beside the other named fences of its document. An
environment among them is loaded and solved by its oracle, a run file is read and checked, Python compiles, SQL runs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envfarm.farm.file import read_farm
from envfarm.farm.manifests import render
from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.spec import load_spec
from envfarm.testing import agents
from rollout.run import RolloutFile, read_run
from rollout.run_check import resolve
from rollout.store import Store
from tests.envfarm.worker.helpers import running

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "k8s/README.md"])

_FENCE = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_QUOTED = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:\.ci|benchmarks|docs|envfarm|environments|examples|k8s|rollout|tests|trainer)/[\w./-]*(?:::\w+)?")
_MODULE = re.compile(r"(?:envfarm|rollout|trainer)(?:\.\w+)+")
NO_PATHS = {"envfarm/base", "envfarm/python", "envfarm/gpu", "envfarm/worker"}
"""Names of images."""
NO_MODULES = {"envfarm.json", "envfarm.environments", "envfarm.commands"}
"""A file of a saved policy; entry-point groups."""


@dataclass(frozen=True)
class Snippet:
    """One fence."""

    document: Path
    line: int
    language: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def snippets(document: Path) -> Iterator[Snippet]:
    text = document.read_text("utf-8")
    for found in _FENCE.finditer(text):
        yield Snippet(document, text.count("\n", 0, found.start()) + 1, found[1], found[2] or "", found[3])


EVERY = [s for document in DOCUMENTS for s in snippets(document)]
YAML = [s for s in EVERY if s.language == "yaml" and s.text.startswith("envfarm: 1")]
REMOTE = [s for s in YAML if re.search(r"^openenv:", s.text, re.MULTILINE)]
"""Environments of a server: `tests/test_docs_serve.py` runs one."""
SPECS = [s for s in YAML if re.search(r"^id:", s.text, re.MULTILINE) and s not in REMOTE]
RUNS = [s for s in YAML if re.search(r"^run:", s.text, re.MULTILINE)]
FARMS = [s for s in YAML if re.search(r"^farm:", s.text, re.MULTILINE) and s not in RUNS]


def written(snippet: Snippet, folder: Path) -> Path:
    """The snippet as a file, with what else its document names."""
    for other in snippets(snippet.document):
        if other.name:
            (folder / other.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / other.name).write_text(other.text)
    path = folder / (snippet.name or "snippet.yaml")
    path.write_text(snippet.text)
    return path


def prose(document: Path) -> str:
    return _FENCE.sub("", document.read_text("utf-8"))


def test_there_is_something_to_look_at() -> None:
    assert len(SPECS) >= 5 and RUNS and FARMS and len(DOCUMENTS) >= 10
    assert set(YAML) == {*SPECS, *REMOTE, *RUNS, *FARMS}, "each is an environment, a run file or a farm"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [t.partition("#")[0] for t in _LINK.findall(prose(document)) if "://" not in t]
    assert [t for t in targets if t and not (document.parent / t).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_named_files_modules_and_tests_are_there(document: Path) -> None:
    missing = [name for name in _QUOTED.findall(prose(document)) if not is_there(name)]
    assert missing == []


def is_there(name: str) -> bool:
    """False for what looks like a path or module of this repository and is none."""
    if _PATH.fullmatch(name) and name not in NO_PATHS:
        path, _, test = name.partition("::")
        here = ROOT / path
        return here.exists() and (not test or defines(here, test))
    if _MODULE.fullmatch(name) and name not in NO_MODULES:
        return module_is_there(name.split("."))
    return True


def module_is_there(parts: list[str]) -> bool:
    """`package.module`, or a name that `package.module` defines (and perhaps a member of it)."""
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if file.is_file():
            rest = parts[count:]
            return len(rest) <= 2 and all(defines(file, name) for name in rest[:1])
    return False


def defines(file: Path, name: str) -> bool:
    text = file.read_text("utf-8")
    return (
        re.search(rf"^(?:async )?(?:def|class) {name}\b|^{name}\b.*=|^ +\"\S+\": \(.*\"{name}\"", text, re.MULTILINE) is not None
    )


@pytest.mark.parametrize(
    "name", ["envfarm/nothing.py", "envfarm.box.NOTHING", "rollout.nothing.at.all", "tests/test_docs.py::test_none"]
)
def test_what_is_not_there_is_noticed(name: str) -> None:
    assert not is_there(name)


@pytest.mark.parametrize("snippet", [s for s in EVERY if s.language == "python"], ids=str)
def test_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, str(snippet), "exec")


@pytest.mark.box
@pytest.mark.parametrize("snippet", SPECS, ids=str)
def test_environments_load_and_their_oracles_play(snippet: Snippet, tmp_path: Path) -> None:
    spec = load_spec(written(snippet, tmp_path))
    session = local_session(spec)
    try:
        for split in spec.splits:
            for rung in range(len(spec.ladder)) or [None]:
                instance = spec.instance(split, 0, {} if rung is None else {"rung": rung})
                played = agents.play(session, instance, agents.oracle)
                assert played.stop == "terminated", played
                assert max(played.rewards.values()) >= spec.reward.solved_at, played
    finally:
        session.close()


@pytest.mark.parametrize("snippet", RUNS, ids=str)
def test_run_files_are_read_and_fit_together(snippet: Snippet, tmp_path: Path) -> None:
    path = written(snippet, tmp_path)
    registry = default_registry([tmp_path])
    run, source = read_run(path, RolloutFile)
    assert resolve(run, source, registry)
    if "stages:" in snippet.text:
        from trainer.run import RunFile
        from trainer.run_check import check

        full, source = read_run(path, RunFile)
        assert check(full, source, registry)


@pytest.mark.parametrize("snippet", FARMS, ids=str)
def test_farms_are_read_and_rendered(snippet: Snippet, tmp_path: Path) -> None:
    farm, registry = read_farm(written(snippet, tmp_path)), default_registry([tmp_path])
    assert all(registry.match(pattern) for pool in farm.pools for pattern in pool.environments)
    assert farm.kind != "kubernetes" or render(farm)


@pytest.mark.parametrize("snippet", [s for s in EVERY if s.language == "sql"], ids=str)
def test_queries_run(snippet: Snippet, tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        for query in filter(str.strip, snippet.text.split(";")):
            assert isinstance(store.sql(query), list)


def test_the_client_of_the_protocol_plays() -> None:
    (snippet,) = [s for s in EVERY if s.document.name == "protocol.md" and s.language == "python"]
    names: dict[str, object] = {}
    exec(compile(snippet.text, str(snippet), "exec"), names)

    async def play() -> tuple[float, str]:
        async with running(default_registry().get("games/maze-v0")) as (_, url):
            return await names["play"](url)  # type: ignore[operator]

    assert asyncio.run(play()) == (0.0, "terminated")
