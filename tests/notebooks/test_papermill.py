"""Every chapter runs under papermill with other knobs, and refuses a wrong one in one line."""

from pathlib import Path

import nbformat
import papermill
import pytest

COURSE = Path(__file__).parents[2] / "course"
OTHER_KNOBS = {
    "accumulation": {"batch_size": 50, "learning_rate": 0.05},
    "ddp": {"width": 64, "batch_size": 50},
}
WRONG_KNOBS = {
    "accumulation": ({"micro_batches": 99}, "micro_batches: should be less than or equal to 64"),
    "ddp": ({"ranks": 9}, "ranks: should be less than or equal to 4"),
}
CHAPTERS = [path for path in sorted(COURSE.glob("[0-9]*.ipynb")) if path.stem[3:] in OTHER_KNOBS]


def execute(chapter: Path, knobs: dict, out: Path) -> nbformat.NotebookNode:
    return papermill.execute_notebook(chapter, out, {"knobs": knobs}, cwd=COURSE, kernel_name="python3", progress_bar=False)


def test_every_chapter_with_knobs_is_tried():
    tagged = [
        path
        for path in COURSE.glob("*.ipynb")
        if any("parameters" in cell.metadata.get("tags", []) for cell in nbformat.read(path, 4).cells)
    ]
    assert sorted(tagged) == CHAPTERS != []
    assert OTHER_KNOBS.keys() == WRONG_KNOBS.keys()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_with_other_knobs(chapter, tmp_path):
    done = execute(chapter, OTHER_KNOBS[chapter.stem[3:]], tmp_path / "out.ipynb")
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_wrong_knob_ends_it_at_once_and_is_named(chapter, tmp_path):
    knobs, line = WRONG_KNOBS[chapter.stem[3:]]
    with pytest.raises(papermill.PapermillExecutionError, match=line):
        execute(chapter, knobs, tmp_path / "out.ipynb")
