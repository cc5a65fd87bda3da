"""Bugs: changes of a function's syntax tree, one family per kind.

`variants(function, kind)` yields every single change of that kind, in the order of the source. A variant may behave like
the original (or be no better reading): whoever wants a bug checks that its outputs differ.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

Change = Callable[[ast.AST], None]
"""Changes one node of a copy in place."""

KINDS = ("off_by_one", "wrong_operator", "wrong_constant", "wrong_variable", "swapped_arguments", "missing_case")

_NEIGHBOUR: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OTHER: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
_OTHER_NAME = {"min": "max", "max": "min"}
_NOT_COMMUTATIVE = (ast.Sub, ast.FloorDiv, ast.Mod)


def variants(function: ast.FunctionDef, kind: str) -> Iterator[ast.FunctionDef]:
    """All single changes of one kind. Raises: KeyError on an unknown kind."""
    find = _FINDERS[kind]
    names = local_names(function)
    objects = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    for position, node in enumerate(ast.walk(function)):
        if id(node) in objects:
            continue  # `found.append` on the list that is looped over would never end
        for change in find(node, names):
            made = copy.deepcopy(function)
            change(next(n for i, n in enumerate(ast.walk(made)) if i == position))
            yield ast.fix_missing_locations(made)


def local_names(function: ast.FunctionDef) -> list[str]:
    """Parameters, and what the function binds, in order of appearance; names that begin with `_` left out."""
    found = [a.arg for a in function.args.args]
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in found:
            found.append(node.id)
    return [name for name in found if not name.startswith("_")]


def _set(field: str, value: object) -> Change:
    return lambda node: setattr(node, field, value)


def _is_int(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _off_by_one(node: ast.AST, names: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _NEIGHBOUR:
        yield _set("ops", [_NEIGHBOUR[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)) and _is_int(node.right):
        yield lambda n: setattr(n.right, "value", n.right.value + 1)  # type: ignore[attr-defined]
        if node.right.value == 1:  # type: ignore[attr-defined]
            yield lambda n: setattr(n.right, "value", 0)  # type: ignore[attr-defined]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        end = 0 if len(node.args) == 1 else 1
        yield lambda n: _shift(n.args, end, ast.Sub())  # type: ignore[attr-defined]
        if len(node.args) > 1:
            yield lambda n: _shift(n.args, 0, ast.Add())  # type: ignore[attr-defined]
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Name):
        yield lambda n: setattr(n, "value", ast.BinOp(n.value, ast.Add(), ast.Constant(1)))  # type: ignore[attr-defined]


def _shift(arguments: list[ast.expr], place: int, op: ast.operator) -> None:
    arguments[place] = ast.BinOp(arguments[place], op, ast.Constant(1))


def _wrong_operator(node: ast.AST, names: list[str]) -> Iterator[Change]:
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _OTHER:
        yield _set("op", _OTHER[type(node.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
        yield _set("ops", [_OTHER[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OTHER_NAME:
        yield _set("func", ast.Name(_OTHER_NAME[node.func.id], ast.Load()))


def _wrong_constant(node: ast.AST, names: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield _set("value", node.value + 2)
        yield _set("value", node.value * 2 + 1)
    if isinstance(node, ast.List) and not node.elts and isinstance(node.ctx, ast.Load):
        yield _set("elts", [ast.Constant(0)])


def _wrong_variable(node: ast.AST, names: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        yield from (_set("id", other) for other in names if other != node.id)


def _swapped_arguments(node: ast.AST, names: list[str]) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, _NOT_COMMUTATIVE):
        yield lambda n: n.__dict__.update(left=n.right, right=n.left)  # type: ignore[attr-defined]
    if isinstance(node, ast.Call) and len(node.args) > 1:
        yield lambda n: n.args.__setitem__(slice(0, 2), [n.args[1], n.args[0]])  # type: ignore[attr-defined]


def _missing_case(node: ast.AST, names: list[str]) -> Iterator[Change]:
    for i, statement in enumerate(getattr(node, "body", None) or []):
        if isinstance(statement, ast.If) and i + 1 < len(node.body):  # type: ignore[attr-defined]
            yield lambda n, i=i: n.body.__setitem__(slice(i, i + 1), n.body[i].orelse)  # type: ignore[misc]


_FINDERS: dict[str, Callable[[ast.AST, list[str]], Iterator[Change]]] = {
    "off_by_one": _off_by_one,
    "wrong_operator": _wrong_operator,
    "wrong_constant": _wrong_constant,
    "wrong_variable": _wrong_variable,
    "swapped_arguments": _swapped_arguments,
    "missing_case": _missing_case,
}
