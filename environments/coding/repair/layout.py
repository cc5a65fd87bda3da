"""From functions to the files that an agent sees: names in one style, functions over modules, and a `main.py` that runs them."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .mutate import local_names

MODULES = {
    "inventory": ("stock", "orders", "prices", "shelves"),
    "payroll": ("wages", "taxes", "shifts", "bonuses"),
    "weather": ("readings", "stations", "rainfall", "reports"),
    "library": ("books", "loans", "catalog", "fees"),
}

_MAIN = """for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        print(json.dumps(FUNCTIONS[name](*arguments)))
    except Exception as error:
        print("error " + type(error).__name__)
"""


def styled(name: str, naming: str) -> str:
    """`longest_gap` as `longestGap` or `longest_gap`."""
    if naming == "snake_case":
        return name
    head, *rest = name.strip("_").split("_")
    return "_" * (len(name) - len(name.lstrip("_"))) + head + "".join(part.capitalize() for part in rest)


def rename(tree: ast.FunctionDef, naming: str) -> ast.FunctionDef:
    """The function in that style, its docstring's words included."""
    made = copy.deepcopy(tree)
    bound = {a.arg for a in made.args.args} | set(local_names(made))
    bound |= {n.id for n in ast.walk(made) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = {name: styled(name, naming) for name in bound}
    made.name = styled(made.name, naming)
    for node in ast.walk(made):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
        elif isinstance(node, ast.arg):
            node.arg = names[node.arg]
        elif isinstance(node, ast.Constant) and node is _docstring(made):
            node.value = re.sub(r"\b[a-z]+(_[a-z]+)+\b", lambda m: names.get(m[0], m[0]), node.value)
    return made


@lru_cache(8192)
def written(tree: ast.FunctionDef, naming: str) -> tuple[str, str]:
    """Name and text of a function in that style. Trees live as long as the process, and are compared by identity."""
    made = rename(tree, naming)
    return made.name, ast.unparse(made)


def _docstring(tree: ast.FunctionDef) -> ast.Constant | None:
    first = tree.body[0]
    return first.value if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None


def sources(functions: Mapping[str, Sequence[tuple[str, str]]], called: Sequence[str]) -> dict[str, str]:
    """Path below the workdir -> text. `functions` maps modules to what they define, as `written`.

    With one module all is in `main.py`. `called` names the functions that `main.py` offers.
    """
    texts = {module: "\n\n\n".join(text for _, text in defined) + "\n" for module, defined in functions.items()}
    table = "FUNCTIONS = {" + ", ".join(f'"{name}": {name}' for name in called) + "}\n"
    if len(texts) == 1:
        (text,) = texts.values()
        return {"main.py": f"import json\nimport sys\n\n\n{text}\n\n{table}\n{_MAIN}"}
    imports = "".join(
        f"from {module} import {', '.join(used)}\n"
        for module, defined in functions.items()
        if (used := sorted(name for name, _ in defined if name in called))
    )
    files = {f"{module}.py": text for module, text in texts.items()}
    return {"main.py": f"import json\nimport sys\n\n{imports}\n{table}\n{_MAIN}", **files}
