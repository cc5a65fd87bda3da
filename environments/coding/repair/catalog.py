"""The programs of `programs/`, their behaviour, and those of their mutations that really behave differently.

Everything here runs in the worker, on our own code. What a program does is its printed line: JSON, or the error's name,
exactly as the `main.py` that agents see prints it.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from envfarm.seeding import generator

from .mutate import variants
from .programs import inventory, library, payroll, weather

DOMAINS = {"inventory": inventory, "payroll": payroll, "weather": weather, "library": library}
POOL = 48
"""Inputs per program on which a mutation is tried."""
MIN_FAILING = 3
"""Of these must come out differently: enough for a visible example and for hidden inputs."""


@dataclass(frozen=True)
class Bug:
    """One mutation that shows."""

    function: ast.FunctionDef
    failing: tuple[int, ...]  # places in the program's pool


class Program:
    """One right function with its tree and its inputs."""

    def __init__(self, domain: str, function: Callable[..., Any], tree: ast.FunctionDef):
        self.domain, self.name, self.tree = domain, function.__name__, tree
        self._draws = function.__takes__  # type: ignore[attr-defined]
        self._run = runner(tree)

    def draw(self, rng: np.random.Generator) -> list[Any]:
        """Arguments for one call."""
        return [draw(rng) for draw in self._draws]

    def answer(self, arguments: list[Any]) -> str:
        """The line that the right program prints."""
        return self._run(arguments)

    @cached_property
    def pool(self) -> list[list[Any]]:
        rng = generator("repair pool", self.name)
        return [self.draw(rng) for _ in range(POOL)]

    @cache  # noqa: B019 - programs live as long as the process
    def bugs(self, kind: str) -> list[Bug]:
        """The mutations of that kind whose outputs differ on at least `MIN_FAILING` inputs of the pool."""
        right = [self.answer(a) for a in self.pool]
        found: list[Bug] = []
        for tree in variants(self.tree, kind):
            run = runner(tree)
            failing = tuple(i for i, a in enumerate(self.pool) if run(a) != right[i])
            if len(failing) >= MIN_FAILING:
                found.append(Bug(tree, failing))
        return found


def runner(tree: ast.FunctionDef) -> Callable[[list[Any]], str]:
    """Calls of a function given as a tree, as the line that `main.py` prints for it."""
    space: dict[str, Any] = {}
    exec(compile(ast.Module([tree], []), f"<{tree.name}>", "exec"), space)
    function = space[tree.name]

    def run(arguments: list[Any]) -> str:
        try:
            return json.dumps(function(*copy.deepcopy(arguments)))
        except Exception as error:  # whatever a broken program raises is its behaviour
            return f"error {type(error).__name__}"

    return run


_PARSING = threading.Lock()
"""CPython below 3.13 counts how deep a tree is for all threads together, and one that parses as another does may fail."""


@cache
def programs(domain: str) -> tuple[Program, ...]:
    """All programs of a domain, in the order of its file, decorators taken off."""
    with _PARSING:
        return tuple(_parsed(domain))


def _parsed(domain: str) -> list[Program]:
    module = DOMAINS[domain]
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            found.append(Program(domain, getattr(module, node.name), ast.parse(ast.unparse(node)).body[0]))  # type: ignore[arg-type]
    return found
