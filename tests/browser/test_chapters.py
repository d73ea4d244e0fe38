"""Every chapter as its reader meets it: opened, run, a panel started, a knob moved, stopped, and the page loaded anew."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import open_notebook, picture, run_all, shut_down

pytestmark = pytest.mark.needs("chromium")
CHAPTERS = sorted(path.name for path in (Path(__file__).parents[2] / "course").glob("*.ipynb"))


def status(panel: Locator) -> Locator:
    return panel.get_by_role("status")


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name, exact=True)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_opened_run_and_played_with(chapter, page: Page, lab, complaints, artefacts):
    name = chapter.removesuffix(".ipynb")
    open_notebook(page, lab, chapter)
    run_all(page)
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    charts = panel.locator(".bqplot")
    expect(charts.first).to_be_visible()
    page.screenshot(path=artefacts / f"{name}-1-ready.png")

    button(panel, "Start").click()
    expect(status(panel)).to_contain_text("samples/s", timeout=30_000)
    before = picture(charts.first)
    page.wait_for_timeout(1500)
    assert picture(charts.first) != before, "the graph does not move"

    legend = panel.locator(".accel-entry").first
    running = legend.inner_text()
    handle = panel.locator(".noUi-handle").nth(1 if panel.locator(".noUi-handle").count() > 1 else 0)
    handle.focus()
    page.keyboard.press("ArrowRight")
    expect(legend).not_to_have_text(running, timeout=10_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=artefacts / f"{name}-2-training.png")

    button(panel, "Stop").click()
    expect(status(panel)).to_contain_text("stopped", timeout=10_000)
    page.wait_for_timeout(1500)  # the still picture is drawn and the view renewed
    frozen = picture(charts.first)
    page.wait_for_timeout(1000)
    assert picture(charts.first) == frozen, "the graph still moves"
    page.screenshot(path=artefacts / f"{name}-3-stopped.png")

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    open_notebook(page, lab, chapter)
    panel.scroll_into_view_if_needed()
    expect(charts.first).to_be_visible(timeout=30_000)
    expect(status(panel)).to_contain_text("stopped")
    page.screenshot(path=artefacts / f"{name}-4-reloaded.png")
    shut_down(page)
    assert complaints == []


def test_the_mistakes_of_accumulation_turn_the_badge(page: Page, lab, complaints, artefacts):
    open_notebook(page, lab, "11_accumulation.ipynb")
    run_all(page)
    panel = page.locator(".accel-panel").nth(1)
    panel.scroll_into_view_if_needed()
    badge = panel.locator(".accel-badge")
    button(panel, "Start").click()
    expect(badge).to_contain_text("every update is the full batch's", timeout=30_000)
    button(panel, "no scaling").click()
    expect(badge).to_contain_text("not the full batch's update", timeout=10_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=artefacts / "11_accumulation-5-broken.png")
    button(panel, "Stop").click()
    expect(status(panel)).to_contain_text("stopped", timeout=10_000)

    first = page.locator(".accel-panel").first
    first.scroll_into_view_if_needed()
    button(first, "Start").click()
    expect(status(first)).to_contain_text("samples/s", timeout=30_000)
    run_all(page)  # the cell is run again while it trains: the new panel stands alone and at rest
    expect(status(page.locator(".accel-panel").first)).to_contain_text("ready", timeout=10_000)
    threads = page.evaluate(
        """async () => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const ask = kernel.requestExecute({code: 'import threading; print([t.name for t in threading.enumerate()])'});
            let heard = '';
            ask.onIOPub = message => { if (message.header.msg_type === 'stream') heard += message.content.text };
            await ask.done;
            return heard }"""
    )
    assert "training" not in threads
    shut_down(page)
    assert complaints == []
