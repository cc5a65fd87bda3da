"""Images in a Docker engine: what is there of ours, and loading what was built."""

from __future__ import annotations

from typing import Any

from envfarm.backends.docker import ask
from envfarm.backends.docker_container import EngineError
from envfarm.images.build import tar_of
from envfarm.images.recipe import BASES, LABEL, ImageError, Recipe


def loaded(api: Any) -> dict[str, str]:
    """Tag -> digest, of what we have loaded. Raises: ImageError."""
    try:
        found = ask(api.images, filters={"label": LABEL})
    except EngineError as error:
        raise ImageError(f"the Docker engine does not list its images: {error.said}") from None
    return {tag: image["Labels"][LABEL] for image in found for tag in image["RepoTags"] or ()}


def load(api: Any, recipe: Recipe) -> bool:
    """Load it under its digest, and a base image as `latest` too; returns whether something was to do. Raises: ImageError."""
    tags = [recipe.digest, *(["latest"] if recipe.name in BASES else [])]
    have = loaded(api)
    if all(have.get(f"{recipe.name}:{tag}") == recipe.digest for tag in tags):
        return False
    changes = [f"LABEL {LABEL}={recipe.digest}", 'CMD ["/bin/sh"]']
    try:
        ask(api.import_image_from_file, str(tar_of(recipe.tag)), repository=recipe.name, tag=recipe.digest, changes=changes)
        if recipe.name in BASES:
            ask(api.tag, recipe.tag, recipe.name, "latest", force=True)
    except EngineError as error:
        raise ImageError(f"{recipe.tag} could not be loaded into the Docker engine: {error.said}") from None
    return True
