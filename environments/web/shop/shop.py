"""A visit to a web shop: find what is asked for, fill in the forms, order. The first order ends the visit.

The site is a real HTTP server (`site.py`) that only this visit's browser can reach; whether the order is right is read
from the server's state. The agent has `budget` actions, twice the oracle's and one more: ordering exactly what was asked
brings 1.0 with the fewest actions and less with more, never below 0.6; anything else brings 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envfarm.blocks import Block, Text
from envfarm.env import Env
from envfarm.tools import Action, ToolCall, tool
from envfarm.web.browser import Browser, BrowserError, field_text
from envfarm.web.page import FormField
from envfarm.web.server import PrivateServer
from envfarm.web.tools import BrowserTools

from .catalogue import MATERIALS, PEOPLE, SIZES, STREETS, Line, Wish, seek, stock
from .expert import next_action
from .site import Shop

KINDS = ("named", "cheapest", "material", "limit")
LAYOUTS = ("list", "table", "cards")
LEAST_REWARD = 0.6
FORM_TOOLS = ("type", "select", "submit")


class ShopVisit(BrowserTools, Env):
    forkable = True

    def start(self) -> list[Block]:
        p = self.params
        naming, cart = p.get("naming", "coloured"), p["checkout"] != "direct"
        self.articles = stock(p["domain"], p["articles"], naming, p["prices"], self.rng)
        self.wish = self._wish(cart)
        self.budget = 0
        self._enter()
        actions = self._rehearse()
        self.fewest, self.budget, self.used = actions, 2 * actions + 1, 0
        self.turn_limit = self.budget  # what is no action costs time, too
        self._enter()
        shop = self.shop
        if not (shop.sizes or shop.quantities or shop.coupons or shop.entrance == "search" or shop.checkout == "address"):
            for name in FORM_TOOLS:
                del self.tools[name]
        return [Text(self.wish.words, exact=True), *self.browser.show()]

    @tool
    def submit(self) -> list[Block]:
        """Send the form that was filled in last."""
        return self.acted(self.browser.submit)

    back = BrowserTools.back

    def oracle(self) -> Action:
        return next_action(self.browser, self.shop, self.wish)

    def random_action(self, rng: np.random.Generator) -> Action:
        """A tool at random, used on what the page really has."""
        page = self.browser.page
        fields = [f for form in page.forms for f in form.fields if not f.hidden]
        name = list(self.tools)[int(rng.integers(len(self.tools)))]
        if name == "open":
            return ToolCall("open", {"url": ("/", "/cart")[int(rng.integers(2))]})
        if name == "click":
            control = page.controls[int(rng.integers(len(page.controls)))] if page.controls else None
            return ToolCall("click", {"link": self.browser.reference(control) if control else "1"})
        if name in ("type", "select"):
            field = fields[int(rng.integers(len(fields)))].name if fields else "name"
            words = SIZES if name == "select" else (*MATERIALS, "1", "2", "3")
            value = words[int(rng.integers(len(words)))]
            return ToolCall(name, {"field": field, "text" if name == "type" else "option": value})
        return ToolCall(name)

    def release(self) -> None:
        server = getattr(self, "server", None)
        if server is not None:
            server.close()

    def _enter(self) -> None:
        """A shop without customers, and a browser at its front page."""
        p = self.params
        cart = p["checkout"] != "direct"
        self.release()
        self.shop = Shop(
            self.articles, LAYOUTS[(KINDS.index(p["seek"]) + p["pairing"]) % 3], p["entrance"], p["checkout"], p["sizes"],
            quantities=cart or p["quantity"] > 1, coupons=p["coupon"], materials=p["seek"] == "material" or cart,
        )  # fmt: skip
        self.server = PrivateServer(self.shop)
        self.browser = Browser(self.server, "shop.example", p["links"])
        self.browser.open("/")

    def _wish(self, cart: bool) -> Wish:
        p, rng = self.params, self.rng
        lines, words = [], []
        for at in range(p.get("wishes", 1)):
            left = [a for a in self.articles if a.number not in [line.article for line in lines]]
            article, which = seek("named" if at else p["seek"], left, rng)
            size = SIZES[int(rng.integers(len(SIZES)))] if p["sizes"] else ""
            quantity = p["quantity"] if not at else 1 + int(rng.integers(p["quantity"]))
            lines.append(Line(article.number, size, quantity))
            counted = f"{quantity} " if cart or p["quantity"] > 1 else ""
            words.append(f"{counted}{which}" + (f", {size}" if size else ""))
        coupon = "".join("ABCDEFGHJKLMNPRSTUVWXYZ"[int(i)] for i in rng.integers(23, size=4)) if p["coupon"] else ""
        name = street = ""
        text = f"Buy {' and '.join(words)}."
        if coupon:
            text += f" Coupon {coupon}."
        if p["checkout"] == "address":
            name = PEOPLE[int(rng.integers(len(PEOPLE)))]
            street = f"{STREETS[int(rng.integers(len(STREETS)))]} {1 + int(rng.integers(99))}"
            text += f" Name {name}, street {street}."
        return Wish(text, tuple(lines), coupon, name, street)

    def _rehearse(self) -> int:
        """How many actions the oracle takes, found by playing: the shop is set up again afterwards."""
        for count in range(1, self.env_spec.limits.turns):
            call = self.oracle()
            assert isinstance(call, ToolCall), "the oracle calls tools"
            getattr(self.browser, call.name)(*call.arguments.values())
            if self.shop.orders:
                return count
        raise AssertionError("the oracle does not get to order")

    def acted(self, action: Callable[[], FormField | None]) -> list[Block]:
        """One action of the budget: what the browser shows now, unless it is over."""
        self.used += 1
        problem, field = None, None
        try:
            field = action()
        except BrowserError as error:
            problem = str(error)
        if self.shop.orders:
            waste = (self.used - self.fewest) / (self.budget - self.fewest)
            right = self.shop.orders[0].fulfils(self.wish)
            self.end(1.0 - (1.0 - LEAST_REWARD) * max(0.0, waste) if right else 0.0)
        elif self.used >= self.budget:
            self.end(0.0)
        if problem is not None:
            return [Text(problem)]
        return [Text(field_text(field), exact=True)] if field is not None else self.browser.show()
