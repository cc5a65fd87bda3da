"""This envfarm as a wheel, from where it runs - a checkout or an installed package - so that it travels into the worker's image.

Only what a worker runs is in it: `envfarm` and the shipped environments; so a change in the rollouts or the trainer makes no new
image. Equal sources give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from envfarm.spec_hash import folder_files

NAME = "envfarm"
PACKAGES = ("envfarm", "environments")
_DATE = (2020, 1, 1, 0, 0, 0)
_ABOUT = "Wheel-Version: 1.0\nGenerator: envfarm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """The wheel's file, made in `folder`."""
    known = distribution(NAME)
    file = folder / f"{NAME}-{known.version}-py3-none-any.whl"
    about = f"{NAME}-{known.version}.dist-info"
    record = ""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*_code(), *_about(known, about)]:
            archive.writestr(_entry(name), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        archive.writestr(_entry(f"{about}/RECORD"), f"{record}{about}/RECORD,,\n")
    return file


def _code() -> Iterator[tuple[str, bytes]]:
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in folder_files(root / package):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _about(known: Distribution, folder: str) -> Iterator[tuple[str, bytes]]:
    yield f"{folder}/METADATA", (known.read_text("METADATA") or "").encode()
    yield f"{folder}/WHEEL", _ABOUT.encode()
    points = [p for p in known.entry_points if p.group != "console_scripts" and p.module.partition(".")[0] in PACKAGES]
    groups = sorted({p.group for p in points})
    lines = [f"[{group}]\n" + "".join(f"{p.name} = {p.value}\n" for p in points if p.group == group) for group in groups]
    yield f"{folder}/entry_points.txt", "\n".join(lines).encode()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o100644 << 16
    return entry
