"""`task:` as it stands in a file, checked as far as that goes before an instance is drawn: tools, files, syntax, paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from envfarm.box import WORKDIR
from envfarm.errors import SpecError
from envfarm.spec import TaskCheck, TaskSpec
from envfarm.spec_file import CheckFile, TaskFile
from envfarm.spec_reader import Reader


class TaskReader(Reader):
    """Reads the `task:` of one file whose shape is known to be right."""

    def read(self, given: TaskFile, *, box: bool) -> TaskSpec:
        """Raises: SpecError at its place."""
        if not box:
            raise self.fail("a task runs in a box; add `sandbox: {box: true}`", "task")
        check = self._check(given.check)
        if check.same_as_solution is not None and given.solution is None:
            raise self.fail("same_as_solution needs `task.solution`", "task", "check")
        self._tools(given.tools)
        self._syntax(given)
        self._below_workdir(given.artifacts, "task", "artifacts")
        self._below_workdir(given.check.same_as_solution or [], "task", "check", "same_as_solution")
        return TaskSpec(
            prompt=given.prompt, files=dict(given.files), setup=given.setup, tools=tuple(given.tools),
            artifacts=tuple(given.artifacts), solution=given.solution, noise=given.noise, check=check,
        )  # fmt: skip

    def _check(self, given: CheckFile) -> TaskCheck:
        named = [k for k, v in given.model_dump().items() if v is not None]
        if len(named) != 1:
            what = " and ".join(named) or "none"
            raise self.fail(f"expected exactly one of same_as_solution, script, expr, found {what}", "task", "check")
        if given.script is not None:
            self.existing(given.script, "task", "check", "script")
        same = given.same_as_solution
        return TaskCheck(same_as_solution=None if same is None else tuple(same), script=given.script, expr=given.expr)

    def _tools(self, names: list[str]) -> None:
        from envfarm.task import unknown_tool

        for i, name in enumerate(names):
            if wrong := unknown_tool(name):
                raise self.fail(wrong, "task", "tools", i)
            if name in names[:i]:
                raise self.fail(f"{name!r} stands there twice", "task", "tools", i)

    def _syntax(self, given: TaskFile) -> None:
        """Every template and expression parses; whether the names in it exist is known when an instance is drawn."""
        from envfarm.task.templates import Templates, is_name

        templates = Templates(str(self.folder))
        texts: list[tuple[tuple[str, ...], str | None]] = [
            (("task", key), getattr(given, key)) for key in ("prompt", "setup", "solution", "noise")
        ]
        for path, content in given.files.items():
            texts += [(("task", "files", path), path), (("task", "files", path), content)]
        for keys, text in texts:
            if text is not None:
                if is_name(text):
                    self.existing(text, *keys)
                with self._placed(*keys):
                    templates.parse(text)
        if given.check.expr is not None:
            with self._placed("task", "check", "expr"):
                templates.parse_expression(given.check.expr)

    def _below_workdir(self, paths: list[str], *keys: Any) -> None:
        """Of those that are no templates."""
        from envfarm.task.checks import relative

        for i, path in enumerate(paths):
            if "{" not in path:
                try:
                    relative(path)
                except SpecError:
                    raise self.fail(f"{path!r} is not below {WORKDIR}", *keys, i) from None

    @contextmanager
    def _placed(self, *keys: Any) -> Iterator[None]:
        """What is wrong with a value is told at its place in the YAML, where it has no place of its own."""
        try:
            yield
        except SpecError as problem:
            if problem.location is not None:
                raise
            raise self.fail(problem.message, *keys) from None
