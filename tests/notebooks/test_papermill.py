"""Every chapter runs under papermill with other knobs, and refuses a wrong one in one line.

The knobs are the technique's ``SMALL_KNOBS`` in its own test file: the whole chapter, in little.
"""

import importlib
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from accel_lab import catalog

COURSE = Path(__file__).parents[2] / "course"
CHAPTERS = [chapter.path for chapter in catalog.chapters(COURSE)]
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def technique_of(chapter: Path) -> str:
    """Its own; for the front door the one that it gives a taste of."""
    source = (COURSE / f"source/{chapter.stem}.py").read_text(encoding="utf-8")
    return re.search(r"from accel_lab\.experiments import (\w+)", source)[1]


def small_knobs(chapter: Path) -> dict:
    return importlib.import_module(f"tests.test_{technique_of(chapter)}").SMALL_KNOBS


def wrong_knobs(chapter: Path) -> tuple[dict, str]:
    """The first knob that has an upper end, turned beyond it; and how the line about it begins."""
    dials = catalog.experiment(technique_of(chapter)).Knobs.dials()
    dial = next(dial for dial in dials if dial.high is not None)
    return {dial.name: dial.high + 1}, f"{dial.name}: should be less than"


def execute(chapter: Path, knobs: dict | str, out: Path) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        chapter, out, {"knobs": knobs}, cwd=COURSE, kernel_name="python3", progress_bar=False
    )


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def pictures(outputs: list[nbformat.NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@every_chapter
def test_a_chapter_takes_knobs(chapter):
    cells = nbformat.read(chapter, 4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1


@every_chapter
def test_a_chapter_runs_with_other_knobs(chapter, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_QUICK", "1")
    done = execute(chapter, small_knobs(chapter), tmp_path / "out.ipynb")
    outputs, stored = outputs_of(done), outputs_of(nbformat.read(chapter, 4))
    assert not [output for output in outputs if output.output_type == "error"]
    assert pictures(outputs) == pictures(stored) > 0
    live = "application/vnd.jupyter.widget-view+json"
    assert not [output for output in outputs if live in output.get("data", {})]


@every_chapter
def test_a_wrong_knob_ends_it_at_once_and_is_named(chapter, tmp_path):
    """Also where the knobs come as text, as from ``papermill -p knobs '{"width": 512}'``."""
    knobs, line = wrong_knobs(chapter)
    with pytest.raises(papermill.PapermillExecutionError, match=line):
        execute(chapter, json.dumps(knobs), tmp_path / "out.ipynb")


def test_a_parameter_that_a_chapter_does_not_read_ends_it_and_is_named(tmp_path):
    """``papermill -p batch_size 64``, which would train with all knobs as they are."""
    asked = {"parameters": {"batch_size": 64}, "kernel_name": "python3", "progress_bar": False}
    chapter = COURSE / "11_accumulation.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="batch_size: is a knob"):
        papermill.execute_notebook(chapter, tmp_path / "out.ipynb", cwd=COURSE, **asked)
