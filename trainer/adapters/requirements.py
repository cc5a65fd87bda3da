"""Importing other people's packages, with errors that say what to install, and where two cannot be together.

    with importing("verifiers", install="pip install 'envfarm[verifiers]'"):
        import verifiers

A package that is missing is one error with the command. A package that is there and cannot be imported is usually one
whose own requirements another extra has overridden; which ones these are is read from what is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from envfarm.errors import MissingDependencyError


@contextmanager
def importing(distribution: str, *, install: str) -> Iterator[None]:
    """Raises: MissingDependencyError where what is imported inside is missing, or does not work with what is beside it."""
    try:
        yield
    except ImportError as error:
        try:
            here = version(distribution)
        except PackageNotFoundError:
            raise MissingDependencyError(f"this needs {distribution}, which is not installed: {install}") from error
        beside = unmet(distribution)
        why = f": it wants {', '.join(beside)}" if beside else ""
        raise MissingDependencyError(
            f"{distribution} {here} cannot be imported here ({error}){why}. Extras that want other versions of one package "
            f"need environments of their own: python -m venv NEW && NEW/bin/{install}"
        ) from error


def unmet(distribution: str) -> list[str]:
    """What a distribution requires and does not find: `datasets<4.7 (here is 5.2.0)`."""
    found = []
    for line in requires(distribution) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(wanted.name)
        except PackageNotFoundError:
            here = ""
        if not here or not wanted.specifier.contains(here, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier} (here is {here or 'none'})")
    return sorted(found)
