"""Images in a Docker engine: what is there of ours, and loading what was built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envfarm.backends.docker import ask
from envfarm.backends.docker_container import EngineError
from envfarm.images.build import tar_of
from envfarm.images.recipe import LABEL, ImageError

BOX = ('CMD ["/bin/sh"]',)
"""How an image of boxes is run, as in a Dockerfile."""


def loaded(api: Any) -> dict[str, str]:
    """Tag -> digest, of what we have loaded. Raises: ImageError."""
    try:
        found = ask(api.images, filters={"label": LABEL})
    except EngineError as error:
        raise ImageError(f"the Docker engine does not list its images: {error.said}") from None
    return {tag: image["Labels"][LABEL] for image in found for tag in image["RepoTags"] or ()}


def load(api: Any, tag: str, *, latest: bool, config: Sequence[str] = BOX) -> bool:
    """Load what was built as `tag` (`NAME:DIGEST`), as `latest` too if asked; returns whether something was to do.

    Raises: ImageError.
    """
    name, _, digest = tag.partition(":")
    have = loaded(api)
    if all(have.get(f"{name}:{one}") == digest for one in (digest, *(["latest"] if latest else []))):
        return False
    try:
        ask(
            api.import_image_from_file, str(tar_of(tag)), repository=name, tag=digest,
            changes=[f"LABEL {LABEL}={digest}", *config],
        )  # fmt: skip
        if latest:
            ask(api.tag, tag, name, "latest", force=True)
    except EngineError as error:
        raise ImageError(f"{tag} could not be loaded into the Docker engine: {error.said}") from None
    return True
