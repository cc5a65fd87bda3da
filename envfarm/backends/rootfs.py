"""What a box sees as its root directory, as arguments for `bwrap`.

`envfarm/base` is the host's own `/usr` with a synthetic `/etc`; `envfarm/python` adds the interpreter that runs the worker,
under a neutral path. An image that was unpacked into a directory is used as it is. Whatever the root, everything is mounted
read-only except `/task`, what `BoxSpec.writable` names, `/tmp`, `/dev/shm` and the worker's drop `/run/in`, each a tmpfs of
limited size, and what Python packages the host has is hidden under empty directories: a system-wide envfarm cannot be found
from inside.

Raises BoxUnavailableError where an image is not there.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from envfarm.box import WORKDIR, BoxSpec
from envfarm.errors import BoxUnavailableError, did_you_mean
from envfarm.images.build import cache, how_to_build, is_stale, root_of

UID = GID = 1000
HOSTNAME = "box"
STDIN_DIR = "/run/in"
STDIN_BYTES = 64 << 20
SHM_BYTES = 16 << 20
_MASK_BYTES = 4096

IMAGES_VARIABLE = "ENVFARM_IMAGES"
BUILT_IN = ("envfarm/base", "envfarm/python")

ETC: dict[str, bytes] = {
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"
    b"agent:x:1000:1000:agent:/task:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "/etc/group": b"root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "/etc/hosts": b"127.0.0.1 localhost box\n::1 localhost\n",
    "/etc/hostname": b"box\n",
    "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}
"""The whole of `/etc` where the host is the root; of the host's only what programs cannot start without is bound."""

_HOST_ETC = ("/etc/alternatives", "/etc/ld.so.cache")
_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")


@dataclass(frozen=True)
class Root:
    """How to mount one image, and what its commands run with."""

    args: tuple[str, ...]
    shell: str  # absolute path in the box
    files: dict[str, bytes] = field(default_factory=dict)  # written into the box's own root before it becomes read-only
    env: dict[str, str] = field(default_factory=dict)  # beyond the pinned variables


def resolve(image: str, images_dir: Path | None = None) -> Root:
    """The root for an image: the name of a directory below `images_dir`, an absolute directory, or one that `envfarm image
    build` made (its name has a digest). Without `images_dir` the built-in names are the host."""
    known = _unpacked_in(images_dir) if images_dir else list(BUILT_IN)
    if images_dir and not image.startswith("/") and (images_dir / image).is_dir():
        if is_stale(images_dir / image, image):
            raise BoxUnavailableError(f"the image {image!r} in {images_dir} is stale: {how_to_build(image)}")
        return _unpacked(images_dir / image)
    if image in BUILT_IN and not images_dir:
        return _host(python=image == "envfarm/python")
    if ":" in image and not image.startswith("/"):
        built = root_of(image)
        if built.is_dir():
            return _unpacked(built)
        raise BoxUnavailableError(f"no image {image!r} is built here, or it is stale: {how_to_build(image)}")
    if image.startswith("/") and Path(image).is_dir():
        return _unpacked(Path(image))
    if images_dir and image in BUILT_IN:
        here = f"in {images_dir} ({IMAGES_VARIABLE}), which has {', '.join(known)}"
        raise BoxUnavailableError(f"no image {image!r} {here}: {_another_folder(image)}")
    where = f" in {images_dir} ({IMAGES_VARIABLE})" if images_dir else ""
    raise BoxUnavailableError(
        f"no image {image!r}{did_you_mean(image, known)}: expected one of {', '.join(known)}{where}, "
        "or the absolute path of an unpacked image"
    )


def _unpacked_in(images_dir: Path) -> list[str]:
    """Names of images. Raises: BoxUnavailableError where that is no folder of unpacked images."""
    try:
        found = sorted(f"{group.name}/{one.name}" for group in images_dir.iterdir() if group.is_dir() for one in group.iterdir())
        found = [name for name in found if "@" not in name and (images_dir / name).is_dir()]
        said = "is empty of images"
    except OSError as error:
        found, said = [], f"cannot be used: {error.strerror}"
    if not found:
        raise BoxUnavailableError(
            f"the folder {images_dir} ({IMAGES_VARIABLE}) {said}. Expected one with a folder for each unpacked image, such as "
            f"envfarm/base: {_another_folder('envfarm/base')}"
        )
    return found


def _another_folder(image: str) -> str:
    own = f"unset {IMAGES_VARIABLE} for the host's own programs"
    return f"{how_to_build(image)} and name the folder where that puts it ({cache()}), or {own}"


def _host(*, python: bool) -> Root:
    args: list[str] = [*_directory("/etc"), *_directory("/opt"), *_directory("/run")]
    args += programs()
    for path in _HOST_ETC:
        if os.path.exists(path):
            args += ["--ro-bind", path, path]
    for path in ["/usr/local", *_package_dirs("/usr/lib/python3*")]:
        if os.path.isdir(path):
            args += _mask(path)
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    if python:
        mounts, variables = _interpreter("/opt/python")
        args += mounts
        env = {"PATH": f"/opt/python/bin:{env['PATH']}", **variables}
    return Root(tuple(args), _shell(Path("/")), dict(ETC), env)


def programs() -> list[str]:
    """The host's own, and nothing else of its tree, where mounts may come and go meanwhile (a node's pods have some)."""
    return [word for name in _TOP_LEVEL for word in _expose(Path("/", name))]


def _unpacked(place: Path) -> Root:
    """Top-level entries one by one, so that `/task`, `/proc` and the like need not exist in the image. `/sys` is empty: a
    container has one."""
    args: list[str] = _directory("/sys")
    for entry in sorted(place.resolve().iterdir()):
        if entry.name not in ("dev", "proc", "sys", "run", "tmp", WORKDIR.strip("/")):
            args += _expose(entry, f"/{entry.name}")
    return Root(tuple(args), _shell(place), {}, {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})


def _expose(source: Path, target: str | None = None) -> list[str]:
    target = target or str(source)
    if source.is_symlink():
        return ["--symlink", os.readlink(source), target]
    return ["--ro-bind", str(source), target] if source.exists() else []


def _directory(path: str) -> list[str]:
    return ["--perms", "0755", "--dir", path]


def _mask(path: str) -> list[str]:
    return ["--size", str(_MASK_BYTES), "--tmpfs", path, "--remount-ro", path]


def _package_dirs(*patterns: str) -> list[str]:
    return sorted(p for pattern in patterns for kind in ("dist", "site") for p in glob(f"{pattern}/{kind}-packages"))


def _shell(root: Path) -> str:
    for shell in ("/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh"):
        if os.path.lexists(root / shell.lstrip("/")):
            return shell
    raise BoxUnavailableError(f"image {str(root)!r} has neither bash nor sh in /bin or /usr/bin")


def _interpreter(prefix: str) -> tuple[list[str], dict[str, str]]:
    """The base interpreter and its standard library at `prefix`, without one installed package.

    Only the binary, the library and `libpython` are bound, not the whole installation, whose `bin` holds the scripts of
    packages. A libpython that the binary finds by its build path needs LD_LIBRARY_PATH at the new place.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binary = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    args = ["--ro-bind", binary, f"{prefix}/bin/{version}"]
    args += ["--symlink", version, f"{prefix}/bin/python3", "--symlink", version, f"{prefix}/bin/python"]
    args += ["--ro-bind", stdlib, f"{prefix}/lib/{version}"]
    for path in _package_dirs(stdlib):
        args += _mask(f"{prefix}/lib/{version}/{os.path.basename(path)}")
    libraries = glob(os.path.join(sys.base_prefix, "lib", "libpython*.so*"))
    for library in libraries:
        args += _expose(Path(library), f"{prefix}/lib/{os.path.basename(library)}")
    return args, {"LD_LIBRARY_PATH": f"{prefix}/lib"} if libraries else {}


def sizes(spec: BoxSpec) -> dict[str, int]:
    """Bytes of each directory that the agent may fill: together `disk_bytes`. `/tmp` is an eighth of it, 32 MiB at most; the
    others are alike."""
    tmp = min(spec.disk_bytes // 8, 32 << 20)
    places = (WORKDIR, *spec.writable)
    return {**dict.fromkeys(places, (spec.disk_bytes - tmp) // len(places)), "/tmp": tmp}


def mode(place: str) -> str:
    """Permission bits of such a directory."""
    return "1777" if place == "/tmp" else "0755"


def writable(spec: BoxSpec) -> list[str]:
    """The mounts that are the same for every root, in the order that makes all else read-only at the end.

    `/proc` is read-only too: where the worker is root, the box's user is root to the kernel's files (`/proc/sys`), whatever
    its number inside.
    """
    tmpfs = {**sizes(spec), STDIN_DIR: STDIN_BYTES}
    return [
        *(
            "--proc",
            "/proc",
            "--remount-ro",
            "/proc",
            "--dev",
            "/dev",
            "--size",
            str(SHM_BYTES),
            "--tmpfs",
            "/dev/shm",
            "--remount-ro",
            "/dev",
        ),
        *(word for at, size in tmpfs.items() for word in ("--perms", mode(at), "--size", str(size), "--tmpfs", at)),
        *("--remount-ro", "/", "--chdir", WORKDIR),
    ]


PINNED_ENV: dict[str, str] = {
    "HOME": WORKDIR,
    "USER": "agent",
    "LOGNAME": "agent",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
    "PYTHONHASHSEED": "0",
}
"""The whole environment of every box, with PATH and SHELL of its root."""
