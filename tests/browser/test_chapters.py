"""Every chapter as its reader meets it; some are walked from end to end."""

import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

from tests.browser.lab import (
    ask_kernel,
    at_other_work,
    barriers,
    close_and_open,
    end_kernels,
    open_notebook,
    picture,
    restart_kernel,
    run_all,
    run_cell,
    save,
    theme,
    trust,
)

pytestmark = pytest.mark.needs("chromium")
AT_NIGHT = "invert(0.93) hue-rotate(180deg)"
FITS = """panel => {
    const page = panel.closest('.jp-WindowedPanel-outer').getBoundingClientRect();
    const graphs = [...panel.querySelectorAll('.bqplot')];
    return panel.scrollWidth <= panel.clientWidth && graphs.every(graph => {
        const there = graph.getBoundingClientRect();
        // Out of sight they are not drawn anew.
        const inSight = there.bottom > page.top && there.top < page.bottom;
        const ends = [...graph.querySelectorAll('.axis')].map(axis => axis.getBoundingClientRect());
        return !inSight || ends.every(end => end.right <= there.right) }) }
"""
CHAPTERS = sorted(path.name for path in (Path(__file__).parents[2] / "course").glob("*.ipynb"))
# One of a kind each: the front door, the chapter that others are modelled on, one with real ranks.
WALKED = ["00_start_here.ipynb", "11_accumulation.ipynb", "16_ddp.ipynb"]
FIRST_PANEL = "lab.Panel("
# A search takes no longer than a second or two: nobody can say that its end is not seen first.
AT_WORK = re.compile("samples/s|ended by itself")
AT_REST = re.compile("stopped|ended by itself")
# JupyterLab says so now and then, of a kernel that is ended just then
OF_AN_END = "Could not restore the debugger state"


def status(panel: Locator) -> Locator:
    return panel.get_by_role("status")


def button(panel: Locator, name: str) -> Locator:
    """By its whole name, before which an icon may stand."""
    return panel.get_by_role("button", name=re.compile(rf"^\W*{re.escape(name)}$"))


def start(panel: Locator) -> None:
    """Press Start, and wait until the graph moves."""
    chart = panel.locator(".bqplot").first
    still = picture(chart)
    button(panel, "Start").click()
    expect(status(panel)).to_contain_text(AT_WORK, timeout=30_000)
    wait_until_it_moves(chart, still)


def stop(panel: Locator) -> None:
    """Press Stop, unless the run ends before."""
    with suppress(TimeoutError):
        button(panel, "Stop").click(timeout=5_000)
    expect(status(panel)).to_contain_text(AT_REST, timeout=10_000)


def wait_until_it_moves(chart: Locator, before: str, seconds: int = 10) -> None:
    """``before``: its picture until then. A dot of what is counted moves once, and stays."""
    for _ in range(4 * seconds):
        if picture(chart) != before:
            return
        chart.page.wait_for_timeout(250)
    raise AssertionError("the graph does not move")


def wait_until_still(chart: Locator, seconds: int = 20) -> None:
    """What was under way when it stopped is drawn, which takes a busy machine a while; then nothing
    moves.
    """
    for _ in range(seconds):
        frozen = picture(chart)
        chart.page.wait_for_timeout(1000)
        if picture(chart) == frozen:
            return
    raise AssertionError("the graph still moves")


def fits_on_small_screens(page: Page, panels: Locator, look: Callable[[str], None]) -> None:
    """Nothing is cut off on a tablet, nor in what a zoom of 150 % leaves of the usual screen."""
    usual = page.viewport_size
    for width in (1024, int(usual["width"] / 1.5)):
        page.set_viewport_size(usual | {"width": width})
        for panel in panels.all():
            panel.scroll_into_view_if_needed()
            # graphs take their new size a little later
            page.wait_for_function(FITS, arg=panel.element_handle(), timeout=10_000)
            look(str(width))
    page.set_viewport_size(usual)


def knobs_beside_their_chart(page: Page, panel: Locator) -> None:
    """On a tablet a knob and the first chart, which answers it, are in sight together."""
    usual = page.viewport_size
    page.set_viewport_size({"width": 1024, "height": 768})
    panel.evaluate("panel => panel.scrollIntoView({ block: 'start' })")
    expect(panel.locator(".accel-knob").first).to_be_in_viewport(ratio=1)
    expect(panel.locator(".bqplot").first).to_be_in_viewport(ratio=1, timeout=10_000)
    page.set_viewport_size(usual)


def choose_the_missing_line(page: Page) -> None:
    """Every line that may be the missing one is run when it is chosen, and one of them is right."""
    asked = page.locator(".accel-line")
    verdict, said, right = asked.get_by_role("status"), "", 0  # as text without line breaks
    asked.scroll_into_view_if_needed()
    expect(verdict).to_have_count(0)
    for line in asked.get_by_role("radio").all():
        line.check()
        expect(verdict).to_have_text(re.compile("[✓✗]"), timeout=30_000)
        expect(verdict).not_to_have_text(said, timeout=30_000)
        said = verdict.text_content()
        right += "✗" not in said
    assert right == 1


def place_in(panel: Locator, graph: Locator) -> tuple[float, ...]:
    """Where the graph is in its panel, and how large; the page itself may scroll."""
    outer, inner = panel.bounding_box(), graph.bounding_box()
    return inner["x"] - outer["x"], inner["y"] - outer["y"], inner["width"], inner["height"]


def picture_of(page: Page, artefacts: Path, chapter: str) -> Callable[[str], None]:
    """Takes screenshots: each is named after the chapter and what it shows."""
    return lambda what: page.screenshot(path=artefacts / f"{chapter[:-6]}-{what}.png")


def stderr(page: Page) -> list[str]:
    return page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()


def play(page: Page, panel: Locator, look: Callable[[str], None]) -> None:
    """Start, turn a knob, stop: the graph moves, then rests, never jumps; nobody is kept out."""
    panel.scroll_into_view_if_needed()
    chart = panel.locator(".bqplot").first
    expect(chart).to_be_visible()
    look("1-ready")
    assert barriers(page) == []
    place = place_in(panel, chart)

    start(panel)
    legend = panel.locator(".accel-entry").first
    running = legend.inner_text()
    handles = panel.locator(".noUi-handle")
    handles.nth(min(1, handles.count() - 1)).focus()
    former = picture(chart)
    page.keyboard.press("ArrowRight")
    expect(legend).not_to_have_text(running, timeout=10_000)
    expect(status(panel)).to_contain_text(AT_WORK, timeout=30_000)
    wait_until_it_moves(chart, former)
    look("2-training")
    assert place_in(panel, chart) == place, "the graph has jumped"
    assert barriers(page) == []

    stop(panel)
    wait_until_still(chart)
    look("3-stopped")
    assert place_in(panel, chart) == place, "the graph has jumped when it stopped"


@pytest.mark.parametrize("chapter", [name for name in CHAPTERS if name not in WALKED])
def test_a_chapter_is_opened_and_its_first_panel_played_with(
    chapter, page: Page, lab, complaints, artefacts
):
    open_notebook(page, lab, chapter)
    run_cell(page, FIRST_PANEL, above=True)
    assert stderr(page) == []
    panel = page.locator(".accel-panel").first
    play(page, panel, picture_of(page, artefacts, chapter))
    knobs_beside_their_chart(page, panel)
    assert complaints == []


@pytest.mark.parametrize("chapter", WALKED)
def test_a_chapter_is_walked_whole(chapter, page: Page, lab, complaints, artefacts):
    """Run to its end, played with, looked at on small screens, saved and loaded anew."""
    look = picture_of(page, artefacts, chapter)
    open_notebook(page, lab, chapter)
    run_all(page)
    assert stderr(page) == []
    panel = page.locator(".accel-panel").first
    play(page, panel, look)
    knobs_beside_their_chart(page, panel)
    fits_on_small_screens(page, page.locator(".accel-panel"), look)
    if not chapter.startswith("00"):
        choose_the_missing_line(page)

    save(page)
    open_notebook(page, lab, chapter)
    panel.scroll_into_view_if_needed()
    expect(panel.locator(".bqplot").first).to_be_visible(timeout=30_000)
    expect(status(panel)).to_contain_text("stopped")
    look("4-reloaded")
    assert complaints == []


def test_a_panel_in_the_dark(page: Page, lab, complaints, artefacts):
    open_notebook(page, lab, "16_ddp.ipynb")
    with theme(page, "JupyterLab Dark"):
        run_cell(page, "panel = lab.Panel(", above=True)
        panel = page.locator(".accel-panel").first
        panel.scroll_into_view_if_needed()
        start(panel)
        assert barriers(page) == []
        page.screenshot(path=artefacts / "16_ddp-dark-training.png")
        stop(panel)
        drawn = page.locator("img.jp-needs-light-background:visible").first
        expect(drawn).to_have_css("filter", AT_NIGHT)
        drawn.scroll_into_view_if_needed()
        page.screenshot(path=artefacts / "16_ddp-dark-picture.png")
        panel.locator(".noUi-handle").first.evaluate(
            "handle => handle.setAttribute('aria-label', '')"
        )
        assert any("noUi-handle" in barrier for barrier in barriers(page)), (
            "a handle without a name must be noticed"
        )
        # Taken for gone before it came, as on a slow machine, and there all the same.
        panel.locator("xpath=..").evaluate("output => output.classList.add('jupyter-widgets')")
        start(panel)
    assert complaints == []


def test_what_is_left_when_the_kernel_has_ended(page: Page, lab, complaints, artefacts):
    """The next day a picture of the panel stands where the panel was, and the questions where their
    sliders were.
    """
    chapter = "11_accumulation.ipynb"
    open_notebook(page, lab, chapter)
    run_cell(page, "panel = lab.Panel(", above=True)
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    instead = page.locator(
        ".jp-OutputArea-child:has(.accel-panel, .accel-ask, .jupyter-widgets) + "
        ".jp-OutputArea-child"
    )
    expect(instead).to_have_count(3)
    before = instead.last.locator("img").get_attribute("src")
    start(panel)
    stop(panel)
    expect(instead.last.locator("img")).not_to_have_attribute("src", before)
    for one in instead.all():
        expect(one).to_be_hidden()
    save(page)
    end_kernels(page)

    # not all of it was run, so JupyterLab trusts it with no widget
    open_notebook(page, lab, chapter)
    still = page.locator(".jp-CodeCell:has-text('panel = lab.Panel(') img").first
    expect(still).to_be_visible(timeout=30_000)
    assert [one for one in complaints if not one.startswith(OF_AN_END)] == []
    trust(page)
    save(page)
    end_kernels(page)

    open_notebook(page, lab, chapter)
    gone = page.locator(
        ".jp-OutputArea-output.jupyter-widgets",
        has_text="The kernel behind these controls has ended.",
    )
    expect(gone).to_have_count(3, timeout=30_000)
    for one, shown in zip(
        instead.all(), ("how many times those", "how many times that", ""), strict=True
    ):
        expect(one).to_be_visible()
        expect(one).to_contain_text(shown)
    still.scroll_into_view_if_needed()
    assert still.evaluate("img => img.naturalWidth") > 0
    said, place = gone.last.bounding_box(), still.bounding_box()
    assert 0 <= place["y"] - said["y"] - said["height"] < 20, (
        "the picture is not in the place of the panel"
    )
    page.screenshot(path=artefacts / "11_accumulation-6-the-next-day.png")
    with theme(page, "JupyterLab Dark"):
        expect(still).to_have_css("filter", AT_NIGHT)
        page.screenshot(path=artefacts / "11_accumulation-6-the-next-night.png")
    assert [
        one
        for one in complaints
        if not one.startswith((OF_AN_END, "Error: widget model not found"))
    ] == []


def test_a_mistake_turns_the_badge_and_a_panel_run_again_leaves_no_thread(
    page: Page, lab, complaints, artefacts
):
    """A cell run again while its panel trains leaves one panel, at rest. A kernel that is restarted
    while it trains is told in one sentence.
    """
    open_notebook(page, lab, "11_accumulation.ipynb")
    run_cell(page, "base = ", above=True)
    run_cell(page, "broken = ")
    run_cell(page, "break_it = lab.Panel(")
    assert stderr(page) == []
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    badge = panel.locator(".accel-badge")
    start(panel)
    expect(badge).to_contain_text("every update is the full batch's", timeout=30_000)
    button(panel, "no scaling").click()
    expect(badge).to_contain_text("not the full batch's update", timeout=10_000)
    chart = panel.locator(".bqplot").first
    wait_until_it_moves(chart, picture(chart))
    picture_of(page, artefacts, "11_accumulation.ipynb")("5-broken")
    run_cell(page, "break_it = lab.Panel(")
    expect(status(panel)).to_contain_text("ready", timeout=30_000)
    assert page.locator(".accel-panel").count() == 1
    threads = ask_kernel(page, "import threading; print([t.name for t in threading.enumerate()])")
    assert "training" not in threads
    assert complaints == []

    start(panel)
    restart_kernel(page)
    gone = page.locator(".accel-gone")
    expect(gone.first).to_have_text(
        "The kernel behind these controls has ended. Run the notebook again to have them back.",
        timeout=30_000,
    )
    expect(status(panel)).to_be_hidden()  # it would say that it still trains
    picture_of(page, artefacts, "11_accumulation.ipynb")("7-restarted")


def test_a_tab_that_is_closed_while_it_trains_and_a_kernel_that_is_killed(
    page: Page, lab, complaints, artefacts
):
    """The panel is there again and still trains, also on a page that was busy when it came; of a
    kernel that is gone one sentence tells.
    """
    chapter = "11_accumulation.ipynb"
    open_notebook(page, lab, chapter)
    run_cell(page, "panel = lab.Panel(", above=True)
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    start(panel)
    trust(page)  # as a reader's own copy is
    save(page)
    close_and_open(page)
    panel.scroll_into_view_if_needed()
    expect(status(panel)).to_contain_text("running", timeout=30_000)
    chart = panel.locator(".bqplot").first
    wait_until_it_moves(chart, picture(chart))
    picture_of(page, artefacts, chapter)("8-opened-again")
    stop(panel)
    save(page)
    at_other_work(page, 1900)
    open_notebook(page, lab, chapter)
    expect(status(panel)).to_contain_text("stopped", timeout=30_000)
    assert complaints == []

    start(panel)
    os.kill(int(ask_kernel(page, "import os; print(os.getpid())")), signal.SIGKILL)
    gone = page.locator(".accel-gone").first
    expect(gone).to_contain_text("The kernel behind these controls has ended.", timeout=60_000)
    expect(status(panel)).to_be_hidden()
    picture_of(page, artefacts, chapter)("9-killed")


def test_a_slider_moved_or_played_draws_the_picture_anew(page: Page, lab, complaints, artefacts):
    open_notebook(page, lab, "04_augmentation.ipynb")
    run_cell(page, "lab.Sliders(", above=True)
    sliders = page.locator(".accel-sliders")
    drawn = page.locator(".jp-OutputArea:has(.accel-sliders) img:visible")
    before = drawn.get_attribute("src")
    sliders.get_by_role("slider", name="rotate").focus()
    page.keyboard.press("ArrowRight")
    expect(drawn).not_to_have_attribute("src", before, timeout=10_000)
    assert barriers(page, ".accel-sliders") == []
    picture_of(page, artefacts, "04_augmentation.ipynb")("5-sliders")

    page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel
            .setSource('lab.Sliders(wall, rotate=range(0, 46, 15), shift=[0.1, 0.2])')"""
    )
    run_cell(page, "range(0, 46, 15)")
    button(sliders, "Play rotate").focus()
    place = drawn.bounding_box()
    page.keyboard.press("Space")
    expect(button(sliders, "Pause rotate")).to_be_visible()
    expect(sliders.get_by_role("slider", name="rotate")).to_have_attribute(
        "aria-valuenow", "45.0", timeout=10_000
    )
    expect(button(sliders, "Play rotate")).to_be_visible()
    assert drawn.bounding_box() == place, "the picture has jumped"
    before = drawn.get_attribute("src")
    button(sliders, "0.2").click()
    expect(drawn).not_to_have_attribute("src", before, timeout=10_000)
    assert barriers(page, ".accel-sliders") == []
    assert complaints == []
