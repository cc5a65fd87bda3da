"""Makes an image from its recipe by mmdebstrap, once: a tar for engines and the same tree unpacked, bubblewrap's root.

    CACHE/envfarm/base@DIGEST      a link to the tree; CACHE/envfarm/base is a link to it, as `latest` is with an engine
    CACHE/envfarm/base@DIGEST.tar
    TREES/DIGEST/                  the tree

CACHE is `images` in `caches.cache_dir()`. TREES is `box-roots` in the user's cache: a box's mounts show where its root lies on
the host, which must tell neither of us nor of the environment. Nothing of ours is in an image. Equal inputs give equal bytes as
long as the mirror has the same packages. As root, or as a user with subordinate ids (mmdebstrap makes a user namespace then).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from envfarm.caches import cache_dir, user_cache
from envfarm.images.recipe import BASES, SUITE, WORKER, Copy, ImageError, Recipe, base

SOURCE_DATE_EPOCH = 1700000000
_DOCUMENTATION = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def cache() -> Path:
    return cache_dir() / "images"


def root_of(image: str) -> Path:
    """Where the tree of an image with its digest (`NAME:DIGEST`) lies, or would."""
    return cache() / image.replace(":", "@")


def tar_of(image: str) -> Path:
    root = root_of(image)
    return root.with_name(root.name + ".tar")


def how_to_build(image: str, *options: str) -> str:
    """What to run for an image of ours that is missing or stale."""
    name = image.partition(":")[0]
    what = [] if name in BASES else ["--worker"] if name == WORKER else [name.removeprefix("envfarm/")]
    words = ["envfarm image build", *options, *what]
    by_file = "" if name in BASES or name == WORKER else " (or with its YAML file, where `envfarm list` does not show it)"
    return f"run `{' '.join(words)}`{by_file}"


def is_stale(place: Path, image: str) -> bool:
    """Whether a base image's link, made by `build`, leads to what an older recipe made."""
    made = place.is_symlink() and "@" in os.readlink(place)
    return made and image in BASES and os.readlink(place) != root_of(base(image).tag).name


def build(recipe: Recipe) -> bool:
    """Make it where it is not there yet; returns whether it was made. Raises: ImageError."""
    root = root_of(recipe.tag)
    made = not root.is_dir()
    if made:
        _make(recipe, root)
    elif not root.is_symlink():
        _keep(root, root)  # made before trees had a place of their own
    if recipe.name in BASES:
        _link(cache() / recipe.name, root)
    return made


def _make(recipe: Recipe, root: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise ImageError(
            f"{recipe.tag} cannot be made: mmdebstrap is not installed. Install it with `apt install mmdebstrap`; or, with a "
            f"registry, build it by `docker build -t {recipe.tag}` from its folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=root.parent))
    try:
        tar, tree = work / "image.tar", work / "root"
        command = _command(recipe, tar)
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH)}
        )
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise ImageError(f"{recipe.tag} could not be made; mmdebstrap said:\n{said}")
        tree.mkdir()
        subprocess.run(["tar", "-C", str(tree), "--exclude=./dev/*", "-xpf", str(tar)], check=True)
        tree.chmod(0o755)
        tar.replace(tar_of(recipe.tag))
        _keep(tree, root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _keep(tree: Path, root: Path) -> None:
    """In its place, which another process may have filled meanwhile, with `root` a link to that."""
    place = user_cache() / "box-roots" / root.name.rpartition("@")[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_dir():
        tree.rename(place)
    _link(root, place)


def _link(link: Path, target: Path) -> None:
    """At once, whatever link is there."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _command(recipe: Recipe, tar: Path) -> list[str]:
    hooks: list[str] = []
    for step in recipe.steps:
        if isinstance(step, Copy):
            mode = "755" if os.access(step.source, os.X_OK) else "644"
            hooks.append(f'install -D -o 0 -g 0 -m {mode} {shlex.quote(str(step.source))} "$1"{shlex.quote(step.destination)}')
        else:
            hooks.append(f'unshare --net chroot "$1" /bin/sh -ec {shlex.quote(step.command)}')
    return [
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _DOCUMENTATION),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE, str(tar), *_mirror(),
    ]  # fmt: skip


def _mirror() -> list[str]:
    """The one that this machine gets the suite from, where it does; else mmdebstrap's own choice."""
    if shutil.which("apt-get") is None:
        return []
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    found = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return [uri for uri in found if "security" not in uri][:1]
