"""A chapter's exercises as a source assignment of nbgrader, for courses that already live there.

nbgrader runs its checks inside the learner's kernel, where a learner can change what they say: its
grades are worth as much as that. What is handed in can be graded by ``python -m accel_lab grade``
as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from accel_lab import catalog
from accel_lab.exercises import Exercise
from accel_lab.grading.lookup import exercises
from accel_lab.grading.practice import markdown

CONFIGURATION = """# The answers of a chapter are left to learners as the chapter leaves them.
c = get_config()
c.ClearSolutions.code_stub = {"python": "# Write your answer here, in place of what follows."}
"""
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


class CannotExport(RuntimeError):
    """One line that says why."""


def export(folder: Path, course: Path) -> list[Path]:
    """Write ``folder/source/<chapter>/<chapter>.ipynb`` for each chapter with exercises, and
    nbgrader's configuration unless there is one; returns the notebooks. Raises CannotExport; a file
    that is there already is never written over.
    """
    asked = set(catalog.with_exercises())
    chapters = [one for one in catalog.chapters(course) if one.word in asked]
    if not chapters:
        raise CannotExport(
            f"{course}: the chapters are not there; export runs in a checkout of the course"
        )
    written = []
    try:
        for chapter in chapters:
            path = chapter.path
            target = folder / "source" / path.stem / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                nbformat.write(_assignment(chapter), file)
            written.append(target)
        if not (folder / "nbgrader_config.py").exists():
            (folder / "nbgrader_config.py").write_text(CONFIGURATION, encoding="utf-8")
    except FileExistsError as error:
        raise CannotExport(
            f"{error.filename}: is there already; move it away, or export to another folder"
        ) from None
    except OSError as error:
        raise CannotExport(f"{error.filename}: {error.strerror}") from None
    return written


def _assignment(chapter: catalog.ChapterFile) -> nbformat.NotebookNode:
    cells = [
        new_markdown_cell(f"# Exercises of chapter {chapter.number}: {chapter.word}"),
        new_code_cell("import torch\nfrom accel_lab.grading.practice import check"),
    ]
    stubs = [
        cell.source
        for cell in nbformat.read(chapter.path, 4).cells
        if "exercise" in cell.metadata.get("tags", [])
    ]
    for exercise in exercises(chapter.word):
        stub = next(source for source in stubs if f"def {exercise.name}(" in source)
        cells += [
            _marked(new_markdown_cell(markdown(exercise)), f"{exercise.name}-task", locked=True),
            _marked(new_code_cell(_with_solution(stub, exercise)), exercise.name, solution=True),
            _marked(
                new_code_cell(_judged(exercise)),
                f"{exercise.name}-check",
                points=exercise.points,
                grade=True,
                locked=True,
            ),
        ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def _marked(cell: nbformat.NotebookNode, name: str, **more: object) -> nbformat.NotebookNode:
    about = {"grade": False, "solution": False, "locked": False, "task": False} | more
    cell.id = name
    cell.metadata["nbgrader"] = {
        "grade_id": name,
        "schema_version": 3,
        "cell_type": cell.cell_type,
        **about,
    }
    return cell


def _judged(exercise: Exercise) -> str:
    """The verdict is displayed, not returned: nbgrader takes what a cell returns for a number."""
    return (
        f"verdict = check({exercise.name})\ndisplay(verdict)\nassert verdict.points == verdict.most"
    )


def _with_solution(stub: str, exercise: Exercise) -> str:
    """The chapter's stub, and before what it leaves to the learner a region that nbgrader takes
    out: the right answer.
    """
    lines = stub.split("\n")
    [function] = [
        node
        for node in ast.parse(stub).body
        if isinstance(node, ast.FunctionDef) and node.name == exercise.name
    ]
    arguments = ", ".join(argument.arg for argument in function.args.args)
    solution = [
        BEGIN,
        "from accel_lab.grading.lookup import find",
        "",
        f'return find("{exercise.name}").reference({arguments})',
        END,
    ]
    end_of_signature = max(
        [function.lineno, *(argument.end_lineno for argument in function.args.args)]
    )
    first = (
        next(i for i in range(end_of_signature - 1, len(lines)) if lines[i].rstrip().endswith(":"))
        + 1
    )
    indented = [" " * function.body[0].col_offset + line if line else "" for line in solution]
    return "\n".join([*lines[:first], *indented, *lines[first : function.end_lineno]])
