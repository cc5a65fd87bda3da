"""`task.toml`, as far as a box can do what it says. What we cannot do is refused at its line, never left out silently; keys that
change nothing for whoever plays (metadata, authors, build times) are not looked at.

That the network is `public` is the format's default and says nothing about a need: whether there is one is seen in the task's
scripts (`network`). A list of hosts says that there is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from envfarm.errors import Location, SpecError

VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4")
_ALLOWLIST = "the task needs a network, and boxes have none"
_OWN_VERIFIER = "a verifier of its own is not made yet; see `reward.verify` of the YAML"
_VARIABLE = "`${...}` is a variable of the machine that plays: write its value"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(gt=0)]


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", strict=True)


class Verifier(_Table):
    timeout_sec: Positive = 600.0
    env: dict[str, str] = {}


class Agent(_Table):
    timeout_sec: Positive | None = None


class Environment(_Table):
    docker_image: str | None = None
    cpus: Positive | None = None
    memory_mb: Whole | None = None
    storage_mb: Whole | None = None
    workdir: str | None = None
    env: dict[str, str] = {}


class Solution(_Table):
    env: dict[str, str] = {}


class Settings(_Table):
    """What of a `task.toml` decides how its task is played."""

    verifier: Verifier = Verifier()
    agent: Agent = Agent()
    environment: Environment = Environment()
    solution: Solution = Solution()


def _given(value: Any) -> bool:
    return bool(value)


def _other_than(*known: Any) -> Callable[[Any], bool]:
    return lambda value: value not in known


def _from_the_machine(env: Any) -> bool:
    return isinstance(env, dict) and any(isinstance(value, str) and "${" in value for value in env.values())


_REFUSED: dict[tuple[str, ...], tuple[Callable[[Any], bool], str]] = {
    ("steps",): (_given, "tasks of several steps are not played yet; make each step a task"),
    ("environment", "network_mode"): (_other_than("no-network", "public"), _ALLOWLIST),
    ("agent", "network_mode"): (_other_than("no-network", "public"), _ALLOWLIST),
    ("verifier", "network_mode"): (_other_than("no-network", "public"), _ALLOWLIST),
    ("environment", "os"): (_other_than("linux", "Linux"), "boxes are Linux"),
    ("environment", "gpus"): (_given, "boxes have no GPU"),
    ("environment", "tpu"): (_given, "boxes have no TPU"),
    ("environment", "mcp_servers"): (_given, "a box has a shell and no MCP server"),
    ("environment", "healthcheck"): (_given, "no process of a box outlives its command, so there is nothing to wait for"),
    ("verifier", "environment_mode"): (_other_than("shared"), _OWN_VERIFIER),
    ("verifier", "environment"): (_given, _OWN_VERIFIER),
    ("verifier", "collect"): (_given, "no process of a box outlives its command, so there is nothing to collect"),
    ("agent", "user"): (_other_than("agent", 1000), "commands run as the user `agent` (1000), who is not root"),
    ("verifier", "user"): (_other_than("agent", 1000), "tests run as the user `agent` (1000), who is not root"),
    ("environment", "env"): (_from_the_machine, _VARIABLE),
    ("verifier", "env"): (_from_the_machine, _VARIABLE),
    ("solution", "env"): (_from_the_machine, _VARIABLE),
}
"""Path -> (whether that value is refused, why)."""


def read_settings(file: Path) -> Settings:
    """Raises: SpecError with file:line for what is no TOML, of another version, of a wrong type, or refused."""
    text = _text(file)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        line, column = (int(n) for n in (re.findall(r"\(at line (\d+), column (\d+)\)", str(problem)) or [(1, 1)])[0])
        raise SpecError(f"not valid TOML: {str(problem).partition(' (at ')[0]}", Location(str(file), line, column)) from None
    version = str(data.get("schema_version", data.get("version", VERSIONS[-1])))
    if version not in VERSIONS:
        key = "schema_version" if "schema_version" in data else "version"
        raise SpecError(f"{key}: {version!r} is not one of {', '.join(VERSIONS)}", line_of(file, key))
    for keys, (refused, why) in _REFUSED.items():
        value: Any = data
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and refused(value):
            raise SpecError(f"{'.'.join(keys)}: {why}", line_of(file, *keys))
    try:
        return Settings.model_validate(data)
    except pydantic.ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        names = [str(part) for part in first["loc"]]
        said = first["msg"].removeprefix("Input should be ")
        raise SpecError(f"{'.'.join(names)}: expected {said}, found {first['input']!r}", line_of(file, *names)) from None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as problem:
        raise SpecError(f"not UTF-8 text: {problem}", Location(str(file), 1, 1)) from None


def line_of(file: Path, *keys: str) -> Location:
    """Where a key stands; its table's header where it has no line of its own, the first line where neither is there."""
    table, header = tuple[str, ...](), 1
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if found := re.match(r"\s*\[+\s*([\w.\-]+)\s*\]", line):
            table = tuple(found[1].split("."))
            header = number if table == keys[: len(table)] else header
        elif (found := re.match(r"\s*([\w.\-]+)\s*=", line)) and (*table, *found[1].split(".")) == keys:
            return Location(str(file), number, 1)
    return Location(str(file), header, 1)
