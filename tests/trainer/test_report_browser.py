"""The page in a real browser: it draws, it reacts, it loads nothing, and hostile text stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.report_run import ENVS, make_run
from trainer.report.build import build

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECTIONS = ("success", "curve", "gap", "paired", "stops", "wall")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's Chromium is not installed"),
]


class Seen:
    """A page, and what happened on it that should not."""

    def __init__(self, browser: sync_api.Browser, path: Path, **settings: object):
        self.page = browser.new_context(**settings).new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def button(self, controls: str, text: str) -> sync_api.Locator:
        return self.page.locator(f"#{controls}").get_by_role("button", name=text, exact=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(make_run(tmp_path_factory.mktemp("browser") / "small"))


@pytest.fixture
def seen(browser: sync_api.Browser, path: Path) -> Iterator[Seen]:
    seen = Seen(browser, path, viewport={"width": 1280, "height": 900})
    yield seen
    assert seen.troubles == [], "the console stays silent"
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == [], "nothing is loaded"
    assert seen.page.evaluate("window.pwned") is None, "no text of the run was executed"
    seen.page.context.close()


def test_every_section_is_drawn(seen: Seen) -> None:
    for name in SECTIONS:
        assert seen.page.locator(f"#{name}-chart svg").count() > 0, name
    for name in ("sensitivity-cards", "length-charts", "health-charts"):
        assert seen.page.locator(f"#{name} svg").count() > 1, name
    assert seen.page.locator("#transcript .episode").count() == 2
    picture = seen.page.screenshot(full_page=True)
    assert picture.startswith(b"\x89PNG") and len(picture) > 100_000


def test_choices_and_legends_change_what_is_drawn(seen: Seen) -> None:
    chart = seen.page.locator("#curve-chart svg")
    before = chart.inner_html()
    seen.button("curve-controls", ENVS[1]).click()
    other = chart.inner_html()
    seen.button("curve-controls", "reward").click()
    assert len({before, other, chart.inner_html()}) == 3
    dots = chart.locator("circle").count()
    seen.button("curve-chart", "evaluation: heldout").click()
    assert 0 < chart.locator("circle").count() < dots
    seen.button("curve-chart", "evaluation: heldout").click()
    assert chart.locator("circle").count() == dots

    first = seen.page.locator("#sensitivity-cards .factor h4").first
    assert first.inner_text().startswith("colour")
    seen.button("sensitivity-controls", "untrained").click()
    assert "within chance" in seen.page.locator("#sensitivity-cards .factor .about").first.inner_text()
    bars = seen.page.locator("#length-charts").inner_html()
    seen.button("episode-controls", "sampled tokens").click()
    assert seen.page.locator("#length-charts").inner_html() != bars
    seen.button("health-controls", "imitation").click()
    assert "Validation loss" not in seen.page.locator("#health-charts").inner_text()


def test_pointing_at_a_chart_tells_the_values(seen: Seen) -> None:
    seen.page.locator("#curve-chart svg").hover()
    tip = seen.page.locator("#tip").inner_text()
    assert tip.startswith("step ") and "n = " in tip and "[" in tip
    seen.page.locator("#success-chart circle").last.hover()
    assert "success" in seen.page.locator("#tip").inner_text()


def test_a_token_tells_its_number_logprob_and_version(seen: Seen) -> None:
    token = seen.page.locator("#transcript .t.s").nth(5)
    token.hover()
    tip = seen.page.locator("#tip").inner_text()
    assert "logprob -1.5000" in tip and "sampled by learner@0.0" in tip and "temperature 0.7" in tip and "token " in tip
    seen.page.locator("#transcript .t:not(.s)").first.hover()
    assert "not sampled" in seen.page.locator("#tip").inner_text()


def test_transcripts_are_chosen_and_hostile_text_is_read_as_text(seen: Seen) -> None:
    seen.button("transcript-controls", "failure").click()
    assert seen.page.locator("#transcript .episode").all_inner_texts()[0].startswith("failure")
    text = seen.page.locator("#transcript").inner_text()
    assert "</script><script>window.pwned=1</script><img src=x" in text
    assert seen.page.locator("#transcript img, #transcript script").count() == 0
    seen.page.locator("#transcript-controls select").select_option("logs")
    assert "a script acted" in seen.page.locator("#transcript").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(browser: sync_api.Browser, path: Path, scheme: str) -> None:
    seen = Seen(browser, path, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(252, 252, 251)", "dark": "rgb(20, 23, 27)"}[scheme]
    seen.page.set_viewport_size({"width": 820, "height": 844})
    # Not wait_for_function: what it polls with is eval, which the page's own policy forbids.
    wider = re.compile(r"0 0 [67]\d\d(\.\d+)? ")
    sync_api.expect(seen.page.locator("#curve-chart svg")).to_have_attribute("viewBox", wider)
    assert seen.troubles == []
    seen.page.context.close()


def test_tables_stand_without_a_script(browser: sync_api.Browser, path: Path) -> None:
    seen = Seen(browser, path, java_script_enabled=False)
    assert seen.page.locator("#result table tbody tr").count() == 10
    assert "stand without it" in seen.page.locator("noscript").inner_text()
    seen.page.context.close()
