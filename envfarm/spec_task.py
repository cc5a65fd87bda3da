"""`task:` as it stands in a file, checked as far as that goes before an instance is drawn: tools, files, syntax, paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from envfarm.box import WORKDIR
from envfarm.errors import SpecError, did_you_mean
from envfarm.spec import TaskCheck, TaskSpec, ToolUse
from envfarm.spec_file import CheckFile, TaskFile
from envfarm.spec_reader import Reader
from envfarm.task import STOCK, unknown_tool
from envfarm.yaml_source import found

if TYPE_CHECKING:
    from envfarm.task.templates import Templates


class TaskReader(Reader):
    """Reads the `task:` of one file whose shape is known to be right."""

    def read(self, given: TaskFile, *, box: bool) -> TaskSpec:
        """Raises: SpecError at its place."""
        if not box:
            raise self.fail("a task runs in a box; add `sandbox: {box: true}`", "task")
        check = self._check(given.check)
        if check.same_as_solution is not None and given.solution is None:
            raise self.fail("same_as_solution needs `task.solution`", "task", "check")
        tools = self._tools(given.tools)
        self._syntax(given)
        self._below_workdir(given.artifacts, "task", "artifacts")
        self._below_workdir(given.check.same_as_solution or [], "task", "check", "same_as_solution")
        return TaskSpec(
            prompt=given.prompt, files=dict(given.files), setup=given.setup, tools=tools,
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

    def _tools(self, given: list[Any]) -> tuple[str | ToolUse, ...]:
        tools: list[str | ToolUse] = []
        names: list[str] = []
        for i, tool in enumerate(given):
            if isinstance(tool, dict) and len(tool) == 1:
                name, options = next(iter(tool.items()))
            elif isinstance(tool, str):
                name, options = tool, {}
            else:
                raise self.fail(f"expected a name, or one name with its options, found {found(tool)}", "task", "tools", i)
            if wrong := unknown_tool(name):
                raise self.fail(wrong, "task", "tools", i)
            if name in names:
                raise self.fail(f"{name!r} stands there twice", "task", "tools", i)
            names.append(name)
            self._options(name, options, "task", "tools", i, *([name] if isinstance(tool, dict) else []))
            tools.append(ToolUse(name=name, options=options) if options else name)
        return tuple(tools)

    def _options(self, tool: str, given: Any, *keys: Any) -> None:
        known = STOCK[tool].options
        if not isinstance(given, dict):
            raise self.fail(f"expected options ({', '.join(known) or 'there are none'}), found {found(given)}", *keys)
        for name, value in given.items():
            here = (*keys, name)
            if name not in known:
                listed = f"known here: {', '.join(known)}" if known else f"{tool} takes none"
                raise self.fail_key(f"unknown key {name!r}{did_you_mean(name, known)}; {listed}", *here)
            if not isinstance(value, str) or not value.strip():
                raise self.fail(f"expected text, found {found(value)}", *here)
            self._template(value, *here)
            if known[name].kind == "path":
                self._path_below(value, *here)
        for name in STOCK[tool].required:
            if name not in given:
                raise self.fail(f"{tool} needs the key {name!r}, as in {{{tool}: {{{name}: {WORKDIR}/...}}}}", *keys)

    def _syntax(self, given: TaskFile) -> None:
        """Every template and expression parses; whether the names in it exist is known when an instance is drawn."""
        texts: list[tuple[tuple[str, ...], str | None]] = [
            (("task", key), getattr(given, key)) for key in ("prompt", "setup", "solution", "noise")
        ]
        for path, content in given.files.items():
            texts += [(("task", "files", path), path), (("task", "files", path), content)]
        for keys, text in texts:
            if text is not None:
                self._template(text, *keys)
        if given.check.expr is not None:
            with self._placed("task", "check", "expr"):
                self._templates.parse_expression(given.check.expr)

    @cached_property
    def _templates(self) -> Templates:
        from envfarm.task.templates import Templates

        return Templates(str(self.folder))

    def _template(self, text: str, *keys: Any) -> None:
        from envfarm.task.templates import is_name

        if is_name(text):
            self.existing(text, *keys)
        with self._placed(*keys):
            self._templates.parse(text)

    def _below_workdir(self, paths: list[str], *keys: Any) -> None:
        for i, path in enumerate(paths):
            self._path_below(path, *keys, i)

    def _path_below(self, path: str, *keys: Any) -> None:
        """A template is looked at when it is rendered."""
        from envfarm.task.checks import relative

        if "{" not in path:
            try:
                relative(path)
            except SpecError:
                raise self.fail(f"{path!r} is not below {WORKDIR}", *keys) from None

    @contextmanager
    def _placed(self, *keys: Any) -> Iterator[None]:
        """What is wrong with a value is told at its place in the YAML, where it has no place of its own."""
        try:
            yield
        except SpecError as problem:
            if problem.location is not None:
                raise
            raise self.fail(problem.message, *keys) from None
