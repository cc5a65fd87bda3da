"""What the oracle of a `task:` does next: one class per way to act, and what the solution leaves.

- `TypedLines`: types the solution's lines into the shell, and then removes what it does not leave.
- `WrittenFiles`: has no shell, so the solution runs elsewhere and its files are written with `write_file`.
- `NamedLines`: plays the solution's lines as actions (`sql UPDATE ...`, `click Order`). After a step aside in the browser
  it goes back to the last `open` that nothing was sent since.

A line counts as done when it really ran, so lost turns do not put the oracle off.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Protocol

from envfarm.errors import VerifierFault
from envfarm.task import checks
from envfarm.tools import Action, Malformed, ToolCall, ToolError, as_call

if TYPE_CHECKING:
    from envfarm.box import SyncBox
    from envfarm.task.env import TaskEnv


class Expert(Protocol):
    def next_action(self) -> Action: ...

    def saw(self, call: ToolCall) -> None:
        """That call was made, whoever chose it."""
        ...

    def solve(self, box: SyncBox) -> None:
        """Bring a fresh box to the start and play the whole solution there. Raises: VerifierFault where it fails."""
        ...


def expert(env: TaskEnv) -> Expert:
    if env.by_name:
        return NamedLines(env)
    return TypedLines(env) if "shell" in env.tools else WrittenFiles(env)


def expected(env: TaskEnv) -> checks.State:
    """What the solution leaves, from the same start in a fresh box; once for all episodes of the instance."""
    plan = env.plan
    with plan.solving:  # the group's other episodes wait instead of solving it again
        if plan.expected is None:
            with env.fresh_box() as box:
                expert(env).solve(box)
                plan.expected = checks.state_of(box, plan.artifacts)
    if plan.expected is None:
        raise VerifierFault("the solution leaves links, special files or too much to compare")
    return plan.expected


class TypedLines:
    def __init__(self, env: TaskEnv):
        self.env, self.lines, self._next = env, env.plan.solution, 0

    def saw(self, call: ToolCall) -> None:
        typed = call.arguments["command"].strip() if call.name == "shell" else None
        if self._next < len(self.lines) and typed == self.lines[self._next]:
            self._next += 1

    def next_action(self) -> Action:
        if self._next < len(self.lines):
            return ToolCall("shell", {"command": self.lines[self._next]})
        if self.env.task.check.same_as_solution and (command := self._clean_up()):
            return ToolCall("shell", {"command": command})
        return ToolCall("submit")

    def _clean_up(self) -> str:
        """A command that removes one thing that the solution does not leave; empty where there is none."""
        found, wanted = self.env.state().entries, expected(self.env).entries
        extra = sorted(path for path in found if path not in wanted)
        if not extra:
            return ""
        option = "-r " if found[extra[0]][0] == "directory" else ""
        path = f"./{extra[0]}" if extra[0].startswith("-") else extra[0]
        return f"rm {option}{shlex.quote(path)}"

    def solve(self, box: SyncBox) -> None:
        self.env.plan.build(box)
        for line in self.lines:
            result = box.exec(line)
            if result.exit_code or result.limit:
                raise VerifierFault(f"solution line {line!r}: exit {result.exit_code}: {result.text[-300:]}")


class WrittenFiles(TypedLines):
    def next_action(self) -> Action:
        for path, data in expected(self.env).files.items():
            if self.env.state().files.get(path) != data:
                return ToolCall("write_file", {"path": checks.absolute(path), "content": _writable(path, data)})
        return ToolCall("submit")


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


class NamedLines:
    def __init__(self, env: TaskEnv):
        self.env, self.lines = env, env.plan.solution
        self._next = self._anchor = 0
        self._sent = 0

    def next_action(self) -> Action:
        return self.lines[self._next] if self._next < len(self.lines) else ToolCall("submit")

    def saw(self, call: ToolCall) -> None:
        sent, self._sent = self.env.sent > self._sent, self.env.sent
        if self._next < len(self.lines) and call == self._call(self.lines[self._next]):
            self._next += 1
            if sent:
                self._anchor = self._next
            elif call.name == "open":
                self._anchor = self._next - 1
        elif self.env.moves(call):
            self._next = min(self._next, self._anchor)

    def solve(self, box: SyncBox) -> None:
        """With an environment of its own, whose actions end in `box`."""
        twin = type(self.env)(self.env.env_spec)
        twin.begin(self.env.instance, box)
        for line in self.lines:
            call = self._call(line)
            try:
                getattr(twin, call.name)(**call.arguments)
            except (ToolError, Malformed) as error:
                raise VerifierFault(f"solution line {line!r}: {error}") from None
            if twin.strikes:
                raise VerifierFault(f"solution line {line!r} runs into a limit")

    def _call(self, line: str) -> ToolCall:
        """Raises: VerifierFault where the author's line is no action."""
        try:
            return as_call(line, self.env.tools)
        except Malformed as error:
            raise VerifierFault(f"solution line {line!r}: {error}") from None
