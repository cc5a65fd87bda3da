"""Stock tools of environments without Python: one class per name in `task.tools`, put together into one scene class.

A new set of tools is one class here (or in a file of its own: `sql.py`, `browser.py`) and one line in `envfarm.task.STOCK`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

from envfarm.blocks import Block, Blocks, Output, Text
from envfarm.box import WORKDIR, ExecResult, SyncBox
from envfarm.env import Scene
from envfarm.errors import EnvironmentFault, InfraError, Location, SpecError
from envfarm.task import STOCK, unknown_tool
from envfarm.tools import Malformed, ToolCall, ToolError, tool

SHOWN_CHARS = 2000
"""Of a command's output; the middle of more is left out."""
SHOWN_ENTRIES = 200
NOISE = ("ls", "ls -a", "pwd", "cat *", "echo hello > note", "mkdir new", "rm *", "touch a")
MAX_STRIKES = 3
"""Commands that ran into a limit of the box before the episode ends with `agent_limit`: each can cost `exec_timeout_s`."""


class Stock(Scene):
    """What all stock tools need: the box, their options, and the count of the agent's own mishaps. Of its hooks each set
    of tools has its own part and goes on to the next with `super()`."""

    strikes: int = 0
    by_name: bool = False
    options: Mapping[str, Mapping[str, str]] = {}
    """Name in `task.tools` -> its options."""
    sent: int = 0
    """What cannot be taken back: how much was sent to somebody in this episode."""

    @property
    def place(self) -> SyncBox:
        if self.box is None:
            raise EnvironmentFault(f"{self.env_spec.id}: its tools need a box; set `sandbox: {{box: true}}`")
        return self.box

    def strike(self) -> None:
        self.strikes += 1
        if self.strikes >= MAX_STRIKES:
            self.end(stop="agent_limit")

    def put(self, path: str, data: bytes) -> None:
        """Write a file for the agent. Raises: ToolError; a full disk is a strike as well."""
        with told(path):
            try:
                self.place.write(path, data)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self.strike()
                raise

    @classmethod
    def made_files(cls, options: Mapping[str, str]) -> dict[str, bytes]:
        """Files that the tools bring along, by path in the box, made from their options. Raises: SpecError."""
        return {}

    def enter(self) -> None:
        """An episode begins."""

    def noise(self) -> tuple[str, ...]:
        """What a thoughtless agent may say now, as text."""
        return ()

    def moves(self, call: ToolCall) -> bool:
        """Whether that call can lead away from where the next line of a solution makes sense."""
        return False


class Shell(Stock):
    text_tool: ClassVar[str | None] = "shell"

    @tool
    def shell(self, command: str) -> Blocks:
        """Run a command in the shell. Its working directory and variables stay for the next command.

        command: what to run
        """
        if "\0" in command:
            raise Malformed("A command cannot hold a NUL character.")
        result = self.place.exec(command)
        if result.limit not in (None, "output"):
            self.strike()
        return show(result)

    def noise(self) -> tuple[str, ...]:
        return (*super().noise(), *(f"shell {line}" if self.by_name else line for line in NOISE), "submit")


class Files(Stock):
    @tool
    def list_files(self, path: str = WORKDIR) -> str:
        """List all files and directories below a directory.

        path: the directory
        """
        with told(path):
            entries = self.place.list(path)
        lines = [e.path + {"directory": "/", "link": f" -> {e.target}"}.get(e.kind, "") for e in entries]
        more = len(lines) - SHOWN_ENTRIES
        return "\n".join(lines[:SHOWN_ENTRIES] + ([f"... and {more} more"] if more > 0 else [])) or "(empty)"

    @tool
    def read_file(self, path: str) -> Block:
        """Show a text file.

        path: the file
        """
        with told(path):
            text = self.place.read(path, max_bytes=1 << 18).decode("utf-8", "replace")
        return Output(clip(text, 4 * SHOWN_CHARS)) if text else Text("(empty)")

    @tool
    def write_file(self, path: str, content: str) -> str:
        """Create or replace a text file. A newline is added at its end where there is none.

        path: the file
        content: its whole new content
        """
        content += "\n" if content and not content.endswith("\n") else ""
        self.put(path, content.encode("utf-8", "replace"))
        return "ok"


def typed(line: str) -> ToolCall:
    """A line of noise as an action: `submit`, or what is typed into the shell."""
    return ToolCall("submit") if line == "submit" else ToolCall("shell", {"command": line})


class Submit(Scene):
    @tool
    def submit(self) -> str:
        """Say that the task is done. Ends the episode."""
        self.end()
        return ""


@lru_cache(256)
def task_class(base: type[Scene], tools: tuple[str, ...]) -> type[Scene]:
    """`base` with the stock tools named, shown in that order, and `submit` last. Raises: SpecError on an unknown name."""
    for name in tools:
        if wrong := unknown_tool(name):
            raise SpecError(f"task.tools: {wrong}")
    parts: tuple[type[Scene], ...] = (base, Submit, *(stock_class(name) for name in reversed(tools)))
    made = {"stock": tools, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, parts, made | ({"text_tool": None} if any(STOCK[name].by_name for name in tools) else {}))


def stock_class(name: str) -> type[Stock]:
    module, _, attribute = STOCK[name].where.partition(":")
    return getattr(import_module(module), attribute)


def show(result: ExecResult) -> Blocks:
    """What an agent sees of a command: its output, then how it ended where that was not well; never nothing."""
    blocks: list[Block] = []
    if text := result.text.rstrip("\n"):
        blocks.append(Output(clip(text)))
    if result.limit is not None:
        blocks.append(Text(f"stopped: {result.limit} limit" if result.limit != "output" else "output was cut"))
    elif result.exit_code:
        blocks.append(Text(f"exit {result.exit_code}"))
    return tuple(blocks) or (Text("ok"),)


def clip(text: str, limit: int = SHOWN_CHARS) -> str:
    """At most about `limit` characters: three quarters from the beginning, the rest from the end."""
    if len(text) <= limit:
        return text
    head, tail = limit * 3 // 4, limit // 4
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[-tail:]}"


def require(result: ExecResult, what: str, place: Location | None = None) -> None:
    """For a command of the author's that brings a box to its start.

    Raises: SpecError where it failed, InfraError where it stood still: nobody but the machine keeps it waiting.
    """
    said = result.text.strip()[-300:]
    if result.limit == "idle":
        why = "the machine is overloaded, or it waits for something"
        raise InfraError(f"{f'{place}: ' if place else ''}{what} stood still until its time was over: {why}. {said}".rstrip())
    if result.exit_code or result.limit:
        how = f"{result.limit} limit" if result.limit else f"exit {result.exit_code}"
        raise SpecError(f"{what} failed ({how}): {said}", place)


@contextmanager
def told(path: str) -> Iterator[None]:
    """What can be wrong with the agent's path becomes an answer to the agent."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ToolError(str(error)) from error
