"""Every chapter as its reader meets it: opened, run, a panel started, a knob moved, stopped, and the page loaded anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import ask_kernel, barriers, open_notebook, picture, run_all, run_cell, shut_down, theme

pytestmark = pytest.mark.needs("chromium")
CHAPTERS = sorted(path.name for path in (Path(__file__).parents[2] / "course").glob("*.ipynb"))


def status(panel: Locator) -> Locator:
    return panel.get_by_role("status")


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name)


def wait_until_still(page: Page, chart: Locator, seconds: int = 20) -> None:
    """The picture that stays is drawn and the view renewed after Stop, which takes a busy machine a while; then nothing moves."""
    for _ in range(seconds):
        frozen = picture(chart)
        page.wait_for_timeout(1000)
        if picture(chart) == frozen:
            return
    raise AssertionError("the graph still moves")


def place_in(panel: Locator, graph: Locator) -> tuple[float, ...]:
    """Where the graph is in its panel, and how large; the page itself may scroll."""
    outer, inner = panel.bounding_box(), graph.bounding_box()
    return inner["x"] - outer["x"], inner["y"] - outer["y"], inner["width"], inner["height"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_opened_run_and_played_with(chapter, page: Page, lab, complaints, artefacts):
    name = chapter.removesuffix(".ipynb")

    def look(what: str) -> None:
        page.screenshot(path=artefacts / f"{name}-{what}.png")

    open_notebook(page, lab, chapter)
    run_all(page)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    charts = panel.locator(".bqplot")
    expect(charts.first).to_be_visible()
    look("1-ready")
    assert barriers(page) == []
    if name in EXTRA:
        EXTRA[name](page, look)
        panel.scroll_into_view_if_needed()
    place = place_in(panel, charts.first)

    button(panel, "Start").click()
    expect(status(panel)).to_contain_text("samples/s", timeout=30_000)
    before = picture(charts.first)
    page.wait_for_timeout(1500)
    assert picture(charts.first) != before, "the graph does not move"

    legend = panel.locator(".accel-entry").first
    running = legend.inner_text()
    handles = panel.locator(".noUi-handle")
    handles.nth(min(1, handles.count() - 1)).focus()
    page.keyboard.press("ArrowRight")
    expect(legend).not_to_have_text(running, timeout=10_000)
    page.wait_for_timeout(1500)
    look("2-training")
    assert place_in(panel, charts.first) == place, "the graph has jumped"
    assert barriers(page) == []

    button(panel, "Stop").click()
    expect(status(panel)).to_contain_text("stopped", timeout=10_000)
    wait_until_still(page, charts.first)
    look("3-stopped")

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    open_notebook(page, lab, chapter)
    panel.scroll_into_view_if_needed()
    expect(charts.first).to_be_visible(timeout=30_000)
    expect(status(panel)).to_contain_text("stopped")
    look("4-reloaded")
    shut_down(page)
    assert complaints == []


@pytest.mark.parametrize("chapter", ["16_ddp.ipynb"])
def test_a_walk_in_the_dark_and_on_a_small_screen(chapter, page: Page, lab, complaints, artefacts):
    name = chapter.removesuffix(".ipynb")
    open_notebook(page, lab, chapter)
    with theme(page, "JupyterLab Dark"):
        run_all(page)
        panel = page.locator(".accel-panel").first
        panel.scroll_into_view_if_needed()
        button(panel, "Start").click()
        expect(status(panel)).to_contain_text("samples/s", timeout=30_000)
        page.wait_for_timeout(1500)
        assert barriers(page) == []
        page.screenshot(path=artefacts / f"{name}-dark-training.png")
        button(panel, "Stop").click()
        expect(status(panel)).to_contain_text("stopped", timeout=10_000)
        pictures = page.locator("img.jp-needs-light-background")
        for place, width in enumerate((1024, 1280 / 1.5)):  # the second is what a zoom of 150 % leaves of the first screen
            page.set_viewport_size({"width": int(width), "height": 1000})
            panel.scroll_into_view_if_needed()
            page.wait_for_timeout(1000)
            page.screenshot(path=artefacts / f"{name}-dark-{int(width)}.png")
            assert width < 1024 or panel.evaluate("box => box.scrollWidth <= box.clientWidth"), (
                f"at {width:.0f} pixels it is cut off"
            )
            pictures.nth(place).scroll_into_view_if_needed()
            page.screenshot(path=artefacts / f"{name}-dark-picture-{place}.png")
        panel.locator(".noUi-handle").first.evaluate("handle => handle.removeAttribute('aria-label')")
        assert any("noUi-handle" in barrier for barrier in barriers(page)), "a handle without a name must be noticed"
    shut_down(page)
    assert complaints == []


def accumulation(page: Page, look: Callable[[str], None]) -> None:
    """Its mistakes turn the badge; and the cell of a panel run again while it trains leaves one panel, at rest, and no thread."""
    panel = page.locator(".accel-panel").nth(1)
    panel.scroll_into_view_if_needed()
    badge = panel.locator(".accel-badge")
    button(panel, "Start").click()
    expect(badge).to_contain_text("every update is the full batch's", timeout=30_000)
    button(panel, "no scaling").click()
    expect(badge).to_contain_text("not the full batch's update", timeout=10_000)
    page.wait_for_timeout(1500)
    look("5-broken")
    run_cell(page, "break_it = Panel(")
    expect(status(panel)).to_contain_text("ready", timeout=30_000)
    assert page.locator(".accel-panel").count() == 2
    assert "training" not in ask_kernel(page, "import threading; print([t.name for t in threading.enumerate()])")


EXTRA = {"11_accumulation": accumulation}
