"""Every chapter as its reader meets it: opened, run, a panel started, a knob moved, stopped, and the page loaded anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import ask_kernel, open_notebook, picture, run_all, run_cell, shut_down

pytestmark = pytest.mark.needs("chromium")
CHAPTERS = sorted(path.name for path in (Path(__file__).parents[2] / "course").glob("*.ipynb"))


def status(panel: Locator) -> Locator:
    return panel.get_by_role("status")


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_opened_run_and_played_with(chapter, page: Page, lab, complaints, artefacts):
    name = chapter.removesuffix(".ipynb")

    def look(what: str) -> None:
        page.screenshot(path=artefacts / f"{name}-{what}.png")

    open_notebook(page, lab, chapter)
    run_all(page)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    charts = panel.locator(".bqplot")
    expect(charts.first).to_be_visible()
    look("1-ready")
    if name in EXTRA:
        EXTRA[name](page, look)
        panel.scroll_into_view_if_needed()

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

    button(panel, "Stop").click()
    expect(status(panel)).to_contain_text("stopped", timeout=10_000)
    page.wait_for_timeout(1500)  # the still picture is drawn and the view renewed
    frozen = picture(charts.first)
    page.wait_for_timeout(1000)
    assert picture(charts.first) == frozen, "the graph still moves"
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
