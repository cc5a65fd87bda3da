"""The tools of a text browser, for any scene that has one: how an action is shown, counted or judged is the scene's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from envfarm.blocks import Block
from envfarm.env import Scene
from envfarm.tools import tool
from envfarm.web.browser import Browser
from envfarm.web.page import FormField


class BrowserTools(Scene):
    """`open`, `click`, `type`, `select` and `back`. What sends a form is named and described by the scene."""

    browser: Browser

    @abstractmethod
    def acted(self, action: Callable[[], FormField | None]) -> list[Block]:
        """Do it, and say what is seen then. `action` raises BrowserError; it returns a field that was filled in, if any."""

    @tool
    def open(self, url: str) -> list[Block]:
        """Go to an address of this site.

        url: the address, / is the front page
        """
        return self.acted(lambda: self.browser.open(url))

    @tool
    def click(self, link: str) -> list[Block]:
        """Follow a link or press a button.

        link: its number or its words
        """
        return self.acted(lambda: self.browser.click(link))

    @tool
    def type(self, field: str, text: str) -> list[Block]:
        """Fill in a text field.

        field: name of the field
        text: what to write
        """
        return self.acted(lambda: self.browser.type(field, text))

    @tool
    def select(self, field: str, option: str) -> list[Block]:
        """Choose an option of a field.

        field: name of the field
        option: one of its options
        """
        return self.acted(lambda: self.browser.select(field, option))

    @tool
    def back(self) -> list[Block]:
        """Return to the page before."""
        return self.acted(self.browser.back)
