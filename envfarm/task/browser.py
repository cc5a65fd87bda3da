"""`tools: [{browser: {site: /task/site}}]`: a text browser over pages that lie in the box as files. There is no network.

Links lead from page to page. A form with `method="post"` appends what it sends, as a line of JSON, to a file in the box
(`sent`, by default /task/sent.jsonl), from which a check decides; then the page that is the form's `action` is shown.
"""

from __future__ import annotations

from collections.abc import Callable

from envfarm.blocks import Block, Text
from envfarm.task.forms import sent_line, sent_path
from envfarm.task.stock import Stock
from envfarm.tools import ToolCall, ToolError, tool
from envfarm.web.browser import Browser, BrowserError, field_text
from envfarm.web.page import FormField
from envfarm.web.static import Direct, StaticSite
from envfarm.web.tools import BrowserTools

HOST = "site.example"
MAX_PAGE_BYTES = 32 << 10
MAX_SENT_BYTES = 64 << 10
"""Of the file of sent forms; a form that would make it larger is a strike, as for a full disk."""


class Browsing(BrowserTools, Stock):
    def enter(self) -> None:
        super().enter()
        self.sent = 0
        self.browser = Browser(Direct(StaticSite(self._page, self._take)), HOST)

    @tool
    def send(self) -> list[Block]:
        """Send the form that was filled in last."""
        return self.acted(self.browser.submit)

    back = BrowserTools.back

    def noise(self) -> tuple[str, ...]:
        """What the page really has, used without a thought."""
        page = self.browser.page
        lines = ["open /", "back", "send", *(f"click {control.at}" for control in page.controls)]
        for field in (f for form in page.forms for f in form.fields if not f.hidden):
            lines += [f"select {field.name} {option}" for option in field.options] or [f"type {field.name} hello"]
        return (*super().noise(), *lines, "submit")

    def moves(self, call: ToolCall) -> bool:
        return call.name in Browsing.declared_tools() or super().moves(call)

    def acted(self, action: Callable[[], FormField | None]) -> list[Block]:
        try:
            field = action()
        except BrowserError as error:
            raise ToolError(str(error)) from error
        if field is not None:
            return [Text(field_text(field), exact=True)]
        return self.browser.show() or [Text("(an empty page)")]

    def _page(self, path: str) -> bytes:
        return self.place.read(f"{self.options['browser']['site']}/{path}", max_bytes=MAX_PAGE_BYTES)

    def _take(self, to: str, fields: dict[str, str]) -> None:
        path = sent_path(self.options["browser"])
        try:
            before = self.place.read(path, max_bytes=MAX_SENT_BYTES)
        except FileNotFoundError:
            before = b""
        except (OSError, ValueError) as error:
            raise ToolError(f"{path}: {error}") from error
        after = before + sent_line(to, fields).encode("utf-8", "replace")
        if len(after) > MAX_SENT_BYTES:
            self.strike()
            raise ToolError("Too much was sent.")
        self.put(path, after)
        self.sent += 1
