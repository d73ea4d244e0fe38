"""Grading a batch, beside nbgrader's autograde of the same notebooks; and the grader's memory over
a large class.

nbgrader runs the checks in the learner's own kernel, one after the other; ours asks behind
bubblewrap. Both start anew in each pair, and a verdict that differs stops the benchmark.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nbformat
import psutil

import accel_lab.exercises.measuring as exercises
from accel_lab.grading import command
from accel_lab.grading.factory import SandboxFactory
from accel_lab.grading.nbgrader import export
from accel_lab.grading.submissions import find
from accel_lab.workbench.measure.comparison import Comparison

ROOT = Path(__file__).parents[1]
CHAPTER, TECHNIQUE = "01_measuring", "measuring"
CLASS, PAIRS = 24, 3
MANY, LARGE = 1000, 2 << 20


def cases() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        course = _class_of_nbgrader(Path(folder))
        pairs = []
        for number in range(PAIRS):
            programs = {
                "ours": partial(_ours, course, number),
                "theirs": partial(_nbgrader, course),
            }
            seconds = {name: programs[name]() for name in sorted(programs, reverse=number % 2 == 0)}
            pairs.append((seconds["ours"], seconds["theirs"]))
        comparison = Comparison.of(pairs, ("accel_lab grade", "nbgrader autograde"))
        yield comparison.line(
            f"{CLASS} notebooks of chapter 01, start included", "nbgrader autograde"
        )
        each = (
            sorted(ours / CLASS for ours, _ in pairs)[PAIRS // 2],
            sorted(theirs / CLASS for _, theirs in pairs)[PAIRS // 2],
        )
        yield f"a submission takes {each[0]:.2f} s, nbgrader {each[1]:.2f} s"
    with tempfile.TemporaryDirectory() as folder:
        yield _large_class(Path(folder))


def _class_of_nbgrader(folder: Path) -> Path:
    export(folder, ROOT / "course")
    _run_nbgrader(folder, "generate_assignment", CHAPTER, "--create")
    notebook = nbformat.read(folder / "release" / CHAPTER / f"{CHAPTER}.ipynb", 4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if hasattr(exercises, name):
            cell.source = (
                "from statistics import mean, "
                f"median\n{inspect.getsource(getattr(exercises, name))}"
            )
    for number in range(CLASS):
        target = folder / "submitted" / f"learner{number}" / CHAPTER
        target.mkdir(parents=True)
        nbformat.write(notebook, str(target / f"{CHAPTER}.ipynb"))
    return folder


def _run_nbgrader(folder: Path, *arguments: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "PATH": path}
    subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )


def _nbgrader(course: Path) -> float:
    start = time.perf_counter()
    _run_nbgrader(course, "autograde", CHAPTER, "--force")
    return time.perf_counter() - start


def _ours(course: Path, number: int) -> float:
    out = course / f"ours-{number}.csv"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "accel_lab", "grade", course / "submitted", "--out", out],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - start
    rows = out.read_text(encoding="utf-8-sig").splitlines()[1:]
    if len(rows) != CLASS or not all(
        ",7,7," in row and row.count("bubblewrap") == 1 for row in rows
    ):
        raise SystemExit(f"not all points for right answers: {rows}")
    return seconds


def _large_class(folder: Path) -> str:
    """The memory of all processes of the grader while it grades many notebooks, each with much
    output in it.
    """
    answers = nbformat.v4.new_code_cell(inspect.getsource(exercises))
    answers.outputs = [nbformat.v4.new_output("stream", text="x" * LARGE)]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[answers]))
    for number in range(MANY):
        (folder / f"learner{number}_{TECHNIQUE}.ipynb").write_text(text)
    (submissions, _), looks, over = find([folder], [TECHNIQUE]), [], threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            looks.append(_memory())

    watch = threading.Thread(target=look)
    watch.start()
    start = time.perf_counter()
    with SandboxFactory() as factory:
        right = sum(
            entry["points"] == entry["most"]
            for entry in command.grade(submissions, folder / "grades.csv", factory)
        )
    seconds = time.perf_counter() - start
    over.set()
    watch.join()
    if right != MANY:
        raise SystemExit(f"{right} of {MANY} right answers got their points")
    early, late = max(looks[: len(looks) // 4]), max(looks[-len(looks) // 4 :])
    return (
        f"{MANY} notebooks of {LARGE >> 20} MB: {seconds / MANY:.3f} s each, all right; memory of "
        "the grader and its sandboxes at most "
        f"{max(looks) >> 20} MB PSS, {early >> 20} MB in the first quarter, {late >> 20} MB in "
        "the last"
    )


def _memory() -> int:
    total, processes = 0, [psutil.Process(), *psutil.Process().children(recursive=True)]
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
