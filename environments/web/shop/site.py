"""The shop's site: pages, sessions with carts, and orders. What was ordered is read from here, never from a page.

    /                front page: all articles, or shelves, or a search field; some offers
    /shelf/NOUN      the articles of one kind          /search?q=...   those whose name holds all the words
    /article/N       one article, and the form that buys it or puts it into the cart
    /cart            what is in it; order, or go on to
    /checkout        name and street                   /done           after the order

Layouts: `list` (name, then price), `table`, `cards` (price, then name).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from html import escape
from urllib.parse import quote

from envfarm.web.http import Request, Response, redirect

from .catalogue import SIZES, Article, Line, Wish

MAX_QUANTITY = 9


@dataclass(frozen=True)
class Order:
    lines: tuple[Line, ...]
    coupon: str
    name: str
    street: str

    def fulfils(self, wish: Wish) -> bool:
        """Exactly what was asked for: the order of the lines and the case of what was typed do not matter."""
        typed = (self.coupon, self.name, self.street)
        asked = (wish.coupon, wish.name, wish.street)
        same = [a.strip().lower() == b.lower() for a, b in zip(typed, asked, strict=True)]
        return all(same) and sorted(self.lines, key=astuple) == sorted(wish.lines, key=astuple)


@dataclass
class Shop:
    articles: list[Article]
    layout: str
    entrance: str  # front, shelves, search
    checkout: str  # direct, cart, address
    sizes: bool
    quantities: bool
    coupons: bool
    materials: bool
    carts: dict[str, list[Line]] = field(default_factory=dict)  # by session cookie
    orders: list[Order] = field(default_factory=list)

    def __call__(self, request: Request) -> Response:
        """The app. Every visitor without a session gets one."""
        session = request.cookies.get("session", "")
        if session not in self.carts:
            session = f"s{len(self.carts) + 1}"
            self.carts[session] = []
            answer = self._route(request, session)
            return Response(answer.body, answer.status, answer.location, {"session": session})
        return self._route(request, session)

    def _route(self, request: Request, session: str) -> Response:
        first, _, rest = request.path.strip("/").partition("/")
        routes: dict[tuple[str, str], Callable[[Request, str, str], Response]] = {
            ("GET", ""): self._front, ("GET", "shelf"): self._shelf, ("GET", "search"): self._search,
            ("GET", "article"): self._article, ("POST", "article"): self._chosen,
            ("GET", "cart"): self._cart, ("POST", "remove"): self._remove,
            ("GET", "checkout"): self._checkout, ("POST", "order"): self._order, ("GET", "done"): self._done,
        }  # fmt: skip
        handler = routes.get((request.method, first))
        return handler(request, session, rest) if handler else _page("<p>No such page.</p>", 404)

    # Pages.

    def _front(self, request: Request, session: str, rest: str) -> Response:
        if self.entrance == "front":
            return self._shown(self._listing(self.articles))
        nouns = list(dict.fromkeys(a.noun for a in self.articles))
        shelves = "".join(f'<li><a href="/shelf/{quote(n)}">{escape(n)}</a></li>' for n in nouns)
        search = '<form action="/search"><input name="q"> <button>search</button></form>'
        offers = self._listing(self.articles[:3])
        return self._shown((f"<ul>{shelves}</ul>" if self.entrance == "shelves" else search) + "<p>offers</p>" + offers)

    def _shelf(self, request: Request, session: str, rest: str) -> Response:
        return self._shown(self._listing([a for a in self.articles if a.noun == rest]))

    def _search(self, request: Request, session: str, rest: str) -> Response:
        words = request.query.get("q", "").lower().split()
        found = [a for a in self.articles if words and all(w in a.name.split() for w in words)]
        return self._shown(self._listing(found) if found else "<p>Nothing found.</p>")

    def _article(self, request: Request, session: str, rest: str, notice: str = "") -> Response:
        article = self._numbered(rest)
        if article is None:
            return _page("<p>No such article.</p>", 404)
        options = "".join(f"<option>{s}</option>" for s in SIZES)
        inputs = f"<p><select name=size>{options}</select></p>" if self.sizes else ""
        inputs += '<p><input name="quantity" value="1"></p>' if self.quantities else ""
        inputs += '<p><input name="coupon" value=""></p>' if self.coupons and self.checkout == "direct" else ""
        button = "<button>buy</button>" if self.checkout == "direct" else "<button>add</button>"
        material = f" {article.material}" if self.materials else ""
        form = f'<form method="post" action="/article/{article.number}">{inputs}{button}</form>'
        return self._shown(f"<p>{notice}</p><p>{escape(article.name)} {article.price}{material}</p>{form}")

    def _cart(self, request: Request, session: str, rest: str) -> Response:
        lines = self.carts[session]
        if not lines:
            return self._shown("<p>The cart is empty.</p>")
        rows = "".join(
            f'<form method="post" action="/remove/{at}"><p>{line.quantity} {escape(self.label(line.article, line.size))} '
            f"<button>remove {escape(self.label(line.article, line.size))}</button></p></form>"
            for at, line in enumerate(lines)
        )
        if self.checkout == "address":
            return self._shown(rows + '<p><a href="/checkout">checkout</a></p>')
        return self._shown(rows + self._order_form(""))

    def _checkout(self, request: Request, session: str, rest: str) -> Response:
        inputs = '<p><input name="name" value=""></p><p><input name="street" value=""></p>'
        return self._shown(self._order_form(inputs)) if self.checkout == "address" else _page("<p>No such page.</p>", 404)

    def _order_form(self, inputs: str) -> str:
        coupon = '<p><input name="coupon" value=""></p>' if self.coupons else ""
        return f'<form method="post" action="/order">{inputs}{coupon}<button>order</button></form>'

    def _done(self, request: Request, session: str, rest: str) -> Response:
        return _page("<p>Ordered.</p>" if self.orders else "<p>Nothing ordered.</p>")

    # What changes the state.

    def _chosen(self, request: Request, session: str, rest: str) -> Response:
        article = self._numbered(rest)
        size = request.form.get("size", SIZES[0]) if self.sizes else ""
        quantity = request.form.get("quantity", "1").strip() if self.quantities else "1"
        if article is None or (self.sizes and size not in SIZES):
            return _page("<p>No such article.</p>", 404)
        if not (quantity.isascii() and quantity.isdecimal() and 1 <= int(quantity[:3]) <= MAX_QUANTITY):
            return self._article(request, session, rest, f"The quantity is 1 to {MAX_QUANTITY}.")
        line = Line(article.number, size, int(quantity))
        if self.checkout == "direct":
            self.orders.append(Order((line,), request.form.get("coupon", ""), "", ""))
            return redirect("/done")
        cart = self.carts[session]
        same = next((i for i, old in enumerate(cart) if (old.article, old.size) == (line.article, line.size)), None)
        if same is None:
            cart.append(line)
        else:
            cart[same] = Line(line.article, line.size, cart[same].quantity + line.quantity)
        return redirect("/cart")

    def _remove(self, request: Request, session: str, rest: str) -> Response:
        cart = self.carts[session]
        if rest.isdecimal() and int(rest) < len(cart):
            del cart[int(rest)]
        return redirect("/cart")

    def _order(self, request: Request, session: str, rest: str) -> Response:
        cart, form = self.carts[session], request.form
        if not cart or self.checkout == "direct":
            return redirect("/cart")
        name, street = form.get("name", "").strip(), form.get("street", "").strip()
        if self.checkout == "address" and not (name and street):
            return redirect("/checkout")
        self.orders.append(Order(tuple(cart), form.get("coupon", "").strip(), name, street))
        self.carts[session] = []
        return redirect("/done")

    # Parts.

    def _numbered(self, text: str) -> Article | None:
        return next((a for a in self.articles if str(a.number) == text), None)

    def label(self, article: int, size: str) -> str:
        """How the cart names a line."""
        return f"{self.articles[article - 1].name} {size}".strip()

    def _listing(self, articles: list[Article]) -> str:
        links = [(f'<a href="/article/{a.number}">{escape(a.name)}</a>', a.price) for a in articles]
        if self.layout == "table":
            rows = "".join(f"<tr><td>{link}</td><td>{price}</td></tr>" for link, price in links)
            return f"<table><tr><th>article</th><th>price</th></tr>{rows}</table>"
        if self.layout == "cards":
            return "".join(f"<p>{price} {link}</p>" for link, price in links)
        return "<ul>" + "".join(f"<li>{link} {price}</li>" for link, price in links) + "</ul>"

    def _shown(self, body: str) -> Response:
        """A page with the shop's menu, where there is a cart."""
        return _page(body if self.checkout == "direct" else body + '<p><a href="/">home</a> <a href="/cart">cart</a></p>')


def _page(body: str, status: int = 200) -> Response:
    return Response(f"<!doctype html><html><head><title>Shop</title></head><body>{body}</body></html>", status)
