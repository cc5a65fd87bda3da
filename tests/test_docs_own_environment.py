"""`docs/own_environment.md`, typed as it stands: here, with a farm in Docker, and with pods.

Changed on the way are the farm's name, so that two of these do not meet, and the digest, as the page says. Left out is the first
`pip install`: that package is among the tests' own. The second one puts the wheel into a folder, not beside these tests.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfarm.images.build import cache
from tests.test_docs import ROOT, Snippet, snippets

one_builder = pytest.mark.xdist_group("builds the worker image")
"""It is the engine's latest for a while."""
PAGE = ROOT / "docs" / "own_environment.md"
PACKAGE = "pip install 'networkx>=3'\n"
IMAGE = re.compile(r"envfarm/worker:(\w+)  built")


class Reader:
    """Somebody with a folder of their own, and a cache of images that has the base images."""

    def __init__(self, folder: Path):
        self.folder, self.farm, self.digests = folder, f"page-{secrets.token_hex(3)}", ["DIGEST"]
        made, home, site = folder / "cache" / "envfarm" / "images" / "envfarm", Path.home() / ".cache", folder / "site"
        made.mkdir(parents=True)
        for image in (cache() / "envfarm").glob("[bp]*@*"):
            (made / image.name).symlink_to(image)
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "UV_CACHE_DIR": str(Path(os.environ.get("XDG_CACHE_HOME", home)) / "uv"),
            "COLUMNS": "200",
        }
        self._install = ("pip install --no-deps", f"pip install --quiet --no-deps --target {site}")

    def follow(self, *headings: str, only: str = "") -> None:
        """Make the files of these sections, type the commands (or only those that begin so), and see what the page shows."""
        said = ""
        for block in (block for heading in headings for block in section(heading)):
            if block.name:
                path = self.folder / block.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._own(block.text))
            elif block.language == "bash":
                said = self.type(block.text) if block.text != PACKAGE and block.text.startswith(only) else ""
            elif block.language == "text" and said:
                self._compare(block, said)

    def type(self, commands: str) -> str:
        """What one sees; a command that fails is the last one of its block."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._own(commands).replace(*self._install)],
            cwd=self.folder, env={**os.environ, **self.variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == (2 if "\nerror: " in done.stdout else 0), done.stdout
        self.digests += IMAGE.findall(done.stdout)
        return done.stdout

    def _own(self, text: str) -> str:
        return re.sub(r"\bmine\b", self.farm, text).replace("DIGEST", self.digests[-1])

    def _compare(self, block: Snippet, said: str) -> None:
        """Line by line; `...` is anything, and so is how much space there is."""
        for line in self._own(block.text).splitlines():
            wanted = r"\s+".join(re.escape(word).replace(r"\.\.\.", r"\S*") for word in line.split())
            assert re.search(wanted, said), f"{block}: not seen: {line}\n{said}"


def section(heading: str) -> Iterator[Snippet]:
    """The blocks below a heading; without one, those before the first."""
    lines, found = PAGE.read_text("utf-8").splitlines(), ""
    headings = [line.removeprefix("## ") if line.startswith("## ") else None for line in lines]
    assert not heading or heading in headings
    for block in snippets(PAGE):
        found = next((h for h in reversed(headings[: block.line]) if h is not None), "")
        if found == heading:
            yield block


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def reader() -> Iterator[Reader]:
    with tempfile.TemporaryDirectory() as folder:  # an image is half a gigabyte, which pytest would keep
        reader = Reader(Path(folder))
        reader.follow("")
        yield reader


@pytest.fixture
def builder(reader: Reader) -> Iterator[Reader]:
    """One who builds images: the engine has the ones of before again when it is over."""
    latest = docker("images", "-q", "envfarm/worker:latest")
    if not latest:
        pytest.skip("the engine has no image envfarm/worker: envfarm image build --worker --engine")
    before = docker("images", "--format", "{{.Tag}}", "envfarm/worker")
    try:
        yield reader
    finally:
        docker("tag", latest, "envfarm/worker:latest")
        for digest in set(reader.digests[1:]) - set(before.split()):
            docker("rmi", f"envfarm/worker:{digest}")


@pytest.mark.box
def test_here(reader: Reader) -> None:
    reader.follow("Here")


@pytest.mark.docker
@pytest.mark.slow
@one_builder
def test_in_docker_from_a_folder_and_from_a_wheel(builder: Reader) -> None:
    try:
        builder.follow("In Docker, from the folder", "As a wheel", "Train on it")
        assert not docker("ps", "-aq", "--filter", f"label=envfarm.farm={builder.farm}")
    finally:
        if (builder.folder / "state" / "envfarm" / "farms" / builder.farm / "keeper.json").is_file():
            builder.type("envfarm farm down mine")


@pytest.mark.docker
@pytest.mark.kubernetes
@pytest.mark.slow
@one_builder
def test_on_kubernetes_from_a_wheel_and_from_a_folder(builder: Reader) -> None:
    socket = Path(os.environ["KUBECONFIG"]).parents[1] / "run" / "containerd.sock"
    if not socket.is_socket():
        pytest.skip(f"there is no node's containerd at {socket}: this is not the test bed")
    builder.variables["CONTAINERD_ADDRESS"] = str(socket)
    try:
        builder.follow("As a wheel", only="pip ")
        builder.follow("On Kubernetes")
    finally:
        if (builder.folder / "pods.yaml").is_file():
            builder.type("kubectl delete namespace --ignore-not-found --wait=false mine mine-boxes")
            builder.type("ctr -n k8s.io images rm docker.io/envfarm/worker:DIGEST")
