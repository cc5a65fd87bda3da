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

The oracle types the solution's lines one by one and submits (`envfarm.task.solving`). What is drawn and what the solution
leaves is the same for all episodes of an instance and is remembered for the last of them (`envfarm.task.plan`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from envfarm.blocks import Blocks
from envfarm.box import SyncBox
from envfarm.env import Env, Observed
from envfarm.errors import SpecError, VerifierFault
from envfarm.task import STOCK, checks, options_of, solving, stock
from envfarm.task.plan import Plan, plan_of
from envfarm.task.templates import templates_of
from envfarm.tools import Action, ToolCall

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, TaskSpec

__all__ = ["Plan", "TaskEnv"]


class TaskEnv(Env, stock.Stock):
    """The scene of a `task:`. `TaskEnv(spec)` is an object of a subclass that has the stock tools the task names."""

    stock: ClassVar[tuple[str, ...] | None] = None

    def __new__(cls, env_spec: EnvSpec, **options: Any) -> TaskEnv:
        if cls.stock is None and env_spec.task is not None:
            cls = stock.task_class(cls, tuple(options_of(env_spec.task)))  # type: ignore[assignment, arg-type]
        return super().__new__(cls)

    def __init__(self, env_spec: EnvSpec, **options: Any):
        if env_spec.task is None:
            raise SpecError(f"{env_spec.id} has no `task:`")
        super().__init__(env_spec, **options)
        self.task: TaskSpec = env_spec.task
        self.templates = templates_of(str(env_spec.folder))
        self.by_name = any(STOCK[name].by_name for name in self.stock or ())
        """Whether a text, of an agent or of the solution, names its tool."""

    # The episode.

    def start(self) -> Observed:
        self.plan = plan_of(self.task, self.templates, self.instance)
        self.strikes, self.options = 0, self.plan.options
        self._expert: solving.Expert | None = None
        self.enter()
        if self.box is not None:
            self.plan.build(self.box)
        return self.plan.prompt.strip("\n")

    def call(self, call: ToolCall) -> Blocks:
        blocks = super().call(call)
        self.expert.saw(call)
        return blocks

    # Experts and fools.

    @property
    def expert(self) -> solving.Expert:
        if self._expert is None:
            self._expert = solving.expert(self)
        return self._expert

    def oracle(self) -> Action:
        return self.expert.next_action()

    def random_action(self, rng: np.random.Generator) -> Action:
        lines = self.plan.noise or self.noise()
        if not lines:
            return super().random_action(rng)
        line = lines[int(rng.integers(len(lines)))]
        return line if self.by_name else stock.typed(line)

    # The verdict.

    def verdict(self) -> float:
        low, high = self.env_spec.reward.range
        passed = self._check()
        return float(passed) if not isinstance(passed, bool) else high if passed else low

    def _check(self) -> bool | float:
        check, state = self.task.check, checks.state_of(self._place(), self.plan.artifacts)
        if state is None:
            return False
        if check.same_as_solution:
            return checks.same(state, solving.expected(self), self.plan.databases)
        if check.script:
            instance = {"params": dict(self.params), "row": self.row}
            return checks.run_script(self.env_spec.folder / check.script, state, instance)
        names = {**self.plan.names(), **checks.expression_names(state, self.plan.options)}
        try:
            value = self.templates.expression(check.expr or "", names)
        except checks.Broken:
            return False
        if not isinstance(value, (bool, int, float)):
            raise VerifierFault(f"task.check.expr gave {value!r}; expected truth or a number")
        return value

    def _place(self) -> SyncBox:
        if self.box is None:
            raise VerifierFault(f"{self.env_spec.id}: a task needs a box; set `sandbox: {{box: true}}`")
        return self.box

    def state(self) -> checks.State:
        """What stands in the agent's box now, of what is compared."""
        return checks.state_of(self._place(), self.plan.artifacts) or checks.State({}, {})
