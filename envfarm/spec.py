"""One environment, as declared: frozen, picklable, equal to itself after JSON. And an instance of it.

    spec = load_spec("repair.yaml")                # or envfarm.registry.default_registry().get("coding/repair-v0")
    instance = spec.instance("train", 7, {"rung": 0})
    assert EnvSpec.from_json(spec.to_json()) == spec

What a file may say and how it is checked: `envfarm.spec_file` and `envfarm.spec_load`. How an instance is drawn:
`envfarm.randomization`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from envfarm.box import WORKDIR, BoxSpec
from envfarm.distributions import AnyDistribution
from envfarm.errors import UserError, did_you_mean
from envfarm.seeding import stable_hash


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a spec."""


class Axis(Part, frozen=True, kw_only=True):
    """One named random parameter."""

    distribution: AnyDistribution
    condition: dict[str, Any] = {}
    """`if:` - what earlier axes must meet for this one to be there."""


class RowsFile(Part, frozen=True, kw_only=True):
    """A data file (or glob) of rows with a key column, relative to the YAML's folder."""

    file: str
    key: str
    sha256: str
    count: int


class Split(Part, frozen=True, kw_only=True):
    """A part of all instances: by seeds, by rows of a file of its own, or by rows of `instances`."""

    start: int = 0
    count: int = 0
    """Seeds `start .. start + count - 1`; `count` 0 where the split names rows."""
    rows: RowsFile | None = None
    """Rows of a file of its own: made by no generator."""
    row_keys: tuple[str, ...] | None = None
    """Rows of the spec's `instances`."""
    where: dict[str, Any] = {}

    @property
    def by_seed(self) -> bool:
        return self.count > 0


class Role(Part, frozen=True, kw_only=True):
    """One seat at the table."""

    title: str = ""


class TaskCheck(Part, frozen=True, kw_only=True):
    """Exactly one is given."""

    same_as_solution: tuple[str, ...] | None = None
    """Paths that must be as the solution leaves them."""
    script: str | None = None
    """A Python file of the folder, run beside the worker on a copy of the artifacts."""
    expr: str | None = None


class ToolUse(Part, frozen=True, kw_only=True):
    """A stock tool with options; one without is its name."""

    name: str
    options: dict[str, str] = {}


class TaskSpec(Part, frozen=True, kw_only=True):
    """An environment without Python (`envfarm.task`). A text that ends in `.j2` names a template file of the folder."""

    prompt: str
    files: dict[str, str] = {}
    """Path in the box -> content; both are templates."""
    setup: str | None = None
    tools: tuple[str | ToolUse, ...] = ("shell",)
    artifacts: tuple[str, ...] = (WORKDIR,)
    solution: str | None = None
    noise: str | None = None
    """Lines that a thoughtless agent types."""
    check: TaskCheck


class Limits(Part, frozen=True, kw_only=True):
    turns: int = 20
    """Of each role."""
    exec_cpu_s: float = 5.0
    exec_timeout_s: float = 20.0
    episode_timeout_s: float = 300.0


class Sandbox(Part, frozen=True, kw_only=True):
    box: bool = False
    image: str = "envfarm/base"
    """A name; with its digest where it is built."""
    build: str | None = None
    """The folder that the image is built from, relative to the YAML's; no part of the hash, as the digest is."""
    cpu: float = 1.0
    memory_bytes: int = 512 << 20
    pids: int = 64
    disk_bytes: int = 256 << 20
    network: Literal["none", "loopback"] = "none"
    writable: tuple[str, ...] = ()
    """As in `BoxSpec`; what the tasks of a `harbor` need."""

    def box_spec(self, limits: Limits) -> BoxSpec:
        return BoxSpec(
            image=self.image, cpu=self.cpu, memory_bytes=self.memory_bytes, pids=self.pids, disk_bytes=self.disk_bytes,
            network=self.network, exec_cpu_s=limits.exec_cpu_s, exec_timeout_s=limits.exec_timeout_s,
            lifetime_s=limits.episode_timeout_s, writable=self.writable,
        )  # fmt: skip


class Reward(Part, frozen=True, kw_only=True):
    range: tuple[float, float] = (0.0, 1.0)
    solved_at: float = 1.0
    verify: Literal["outputs", "runner_fresh", "runner_shared"] = "outputs"


class Instance(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that decides what happens, except the agents."""

    env: str
    spec_hash: str
    split: str
    seed: int | None = None
    row_key: str | None = None
    row_hash: str | None = None
    setting: dict[str, Any] = {}
    params: dict[str, Any] = {}
    """Axis -> value; an axis whose condition is not met is absent."""
    row: dict[str, Any] | None = None
    """The columns that are no axes."""
    perturbation: dict[str, Any] = {}
    """Channel ("observation.format") -> its value for this episode."""

    @cached_property
    def hash(self) -> str:
        return stable_hash(msgspec.to_builtins(self))

    @property
    def stream(self) -> tuple[str, str]:
        """What names its random streams: the environment and the seed (or row) alone. A setting, a channel or an edit
        of the environment's code changes what a draw means, not every other draw."""
        return self.env, str(self.seed if self.row_key is None else self.row_key)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Instance:
        return msgspec.json.decode(text, type=cls)


class EnvSpec(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    title: str = ""
    tags: tuple[str, ...] = ()
    kind: str = "entry"
    """The top-level key that says what runs: `entry`, `task`, ..."""
    entry: str = ""
    """With kind `entry`: `./file.py:Class` or `package.module:Class`; with other kinds that key's value."""
    task: TaskSpec | None = None
    requires: tuple[str, ...] = ()
    axes: dict[str, Axis] = {}
    instances: RowsFile | None = None
    perturb: dict[str, AnyDistribution] = {}
    ladder: tuple[dict[str, Any], ...] = ()
    splits: dict[str, Split] = {}
    roles: dict[str, Role] = msgspec.field(default_factory=lambda: {"agent": Role()})
    sandbox: Sandbox = Sandbox()
    limits: Limits = Limits()
    reward: Reward = Reward()
    isolation: Literal["shared", "process"] = "shared"
    path: str
    """The YAML file, absolute; no part of the hash."""
    files_hash: str
    """Over code and data of the folder."""
    hash: str
    """Over the YAML's meaning, `files_hash` and the image's digest where one is known."""

    @property
    def file(self) -> Path:
        return Path(self.path)

    @property
    def folder(self) -> Path:
        return self.file.parent

    def split(self, name: str) -> Split:
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise UserError(f"{self.id} has no split {name!r}{did_you_mean(name, self.splits)}; it has: {known}")
        return self.splits[name]

    def size(self, split: str) -> int:
        """How many instances a split has."""
        from envfarm.randomization import keys_of

        part = self.split(split)
        return part.count if part.by_seed else len(keys_of(self, split))

    def instance(self, split: str, index: int, setting: dict[str, Any] | None = None) -> Instance:
        """The `index`-th instance of a split, from 0. Raises: IndexError."""
        from envfarm.randomization import keys_of, sample

        part = self.split(split)
        if not 0 <= index < self.size(split):
            raise IndexError(f"{self.id}: split {split!r} has {self.size(split)} instances, index {index} is outside")
        return sample(self, split, part.start + index if part.by_seed else keys_of(self, split)[index], setting)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> EnvSpec:
        return msgspec.json.decode(text, type=cls)

    def __hash__(self) -> int:
        return hash(self.hash)


def load_spec(path: str | Path) -> EnvSpec:
    """Read and check an environment's YAML. Raises: SpecError with file:line:column."""
    from envfarm.spec_load import load

    return load(path)
