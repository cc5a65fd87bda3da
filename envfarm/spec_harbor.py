"""`harbor:` as it stands in a file: its tasks, each read as a whole, and the one box and the limits that fit them all.

What the YAML says holds; what it leaves out is the largest of what the tasks ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from envfarm.harbor.folder import HarborTask, is_task, read_task
from envfarm.images.recipe import BASES
from envfarm.spec import Limits, RowsFile, Sandbox
from envfarm.spec_file import SpecFile
from envfarm.spec_reader import Reader

KEY = "name"
"""The column of a row that holds the task's name."""
_AS_THEY_ARE = ("randomize", "ladder", "instances")
MIB = 1 << 20


@dataclass(frozen=True)
class HarborTasks:
    tasks: dict[str, HarborTask]
    """Name -> task, in the order of their rows."""
    instances: RowsFile

    def sandbox(self, file: SpecFile, given: Sandbox) -> Sandbox:
        """`given` is what the YAML and its defaults say."""
        wanted = [task.settings.environment for task in self.tasks.values()]
        asked = {
            "image": self._image(),
            "cpu": max(e.cpus or given.cpu for e in wanted),
            "memory_bytes": max((e.memory_mb or 0) * MIB or given.memory_bytes for e in wanted),
            "disk_bytes": max((e.storage_mb or 0) * MIB or given.disk_bytes for e in wanted),
        }
        said = {"memory_bytes": "memory", "disk_bytes": "disk"}
        free = {k: v for k, v in asked.items() if v is not None and said.get(k, k) not in file.sandbox.model_fields_set}
        writable = sorted({place for task in self.tasks.values() for place in task.writable})
        return msgspec.structs.replace(given, writable=tuple(writable), **free)

    def _image(self) -> str | None:
        """The one that has what all need: `envfarm/python` holds what `envfarm/base` does."""
        wanted = {task.start.image for task in self.tasks.values()}
        return next((image for image in reversed(BASES) if image in wanted), None)

    def limits(self, file: SpecFile, cpu: float) -> Limits:
        """One command may be a whole solution, or the tests: it has the time of the longer one, on `cpu` cores."""
        given = Limits(**file.limits.model_dump())
        agent = max(task.settings.agent.timeout_sec or given.episode_timeout_s for task in self.tasks.values())
        tests = max(task.settings.verifier.timeout_sec for task in self.tasks.values())
        command = max(agent, tests)
        asked = {"exec_timeout_s": command, "exec_cpu_s": command * cpu, "episode_timeout_s": agent + tests}
        return msgspec.structs.replace(given, **{k: v for k, v in asked.items() if k not in file.limits.model_fields_set})


class HarborReader(Reader):
    """Reads the `harbor:` of one file whose shape is known to be right."""

    def read(self, file: SpecFile) -> HarborTasks:
        """Raises: SpecError at its place in the YAML, or in the task's own files."""
        self._fits(file)
        folder = self._folder(file.harbor or "")
        single = is_task(folder)
        name = PurePosixPath(file.harbor or "").as_posix()
        pattern = f"{name}/" if single else f"{name}/*/"
        rows = self.rows_file(pattern, KEY, "harbor")
        names = self.table(pattern, KEY, "harbor").keys
        tasks = {key: read_task(folder if single else folder / key) for key in names}
        if "image" not in file.sandbox.model_fields_set:
            for task in tasks.values():
                if task.refused is not None:
                    raise task.refused
        return HarborTasks(tasks, rows)

    def _fits(self, file: SpecFile) -> None:
        if not file.sandbox.box:
            raise self.fail("a Harbor task runs in a box; add `sandbox: {box: true}`", "harbor")
        for key in _AS_THEY_ARE:
            if self.raw(key, None):
                raise self.fail_key(f"`{key}` does not go with `harbor`: its tasks are played as they are", key)
        if file.isolation == "process":
            raise self.fail("a Harbor task's world is its box; leave `isolation` out", "isolation")
        if len(file.roles) > 1:
            raise self.fail("a Harbor task is played by one role", "roles")

    def _folder(self, given: str) -> Path:
        folder = (self.folder / given).resolve()
        if folder == self.folder.resolve() or not folder.is_relative_to(self.folder.resolve()):
            raise self.fail(f"expected a folder below that of this file, found {given!r}", "harbor")
        if not folder.is_dir():
            raise self.fail(f"no such folder: {folder}", "harbor")
        if not is_task(folder) and not any(p.is_dir() for p in folder.iterdir()):
            raise self.fail(f"{folder} is no Harbor task (it has no task.toml) and holds none", "harbor")
        return folder
