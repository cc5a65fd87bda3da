"""`TaskEnv`: an environment whose YAML has a `task:` instead of a class.

    task:
      prompt: prompt.md.j2                # what the agent is told
      files: {"/task/{{ name }}.txt": "{{ rng.randint(1, 9) }}"}
      setup: setup.sh.j2                  # runs in the box before the agent comes
      tools: [shell]
      artifacts: [/task]                  # default: the whole workdir
      solution: solve.sh.j2               # each line a complete command
      check: {same_as_solution: [/task]}
      noise: noise.txt.j2                 # optional: lines that a thoughtless agent types

The oracle types the solution's lines one by one and submits. It counts a line as done when the line really ran, so lost
turns do not put it off; what others left behind is removed before it submits. What is drawn and what the solution leaves
is the same for all episodes of an instance and is remembered for the last `REMEMBERED` of them.
"""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from envfarm.box import SyncBox
from envfarm.env import Env, Observed
from envfarm.errors import SpecError, VerifierFault
from envfarm.task import checks, stock
from envfarm.task.templates import Templates, fresh_rng, templates_of
from envfarm.tools import Action, ToolCall

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance, TaskSpec

REMEMBERED = 256
DEFAULT_NOISE = ("ls", "ls -a", "pwd", "cat *", "echo hello > note", "mkdir new", "rm *", "touch a", "submit")


class Plan:
    """Everything that one instance's templates say. What only the trusted side needs is written out when it is asked for."""

    def __init__(self, task: TaskSpec, templates: Templates, instance: Instance):
        self.task, self.templates, self.instance = task, templates, instance
        self.expected: checks.State | None = None
        self.solving = Lock()
        self.prompt = self.render(task.prompt)
        written = {self.render(path).strip(): self.render(content) for path, content in task.files.items()}
        self.files = {path: text for path, text in written.items() if path}
        self.setup = self.render(task.setup) if task.setup else ""
        compared = [self.render(path) for path in task.check.same_as_solution or task.artifacts]
        self.artifacts = tuple(checks.absolute(checks.relative(path)) for path in compared)

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
        return (self.lines(self.task.noise) if self.task.noise else ()) or DEFAULT_NOISE

    def build(self, box: SyncBox) -> None:
        """Bring a fresh box to the instance's start. Raises: SpecError where the setup fails."""
        for path, text in self.files.items():
            box.write(path, text.encode())
        if self.setup.strip():
            result = box.exec(self.setup)
            if result.exit_code or result.limit:
                how = f"{result.limit} limit" if result.limit else f"exit {result.exit_code}"
                raise SpecError(f"task.setup failed ({how}): {result.text.strip()[-300:]}")


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


class TaskEnv(Env):
    """The scene of a `task:`. `TaskEnv(spec)` is an object of a subclass that has the stock tools the task names."""

    stock: ClassVar[tuple[str, ...] | None] = None

    def __new__(cls, env_spec: EnvSpec, **options: Any) -> TaskEnv:
        if cls.stock is None and env_spec.task is not None:
            cls = stock.task_class(cls, tuple(env_spec.task.tools))  # type: ignore[assignment, arg-type]
        return super().__new__(cls)

    def __init__(self, env_spec: EnvSpec, **options: Any):
        if env_spec.task is None:
            raise SpecError(f"{env_spec.id} has no `task:`")
        super().__init__(env_spec, **options)
        self.task: TaskSpec = env_spec.task
        self.templates = templates_of(str(env_spec.folder))

    # The episode.

    def start(self) -> Observed:
        self.plan = _memory.get(self.instance.hash, lambda: Plan(self.task, self.templates, self.instance))
        self.strikes, self._next = 0, 0
        if self.box is not None:
            self.plan.build(self.box)
        return self.plan.prompt.strip("\n")

    def executed(self, command: str) -> None:
        if self._next < len(self.plan.solution) and command.strip() == self.plan.solution[self._next]:
            self._next += 1

    # Experts and fools.

    def oracle(self) -> Action:
        if "shell" in (self.stock or ()):
            if self._next < len(self.plan.solution):
                return ToolCall("shell", {"command": self.plan.solution[self._next]})
            if self.task.check.same_as_solution and (command := self._clean_up()):
                return ToolCall("shell", {"command": command})
        else:
            for path, data in self.expected().files.items():
                if self._state().files.get(path) != data:
                    return ToolCall("write_file", {"path": checks.absolute(path), "content": _writable(path, data)})
        return ToolCall("submit")

    def _clean_up(self) -> str:
        """A command that removes one thing that the solution does not leave; empty where there is none."""
        found, wanted = self._state().entries, self.expected().entries
        extra = sorted(path for path in found if path not in wanted)
        if not extra:
            return ""
        option = "-r " if found[extra[0]][0] == "directory" else ""
        path = f"./{extra[0]}" if extra[0].startswith("-") else extra[0]
        return f"rm {option}{shlex.quote(path)}"

    def random_action(self, rng: np.random.Generator) -> Action:
        if "shell" not in (self.stock or ()):
            return super().random_action(rng)
        line = self.plan.noise[int(rng.integers(len(self.plan.noise)))]
        return ToolCall("submit") if line == "submit" else ToolCall("shell", {"command": line})

    # The verdict.

    def verdict(self) -> float:
        low, high = self.env_spec.reward.range
        passed = self._check()
        return float(passed) if not isinstance(passed, bool) else high if passed else low

    def _check(self) -> bool | float:
        check, state = self.task.check, checks.state_of(self._place(), self._compared())
        if state is None:
            return False
        if check.same_as_solution:
            return state == self.expected()
        if check.script:
            instance = {"params": dict(self.params), "row": self.row}
            return checks.run_script(self.env_spec.folder / check.script, state, instance)
        value = self.templates.expression(check.expr or "", {**self.plan.names(), **checks.expression_names(state)})
        if not isinstance(value, (bool, int, float)):
            raise VerifierFault(f"task.check.expr gave {value!r}; expected truth or a number")
        return value

    def _place(self) -> SyncBox:
        if self.box is None:
            raise VerifierFault(f"{self.env_spec.id}: a task needs a box; set `sandbox: {{box: true}}`")
        return self.box

    def _compared(self) -> tuple[str, ...]:
        """What is copied out: what the check names, else `artifacts`."""
        return self.plan.artifacts

    def _state(self) -> checks.State:
        return checks.state_of(self._place(), self._compared()) or checks.State({}, {})

    def expected(self) -> checks.State:
        """What the solution leaves in a fresh box of the same start. Raises: VerifierFault where a line of it fails."""
        with self.plan.solving:  # the group's other episodes wait instead of solving it again
            if self.plan.expected is None:
                with self.fresh_box() as box:
                    self.plan.build(box)
                    for line in self.plan.solution:
                        result = box.exec(line)
                        if result.exit_code or result.limit:
                            raise VerifierFault(f"solution line {line!r}: exit {result.exit_code}: {result.text[-300:]}")
                    self.plan.expected = checks.state_of(box, self._compared())
        if self.plan.expected is None:
            raise VerifierFault("the solution leaves links, special files or too much to compare")
        return self.plan.expected


def _writable(path: str, data: bytes) -> str:
    """A file that the solution leaves, as `write_file` can write it.

    Raises: VerifierFault where it cannot: no agent without a shell could solve the task."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise VerifierFault(f"the solution leaves {path}, which is no text: `tools: [files]` cannot write it") from None
    if text and not text.endswith("\n"):
        raise VerifierFault(f"the solution leaves {path} without a newline at its end: `tools: [files]` cannot write it so")
    return text
