"""What an environment's YAML may say: the shape of every key. Meaning (distributions, narrowings, data) is checked in
`envfarm.spec_load`, which knows the places in the file. `json_schema()` is what editors use.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from envfarm.box import WORKDIR
from envfarm.task import tools_schema
from envfarm.yaml_source import FileModel

ID = re.compile(r"([\w.-]+/)?[\w.-]+-v\d+")

KINDS: dict[str, str] = {
    "entry": "",
    "task": "envfarm.task.env:TaskEnv",
    "harbor": "envfarm.harbor.env:HarborEnv",
    "openenv": "envfarm.openenv.env:OpenEnv",
}
"""Top-level keys that say what runs -> the class that runs it (`entry` names its own). A new kind: one file, one line."""

NOT_YET = ("gymnasium", "pettingzoo", "openspiel", "reasoning_gym", "textarena", "miniwob", "verifiers")
"""Kinds that are designed and not implemented: refused by name."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str) -> int:
    """`512MiB` as bytes. Raises: ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)", text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"expected a size such as 512MiB, found {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return parse_bytes(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"expected a size such as 512MiB, found {value!r}")
    return value


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMG]i?B|B)$"}]}
Size = Annotated[int, pydantic.BeforeValidator(_bytes), pydantic.WithJsonSchema(_SIZE_SCHEMA)]
Plain = str | bool | int | float
_SCALAR_OR_LIST = {"anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "minItems": 1}]}
Narrowing = Annotated[dict[str, Any], pydantic.WithJsonSchema({"type": "object", "additionalProperties": _SCALAR_OR_LIST})]
"""Axis -> bounds, subset or pinned value."""

_PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_NUMBER = {"type": "number"}
_BELL = {
    "type": "object",
    "properties": {"mu": _NUMBER, "sigma": {"type": "number", "exclusiveMinimum": 0}, "min": _NUMBER, "max": _NUMBER},
    "required": ["mu", "sigma"],
    "additionalProperties": False,
}
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "choice": {"type": "array", "minItems": 1},
    "weighted": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
    "uniform": _PAIR,
    "uniform_int": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    "loguniform": _PAIR,
    "normal": _BELL,
    "lognormal": _BELL,
    "bernoulli": {"type": "number", "minimum": 0, "maximum": 1},
    "constant": {},
    "rows": {"type": "string"},
}
"""Name of a distribution -> the JSON Schema of its value."""


def _distribution_schema(**extra: Any) -> dict[str, Any]:
    forms: list[dict[str, Any]] = [{"type": ["string", "number", "boolean", "null"]}]
    for name, schema in DISTRIBUTIONS.items():
        properties = {name: schema, **extra, **({"key": {"type": "string"}} if name == "rows" else {})}
        forms.append({"type": "object", "properties": properties, "required": [name], "additionalProperties": False})
    return {"anyOf": forms}


AxisFile = Annotated[Any, pydantic.WithJsonSchema(_distribution_schema(**{"if": {"type": "object"}}))]
ChannelFile = Annotated[Any, pydantic.WithJsonSchema(_distribution_schema())]


class Seeds(FileModel):
    start: int = Field(default=0, ge=0)
    count: int = Field(ge=1)


class SplitFile(FileModel):
    seeds: Seeds | None = None
    rows: str | list[Plain] | Seeds | None = None
    """A data file of its own; or, with `instances`, keys of rows, or their positions."""
    key: str | None = None
    where: Narrowing = {}


class InstancesFile(FileModel):
    rows: str
    key: str


class RoleFile(FileModel):
    title: str = ""


class CheckFile(FileModel):
    """Exactly one of the three."""

    same_as_solution: list[str] | None = Field(default=None, min_length=1)
    script: str | None = None
    expr: str | None = None


ToolsFile = Annotated[list[Any], pydantic.WithJsonSchema(tools_schema())]
"""Each a name, or a name with options: `envfarm.spec_task` says what is wrong with one."""


class TaskFile(FileModel):
    prompt: str
    files: dict[str, str] = {}
    setup: str | None = None
    tools: ToolsFile = Field(default=["shell"], min_length=1)
    artifacts: list[str] = [WORKDIR]
    solution: str | None = None
    noise: str | None = None
    check: CheckFile


class ImageFile(FileModel):
    build: str
    """A folder with a Dockerfile of the subset that `envfarm.images.recipe` reads."""


class SandboxFile(FileModel):
    box: bool = False
    image: str | ImageFile = "envfarm/base"
    cpu: float = Field(default=1.0, gt=0)
    memory: Size = 512 << 20
    pids: int = Field(default=64, ge=1)
    disk: Size = 256 << 20
    network: Literal["none", "loopback"] = "none"


class LimitsFile(FileModel):
    turns: int = Field(default=20, ge=1)
    exec_cpu_s: float = Field(default=5.0, gt=0)
    exec_timeout_s: float = Field(default=20.0, gt=0)
    episode_timeout_s: float = Field(default=300.0, gt=0)


class RewardFile(FileModel):
    range: tuple[float, float] = (0.0, 1.0)
    solved_at: float | None = None
    verify: Literal["outputs", "runner_fresh", "runner_shared"] | None = None
    """Default: `outputs`; with `harbor`, whose tasks bring their own tests, `runner_fresh`."""


class SpecFile(FileModel):
    """An environment, declared."""

    envfarm: Literal[1]
    id: str = Field(pattern=f"^{ID.pattern}$")
    title: str = ""
    tags: list[str] = []
    entry: str | None = None
    task: TaskFile | None = None
    harbor: str | None = None
    openenv: str | None = None
    requires: list[str] = []
    randomize: dict[str, AxisFile] = {}
    perturb: dict[str, dict[str, ChannelFile]] = {}
    ladder: list[Narrowing] = []
    instances: InstancesFile | None = None
    splits: dict[str, SplitFile] = {}
    roles: dict[str, RoleFile] = {}
    sandbox: SandboxFile = SandboxFile()
    limits: LimitsFile = LimitsFile()
    reward: RewardFile = RewardFile()
    isolation: Literal["shared", "process"] = "shared"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of an environment's YAML, for editors."""
    schema = SpecFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "An envfarm environment"
    schema["oneOf"] = [{"required": [kind]} for kind in KINDS]
    return schema
