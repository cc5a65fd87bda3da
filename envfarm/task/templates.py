"""Templates of an environment without Python: sandboxed Jinja over the axes, the row and a seeded `rng`.

Every template of one instance starts from the same `rng`: two templates that begin with the same draws agree. So the
prompt, the files and the solution share what was drawn by importing one template that draws it:

    {% import "plan.j2" as plan with context %}Sort {{ plan.file }}.

Undefined names are errors, templates see only their environment's folder, and attributes of Python objects that a
sandbox must not reach are refused by Jinja's own sandbox. A path template that renders to nothing makes no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import numpy as np
from jinja2.sandbox import SandboxedEnvironment

from envfarm.errors import Location, SpecError, raised_at
from envfarm.seeding import generator

if TYPE_CHECKING:
    from envfarm.spec import Instance

T = TypeVar("T")

SUFFIX = ".j2"
"""A text of one line that ends so is the name of a template file; any other text is a template itself."""


class SeededRng:
    """Draws for templates. The same instance gives the same draws on every machine."""

    def __init__(self, source: np.random.Generator):
        self._source = source

    def randint(self, low: int, high: int) -> int:
        """An integer of [low, high]."""
        return int(self._source.integers(low, high + 1))

    def random(self) -> float:
        """A number of [0, 1)."""
        return float(self._source.random())

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`. Raises: ValueError where there is none."""
        items = list(items)
        if not items:
            raise ValueError("rng.choice of nothing")
        return items[self.randint(0, len(items) - 1)]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in drawn order. Raises: ValueError where there are fewer."""
        items = list(items)
        if count > len(items):
            raise ValueError(f"rng.sample of {count} out of {len(items)}")
        return [items[int(i)] for i in self._source.permutation(len(items))[:count]]

    def shuffle(self, items: Sequence[T]) -> list[T]:
        """The items in another order; what came stays as it is."""
        return self.sample(items, len(list(items)))


class Templates:
    """The templates of one folder (None: inline templates only). Compiled once per folder and process."""

    def __init__(self, folder: str | None):
        loader = jinja2.FileSystemLoader(folder) if folder else jinja2.DictLoader({})
        self.folder = folder
        self.jinja = SandboxedEnvironment(
            loader=loader,
            undefined=jinja2.StrictUndefined,
            extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"],
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            cache_size=1024,
            auto_reload=False,
        )
        self._inline = lru_cache(1024)(self.jinja.from_string)
        self._expression = lru_cache(256)(self._compile_expression)

    def render(self, source: str, names: Mapping[str, Any]) -> str:
        """`source` written out. Raises: SpecError naming the template, and the line where Jinja knows it."""
        named = is_name(source)
        try:
            template = self.jinja.get_template(source) if named else self._inline(source)
            return template.render(names)
        except jinja2.TemplateError as error:
            raise self._wrong(source if named else None, error) from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
            where = source if named else repr(source[:60])
            raise SpecError(f"template {where}: {type(error).__name__}: {error}") from error

    def expression(self, source: str, names: Mapping[str, Any]) -> Any:
        """The value of a Jinja expression, as Python has it. Raises: SpecError."""
        try:
            return self._expression(source)(**names)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
            raise SpecError(f"expression {source!r}: {type(error).__name__}: {error}") from error

    def parse(self, source: str) -> None:
        """Raises: SpecError where `source` is no template; with its place where it names a file."""
        named = is_name(source)
        try:
            text = self.jinja.loader.get_source(self.jinja, source)[0] if named and self.jinja.loader else source
            self.jinja.parse(text, filename=str(Path(self.folder or ".", source)) if named else None)
        except jinja2.TemplateError as error:
            raise self._wrong(source if named else None, error) from error

    def parse_expression(self, source: str) -> None:
        """Raises: SpecError where `source` is no expression."""
        try:
            self._expression(source)
        except jinja2.TemplateError as error:
            raise SpecError(f"{source!r} is no expression: {error}") from error

    def _compile_expression(self, source: str) -> Any:
        return self.jinja.compile_expression(source, undefined_to_none=False)

    def _wrong(self, name: str | None, error: jinja2.TemplateError) -> SpecError:
        if isinstance(error, jinja2.TemplateNotFound):
            return SpecError(f"no template {error.name!r} in {self.folder or 'an environment without a folder'}")
        location = raised_at(error, Path(self.folder)) if self.folder else None  # Jinja's tracebacks name template files
        if isinstance(error, jinja2.TemplateSyntaxError):
            file = error.filename or error.name or name
            location = Location(file, error.lineno, 1) if file else None
        where = f"template {name}" if name else "an inline template"
        return SpecError(f"{where}: {type(error).__name__}: {error.message}", location)


@lru_cache(128)
def templates_of(folder: str | None) -> Templates:
    """Shared per folder: compiling is a hundred times as slow as rendering."""
    return Templates(folder)


def is_name(source: str) -> bool:
    return source.endswith(SUFFIX) and "\n" not in source and "{" not in source


def fresh_rng(instance: Instance) -> SeededRng:
    """Keyed by the seed (or row) alone, as `Scene.rng` is: a setting narrows what is drawn, it does not draw anew."""
    return SeededRng(generator("task", *instance.stream))
