"""A panel where its charts cannot be live: its picture shows, and one sentence says why."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Page, expect

from tests.browser.lab import end_kernels, jupyter_lab, open_notebook, run_all

pytestmark = pytest.mark.needs("chromium")
ROOT = Path(__file__).parents[2]
PANEL = """\
from accel_lab.experiments import accumulation as experiment
from accel_lab.workbench import chapter as lab
panel = lab.Panel(experiment.run, experiment.Knobs(), [lab.Curve("loss", "loss")], seconds=0.3)
panel"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture
def notebook(monkeypatch, tmp_path) -> nbformat.NotebookNode:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path / "reader"))
    return new_notebook(cells=[new_code_cell(PANEL)], metadata={"kernelspec": KERNEL})


def test_a_page_made_of_a_panel_shows_its_picture_without_the_internet(
    page: Page, notebook, monkeypatch, tmp_path
):
    """``jupyter nbconvert --to html`` of a notebook that was saved with its widgets' state, which
    a page can show only with what it fetches.
    """
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert "widgets" in notebook.metadata
    html = tmp_path / "page.html"
    html.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    page.context.set_offline(True)
    page.goto(html.as_uri())
    picture = page.locator(".jp-OutputArea-output img")
    page.wait_for_timeout(1000)  # what would hide it has been run by then
    expect(picture).to_be_visible()
    assert picture.evaluate("img => img.naturalWidth") > 0


@pytest.mark.slow
def test_without_the_front_end_of_its_charts_a_panel_shows_its_picture(
    page: Page, notebook, monkeypatch, tmp_path, artefacts
):
    """Where the kernel lives in another environment than JupyterLab, this may lack bqplot."""
    monkeypatch.delenv("ACCEL_LAB_HEADLESS", raising=False)
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    nbformat.write(notebook, root / "panel.ipynb")
    with jupyter_lab(root, home, without=["@bqplot/bqplot"]) as address:
        open_notebook(page, address, "panel.ipynb")
        run_all(page)
        expect(page.get_by_role("alert")).to_contain_text("bqplot is missing", timeout=30_000)
        expect(page.get_by_role("alert")).to_have_count(1)
        picture = page.locator(".jp-CodeCell img").first
        expect(picture).to_be_visible()
        assert page.locator(".jupyter-widgets-error-widget:visible").count() == 0
        before = picture.get_attribute("src")
        panel = page.locator(".accel-panel")
        panel.get_by_role("button", name="Start").click()
        expect(panel.get_by_role("status")).to_contain_text("samples/s", timeout=30_000)
        panel.get_by_role("button", name="Stop").click()
        expect(picture).not_to_have_attribute("src", before, timeout=30_000)
        page.screenshot(path=artefacts / "without-charts.png")
        end_kernels(page)
