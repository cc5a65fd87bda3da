"""An environment that asks for an image with one more Debian package, built for real and played in two kinds of box."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envfarm.backends.docker import connect
from envfarm.images.build import root_of
from envfarm.images.engine import loaded
from envfarm.images.recipe import base
from envfarm.session import local_session
from envfarm.spec import load_spec
from envfarm.testing import agents

TREE = Path(__file__).parents[1] / "toys" / "tree"
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]


def envfarm(*arguments: str) -> str:
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "--env-path", str(TREE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_image_two_backends_one_transcript() -> None:
    spec = load_spec(TREE / "tree.yaml")
    envfarm("image", "build", "--engine", spec.id)
    again = envfarm("image", "build", "--engine", spec.id)
    assert f"{spec.sandbox.image}  up to date, in the engine" in again, "what has not changed is not made again"
    played = []
    for backend in ("bubblewrap", "docker"):
        session = local_session(spec, backend=backend)
        try:
            played.append(agents.play(session, spec.instance("train", 0), agents.oracle))
        finally:
            session.close()
    assert played[0] == played[1]
    assert played[0].rewards == {"agent": 1.0} and "look before you leap" in "".join(played[0].observations)


def test_what_is_built_is_listed_and_in_the_engine_with_its_digest() -> None:
    python = base("envfarm/python")
    rows = {row["image"]: row for row in json.loads(envfarm("image", "list", "--json"))}
    assert rows[python.tag]["built"] and Path(rows[python.tag]["root"]) == root_of(python.tag)
    api = connect()
    try:
        have = loaded(api)
    finally:
        api.close()
    assert have[python.tag] == have["envfarm/python:latest"] == python.digest


def test_nothing_of_ours_and_nothing_that_gains_rights_is_inside() -> None:
    root = root_of(base("envfarm/python").tag)
    files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    assert len(files) > 1000 and not [path for path in files if "envfarm" in str(path.relative_to(root))]
    assert not [path for path in files if not path.is_symlink() and path.lstat().st_mode & 0o6000]
