"""The image that workers and keepers run: `envfarm/python`, and on it envfarm with the shipped environments and what it needs.

    recipe = worker_recipe(["sqlglot>=25", "dist/mine-1.0-py3-none-any.whl"])
    build_worker(recipe)             # CACHE/envfarm/worker@DIGEST.tar, for engines; the last one is kept

Unlike a box it holds the answers: it is for the trusted side alone. Its packages have the versions of this installation, since an
instance must come out the same in either. The digest is over envfarm's own code, those versions, the image below and what is
added (a wheel by its content, a requirement as it is written); with equal inputs nothing is made again. An image is kept only
after it has run: everything that a worker imports is imported in it once, and its bytecode stays there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envfarm.images.build import SOURCE_DATE_EPOCH, build, root_of, tar_of
from envfarm.images.recipe import WORKER, ImageError, base
from envfarm.images.wheel import NAME, write_wheel

BELOW = "envfarm/python"
PYTHON = "3.11"
"""The one of `BELOW`, Debian 12's."""
EXTRAS = "docker,kubernetes"
PACKAGES_FOLDER = f"usr/local/lib/python{PYTHON}/dist-packages"
CONFIG = (
    "USER 1000:1000",
    "WORKDIR /tmp",
    "ENV HOME=/tmp",
    "ENV LANG=C.UTF-8",
    'ENTRYPOINT ["python3", "-m", "envfarm.worker"]',
    "CMD []",
)
"""As in a Dockerfile. A worker needs no rights, and nothing but /tmp to write to."""
_GLIBC = "2_36"
_TRY = """
import docker, kubernetes, envfarm.worker.__main__
from envfarm.registry import default_registry
from envfarm.worker.sessions import preload
known = default_registry()
for name in known.ids():
    preload(known.get(name))
"""


@dataclass(frozen=True)
class WorkerRecipe:
    digest: str
    pins: tuple[str, ...]
    """`name==version`, of everything that envfarm needs."""
    added: tuple[str, ...]
    """Requirements, and absolute paths of wheels."""

    @property
    def tag(self) -> str:
        return f"{WORKER}:{self.digest}"


def worker_recipe(install: Sequence[str] = ()) -> WorkerRecipe:
    """`install`: requirements and wheels. Raises: ImageError."""
    added, pins = tuple(sorted(map(_addition, install))), _pins()
    digest = hashlib.sha256("\n".join([base(BELOW).digest, platform.machine(), *CONFIG, _TRY, *pins]).encode())
    with tempfile.TemporaryDirectory() as folder:
        for item in (str(write_wheel(Path(folder))), *added):
            digest.update(Path(item).read_bytes() if item.endswith(".whl") else item.encode() + b"\n")
    return WorkerRecipe(digest.hexdigest()[:12], pins, added)


def build_worker(recipe: WorkerRecipe) -> bool:
    """Make its tar where it is not there yet; returns whether it was made. Raises: ImageError."""
    target = tar_of(recipe.tag)
    if target.is_file():
        return False
    below = base(BELOW)
    build(below)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as name:
        work = Path(name)
        packages = work / PACKAGES_FOLDER
        _install(recipe, work, packages)
        for path in (packages, *packages.rglob("*")):
            os.utime(path, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH))  # before bytecode is made, which remembers it
        _try(root_of(below.tag), packages)
        shutil.copyfile(tar_of(below.tag), work / "image.tar")
        owned = ["--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go+rX,go-w", f"--mtime=@{SOURCE_DATE_EPOCH}"]
        files = [f"{PACKAGES_FOLDER}/{path.name}" for path in sorted(packages.iterdir())]  # the folder itself is in the image
        subprocess.run(["tar", "-C", name, "--sort=name", *owned, "-rf", str(work / "image.tar"), *files], check=True)
        (work / "image.tar").replace(target)
    for older in set(target.parent.glob(f"{target.name.partition('@')[0]}@*.tar")) - {target}:
        older.unlink(missing_ok=True)  # half a gigabyte each, and every change of the code makes one
    return True


def _addition(text: str) -> str:
    if text.endswith(".whl"):
        if not Path(text).is_file():
            raise ImageError(f"--install {text}: there is no such wheel")
        return str(Path(text).resolve())
    try:
        return str(Requirement(text))
    except InvalidRequirement as problem:
        said = str(problem).splitlines()[0]
        raise ImageError(f"--install {text}: expected a requirement such as 'sqlglot>=25' or a wheel's file: {said}") from None


def _pins() -> tuple[str, ...]:
    """Of all that is installed here because envfarm needs it. Raises: ImageError."""
    found: dict[str, str] = {}
    todo = [(NAME, frozenset(EXTRAS.split(",")))]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        try:
            known = distribution(name)
        except PackageNotFoundError:
            needs = f"pip install '{NAME}[{EXTRAS}]'"
            raise ImageError(f"a worker's image has the packages of this installation, and {name} is not here: {needs}") from None
        found[canonicalize_name(name)] = known.version
        for line in known.requires or ():
            needed = Requirement(line)
            wanted = (needed.name, frozenset(needed.extras))
            applies = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if applies and wanted not in seen:
                seen.add(wanted)
                todo.append(wanted)
    found.pop(NAME)
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def _install(recipe: WorkerRecipe, work: Path, packages: Path) -> None:
    """Raises: ImageError."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    uv = shutil.which("uv", path=beside)
    if uv is None:
        raise ImageError("a worker's packages are installed by uv, which is not here: pip install uv")
    (work / "pins.txt").write_text("\n".join(recipe.pins))
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    done = subprocess.run(
        [
            uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(packages), "--link-mode", "copy",
            "--python-version", PYTHON, "--python-platform", f"{machine}-manylinux_{_GLIBC}", "--no-build",
            "-c", str(work / "pins.txt"), f"{NAME}[{EXTRAS}] @ {write_wheel(work).as_uri()}", *recipe.added,
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ImageError(f"{recipe.tag} could not be made; uv said:\n{done.stderr.strip()}")
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts for this machine's interpreter
    for path in (packages / ".lock", *packages.glob("*.dist-info/direct_url.json"), *packages.glob("*.dist-info/uv_cache.json")):
        path.unlink(missing_ok=True)  # of this machine


def _try(root: Path, packages: Path) -> None:
    """Raises: ImageError."""
    from envfarm.backends.bubblewrap_program import find_bwrap

    bwrap = find_bwrap()
    if bwrap is None:
        raise ImageError("a worker's image is tried by bubblewrap before it is kept: apt install bubblewrap")
    done = subprocess.run(
        [
            bwrap, "--unshare-all", "--die-with-parent", "--clearenv", "--ro-bind", str(root), "/",
            "--bind", str(packages), f"/{PACKAGES_FOLDER}", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
            "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "python3", "-c", _TRY,
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise ImageError(f"{WORKER} was made and does not run; trying it said:\n{said}")
