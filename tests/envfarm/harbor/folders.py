"""The three tasks of this folder, as an environment, whole or with something wrong in them."""

from __future__ import annotations

import shutil
from pathlib import Path

from envfarm.spec import EnvSpec, load_spec

HERE = Path(__file__).parent
DOCKERFILE, TOML = "environment/Dockerfile", "task.toml"


def copied(folder: Path, *tasks: str) -> Path:
    """The environment's YAML in a folder of its own, with these tasks (all by default)."""
    for task in tasks or ("count", "greet", "seal"):
        shutil.copytree(HERE / "tasks" / task, folder / "tasks" / task)
    path = folder / "harbor.yaml"
    text = (HERE / "harbor.yaml").read_text()
    path.write_text(text if not tasks else text[: text.index("splits:")] + text[text.index("sandbox:") :])
    return path


def spec_of(folder: Path, verify: str = "runner_fresh", more: str = "") -> EnvSpec:
    """All three, judged so."""
    path = copied(folder)
    path.write_text(f"{path.read_text()}reward: {{verify: {verify}}}\n{more}")
    return load_spec(path)


def one(folder: Path, task: str, files: dict[str, str | None], **changes: str) -> Path:
    """The YAML of one task whose files are these (None: gone); `changes` are keys of the YAML and their values."""
    path = copied(folder, task)
    for name, text in files.items():
        file = folder / "tasks" / task / name
        if text is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    kept = [line for line in path.read_text().splitlines() if line.partition(":")[0] not in changes]
    path.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in changes.items())]) + "\n")
    return path
