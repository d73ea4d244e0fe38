"""Every chapter runs under papermill with other knobs, and refuses a wrong one in one line."""

import importlib
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from accel_lab.workbench.knobs import Dial

COURSE = Path(__file__).parents[2] / "course"
CHAPTERS = sorted(COURSE.glob("[0-9]*.ipynb"))
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def dials(chapter: Path) -> list[Dial]:
    """Those of the technique that the chapter imports first: its own, and for the front door the
    one that it gives a taste of.
    """
    technique = re.search(
        r"from accel_lab\.experiments import (\w+)",
        (COURSE / f"source/{chapter.stem}.py").read_text(encoding="utf-8"),
    )[1]
    return importlib.import_module(f"accel_lab.experiments.{technique}").Knobs.dials()


def other_knobs(chapter: Path) -> dict:
    """One knob turned: the seed where there is one, else the first whole number, by one."""
    turned = sorted(
        (dial for dial in dials(chapter) if dial.type is int), key=lambda dial: dial.name != "seed"
    )[0]
    return {turned.name: turned.default + (1 if turned.default < turned.high else -1)}


def wrong_knobs(chapter: Path) -> tuple[dict, str]:
    """The first knob that has an upper end, turned beyond it; and how the line begins that says so."""
    dial = next(dial for dial in dials(chapter) if dial.high is not None)
    return {dial.name: dial.high + 1}, f"{dial.name}: should be less than"


def execute(chapter: Path, knobs: dict, out: Path) -> nbformat.NotebookNode:
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
def test_a_chapter_runs_with_other_knobs(chapter, tmp_path):
    done = execute(chapter, other_knobs(chapter), tmp_path / "out.ipynb")
    outputs, stored = outputs_of(done), outputs_of(nbformat.read(chapter, 4))
    assert not [output for output in outputs if output.output_type == "error"]
    assert pictures(outputs) == pictures(stored) > 0
    assert not [
        output
        for output in outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]


@every_chapter
def test_a_wrong_knob_ends_it_at_once_and_is_named(chapter, tmp_path):
    knobs, line = wrong_knobs(chapter)
    with pytest.raises(papermill.PapermillExecutionError, match=line):
        execute(chapter, knobs, tmp_path / "out.ipynb")
