"""A task's `solution/` as one command that an expert types: it brings its files along and takes them away again, so that nothing
of the solution lies in a box while anybody else acts there."""

from __future__ import annotations

import base64
import shlex

from envfarm.harbor.files import mode_of
from envfarm.harbor.folder import SOLUTION, SOLVE, HarborTask
from envfarm.harbor.runner import entering

_END = "END_OF_FILE"


def command(task: HarborTask) -> str:
    """Ends as `solve.sh` does."""
    lines: list[str] = []
    for path, file in task.solution.items():
        where = shlex.quote(f"{SOLUTION}/{path}")
        if "/" in path:
            lines.append(f"mkdir -p {shlex.quote(f'{SOLUTION}/{path}'.rpartition('/')[0])}")
        lines.append(_written(file.read_bytes(), where))
        if mode_of(file) == 0o755 or path == SOLVE.rpartition("/")[2]:
            lines.append(f"chmod +x {where}")
    variables = {**task.env, **task.settings.solution.env, "DEBIAN_FRONTEND": "noninteractive"}
    lines.append(f"({entering(task.workdir, variables)} && /{SOLVE})")
    lines.append(f"(code=$?; find {SOLUTION} -mindepth 1 -delete; exit $code)")
    return "\n".join(lines)


def _written(data: bytes, where: str) -> str:
    """A here-document where the file is text that one can hold."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.endswith("\n") and "\0" not in text and "\r" not in text and _END not in text:
        return f"cat >{where} <<'{_END}'\n{text}{_END}"
    return f"base64 -d >{where} <<'{_END}'\n{base64.encodebytes(data).decode()}{_END}"
