"""Pages of docs/trainers/, followed by the letter: the commands of a chapter, in a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def commands(page: str, chapter: str) -> list[str]:
    """The shell commands below the heading that holds `chapter`; those that install are done already."""
    text = (ROOT / "docs" / "trainers" / f"{page}.md").read_text("utf-8")
    (body,) = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if chapter in part.partition("\n")[0]]
    fences = re.findall(r"^```sh\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not re.match(r"(python -m venv|\S*pip install|export|#)", line)]


def follow(folder: Path, chapter: str, url: str) -> str:
    """Run what `verifiers.md` says, and return what was printed. What it would install is put on the path."""
    programs = Path(sys.executable).parent
    environment = {
        **os.environ, "URL": url, "MODEL": "oracle", "KEY": "x", "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder / "games-maze"), str(ROOT)]), "PRIME_RUNS_MODE": "disabled",
    }  # fmt: skip
    said = []
    for line in commands("verifiers", chapter):
        done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, f"{line}\n{said[-1]}"
    return "\n".join(said)
