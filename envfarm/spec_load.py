"""From an environment's YAML to an `EnvSpec`: shape first (`spec_file`), then meaning, each error at its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from envfarm.axis_file import AxisReader, read_table
from envfarm.distributions import AnyDistribution, Impossible
from envfarm.errors import SpecError, did_you_mean
from envfarm.seeding import stable_hash
from envfarm.settings import narrow_axes
from envfarm.spec import (
    Axis,
    EnvSpec,
    Limits,
    Reward,
    Role,
    RowsFile,
    Sandbox,
    Split,
    TaskCheck,
    TaskSpec,
)
from envfarm.spec_file import KINDS, NOT_YET, Seeds, SpecFile, SplitFile, TaskFile
from envfarm.spec_hash import hash_folder
from envfarm.yaml_source import Source, parse_model, read_yaml

DEFAULT_SPLITS = {
    "train": Split(start=0, count=1_000_000),
    "validation": Split(start=1_000_000, count=1_000),
    "heldout": Split(start=2_000_000, count=1_000),
}
"""What a YAML without `splits:` has."""


def load(path: str | Path) -> EnvSpec:
    """Raises: SpecError for the first thing that is wrong, with file:line:column."""
    source = read_yaml(path, SpecError)
    _refuse_unbuilt(source)
    return _Loader(source, parse_model(source, SpecFile, SpecError), Path(path).resolve()).spec()


def _refuse_unbuilt(source: Source) -> None:
    """Keys that are designed and not there yet get an answer of their own."""
    if not isinstance(source.data, dict):
        return
    for key in NOT_YET:
        if key in source.data and key not in KINDS:
            raise SpecError(f"`{key}:` is not implemented yet; use one of: {', '.join(KINDS)}", source.key_at(key))
    sandbox = source.data.get("sandbox")
    if isinstance(sandbox, dict) and isinstance(sandbox.get("image"), dict):
        raise SpecError("sandbox.image: building images is not implemented yet; name an image", source.at("sandbox", "image"))
    if isinstance(sandbox, dict) and sandbox.get("network") == "allowlist":
        raise SpecError(
            "sandbox.network: `allowlist` is not implemented yet; use none or loopback", source.at("sandbox", "network")
        )
    reward = source.data.get("reward")
    if isinstance(reward, dict) and reward.get("verify") in ("runner_fresh", "runner_shared"):
        raise SpecError(f"reward.verify: {reward['verify']!r} is not implemented yet; use outputs", source.at("reward", "verify"))


class _Loader:
    def __init__(self, source: Source, file: SpecFile, path: Path):
        self.source, self.file, self.path, self.folder = source, file, path, path.parent
        self.reader = AxisReader(source, self.folder)

    def fail(self, message: str, *keys: Any) -> SpecError:
        return SpecError(f"{'.'.join(map(str, keys))}: {message}" if keys else message, self.source.at(*keys))

    def spec(self) -> EnvSpec:
        file = self.file
        kind, entry = self._kind()
        axes = self._axes()
        instances = self._instances()
        low, high = file.reward.range
        if low >= high:
            raise self.fail(f"expected [low, high] with low below high, found [{low}, {high}]", "reward", "range")
        solved_at = high if file.reward.solved_at is None else file.reward.solved_at
        if not low <= solved_at <= high:
            raise self.fail(f"{solved_at} lies outside reward.range [{low}, {high}]", "reward", "solved_at")
        self._requirements()
        made = EnvSpec(
            id=file.id, title=file.title, tags=tuple(file.tags), kind=kind, entry=entry, task=self._task(file.task),
            requires=tuple(file.requires), axes=axes, instances=instances, perturb=self._channels(),
            ladder=tuple(self._narrowing(rung, axes, "ladder", i) for i, rung in enumerate(self._raw("ladder", []))),
            splits=self._splits(axes, instances),
            roles={name: Role(title=role.title) for name, role in file.roles.items()} or {"agent": Role()},
            sandbox=Sandbox(
                box=file.sandbox.box, image=file.sandbox.image, cpu=file.sandbox.cpu, memory_bytes=file.sandbox.memory,
                pids=file.sandbox.pids, disk_bytes=file.sandbox.disk, network=file.sandbox.network,
            ),
            limits=Limits(**file.limits.model_dump()),
            reward=Reward(range=(low, high), solved_at=solved_at, verify=file.reward.verify),
            isolation=file.isolation, path=str(self.path), files_hash=hash_folder(self.folder), hash="",
        )  # fmt: skip
        return msgspec.structs.replace(made, hash=_hash(made))

    def _raw(self, key: str, default: Any) -> Any:
        """The value as it stands in the file: pydantic's copy has text where a key was a number."""
        return self.source.data.get(key, default)

    def _kind(self) -> tuple[str, str]:
        kinds = [k for k in KINDS if k in self.source.data]
        if len(kinds) != 1:
            what = " and ".join(kinds) if kinds else "none"
            place = self.source.key_at(kinds[-1]) if kinds else self.source.at()
            raise SpecError(f"expected exactly one key that says what runs ({', '.join(KINDS)}), found {what}", place)
        if kinds[0] != "entry":
            return kinds[0], ""
        entry = self.file.entry or ""
        module, _, name = entry.partition(":")
        if not module or not name.isidentifier():
            raise self.fail(f"expected ./file.py:Class or package.module:Class, found {entry!r}", "entry")
        if module.endswith(".py") and not (self.folder / module).is_file():
            near = did_you_mean(Path(module).name, [p.name for p in self.folder.glob("*.py")])
            raise self.fail(f"no such file: {self.folder / module}{near}", "entry")
        return "entry", entry

    def _requirements(self) -> None:
        from packaging.requirements import InvalidRequirement, Requirement

        for i, text in enumerate(self.file.requires):
            try:
                Requirement(text)
            except InvalidRequirement as problem:
                raise self.fail(f"not a requirement: {str(problem).splitlines()[0]}", "requires", i) from None

    def _axes(self) -> dict[str, Axis]:
        axes: dict[str, Axis] = {}
        for name, raw in self._raw("randomize", {}).items():
            path = ("randomize", name)
            if not isinstance(name, str) or not name.isidentifier():
                raise SpecError(f"an axis is named like a variable, not {name!r}", self.source.key_at(*path))
            distribution = self.reader.read(path, raw, also=("if",))
            condition = raw.get("if", {}) if isinstance(raw, dict) else {}
            axes[name] = Axis(distribution=distribution, condition=self._condition(condition, axes, *path, "if"))
        return axes

    def _condition(self, raw: Any, earlier: Mapping[str, Axis], *path: Any) -> dict[str, Any]:
        if isinstance(raw, dict):
            for name in raw:
                if name not in earlier and name in self._raw("randomize", {}):
                    raise SpecError(f"`if` looks at earlier axes only; {name!r} comes later", self.source.key_at(*path, name))
        return self._narrowing(raw, earlier, *path)

    def _narrowing(self, raw: Any, axes: Mapping[str, Axis], *path: Any) -> dict[str, Any]:
        """A mapping of axes to what narrows them, each checked against its axis, and then all together."""
        if not isinstance(raw, dict):
            raise self.fail(f"expected a mapping of axes to values, found {raw!r}", *path)
        for name, condition in raw.items():
            if name not in axes:
                listed = ", ".join(axes) or "none"
                message = f"unknown axis {name!r}{did_you_mean(str(name), axes)}; axes: {listed}"
                raise SpecError(message, self.source.key_at(*path, name))
            try:
                axes[name].distribution.narrow(condition)
            except Impossible as problem:
                raise self.fail(f"leaves no instance: {problem}", *path, name) from None
        try:
            narrow_axes(axes, raw)
        except Impossible as problem:
            raise self.fail(f"leaves no instance: {problem}", *path) from None
        return dict(raw)

    def _channels(self) -> dict[str, AnyDistribution]:
        from envfarm.perturbation import CHANNELS

        channels: dict[str, AnyDistribution] = {}
        for group, raw in self._raw("perturb", {}).items():
            for name, value in raw.items():
                full = f"{group}.{name}"
                if full not in CHANNELS:
                    message = f"unknown channel {full!r}{did_you_mean(full, CHANNELS)}; known: {', '.join(CHANNELS)}"
                    raise SpecError(message, self.source.key_at("perturb", group, name))
                channels[full] = self._channel(full, value, "perturb", group, name)
        return channels

    def _channel(self, full: str, value: Any, *path: Any) -> AnyDistribution:
        from envfarm.perturbation import channel_class

        distribution = self.reader.read(path, value)
        channel = channel_class(full)
        for u in (0.0, 0.5, 1.0 - 2**-53):
            wrong = channel.check(distribution.draw(u))
            if wrong:
                raise self.fail(f"a value of {distribution.describe()} does not fit this channel: expected {wrong}", *path)
        return distribution

    def _instances(self) -> RowsFile | None:
        given = self.file.instances
        return None if given is None else self._rows_file(given.rows, given.key, "instances", "rows")

    def _rows_file(self, pattern: str, key: str, *path: Any) -> RowsFile:
        table = read_table(self.source, path, self.folder, pattern, key)
        return RowsFile(file=pattern, key=key, sha256=table.sha256, count=len(table.rows))

    def _splits(self, axes: Mapping[str, Axis], instances: RowsFile | None) -> dict[str, Split]:
        if not self.file.splits:
            return dict(DEFAULT_SPLITS)
        splits = {name: self._split(name, raw, axes, instances) for name, raw in self.file.splits.items()}
        names = [n for n, s in splits.items() if s.by_seed]
        for i, one in enumerate(names):
            for other in names[:i]:
                a, b = splits[one], splits[other]
                if a.where == b.where and a.start < b.start + b.count and b.start < a.start + a.count:
                    raise self.fail(f"shares seeds with the split {other!r} under the same `where`", "splits", one, "seeds")
        return splits

    def _split(self, name: str, given: SplitFile, axes: Mapping[str, Axis], instances: RowsFile | None) -> Split:
        path = ("splits", name)
        raw = self.source.data["splits"][name]
        where = self._narrowing(raw.get("where", {}), axes, *path, "where")
        if (given.seeds is None) == (given.rows is None):
            raise self.fail("expected either `seeds` or `rows`", *path)
        if given.key is not None and not isinstance(given.rows, str):
            raise self.fail("`key` belongs to a file of rows", *path, "key")
        if given.seeds is not None:
            return Split(start=given.seeds.start, count=given.seeds.count, where=where)
        if isinstance(given.rows, str):
            if given.key is None:
                raise self.fail("the key 'key' is missing: which column names a row", *path)
            return Split(rows=self._rows_file(given.rows, given.key, *path, "rows"), where=where)
        if instances is None:
            raise self.fail("keys or positions of rows need `instances:`; here is none", *path, "rows")
        return Split(row_keys=self._row_keys(given.rows, instances, *path, "rows"), where=where)

    def _row_keys(self, rows: list[Any] | Seeds | None, instances: RowsFile, *path: Any) -> tuple[str, ...]:
        keys = read_table(self.source, path, self.folder, instances.file, instances.key).keys
        if isinstance(rows, Seeds):
            if rows.start + rows.count > len(keys):
                raise self.fail(f"{instances.file} has {len(keys)} rows; {rows.start} + {rows.count} is beyond them", *path)
            return keys[rows.start : rows.start + rows.count]
        wanted = tuple(map(str, rows or []))
        for i, key in enumerate(wanted):
            if key not in keys:
                raise self.fail(f"{instances.file} has no row {key!r}{did_you_mean(key, keys)}", *path, i)
            if key in wanted[:i]:
                raise self.fail(f"the row {key!r} stands there twice", *path, i)
        if not wanted:
            raise self.fail("expected at least one row", *path)
        return wanted

    def _task(self, given: TaskFile | None) -> TaskSpec | None:
        if given is None:
            return None
        if not self.file.sandbox.box:
            raise self.fail("a task runs in a box; add `sandbox: {box: true}`", "task")
        checks = {k: v for k, v in given.check.model_dump().items() if v is not None}
        if len(checks) != 1:
            what = " and ".join(checks) or "none"
            raise self.fail(f"expected exactly one of same_as_solution, script, expr, found {what}", "task", "check")
        if "same_as_solution" in checks and given.solution is None:
            raise self.fail("same_as_solution needs `task.solution`", "task", "check")
        self._files_exist(given)
        same = checks.get("same_as_solution")
        return TaskSpec(
            prompt=given.prompt, files=dict(given.files), setup=given.setup, tools=tuple(given.tools),
            artifacts=tuple(given.artifacts), solution=given.solution, noise=given.noise,
            check=TaskCheck(same_as_solution=None if same is None else tuple(same), script=given.check.script, expr=given.check.expr),
        )  # fmt: skip

    def _files_exist(self, given: TaskFile) -> None:
        named: list[tuple[tuple[Any, ...], str | None]] = [
            (("task", key), getattr(given, key)) for key in ("prompt", "setup", "solution", "noise")
        ]
        named += [(("task", "files", path), content) for path, content in given.files.items()]
        for keys, text in named:
            if text is not None and text.endswith(".j2") and "\n" not in text and "{" not in text:
                self._exists(text, *keys)
        if given.check.script is not None:
            self._exists(given.check.script, "task", "check", "script")

    def _exists(self, name: str, *path: Any) -> None:
        if not (self.folder / name).is_file():
            near = did_you_mean(name, [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()])
            raise self.fail(f"no such file: {self.folder / name}{near}", *path)


def _hash(spec: EnvSpec) -> str:
    meaning = msgspec.to_builtins(spec)
    for outside in ("path", "hash"):
        meaning.pop(outside)
    return stable_hash(meaning)
