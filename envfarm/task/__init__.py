"""Environments without Python: a `task:` in YAML becomes a scene with stock tools, an oracle and a check.

Light: a file is read and checked without the classes that play it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from envfarm.errors import did_you_mean

if TYPE_CHECKING:
    from envfarm.spec import TaskSpec


class Option(NamedTuple):
    """One key of a tool in `task.tools`. All are templates."""

    kind: Literal["path", "text"]  # a path below the workdir; or a text, which may name a template file
    required: bool = False


class StockTool(NamedTuple):
    """What a name in `task.tools` stands for."""

    where: str  # `module:Class` that has the tools
    options: dict[str, Option] = {}
    by_name: bool = False
    """With it, plain text names its tool (`sql SELECT 1`), whatever other tools there are."""

    @property
    def required(self) -> list[str]:
        return [name for name, option in self.options.items() if option.required]


STOCK: dict[str, StockTool] = {
    "shell": StockTool("envfarm.task.stock:Shell"),
    "files": StockTool("envfarm.task.stock:Files"),
    "sql": StockTool("envfarm.task.sql:Sql", {"database": Option("path", True), "create": Option("text")}, by_name=True),
    "browser": StockTool("envfarm.task.browser:Browsing", {"site": Option("path", True), "sent": Option("path")}, by_name=True),
}
"""A new set of stock tools is one class and one line here."""


def options_of(task: TaskSpec) -> dict[str, dict[str, str]]:
    """Stock tools of a task, in order -> their options."""
    return {tool if isinstance(tool, str) else tool.name: {} if isinstance(tool, str) else tool.options for tool in task.tools}


def unknown_tool(name: str) -> str | None:
    """What is wrong with that name, or None."""
    return None if name in STOCK else f"unknown {name!r}{did_you_mean(name, STOCK)}; there are {', '.join(STOCK)}"


def tools_schema() -> dict[str, Any]:
    """The JSON Schema of `task.tools`: names, or a name with its options."""
    names = [name for name, stock in STOCK.items() if not stock.required]
    forms: list[dict[str, Any]] = [{"type": "string", "enum": names}]
    for name, stock in STOCK.items():
        if stock.options:
            keys = {"type": "object", "properties": {key: {"type": "string"} for key in stock.options}}
            options = {**keys, "required": stock.required, "additionalProperties": False}
            forms.append({"type": "object", "properties": {name: options}, "required": [name], "additionalProperties": False})
    return {"type": "array", "items": {"anyOf": forms}, "minItems": 1}
