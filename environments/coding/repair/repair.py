"""Repair a small Python program until it behaves as its docstrings say.

An instance takes right functions of one domain (`catalog`), breaks some of them (`mutate`), writes them out (`layout`) and
puts the files into the box. The right functions stay here: the verdict copies the agent's files into a fresh box, feeds
them hidden calls on standard input and compares what is printed with answers computed in the worker.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, ClassVar

import numpy as np

from envfarm.blocks import Block, Code, Table, Text
from envfarm.box import WORKDIR
from envfarm.env import Env, Observed
from envfarm.task.checks import relative
from envfarm.task.stock import Files, Shell, Submit, told
from envfarm.tools import Action, ToolCall, ToolError, tool
from envfarm.verify import run_hidden

from .catalog import Bug, Program, programs
from .layout import MODULES, sources, styled, written

EXAMPLES = "examples.txt"
HIDDEN_CALLS = 16
"""Per function, beside those that are known to tell the bug."""
MAX_PROGRAM_BYTES = 1 << 18
_WORDS = ("return 0", "pass", "x = 1", "total = 0", "continue")


class Repair(Env, Submit, Files, Shell):
    text_tool: ClassVar[str | None] = None

    def start(self) -> Observed:
        self.strikes = 0
        chosen, self.decoys = self._choose()
        self.calls: list[tuple[str, list[Any], str]] = []
        """Hidden: name, arguments, the right line."""
        examples: list[tuple[str, list[Any], str]] = []
        for program, bug in chosen:
            shown, hidden = self._inputs(program, bug)
            name = styled(program.name, self.params["naming"])
            examples += [(name, a, program.answer(a)) for a in shown]
            self.calls += [(name, a, program.answer(a)) for a in hidden]
        self.right, broken = self._write(chosen)
        self.broken_files = [path for path in broken if broken[path] != self.right[path]]
        self.unread = list(broken) if len(broken) == 1 else [path for path in broken if path != "main.py"]
        for path, text in broken.items():
            self.place.write(path, text.encode())
        listed = "".join(f"{json.dumps([name, a])} -> {line}\n" for name, a, line in examples)
        self.place.write(EXAMPLES, listed.encode())
        return self._introduce(list(broken), examples)

    def _choose(self) -> tuple[list[tuple[Program, Bug | None]], list[Program]]:
        """Functions that are called, broken or not, and functions that are only there."""
        wanted = int(self.params["bugs"])
        every = programs(self.params["domain"])
        order = [every[int(i)] for i in self.rng.permutation(len(every))]
        chosen: list[tuple[Program, Bug | None]] = []
        for program in order:
            if len(chosen) < wanted and (bugs := program.bugs(self.params["bug"])):
                chosen.append((program, bugs[int(self.rng.integers(len(bugs)))]))
        others = [p for p in order if all(p is not q for q, _ in chosen)]
        whole = max(0, int(self.params["modules"]) - wanted)
        chosen += [(p, None) for p in others[:whole]]
        return chosen, others[whole : whole + int(self.params.get("decoys", 0))]

    def _inputs(self, program: Program, bug: Bug | None) -> tuple[list[list[Any]], list[list[Any]]]:
        """Arguments of visible examples and of hidden calls; both tell a bug."""
        fresh = [program.draw(self.rng) for _ in range(HIDDEN_CALLS + 2)]
        if bug is None:
            return fresh[:1], fresh[1:]
        telling = [program.pool[i] for i in self.rng.permutation(list(bug.failing))]
        return [telling[0], *fresh[:2]], [*telling[1:4], *fresh[2:]]

    def _write(self, chosen: list[tuple[Program, Bug | None]]) -> tuple[dict[str, str], dict[str, str]]:
        """The files, right and broken: called functions and decoys dealt out to the modules."""
        naming, names = self.params["naming"], MODULES[self.params["domain"]][: int(self.params["modules"])]
        whole = [(p.tree, p.tree) for p in self.decoys]
        pairs = [(p.tree, b.function if b else p.tree) for p, b in chosen] + whole
        called = [styled(p.name, naming) for p, _ in chosen]
        sides = []
        for side in (0, 1):
            dealt: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
            for i, pair in enumerate(pairs):
                dealt[names[i % len(names)]].append(written(pair[side], naming))
            sides.append(sources(dealt, called))
        return sides[0], sides[1]

    def _introduce(self, files: list[str], examples: list[tuple[str, list[Any], str]]) -> list[Block]:
        rows = tuple((name, json.dumps(a)[1:-1], line) for name, a, line in examples)
        return [
            Text(
                f"{', '.join(files)} in {WORKDIR}: some functions do not do what their docstrings say. Repair them, then "
                f"submit. main.py answers lines such as"
            ),
            Code(json.dumps([examples[0][0], examples[0][1]])),
            Table(("function", "arguments", "right answer"), rows, title=f"Examples (also in {EXAMPLES}):", exact=True),
        ]

    # Tools beside the stock ones.

    @tool
    def read_file(self, path: str) -> Block:
        """Show a text file with line numbers.

        path: the file
        """
        text = self._text(path)
        if _name(path) in self.unread:
            self.unread.remove(_name(path))
        return Code("\n".join(f"{i} {line}" for i, line in enumerate(text.splitlines(), 1)) or "(empty)")

    @tool
    def replace_line(self, path: str, line: int, text: str = "") -> str:
        """Replace one line by one or more lines, or delete it where no text is given. The old indentation is kept.

        path: the file
        line: its number, counted from 1
        text: what comes in its place, indented relative to the old line
        """
        lines = self._text(path).splitlines()
        if not 1 <= line <= len(lines):
            raise ToolError(f"{path} has {len(lines)} lines; there is no line {line}")
        old = lines[line - 1]
        indent = old[: len(old) - len(old.lstrip())]
        lines[line - 1 : line] = [(indent + new).rstrip() for new in text.splitlines()]
        with told(path):
            self.place.write(path, "".join(f"{kept}\n" for kept in lines).encode())
        return "ok"

    def _text(self, path: str) -> str:
        with told(path):
            return self.place.read(path, max_bytes=MAX_PROGRAM_BYTES).decode("utf-8", "replace")

    # Experts and fools.

    def oracle(self) -> Action:
        """Read every module once, mend one line after the other, submit."""
        if self.unread:
            return ToolCall("read_file", {"path": self.unread[0]})
        for path, right in self.right.items():
            try:
                now = self.place.read(path, max_bytes=MAX_PROGRAM_BYTES).decode("utf-8", "replace")
            except (OSError, ValueError):
                return ToolCall("write_file", {"path": path, "content": right})
            if now != right:
                return _edit(path, now, right)
        return ToolCall("submit")

    def random_action(self, rng: np.random.Generator) -> Action:
        def pick(items: Any) -> Any:
            return items[int(rng.integers(len(items)))]

        path = pick(list(self.right))
        kind = pick(("read", "read", "list", "run", "replace", "submit"))
        if kind == "read":
            return ToolCall("read_file", {"path": path})
        if kind == "list":
            return ToolCall("list_files")
        if kind == "run":
            return ToolCall("shell", {"command": f"python3 {path} < {EXAMPLES}"})
        if kind == "replace":
            line = int(rng.integers(1, self.right[path].count("\n") + 1))
            return ToolCall("replace_line", {"path": path, "line": line, "text": pick(_WORDS)})
        return ToolCall("submit")

    # The verdict.

    def verdict(self) -> float:
        """1 where every hidden call is answered right. The share of right answers is recorded as `answers`."""
        low, high = self.env_spec.reward.range
        try:
            artifacts = self.place.archive([WORKDIR], max_bytes=MAX_PROGRAM_BYTES)
        except (PermissionError, ValueError):
            return low
        hidden = "".join(json.dumps([name, a]) + "\n" for name, a, _ in self.calls).encode()
        [result] = run_hidden(self.fresh_box, artifacts, "python3 main.py", [hidden])
        printed = result.stdout.decode("utf-8", "replace").splitlines()
        expected = [line for _, _, line in self.calls]
        right = sum(a == b for a, b in zip(printed, expected, strict=False))
        self.reward(right / len(expected), component="answers")
        return high if printed == expected and result.limit is None else low


def _name(path: str) -> str:
    return relative(path) if not path.startswith("/") or path.startswith(WORKDIR + "/") else path


def _edit(path: str, now: str, right: str) -> ToolCall:
    """The call that mends the first place where the file differs, or writes the file anew where a line will not do."""
    a, b = now.splitlines(), right.splitlines()
    for kind, i, i2, j, j2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if kind == "insert" and i < len(a):
            new, old = [*b[j:j2], a[i]], a[i]
        elif kind == "insert":
            break
        else:
            new, old = (b[j:j2] if i2 - i <= 1 or j2 - j <= 1 else b[j : j + 1]), a[i]
        indent = old[: len(old) - len(old.lstrip())]
        if not all(line.startswith(indent) for line in new if line) or (new and new[0][len(indent) :][:1].isspace()):
            break
        text = "\n".join(line[len(indent) :] for line in new)
        return ToolCall("replace_line", {"path": path, "line": i + 1, **({"text": text} if text else {})})
    return ToolCall("write_file", {"path": path, "content": right})
