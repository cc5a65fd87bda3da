"""A site of static pages: which file an address shows, what forms hand on, and that nothing else is asked for."""

from __future__ import annotations

import pytest

from envfarm.blocks import Text
from envfarm.web.browser import Browser
from envfarm.web.page import read_page
from envfarm.web.static import Direct, StaticSite

PAGES = {
    "index.html": '<p>Front</p><a href="shoes">Shoes</a> <a href="notes.txt">Notes</a> <a href="gone.html">Gone</a>',
    "shoes/index.html": '<p>Shoes</p><a href="red.html?colour=red">Red</a>',
    "shoes/red.html": '<form method=post action="/thanks.html"><input name=size><button name=how value=now>Buy</button></form>',
    "thanks.html": "<p>Thanks.</p>",
    "odd.html": '<form method=post action="/a b\r\nX: y"><button>Odd</button></form>'
    '<form method=post action="http://elsewhere.example/"><button>Away</button></form>'
    '<form action="/"><button>Look</button></form>',
    "notes.txt": "a <b>\n\n  c & d\n",
}


class Site:
    """A browser on `PAGES`, what was read, and what was sent."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.sent: list[tuple[str, dict[str, str]]] = []
        self.browser = Browser(Direct(StaticSite(self._read, lambda to, form: self.sent.append((to, form)))), "site.example")

    def _read(self, path: str) -> bytes:
        self.read.append(path)
        if any(page.startswith(path + "/") for page in PAGES):
            raise IsADirectoryError(path)
        if path not in PAGES:
            raise FileNotFoundError(path)
        return PAGES[path].encode()

    @property
    def text(self) -> str:
        return "\n".join(block.text for block in self.browser.show() if isinstance(block, Text))


@pytest.fixture
def site() -> Site:
    return Site()


def test_links_directories_and_files_that_are_no_html(site: Site) -> None:
    site.browser.open("/")
    site.browser.click("Shoes")
    assert site.text.startswith("Shoes") and site.browser.page.url == "/shoes/"
    site.browser.click("Red")
    assert "size = -" in site.text
    site.browser.back()
    site.browser.back()
    site.browser.click("Notes")
    assert site.text == "a <b>\nc & d"
    site.browser.open("/")
    site.browser.click("Gone")
    assert site.text == "There is no page /gone.html."


def test_a_form_is_handed_on_and_the_page_behind_it_is_shown(site: Site) -> None:
    site.browser.open("/shoes/red.html")
    site.browser.type("size", "42 & a half")
    site.browser.click("Buy")
    assert site.sent == [("/thanks.html", {"size": "42 & a half", "how": "now"})] and site.text == "Thanks."
    site.browser.open("/odd.html")
    site.browser.click("Look")
    assert len(site.sent) == 1 and site.text.startswith("Front")  # GET changes nothing


@pytest.mark.parametrize("url", ["/../secret", "/%2e%2e/secret", "/shoes/%2e%2e/%2e%2e/secret", "/a%00b", "/..%2fsecret"])
def test_no_address_leads_out_of_the_site(site: Site, url: str) -> None:
    site.browser.open(url)
    assert "There is no page" in site.text and not any(".." in path or "\0" in path for path in site.read)


@pytest.mark.parametrize("button", ["Odd", "Away"])
def test_what_is_no_request_is_answered(site: Site, button: str) -> None:
    site.browser.open("/odd.html")
    site.browser.click(button)
    assert site.text and site.sent == [] and site.browser.page.url != "/odd.html"


@pytest.mark.parametrize("piece", ["<a", '<a"', "<!", "<script", "<a x=", "<a b", "&", '<a x="'])
def test_a_page_made_to_be_slow_is_read_in_one_go(piece: str) -> None:
    """With a reader that looks ahead to the end at each tag this would take a minute and more."""
    assert read_page("/", piece * (30_000 // len(piece))) is not None
