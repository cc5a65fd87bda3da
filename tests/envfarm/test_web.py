"""The small web: real HTTP over private sockets and over TCP, and a text browser that obeys it."""

from __future__ import annotations

import copy
import http.cookiejar
import os
import pickle
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.blocks import Table, Text
from envfarm.web.browser import Browser, BrowserError
from envfarm.web.http import MAX_BODY_BYTES, Request, Response, ServerConnection, redirect
from envfarm.web.page import read_page
from envfarm.web.server import PrivateServer, listening

FORM = """<form method=post action=/say><p>Say <input name=words value="hi there"></p>
<select name=tone><option>low</option><option value=high selected>High!</option></select>
<input type=hidden name=token value=t1><button name=how value=loud>shout</button><input type=submit value=whisper></form>"""


class Site:
    """A site with a counter per session, a form, an endless redirect and a page of any size."""

    def __init__(self):
        self.visits: dict[str, int] = {}
        self.said: list[dict[str, str]] = []

    def __call__(self, request: Request) -> Response:
        who = request.cookies.get("who") or f"v{len(self.visits) + 1}"
        self.visits[who] = self.visits.get(who, 0) + 1
        if request.path == "/say":
            self.said.append(request.form)
            return redirect("/heard")
        if request.path == "/loop":
            return redirect("/loop")
        if request.path == "/big":
            return Response("x" * int(request.query["n"]))
        told = f"<p>{request.method} {request.path} {request.query} visit {self.visits[who]}</p>"
        body = {"/form": FORM, "/heard": "<p>Heard.</p>"}.get(request.path, told + '<a href="/form">to &amp; fro</a>')
        return Response(body, cookies={"who": who})


def browser(site=None, **options):
    return Browser(PrivateServer(site or Site()), "site.example", **options)


def text(page_browser):
    return "\n".join(block.text for block in page_browser.show() if isinstance(block, Text))


GET = b"GET /a%20b?x=1&y=%C3%A9 HTTP/1.1\r\nHost: h\r\nCookie: a=1; b=2\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\ncontent-length: 9\r\n\r\nq=1+2&r=%"


@given(st.lists(st.integers(1, 40), max_size=12))
def test_requests_may_come_in_any_pieces(sizes):
    def echo(request):
        return Response(repr((request.method, request.path, request.query, request.form, request.cookies)))

    whole, pieces = ServerConnection(echo), ServerConnection(echo)
    data, answers = GET + POST + GET, b""
    expected = whole.receive(data)
    for size in sizes:
        answers += pieces.receive(data[:size])
        data = data[size:]
    assert answers + pieces.receive(data) == expected
    assert expected.count(b"HTTP/1.1 200 OK") == 3 and "'/a b', {'x': '1', 'y': 'é'}".encode() in expected
    assert b"{'q': '1 2', 'r': '%'}" in expected and b"{'a': '1', 'b': '2'}" in expected


@pytest.mark.parametrize(
    ("data", "status", "closed"),
    [
        (b"nonsense\r\n\r\n", 400, True),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400, True),
        (b"POST / HTTP/1.1\r\nContent-Length: -4\r\n\r\n", 400, True),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413, True),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000, 431, True),
        (b"DELETE / HTTP/1.1\r\n\r\n", 405, False),
    ],
)
def test_bad_requests_are_answered(data, status, closed):
    connection = ServerConnection(Site())
    assert connection.receive(data).startswith(f"HTTP/1.1 {status} ".encode())
    assert connection.closed is closed


def test_private_server_carries_more_than_a_socket_holds_and_refuses_half_requests():
    server = PrivateServer(Site())
    answer = server.exchange(b"GET /big?n=3000000 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.endswith(b"x" * 3_000_000)
    with pytest.raises(ConnectionError):
        server.exchange(b"GET / HTTP/1.1\r\n")
    assert server.exchange(b"bad\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert server.exchange(GET).startswith(b"HTTP/1.1 200"), "a refused connection is made anew"


def test_any_http_client_sees_the_same_site():
    site = Site()
    with listening(site) as url:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        first = opener.open(f"{url}/x?q=1", timeout=10).read().decode()
        assert "GET /x {'q': '1'} visit 1" in first
        assert "visit 2" in opener.open(f"{url}/x", timeout=10).read().decode(), "the cookie came back"
        assert b"Heard." in opener.open(f"{url}/say", data=b"words=hello", timeout=10).read(), "the redirect is followed"
    assert site.said == [{"words": "hello"}]
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=1)


def test_cookies_make_sessions():
    site = Site()
    one, two = browser(site), browser(site)
    for expected in (1, 2, 3):
        one.open("/")
        assert f"visit {expected}" in text(one)
    two.open("/")
    assert "visit 1" in text(two)


def test_forms_send_what_is_filled_in():
    site = Site()
    visitor = browser(site)
    visitor.open("/form")
    assert text(visitor).splitlines() == ["Say words = hi there", "tone = high (low, high) [1] shout [2] whisper"]
    visitor.type("words", "a&b=c ü")
    visitor.select("tone", "LOW")
    visitor.click("shout")
    assert visitor.page.url == "/heard" and text(visitor) == "Heard."
    visitor.back()
    visitor.submit()
    assert site.said == [
        {"words": "a&b=c ü", "tone": "low", "token": "t1", "how": "loud"},
        {"words": "hi there", "tone": "high", "token": "t1"},
    ]


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda b: b.click("9"), "No link 9"),
        (lambda b: b.type("nothing", "x"), "No field nothing"),
        (lambda b: b.type("tone", "x"), "chosen with select"),
        (lambda b: b.type("token", "x"), "No field token"),
        (lambda b: b.select("tone", "mid"), "has low, high"),
        (lambda b: b.select("words", "mid"), "takes text"),
        (lambda b: b.open("http://elsewhere.example/"), "only http://site.example"),
        (lambda b: b.open("file:///etc/passwd"), "only http://site.example"),
        (lambda b: b.open("http://[broken"), "no address"),
        (lambda b: b.open("/loop"), "Too many redirects"),
        (lambda b: b.back(), "No page before"),
    ],
)
def test_what_makes_no_sense_is_told_and_leaves_the_page(act, problem):
    visitor = browser()
    visitor.open("/form")
    before = text(visitor)
    with pytest.raises(BrowserError, match=problem):
        act(visitor)
    assert text(visitor) == before


@given(st.text(max_size=60))
def test_any_address_stays_on_the_site(url):
    site = Site()
    visitor = browser(site)
    visitor.open("/")
    try:
        visitor.open(url)
    except BrowserError:
        return
    assert visitor.page.url.startswith("/") and len(visitor.page.items) >= 1


def test_history_goes_back_step_by_step():
    visitor = browser()
    for path in ("/a", "/b", "/c"):
        visitor.open(path)
    visitor.back()
    visitor.back()
    assert visitor.page.url == "/a" and visitor.previous is None


def test_pages_become_lines_and_tables():
    page = read_page("/", "<title>T</title><h1>Head</h1>lone<ul><li><a href=x>one  <b>two</b></a> 3</ul><script>no</script>"
                     "<table><tr><th>a<th>b<tr><td><a href=y>c</a><td>4 &euro;</table>after<!-- no -->")  # fmt: skip
    visitor = browser(style="names")
    visitor.page = page
    shown = visitor.show()
    assert [b.text for b in shown if isinstance(b, Text)] == ["Head\nlone\n[one two] 3", "after"]
    assert [b.rows for b in shown if isinstance(b, Table)] == [(("[c]", "4 €"),)]
    (first, *_) = shown
    assert [first.text[a:b] for a, b in first.exact_spans] == ["[one two]"]
    assert page.find("ONE TWO") is page.find("[1]") is page.controls[0]


def test_a_fork_has_sockets_of_its_own():
    site = Site()
    visitor = browser(site)
    visitor.open("/")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        visitor.open("/")
        visitor.open("/")
        os.write(writing, text(visitor).encode())
        os._exit(0)
    os.waitpid(child, 0)
    seen = os.read(reading, 1000).decode()
    os.close(reading), os.close(writing)
    visitor.open("/")
    assert "visit 3" in seen and "visit 2" in text(visitor)


def test_copies_share_neither_site_nor_sockets():
    visitor = browser()
    visitor.open("/")
    for twin in (copy.deepcopy(visitor), pickle.loads(pickle.dumps(visitor))):
        twin.open("/")
        assert "visit 2" in text(twin)
    visitor.open("/")
    assert "visit 2" in text(visitor)
