"""The page in a real browser: it draws, stays live, runs nothing that a trainer sent, and is read
on a phone, in the dark, by keyboard and without scripts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.events import MetricsLogged
from telemetry.journal.writer import JournalWriter
from telemetry.page.report import report
from tests.telemetry.page.page_process import PageProcess
from tests.telemetry.page.recorded_runs import HOSTILE, START_S, append, write_run
from tests.telemetry.waiting import wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PHONE = {"width": 390, "height": 844}
RUNS = ("r-live", "r-restart", "r-hostile")
VIEWS = ("/", "/runs/r-restart", "/runs/r-hostile", "/compare?run=r-restart&run=r-hostile")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    write_run(data_dir, "r-restart", steps=200, restart_at=100, name="restarted")
    write_run(data_dir, "r-hostile", steps=100, hostile=HOSTILE, start_s=START_S + 1000)
    return data_dir


@pytest.fixture(scope="module")
def served(data_dir: Path) -> Iterator[PageProcess]:
    with PageProcess(data_dir) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A tab of the browser that keeps what went wrong in it."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}} | options)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: m.type in ("error", "warning") and self._note(m.text))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, text: str) -> None:
        self.wrong.append(text)

    def open(self, served: PageProcess, path: str) -> Any:
        """Enter by the link, then go on to a path, and wait until all is drawn."""
        self.page.goto(served.link)
        self.page.goto(served.base + path)
        self.drawn()
        return self.page

    def drawn(self) -> None:
        self.until("!document.getElementById('view') || Boolean(window.telemetryBoard?.isIdle)")

    def until(self, condition: str) -> None:
        """Wait for a condition in the page: its policy lets no library wait there by eval."""
        assert wait_until(lambda: self.page.evaluate(condition), timeout_s=40)

    @property
    def hostile(self) -> Any:
        return self.page.evaluate("window.hostile")


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs; at the end nothing may have gone wrong in any of them."""
    opened: list[Tab] = []

    def open_tab(**options: Any) -> Tab:
        opened.append(Tab(browser, **options))
        return opened[-1]

    yield open_tab
    wrong = [text for each in opened for text in each.wrong]
    for each in opened:
        each.context.close()
    assert wrong == []


@pytest.mark.parametrize("path", VIEWS)
def test_nothing_of_a_trainer_runs_and_nothing_breaks_the_policy(tab, served, path):
    """Names, tags, notes and messages with markup in them are shown as they are."""
    page = tab().open(served, path)

    assert page.evaluate("window.hostile") is None
    assert page.locator("img[src=x]").count() == 0
    shown = page.inner_text("body")
    assert "\u202e" not in shown
    if path != "/runs/r-restart":
        assert "<script>window.hostile=1</script>" in shown


def test_a_name_with_markup_is_read_in_the_chart_as_it_is(tab, served):
    """Plotly would take some of it for markup of its own, and leave out the rest."""
    page = tab().open(served, "/compare?run=r-restart&run=r-hostile")

    legend = page.evaluate("[...document.querySelectorAll('.legendtext')].map(t => t.textContent)")

    assert any(text.startswith("<b>b</b><script>window.hostile=1</script>") for text in legend)


def test_a_run_shows_its_curves_by_name_and_a_map_by_layer(tab, served):
    """The first charts are drawn, and the others when they are scrolled to."""
    open_tab = tab()
    page = open_tab.open(served, "/runs/r-restart")

    names = (
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.map(t => t.name))"
    )
    drawn = page.evaluate(names)
    page.evaluate("document.querySelector('[aria-label=\"quant/zero_ratio\"]').scrollIntoView()")
    open_tab.until("document.querySelector('[aria-label=\"quant/zero_ratio\"] .js-plotly-plot')")

    assert {"train/loss", "val/loss", "train/learning_rate", "train/grad_norm"} <= set(drawn)
    assert "restarted" in page.inner_text("h1") and "warmup" in page.inner_html("main")


def test_what_a_restart_wrote_again_can_be_hidden(tab, served):
    open_tab = tab()
    page = open_tab.open(served, "/runs/r-restart")
    names = "document.querySelector('.js-plotly-plot').data.map(t => t.name).join()"
    before = page.evaluate(names)

    page.keyboard.press("o")
    open_tab.drawn()

    assert "before the restart" in before
    open_tab.until(f"!{names}.includes('before the restart')")


def test_values_that_come_in_are_shown_without_a_reload(tab, data_dir):
    """In the list and on the page of the run."""
    run_dir = write_run(data_dir, "r-live", steps=60, is_ended=False, name="growing")
    with PageProcess(data_dir) as served:
        one, other = tab(), tab()
        one.open(served, "/")
        other.open(served, "/runs/r-live")
        one.until("document.body.innerText.includes('growing')")

        with JournalWriter(run_dir / "journal") as writer:
            event = MetricsLogged(kind="train", step=4711, values={"train/loss": 1.25})
            append(writer, run_dir, [event], "s1", START_S + 100, seq=10_000)

        one.until("document.querySelector('[data-run=r-live]').innerText.includes('4711')")
        other.until("document.querySelector('.figures').innerText.includes('4711')")
        other.until("document.querySelector('.js-plotly-plot').data[0].x.includes(4711)")
    shutil.rmtree(run_dir)


def test_a_long_run_is_thinned_and_says_so_and_is_whole_where_it_is_zoomed_in(tab, tmp_path):
    """The least and the greatest of each part stay: a single spike is seen."""
    run_dir = tmp_path / "runs" / "r-long"
    events = [
        MetricsLogged(
            kind="train", step=i, values={"train/loss": 100.0 if i == 7777 else 1 + i % 7}
        )
        for i in range(20_000)
    ]
    with JournalWriter(run_dir / "journal") as writer:
        append(writer, run_dir, events, "s1", START_S)
    with PageProcess(tmp_path) as served:
        open_tab = tab()
        page = open_tab.open(served, "/runs/r-long")
        said = page.inner_text(".card .said")
        greatest = page.evaluate("Math.max(...document.querySelector('.js-plotly-plot').data[0].y)")

        page.evaluate("telemetryBoard.setRange([1000, 1100])")
        open_tab.drawn()
        near = page.evaluate("document.querySelector('.js-plotly-plot').data[0].x.length")

    assert "of 20,000 points" in said and "zoom in" in said
    assert greatest == 100
    assert 101 <= near <= 103


@pytest.mark.parametrize("path", VIEWS)
def test_it_fits_a_phone(tab, served, path):
    """No part of it makes the page wider than the screen."""
    page = tab(viewport=PHONE, has_touch=True, is_mobile=True).open(served, path)

    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_it_is_dark_where_the_system_is_and_where_the_reader_wants_it(tab, served):
    """The switch is kept for the next page."""
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = tab(color_scheme="light"), tab(color_scheme="dark")
    is_light = light.open(served, "/").evaluate(back)
    is_dark = dark.open(served, "/").evaluate(back)

    light.page.keyboard.press("t")
    light.page.goto(served.base + "/runs/r-restart")
    light.drawn()

    assert is_light != is_dark
    assert light.page.evaluate(back) == is_dark


def test_without_scripts_it_is_a_table_of_runs_and_of_last_values(tab, served):
    no_scripts = tab(java_script_enabled=False)
    no_scripts.page.goto(served.link)
    the_list = no_scripts.page.inner_text("main")
    no_scripts.page.goto(served.base + "/runs/r-restart")
    run = no_scripts.page.inner_text("body")

    assert "restarted" in the_list and "2.6" in the_list
    assert "Scripts are off" in run and "train/loss" in run and "quant/zero_ratio" in run


def test_it_is_used_by_keyboard(tab, served):
    """Search, the rows, a run, the list of keys."""
    open_tab = tab()
    page = open_tab.open(served, "/")
    open_tab.until("document.querySelectorAll('#runs tbody tr').length >= 2")

    page.keyboard.press("?")
    keys = page.inner_text("#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("restarted")
    page.keyboard.press("Escape")
    open_tab.until("document.querySelectorAll('#runs tbody tr').length === 1")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/r-restart")
    open_tab.drawn()

    assert "search" in keys and "light or dark" in keys


def test_runs_are_chosen_sorted_and_compared(tab, served):
    open_tab = tab()
    page = open_tab.open(served, "/")
    open_tab.until("document.querySelectorAll('#runs input').length >= 2")

    page.click("th[data-sort=name] button")
    first = page.inner_text("#runs tbody tr >> nth=0")
    for box in page.locator("#runs tbody input").all():
        box.check()
    page.click("#compare")
    page.wait_for_url("**/compare?*")
    open_tab.drawn()
    names = page.evaluate("document.querySelector('.js-plotly-plot').data.map(t => t.name)")

    assert "script" in first
    assert any("restarted" in name for name in names)


def test_a_report_opens_from_disk_without_the_network(tab, data_dir, tmp_path):
    """Several runs side by side, and each alone; nothing is asked for anywhere."""
    out = tmp_path / "report.html"
    report([data_dir / "runs" / "r-restart", data_dir / "runs" / "r-hostile"], out)
    open_tab = tab(offline=True)

    open_tab.page.goto(out.as_uri())
    open_tab.drawn()
    both = open_tab.page.evaluate("document.querySelector('.js-plotly-plot').data.length")
    open_tab.page.click("nav a >> nth=2")
    open_tab.until("document.querySelector('h1').innerText.includes('hostile')")
    open_tab.drawn()

    assert both >= 2 and open_tab.hostile is None
    assert all(url.startswith("file:") for url in open_tab.requests)
