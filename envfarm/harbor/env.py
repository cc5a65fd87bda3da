"""`HarborEnv`: an environment whose YAML has a `harbor:` - a task's folder, or a folder of them - instead of a class.

    harbor: tasks                       # tasks/hello/task.toml, tasks/words/task.toml, ...
    splits: {train: {rows: [hello]}, heldout: {rows: [words]}}
    sandbox: {box: true}
    reward: {verify: runner_fresh}      # or runner_shared

The agent has a shell in the task's workdir and says `submit`. Then the task's own tests are brought in and run: in a fresh box
that has the files which the agent left in the task's directories (`runner_fresh`), or in the agent's own (`runner_shared`).
Beside the reward every verdict has the component named by `verify` with the same value, those of further rewards
(`runner_fresh.NAME`), and `tampering`: 1 where the agent left something in the places of the runner.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from envfarm.backends.rootfs import sizes
from envfarm.blocks import Blocks
from envfarm.box import SyncBox
from envfarm.env import Env, Observed
from envfarm.errors import SpecError, VerifierFault
from envfarm.harbor import oracle, runner
from envfarm.harbor.dockerfile import Copy, Run
from envfarm.harbor.files import mode_of
from envfarm.harbor.folder import HarborTask, cached_task, is_task
from envfarm.task.stock import Shell, Submit, require, typed
from envfarm.tools import Action, ToolCall


class HarborEnv(Env, Submit, Shell):
    def start(self) -> Observed:
        base = self.env_spec.folder / self.env_spec.entry
        folder = base if is_task(base) else base / str(self.instance.row_key)
        self.task: HarborTask = cached_task(folder, self.env_spec.files_hash)
        self.strikes, self._solved = 0, False
        self._build(self.place)
        return self.task.instruction

    def _build(self, box: SyncBox) -> None:
        """Raises: SpecError at the line of the Dockerfile that fails, InfraError where it stood still."""
        box.exec(f"mkdir -p {runner.LOG_FOLDERS}")
        for step in self.task.start.steps:
            if isinstance(step, Copy):
                for path, file in step.files.items():
                    box.write(path, file.read_bytes(), mode=mode_of(file))
            else:
                self._run(box, step)
        require(box.exec(runner.entering(self.task.workdir, self.task.env)), f"entering {self.task.workdir}")

    def _run(self, box: SyncBox, step: Run) -> None:
        result = box.exec(f"({runner.entering(step.workdir, step.env)} && {{ {step.command}\n}})")
        require(result, "RUN, in the box as the agent's user without a network,", step.place)

    # Experts and fools.

    def call(self, call: ToolCall) -> Blocks:
        blocks = super().call(call)
        self._solved |= bool(self.task.solution) and call == self._solution()
        return blocks

    def oracle(self) -> Action:
        return ToolCall("submit") if self._solved else self._solution()

    def _solution(self) -> ToolCall:
        if not self.task.solution:
            raise SpecError(f"{self.task.folder} has no solution/solve.sh, so there is no oracle")
        return ToolCall("shell", {"command": oracle.command(self.task)})

    def random_action(self, rng: np.random.Generator) -> Action:
        lines = self.noise()
        return typed(lines[int(rng.integers(len(lines)))])

    # The verdict.

    def verdict(self) -> float:
        how, box = self.env_spec.reward.verify, self.place
        self.reward(float(runner.tampered(box)), component="tampering")
        with ExitStack() as open_boxes:
            try:
                prepared = open_boxes.enter_context(self._fresh(box)) if how == "runner_fresh" else self._shared(box)
            except Unusable:
                self.stop = "agent_limit"
                found = {"reward": self.env_spec.reward.range[0]}
            else:
                found = runner.run(self.task, prepared)
        reward = runner.total(found)
        self.reward(reward, component=how)
        for name, value in found.items():
            if name != "reward" and len(found) > 1:
                self.reward(value, component=f"{how}.{name}")
        return reward

    @contextmanager
    def _fresh(self, box: SyncBox) -> Iterator[SyncBox]:
        """Raises: Unusable, VerifierFault."""
        with _by_agent():
            if box.exec(":").limit:
                raise Unusable
            room = sizes(self.env_spec.sandbox.box_spec(self.env_spec.limits))
            kept = runner.carried(self.task, box.snapshot(), room)
        with self.fresh_box(kept) as fresh:
            try:
                runner.stage(self.task, fresh)
            except OSError as error:
                raise VerifierFault(f"{self.task.folder.name}: the tests do not fit into a fresh box: {error}") from None
            yield fresh

    def _shared(self, box: SyncBox) -> SyncBox:
        """Raises: Unusable."""
        box.exec("exit")  # the next shell has no function or variable of the agent's
        with _by_agent():
            runner.stage(self.task, box)
        return box


class Unusable(Exception):
    """The agent has left its box so that nothing can be judged: its own doing."""


_ITS_DOING = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}


@contextmanager
def _by_agent() -> Iterator[None]:
    """What an agent can make fail about its own files. Anything else is the machine's. Raises: Unusable."""
    try:
        yield
    except ValueError as error:
        raise Unusable from error
    except OSError as error:
        if error.errno not in _ITS_DOING:
            raise
        raise Unusable from error
