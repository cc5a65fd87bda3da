"""From an environment's YAML to an `EnvSpec`: shape first (`spec_file`), then meaning, each error at its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from envfarm.axis_file import AxisReader
from envfarm.distributions import AnyDistribution
from envfarm.errors import SpecError, did_you_mean
from envfarm.seeding import stable_hash
from envfarm.spec import Axis, EnvSpec, Limits, Reward, Role, RowsFile, Sandbox, Split
from envfarm.spec_file import KINDS, NOT_YET, SpecFile
from envfarm.spec_harbor import HarborReader, HarborTasks
from envfarm.spec_hash import hash_folder
from envfarm.spec_reader import Reader
from envfarm.spec_splits import SplitReader
from envfarm.spec_task import TaskReader
from envfarm.yaml_source import Source, parse_model, read_yaml


def load(path: str | Path) -> EnvSpec:
    """Raises: SpecError for the first thing that is wrong, with file:line:column."""
    source = read_yaml(path, SpecError)
    _refuse_unbuilt(source)
    return SpecReader(source, parse_model(source, SpecFile, SpecError), Path(path).resolve()).spec()


_UNBUILT: dict[tuple[str, ...], tuple[Any, str]] = {
    ("sandbox", "network"): ("allowlist", "`allowlist` is not implemented yet; use none or loopback"),
}
"""Path -> (values or type that are designed and not there yet, what to say)."""


def _refuse_unbuilt(source: Source) -> None:
    """Keys and values that are designed and not there yet get an answer of their own, not "unknown"."""
    data = source.data
    if not isinstance(data, dict):
        return
    for key in NOT_YET:
        if key in data and key not in KINDS:
            raise SpecError(f"`{key}:` is not implemented yet; use one of: {', '.join(KINDS)}", source.key_at(key))
    for (section, key), (unbuilt, message) in _UNBUILT.items():
        part = data.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, unbuilt) if isinstance(unbuilt, type) else isinstance(value, str) and value in unbuilt:
            raise SpecError(f"{section}.{key}: {message}", source.at(section, key))


class SpecReader(Reader):
    """Reads one file whose shape is known to be right."""

    def __init__(self, source: Source, file: SpecFile, path: Path):
        super().__init__(source, path.parent)
        self.file, self.path = file, path
        self.axis_reader = AxisReader(source, self.folder)

    def spec(self) -> EnvSpec:
        file = self.file
        kind, entry = self._kind()
        axes = self._axes()
        harbor = HarborReader(self.source, self.folder).read(file) if file.harbor is not None else None
        instances = self._instances() if harbor is None else harbor.instances
        task = TaskReader(self.source, self.folder).read(file.task, box=file.sandbox.box) if file.task is not None else None
        self._requirements()
        sandbox = self._sandbox() if harbor is None else harbor.sandbox(file, self._sandbox())
        limits = Limits(**file.limits.model_dump()) if harbor is None else harbor.limits(file, sandbox.cpu)
        made = EnvSpec(
            id=file.id, title=file.title, tags=tuple(file.tags), kind=kind, entry=entry, task=task,
            requires=tuple(file.requires), axes=axes, instances=instances, perturb=self._channels(),
            ladder=tuple(self.narrowing(rung, axes, "ladder", i) for i, rung in enumerate(self.raw("ladder", []))),
            splits=self._splits(axes, instances, harbor),
            roles={name: Role(title=role.title) for name, role in file.roles.items()} or {"agent": Role()},
            sandbox=sandbox, limits=limits, reward=self._reward(), isolation=file.isolation,
            path=str(self.path), files_hash=hash_folder(self.folder), hash="",
        )  # fmt: skip
        return msgspec.structs.replace(made, hash=spec_hash(made))

    def _kind(self) -> tuple[str, str]:
        kinds = [k for k in KINDS if k in self.source.data]
        if len(kinds) != 1:
            what = " and ".join(kinds) if kinds else "none"
            place = self.source.key_at(kinds[-1]) if kinds else self.source.at()
            raise SpecError(f"expected exactly one key that says what runs ({', '.join(KINDS)}), found {what}", place)
        if kinds[0] == "openenv":
            return kinds[0], self._openenv(self.file.openenv or "")
        if kinds[0] == "harbor":
            return kinds[0], PurePosixPath(self.file.harbor or "").as_posix()
        if kinds[0] != "entry":
            return kinds[0], ""
        entry = self.file.entry or ""
        module, _, name = entry.partition(":")
        if not module or not name.isidentifier():
            raise self.fail(f"expected ./file.py:Class or package.module:Class, found {entry!r}", "entry")
        if module.endswith(".py"):
            self.existing(module.removeprefix("./"), "entry")
        return "entry", entry

    def _splits(self, axes: Mapping[str, Axis], instances: RowsFile | None, harbor: HarborTasks | None) -> dict[str, Split]:
        if harbor is not None and not self.file.splits:
            return {"train": Split(row_keys=tuple(harbor.tasks))}
        return SplitReader(self.source, self.folder).read(self.file.splits, axes, instances)

    def _sandbox(self) -> Sandbox:
        given, (image, build) = self.file.sandbox, self._image()
        return Sandbox(
            box=given.box, image=image, build=build, cpu=given.cpu, memory_bytes=given.memory, pids=given.pids,
            disk_bytes=given.disk, network=given.network,
        )  # fmt: skip

    def _image(self) -> tuple[str, str | None]:
        """The image's name, and the folder that it is built from."""
        from envfarm.images.recipe import FILE, name_of, read

        image = self.file.sandbox.image
        if isinstance(image, str):
            return image, None
        folder, path = self.folder / image.build, ("sandbox", "image", "build")
        if not folder.resolve().is_relative_to(self.folder.resolve()):
            raise self.fail(f"expected a folder beside this file or below, found {image.build!r}", *path)
        if not (folder / FILE).is_file():
            raise self.fail(f"there is no {FILE} in {folder}", *path)
        return read(folder, name_of(self.file.id)).tag, image.build

    def _openenv(self, url: str) -> str:
        from envfarm.openenv.address import problem

        if wrong := problem(url):
            raise self.fail(wrong, "openenv")
        if self.file.sandbox.box:
            raise self.fail("an OpenEnv server has its world with it; leave `box` out", "sandbox", "box")
        if self.file.isolation == "process":
            raise self.fail("an OpenEnv server isolates its sessions itself; leave `isolation` out", "isolation")
        if len(self.file.roles) > 1:
            raise self.fail("an OpenEnv server plays with one role", "roles")
        return url

    def _reward(self) -> Reward:
        given = self.file.reward
        low, high = given.range
        if low >= high:
            raise self.fail(f"expected [low, high] with low below high, found [{low}, {high}]", "reward", "range")
        solved_at = high if given.solved_at is None else given.solved_at
        if not low <= solved_at <= high:
            raise self.fail(f"{solved_at} lies outside reward.range [{low}, {high}]", "reward", "solved_at")
        own_tests = self.file.harbor is not None
        verify = given.verify or ("runner_fresh" if own_tests else "outputs")
        if own_tests == (verify == "outputs"):
            fits = (
                "runner_fresh or runner_shared, as a Harbor task brings its own tests"
                if own_tests
                else "outputs without `harbor`"
            )
            raise self.fail(f"expected {fits}, found {verify}", "reward", "verify")
        return Reward(range=(low, high), solved_at=solved_at, verify=verify)

    def _requirements(self) -> None:
        from packaging.requirements import InvalidRequirement, Requirement

        for i, text in enumerate(self.file.requires):
            try:
                Requirement(text)
            except InvalidRequirement as problem:
                raise self.fail(f"not a requirement: {str(problem).splitlines()[0]}", "requires", i) from None

    def _axes(self) -> dict[str, Axis]:
        axes: dict[str, Axis] = {}
        for name, raw in self.raw("randomize", {}).items():
            path = ("randomize", name)
            if not isinstance(name, str) or not name.isidentifier():
                raise self.fail_key(f"an axis is named like a variable, not {name!r}", *path)
            distribution = self.axis_reader.read(path, raw, also=("if",))
            condition = raw.get("if", {}) if isinstance(raw, dict) else {}
            axes[name] = Axis(distribution=distribution, condition=self._condition(condition, axes, *path, "if"))
        return axes

    def _condition(self, raw: Any, earlier: Mapping[str, Axis], *path: Any) -> dict[str, Any]:
        for name in raw if isinstance(raw, dict) else ():
            if name not in earlier and name in self.raw("randomize", {}):
                raise self.fail_key(f"an axis looks at earlier axes only; {name!r} comes later", *path, name)
        return self.narrowing(raw, earlier, *path)

    def _channels(self) -> dict[str, AnyDistribution]:
        from envfarm.perturbation import CHANNELS

        channels: dict[str, AnyDistribution] = {}
        for group, raw in self.raw("perturb", {}).items():
            for name, value in raw.items():
                full, path = f"{group}.{name}", ("perturb", group, name)
                if full not in CHANNELS:
                    message = f"unknown channel {full!r}{did_you_mean(full, CHANNELS)}; known: {', '.join(CHANNELS)}"
                    raise self.fail_key(message, *path)
                channels[full] = self._channel(full, value, *path)
        return channels

    def _channel(self, full: str, value: Any, *path: Any) -> AnyDistribution:
        """The channel itself says which values make sense; members and the ends of a range are put to it."""
        from envfarm.perturbation import channel_class

        distribution = self.axis_reader.read(path, value)
        channel = channel_class(full)
        for example in distribution.examples():
            wrong = channel.check(example)
            if wrong:
                raise self.fail(f"{example!r} is no value of this channel: expected {wrong}", *path)
        return distribution

    def _instances(self) -> RowsFile | None:
        given = self.file.instances
        return None if given is None else self.rows_file(given.rows, given.key, "instances", "rows")


def spec_hash(spec: EnvSpec) -> str:
    """Over everything but where the folder lies."""
    meaning = msgspec.to_builtins(spec)
    for outside in ("path", "hash"):
        meaning.pop(outside)
    meaning["sandbox"].pop("build")
    return stable_hash(meaning)
