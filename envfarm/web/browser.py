"""A text browser over one site: open, click, type, select, submit, back. Cookies, redirects, forms; no scripts.

What a page looks like is blocks (`show`): lines become text with each control in brackets, tables become tables.
Controls are written `[red cup]` (`style="names"`) or `[3] red cup` (`style="numbers"`), and can be clicked by either.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol
from urllib.parse import quote, urlencode, urljoin, urlsplit

from envfarm.blocks import Block, Table, Text
from envfarm.web.page import Control, FormField, Grid, Line, Page, read_page

Style = Literal["names", "numbers"]
MAX_REDIRECTS = 10
PLAIN = re.compile(r"(/[a-z0-9-]+)+|/")
"""Addresses that need no resolving and no quoting."""


class Transport(Protocol):
    def exchange(self, request: bytes) -> bytes: ...


class BrowserError(Exception):
    """What was asked makes no sense on this page; the text tells the agent why. The page stays."""


class Browser:
    def __init__(self, transport: Transport, host: str, style: Style = "numbers"):
        self._transport, self._host, self._style = transport, host, style
        self._cookies: dict[str, str] = {}
        self._history: list[str] = []
        self._touched: int | None = None
        self.page = Page("")

    @property
    def previous(self) -> str | None:
        """Where `back` leads: path and query, or None."""
        return self._history[-1] if self._history else None

    def reference(self, control: Control) -> str:
        """How `click` would be told to take that control, in this browser's style."""
        return control.label if self._style == "names" else str(control.at)

    def open(self, url: str) -> None:
        """Go to a path of this site, or to a URL with its host."""
        if PLAIN.fullmatch(url):
            return self._go("GET", url)
        try:
            target = urlsplit(urljoin(f"http://{self._host}{self.page.url or '/'}", url.strip()))
        except ValueError:
            raise BrowserError(f"Cannot open {url}: that is no address.") from None
        if target.netloc != self._host or target.scheme != "http":
            raise BrowserError(f"Cannot open {url}: only http://{self._host} can be reached.")
        path = quote(target.path or "/", safe="/%") + (f"?{quote(target.query, safe='=&%+')}" if target.query else "")
        self._go("GET", path)

    def click(self, reference: str) -> None:
        """Follow a link or press a button, by number or label."""
        control = self.page.find(reference)
        if control is None:
            raise BrowserError(f"No link {reference}.")
        if control.kind == "link":
            self.open(control.href)
        else:
            self._submit(control.form, control)

    def type(self, name: str, text: str) -> FormField:
        """Fill a text field; what was in it is replaced."""
        form, field = self._field(name)
        if field.options:
            raise BrowserError(f"{field.name} is chosen with select: {', '.join(field.options)}.")
        field.value, self._touched = text, form
        return field

    def select(self, name: str, option: str) -> FormField:
        """Choose an option of a field."""
        form, field = self._field(name)
        chosen = next((o for o in field.options if o.lower() == option.strip().lower()), None)
        if chosen is None:
            has = f"has {', '.join(field.options)}" if field.options else "takes text"
            raise BrowserError(f"{field.name} {has}, not {option}.")
        field.value, self._touched = chosen, form
        return field

    def submit(self) -> None:
        """Send the form that was filled last, else the only one on the page."""
        form = self._touched if self._touched is not None else 0 if len(self.page.forms) == 1 else None
        if form is None:
            raise BrowserError("Which form? Fill in a field or click a button." if self.page.forms else "No form here.")
        self._submit(form, None)

    def back(self) -> None:
        """Load the page before this one again."""
        if not self._history:
            raise BrowserError("No page before this one.")
        url = self._history.pop()
        self._load("GET", url, "")

    def show(self) -> list[Block]:
        """The page as blocks. What must be repeated to the letter is exact."""
        blocks: list[Block] = []
        lines: list[Line] = []
        for item in [*self.page.items, None]:
            if isinstance(item, Line):
                lines.append(item)
                continue
            if lines:
                blocks.append(self._text(lines))
                lines = []
            if isinstance(item, Grid) and item.rows:
                rows = [tuple(self._written(cell) for cell in row) for row in item.rows]
                blocks.append(Table(rows[0], tuple(rows[1:]), exact=True))
        return blocks

    def _text(self, lines: list[Line]) -> Text:
        """Lines below each other; the spans of controls and fields are exact."""
        text, spans = "", []
        for line in lines:
            text += "\n" if text else ""
            for at, part in enumerate(line.parts):
                text += " " if at else ""
                written = self._part(part)
                if not isinstance(part, str):
                    spans.append((len(text), len(text) + len(written)))
                text += written
        return Text(text, exact_spans=tuple(spans))

    def _written(self, line: Line) -> str:
        return " ".join(self._part(part) for part in line.parts)

    def _part(self, part: str | Control | FormField) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Control):
            return f"[{part.label}]" if self._style == "names" else f"[{part.at}] {part.label}"
        return field_text(part)

    def _field(self, name: str) -> tuple[int, FormField]:
        found = self.page.field(name)
        if found is None:
            raise BrowserError(f"No field {name}.")
        return found

    def _submit(self, form: int, button: Control | None) -> None:
        if not 0 <= form < len(self.page.forms):
            raise BrowserError("That button belongs to no form.")
        sent = self.page.forms[form]
        values = [(f.name, f.value) for f in sent.fields if f.name]
        if button is not None and button.name:
            values.append((button.name, button.value))
        action = sent.action if PLAIN.fullmatch(sent.action) else urljoin(self.page.url, sent.action)
        body = urlencode(values)
        if sent.method == "GET":
            self.open(f"{action.partition('?')[0]}?{body}")
        else:
            self._go("POST", action, body)

    def _go(self, method: str, url: str, body: str = "") -> None:
        before = self.page.url
        self._load(method, url, body)
        if before and before != self.page.url:
            self._history.append(before)

    def _load(self, method: str, url: str, body: str) -> None:
        for _ in range(MAX_REDIRECTS):
            status, headers, text = self._request(method, url, body)
            for cookie in headers.get("set-cookie", []):
                name, _, value = cookie.split(";")[0].partition("=")
                self._cookies[name] = value
            if status != 303:
                self.page, self._touched = read_page(url, text), None
                return
            place = headers["location"][-1]
            method, url, body = "GET", place if PLAIN.fullmatch(place) else urljoin(url, place), ""
        raise BrowserError("Too many redirects.")

    def _request(self, method: str, url: str, body: str) -> tuple[int, dict[str, list[str]], str]:
        lines = [f"{method} {url} HTTP/1.1", f"Host: {self._host}"]
        if self._cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self._cookies.items()))
        if method == "POST":
            lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
        answer = self._transport.exchange(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        head, _, content = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for name, _, value in (f.partition(":") for f in fields):
            headers.setdefault(name.strip().lower(), []).append(value.strip())
        return int(status.split(" ")[1]), headers, content.decode()


def field_text(field: FormField) -> str:
    """`size = small (small, large)`."""
    return f"{field.name} = {field.value or '-'}" + (f" ({', '.join(field.options)})" if field.options else "")
