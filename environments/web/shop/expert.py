"""The shop's oracle: the next sensible action from whatever page and cart this is, wrong turns of others undone."""

from __future__ import annotations

from envfarm.tools import ToolCall
from envfarm.web.browser import Browser

from .catalogue import Line, Wish
from .site import Shop


def next_action(browser: Browser, shop: Shop, wish: Wish) -> ToolCall:
    """What to do now. Needs no memory: page, form and cart say how far things are."""
    if shop.checkout == "direct":
        return _choose(browser, shop, wish.lines[0], wish.coupon)
    cart = next(iter(shop.carts.values()))
    wanted = {(line.article, line.size): line.quantity for line in wish.lines}
    had = {(line.article, line.size): line.quantity for line in cart}
    for key, quantity in had.items():
        if quantity > wanted.get(key, 0):
            return _click(browser, f"remove {shop.label(*key)}") or _go(browser, "cart", "/cart")
    for (article, size), quantity in wanted.items():
        missing = quantity - had.get((article, size), 0)
        if missing:
            return _choose(browser, shop, Line(article, size, missing), "")
    if browser.page.field("name") is None and browser.page.find("order") is None:
        return _click(browser, "checkout") or _go(browser, "cart", "/cart")
    typed = {"name": wish.name, "street": wish.street, "coupon": wish.coupon}
    return _fill(browser, typed) or _press(browser, "order")


def _choose(browser: Browser, shop: Shop, line: Line, coupon: str) -> ToolCall:
    """Find the article, fill in its form, send it."""
    article = shop.articles[line.article - 1]
    if browser.page.url == f"/article/{article.number}":
        values = {"size": line.size, "quantity": str(line.quantity), "coupon": coupon}
        return _fill(browser, values) or _press(browser, "buy" if shop.checkout == "direct" else "add")
    found = _click(browser, article.name)
    if found is None and shop.entrance == "shelves":
        found = _click(browser, article.noun)
    if found is None and browser.page.field("q") is not None:
        found = _fill(browser, {"q": article.name}) or _press(browser, "search")
    if found is None and browser.previous == "/":
        found = ToolCall("back")
    return found or _go(browser, "home", "/")


def _fill(browser: Browser, values: dict[str, str]) -> ToolCall | None:
    """The first field of this page that does not hold its value yet."""
    for name, value in values.items():
        place = browser.page.field(name)
        if place is not None and place[1].value != value:
            options = place[1].options
            return ToolCall("select", {"field": name, "option": value}) if options else _typed(name, value)
    return None


def _typed(name: str, value: str) -> ToolCall:
    return ToolCall("type", {"field": name, "text": value})


def _press(browser: Browser, label: str) -> ToolCall:
    button = _click(browser, label)
    assert button is not None, f"this page has no {label}"
    return button


def _click(browser: Browser, label: str) -> ToolCall | None:
    control = browser.page.find(label)
    return ToolCall("click", {"link": browser.reference(control)}) if control is not None else None


def _go(browser: Browser, label: str, url: str) -> ToolCall:
    """By the menu where the page has one, else by the address."""
    return _click(browser, label) or ToolCall("open", {"url": url})
