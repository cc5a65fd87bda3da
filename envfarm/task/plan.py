"""What one instance of a `task:` says, once its templates are written out; the same for all episodes of the instance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from envfarm.box import SyncBox
from envfarm.task import STOCK, checks, options_of, stock
from envfarm.task.templates import Templates, fresh_rng

if TYPE_CHECKING:
    from envfarm.spec import Instance, TaskSpec

REMEMBERED = 256


class Plan:
    """Everything that one instance's templates say. What only the trusted side needs is written out when it is asked for."""

    def __init__(self, task: TaskSpec, templates: Templates, instance: Instance):
        self.task, self.templates, self.instance = task, templates, instance
        self.expected: checks.State | None = None
        """What the solution leaves, once somebody asked; `solving` is held meanwhile."""
        self.solving = Lock()
        self.prompt = self.render(task.prompt)
        written = {self.render(path).strip(): self.render(content) for path, content in task.files.items()}
        self.files = {path: text for path, text in written.items() if path}
        self.setup = self.render(task.setup) if task.setup else ""
        self.options = {name: self._options(name, given) for name, given in options_of(task).items()}
        compared = [self.render(path) for path in task.check.same_as_solution or task.artifacts]
        self.artifacts = tuple(checks.absolute(checks.relative(path)) for path in compared)

    def _options(self, tool: str, given: dict[str, str]) -> dict[str, str]:
        written = {key: self.render(text) for key, text in given.items()}
        paths = [key for key in written if STOCK[tool].options[key].kind == "path"]
        return written | {key: checks.absolute(checks.relative(written[key].strip())) for key in paths}

    def names(self) -> dict[str, Any]:
        return {**self.instance.params, "row": self.instance.row, "rng": fresh_rng(self.instance)}

    def render(self, source: str) -> str:
        return self.templates.render(source, self.names())

    def lines(self, source: str) -> tuple[str, ...]:
        """Commands, one a line; blank lines and comments are left out."""
        found = (line.strip() for line in self.render(source).splitlines())
        return tuple(line for line in found if line and not line.startswith("#"))

    @cached_property
    def solution(self) -> tuple[str, ...]:
        return self.lines(self.task.solution) if self.task.solution else ()

    @cached_property
    def noise(self) -> tuple[str, ...]:
        return self.lines(self.task.noise) if self.task.noise else ()

    @cached_property
    def databases(self) -> tuple[str, ...]:
        """Of the tools, as paths below the workdir."""
        return tuple(checks.relative(o["database"]) for o in self.options.values() if "database" in o)

    @cached_property
    def made(self) -> dict[str, bytes]:
        """Files that tools bring along."""
        return {p: d for name, options in self.options.items() for p, d in stock.stock_class(name).made_files(options).items()}

    def build(self, box: SyncBox) -> None:
        """Bring a fresh box to the instance's start.

        Raises: SpecError where the setup fails, InfraError where it stood still.
        """
        for path, text in self.files.items():
            box.write(path, text.encode())
        for path, data in self.made.items():
            box.write(path, data)
        if self.setup.strip():
            stock.require(box.exec(self.setup), "task.setup")


class _Memory:
    """The plans of the instances seen last, for all sessions of the process."""

    def __init__(self, size: int):
        self.size, self.lock = size, Lock()
        self.plans: OrderedDict[str, Plan] = OrderedDict()

    def get(self, key: str, make: Callable[[], Plan]) -> Plan:
        with self.lock:
            if key in self.plans:
                self.plans.move_to_end(key)
                return self.plans[key]
        plan = make()
        with self.lock:
            self.plans[key] = plan
            while len(self.plans) > self.size:
                self.plans.popitem(last=False)
        return plan


_memory = _Memory(REMEMBERED)


def plan_of(task: TaskSpec, templates: Templates, instance: Instance) -> Plan:
    """The instance's plan, shared by its episodes. Raises: SpecError where a template cannot be written out."""
    return _memory.get(instance.hash, lambda: Plan(task, templates, instance))
