"""What watching costs: training under a live panel in a real browser, against the bare loop and
against other ways to draw.

Browser, server and kernel share the machine with the training, as they do for the reader. Every way
trains the same model in the same kernel with the page open, in turn with the bare loop, and is
judged by samples per second of the clock on the wall.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import nbformat
import psutil
from nbclient import NotebookClient
from playwright.sync_api import Page, expect, sync_playwright

from accel_lab.workbench.measure.comparison import Comparison
from tests.browser.lab import (
    CHROMIUM,
    CHROMIUM_ARGS,
    ask_kernel,
    jupyter_lab,
    open_notebook,
    run_all,
)

COURSE = Path(__file__).parents[1] / "course"
PAIRS = 9
SECONDS = 3.0

SETUP = '''
import io, threading, time
import ipywidgets as w
from IPython.display import display
from matplotlib.figure import Figure
from accel_lab.experiments import accumulation
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.panel import Panel
from accel_lab.workbench.panel.trainer import windows

knobs = accumulation.Knobs(micro_batches=8, timeline=True)
curves = [
    Curve("throughput", "samples/s"),
    Curve("loss", "loss", over="updates"),
    Sweep(
        "micro_batches",
        "activation_bytes",
        "bytes",
        predicted=accumulation.predicted_activation_bytes,
    ),
]


def trained(draw, seconds):
    """samples/s on the wall of a run in a thread, draw(record) after each window."""
    record, over, found = Record(knobs, "run"), threading.Event(), []

    def work():
        for _ in windows(accumulation.run, record, over):
            draw(record)
        found.append(record.samples / record.seconds[-1])

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(seconds)
    over.set()
    thread.join()
    return found[0]


panel = Panel(accumulation.run, knobs, curves)
timeline = Panel(accumulation.run, knobs, [*curves, Timeline()])
picture, output = w.Image(format="png"), w.Output()


def frame(record):
    figure = Figure((7, 2.6), dpi=80)
    for place, name in enumerate(("throughput", "loss"), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot(record.seconds, record.series[name])
        axes.set_xlabel("seconds")
    figure.savefig(buffer := io.BytesIO(), format="png")
    picture.value = buffer.getvalue()


def livelossplot():
    from livelossplot import PlotLosses

    with output:
        plot = PlotLosses()

    def draw(record):
        with output:
            plot.update({name: record.latest(name) for name in ("throughput", "loss")})
            plot.send()

    return draw


WAYS = {
    "bare": lambda: lambda record: None,
    "panel": lambda: panel._moved,
    "panel with a timeline": lambda: timeline._moved,
    "matplotlib frames": lambda: frame,
    "livelossplot": livelossplot,
}
for shown in (panel, timeline, picture, output):
    display(shown)
'''


def notebook(folder: Path) -> None:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SETUP)])
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(made, folder / "panel.ipynb")


def cases() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory() as root,
        tempfile.TemporaryDirectory() as home,
        sync_playwright() as playwright,
    ):
        notebook(Path(root))
        with jupyter_lab(Path(root), Path(home)) as lab:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1600})
            open_notebook(page, lab, "panel.ipynb")
            run_all(page)
            expect(page.locator(".accel-panel")).to_have_count(2)
            yield from throughput(page)
            yield from latencies(page)
            browser.close()
    yield from memory_of_the_chapter()
    yield from import_time()


def throughput(page: Page) -> Iterator[str]:
    def measure(way: str, seconds: float = SECONDS) -> float:
        return float(ask_kernel(page, f"print(trained(WAYS[{way!r}](), {seconds}))"))

    for way in ("panel", "panel with a timeline", "matplotlib frames", "livelossplot"):
        measure(way, 1.0)
        pairs = []
        for pair in range(PAIRS):
            first, second = ("bare", way) if pair % 2 else (way, "bare")
            speed = {first: measure(first), second: measure(second)}
            pairs.append((1 / speed[way], 1 / speed["bare"]))
        comparison = Comparison.of(pairs)
        yield (
            f"{comparison.line(way, 'bare loop')}, keeps {1 / comparison.ratio:.1%} of its "
            "throughput"
        )


def latencies(page: Page) -> Iterator[str]:
    """Seconds from what the reader does to what the reader sees."""
    panel = page.locator(".accel-panel").first
    panel.scroll_into_view_if_needed()
    status, legend = panel.get_by_role("status"), panel.locator(".accel-entry").first
    slider = panel.locator(".noUi-handle").nth(1)
    seen: dict[str, list[float]] = {
        "first point after Start": [],
        "slider heard": [],
        "Stop heard": [],
    }
    for turn in range(PAIRS):
        start = perf_counter()
        panel.get_by_role("button", name="Start").click()
        expect(status).to_contain_text("samples/s")
        seen["first point after Start"].append(perf_counter() - start)
        page.wait_for_timeout(700)
        running = legend.inner_text()
        slider.focus()
        start = perf_counter()
        page.keyboard.press("ArrowLeft" if turn % 2 else "ArrowRight")
        expect(legend).not_to_have_text(running)
        seen["slider heard"].append(perf_counter() - start)
        page.wait_for_timeout(700)
        start = perf_counter()
        panel.get_by_role("button", name="Stop").click()
        expect(status).to_contain_text("stopped")
        seen["Stop heard"].append(perf_counter() - start)
        page.wait_for_timeout(700)
    for what, seconds in seen.items():
        yield (
            f"panel, {what}: {median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f} of "
            f"{len(seconds)})"
        )


def memory_of_the_chapter() -> Iterator[str]:
    """The proportional set size of the kernel after each cell of chapter 11, and the largest of
    them.
    """
    chapter = nbformat.read(COURSE / "11_accumulation.ipynb", as_version=4)
    sizes = []

    def look(**_: object) -> None:
        kernel = next(
            child
            for child in psutil.Process().children(recursive=True)
            if "ipykernel_launcher" in " ".join(child.cmdline())
        )
        sizes.append(kernel.memory_full_info().pss / 2**20)

    NotebookClient(
        chapter, timeout=600, resources={"metadata": {"path": str(COURSE)}}, on_cell_executed=look
    ).execute()
    yield (
        f"chapter 11, kernel: {sizes[-1]:.0f} MB PSS at its end, {max(sizes):.0f} MB at most "
        "after a cell"
    )


def import_time() -> Iterator[str]:
    """What ``import accel_lab`` adds to ``import torch``, inside one process each."""
    code = (
        "import json, time, torch; start = time.perf_counter(); import accel_lab; "
        "print(json.dumps(time.perf_counter() - start))"
    )
    seconds = [
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        )
        for _ in range(PAIRS)
    ]
    yield (
        f"import accel_lab after torch: {median(seconds):.4f} s "
        f"({min(seconds):.4f}–{max(seconds):.4f} of {len(seconds)})"
    )
