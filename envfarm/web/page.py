"""A page as a text browser sees it: lines and tables with numbered or named controls, and forms with their fields.

Reads the HTML that sites of ours and other plain sites use; scripts, styles and images are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from typing import Literal

Kind = Literal["link", "button"]


@dataclass
class Control:
    """What can be clicked. `at` is its number on the page, from 1."""

    kind: Kind
    at: int
    label: str = ""
    href: str = ""  # of a link
    form: int = -1  # of a button: which form it submits
    name: str = ""
    value: str = ""


@dataclass
class FormField:
    name: str
    value: str
    options: tuple[str, ...] = ()  # of a select; empty for text
    hidden: bool = False


@dataclass
class Form:
    action: str
    method: str
    fields: list[FormField] = field(default_factory=list)


@dataclass
class Line:
    """Text and controls and fields, in reading order."""

    parts: list[str | Control | FormField]


@dataclass
class Grid:
    """A table; the first row names the columns."""

    rows: list[list[Line]]


@dataclass
class Page:
    url: str
    items: list[Line | Grid] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)

    def find(self, reference: str) -> Control | None:
        """The control with that number or label (case does not matter; of equal labels the first)."""
        wanted = reference.strip().strip("[]").lower()
        if wanted.isdecimal():
            return next((c for c in self.controls if str(c.at) == wanted), None) or self._labelled(wanted)
        return self._labelled(wanted)

    def _labelled(self, wanted: str) -> Control | None:
        return next((c for c in self.controls if c.label.lower() == wanted), None)

    def field(self, name: str) -> tuple[int, FormField] | None:
        """The visible field of that name, and which form it belongs to."""
        for at, form in enumerate(self.forms):
            for one in form.fields:
                if one.name.lower() == name.strip().lower() and not one.hidden:
                    return at, one
        return None


BLOCKS = frozenset({"p", "li", "h1", "h2", "h3", "div", "form", "br", "body", "ul", "ol"})

TOKEN = re.compile(
    r"""<!--.*?(?:-->|\Z) | <(script|style|title)\b.*?(?:</\1\s*>|\Z) | <[!?][^>]{0,2000}+>
        | <(/?)([a-zA-Z][a-zA-Z0-9]*)((?:[^<>"']++|"[^"]{0,2000}+"|'[^']{0,2000}+'){0,100}+)> | ([^<]+|<)""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
"""What is skipped whole (comments, scripts, styles, titles, declarations), a tag, or text: several times the speed of
`html.parser`, which reading pages would else be half of an episode's time. Bounded and without backtracking: a page may
come from an agent's hands."""
ATTRIBUTE = re.compile(r"""([a-zA-Z][\w-]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")


def _attributes(text: str) -> dict[str, str]:
    return {name.lower(): unescape(a or b or c) for name, a, b, c in ATTRIBUTE.findall(text)}


class _Reader:
    """Builds a `Page` in one pass."""

    def __init__(self, page: Page):
        self.page = page
        self._line = Line([])
        self._grid: Grid | None = None
        self._control: Control | None = None
        self._select: FormField | None = None
        self._option: str | None = None
        self._form = -1
        self._chosen = False

    def feed(self, html: str) -> None:
        self._break()
        for token in TOKEN.finditer(html):
            _, closing, tag, attributes, text = token.groups()
            if text is not None:
                self._data(unescape(text) if "&" in text else text)
            elif tag is not None and closing:
                self._end(tag.lower())
            elif tag is not None:
                self._start(tag.lower(), _attributes(attributes) if attributes else {})
        self.page.items = [i for i in self.page.items if isinstance(i, Grid) or i.parts]

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if tag == "a":
            self._open(Control("link", len(self.page.controls) + 1, href=given.get("href", "")))
        elif tag == "form":
            self._break()
            self._form = len(self.page.forms)
            self.page.forms.append(Form(given.get("action", ""), given.get("method", "get").upper()))
        elif tag == "button" or (tag == "input" and given.get("type") == "submit"):
            control = Control("button", len(self.page.controls) + 1, form=self._form, name=given.get("name", ""))
            control.value, control.label = given.get("value", ""), given.get("value", "") if tag == "input" else ""
            self._open(control)
            if tag == "input":
                self._control = None
        elif tag in ("input", "select"):
            self._field(tag, given)
        elif tag == "option":
            self._option = given.get("value", "")
            self._chosen = "selected" in given
        elif tag == "table":
            self._break()
            self._grid = Grid([])
            self.page.items.append(self._grid)
        elif tag == "tr" and self._grid is not None:
            self._grid.rows.append([])
        elif tag in ("td", "th") and self._grid is not None and self._grid.rows:
            self._line = Line([])
            self._grid.rows[-1].append(self._line)
        elif tag in BLOCKS:
            self._break()

    def _end(self, tag: str) -> None:
        if tag in ("a", "button"):
            self._control = None
        elif tag == "form":
            self._break()
            self._form = -1
        elif tag == "select":
            self._select = None
        elif tag == "table":
            self._grid, self._line = None, Line([])
            self.page.items.append(self._line)
        elif tag in BLOCKS:
            self._break()

    def _data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text:
            return
        if self._select is not None and self._option is not None:
            self._add_option(self._option or text)
        elif self._control is not None:
            self._control.label = f"{self._control.label} {text}".strip()
        else:
            self._line.parts.append(text)

    def _open(self, control: Control) -> None:
        self._control = control
        self.page.controls.append(control)
        self._line.parts.append(control)

    def _field(self, tag: str, given: dict[str, str]) -> None:
        made = FormField(given.get("name", ""), given.get("value", ""), hidden=given.get("type") == "hidden")
        if self._form >= 0:
            self.page.forms[self._form].fields.append(made)
        if tag == "select":
            self._select = made
        if not made.hidden:
            self._line.parts.append(made)

    def _add_option(self, value: str) -> None:
        assert self._select is not None
        if self._chosen or not self._select.options:
            self._select.value = value
        self._select.options += (value,)
        self._option = None

    def _break(self) -> None:
        """A new line begins; inside a table everything of a cell stays on one line."""
        if self._grid is None:
            if self._line.parts:
                self._line = Line([])
            if not self.page.items or self.page.items[-1] is not self._line:
                self.page.items.append(self._line)


def read_page(url: str, html: str) -> Page:
    page = Page(url)
    reader = _Reader(page)
    reader.feed(html)
    return page
