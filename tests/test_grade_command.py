"""python -m accel_lab grade and export: a class from the command line, interrupted, repeated,
spread over a cluster.
"""

import csv
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import accel_lab.exercises.measuring as exercise_module
from accel_lab.__main__ import main
from accel_lab.grading import reader
from accel_lab.grading.journal import Journal
from accel_lab.grading.marking import refused
from accel_lab.grading.nbgrader import CannotExport, export
from accel_lab.grading.submissions import NothingToGrade, find

pytestmark = pytest.mark.needs("bwrap")
ROOT = Path(__file__).parents[1]
ANSWERS = inspect.getsource(exercise_module)
FAULTY = (
    ANSWERS
    + "\ndef paired_speedup(ours, peer):\n    return {'speedup': float('nan'), 'agreeing': 0}\n"
)
TECHNIQUES = ["measuring", "accumulation"]


def hand_in(path: Path, *cells: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), str(path))
    return path


def grade(*arguments: object) -> int:
    try:
        main(["grade", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def klass(tmp_path):
    for name in ("Ann", "李 小明", "=cmd|'C calc'!A0"):
        hand_in(tmp_path / "handed in" / name / "01_measuring.ipynb", ANSWERS)
    hand_in(tmp_path / "handed in" / "Bob O'Neil_measuring.ipynb", FAULTY)
    hand_in(tmp_path / "handed in" / "Eve_01_measuring.ipynb", "x = 1")
    (tmp_path / "handed in" / "Zoe_measuring.ipynb").write_bytes(b"\0\0")
    return tmp_path / "handed in"


@pytest.mark.slow
def test_a_class_gets_marks_reasons_and_pages(klass, tmp_path, capsys):
    out = tmp_path / "grades.csv"
    assert grade(klass, "--out", out) == 0
    rows = {row["learner"]: row for row in table(out)}
    assert [(name, row["points"], row["of"]) for name, row in rows.items()] == [
        ("'=cmd|'C calc'!A0", "7", "7"),
        ("Ann", "7", "7"),
        ("Bob O'Neil", "5", "7"),
        ("Eve", "0", "7"),
        ("Zoe", "0", "7"),
        ("李 小明", "7", "7"),
    ]
    assert "paired_speedup: speedup: nan instead of" in rows["Bob O'Neil"]["remarks"]
    assert "no cell defines the function measure_pairs" in rows["Eve"]["remarks"]
    assert "not a notebook" in rows["Zoe"]["remarks"]
    assert {row["isolation"] for row in rows.values()} == {"bubblewrap"}
    pages = list((tmp_path / "grades" / "learners").iterdir())
    assert len(pages) == 6
    report = (tmp_path / "grades" / "report.html").read_text()
    assert "李 小明" in report
    assert "=cmd|&#39;C calc&#39;!A0" in report
    assert "bubblewrap" in (tmp_path / "grades" / "learners" / "Ann.html").read_text()
    assert str(out) in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_graded_is_not_graded_again(klass, tmp_path, capsys):
    out = tmp_path / "grades.csv"
    grade(klass, "--out", out)
    before = table(out)
    grade(klass, "--out", out)
    assert table(out) == before
    assert "6 of 6 were graded before" in capsys.readouterr().err
    hand_in(klass / "Bob O'Neil_measuring.ipynb", ANSWERS)
    grade(klass, "--out", out)
    assert {row["learner"]: row["points"] for row in table(out)}["Bob O'Neil"] == "7"


@pytest.mark.slow
def test_grading_again_uses_the_same_cases(klass, tmp_path, capsys):
    out = tmp_path / "grades.csv"
    grade(klass, "--out", out)
    before = [{key: row[key] for key in row if key != "graded"} for row in table(out)]
    assert grade(klass, "--out", out, "--again", "--jsonl") == 0
    assert [{key: row[key] for key in row if key != "graded"} for row in table(out)] == before
    lines = [
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")
    ]
    assert len(lines) == 6
    assert {"learner", "technique", "points", "most", "verdicts", "isolation", "seed"} <= lines[
        0
    ].keys()


def test_a_journal_cut_off_in_mid_line_is_read_and_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    entry = replace(refused("measuring", OSError()), learner="Ann")
    journal = Journal(path)
    journal.add(entry)
    with path.open("a") as file:
        file.write('{"learner": "Bo')
    journal = Journal(path)
    journal.add(replace(entry, learner="Cid"))
    assert Journal(path).entries["Ann", "measuring"] == entry
    assert set(Journal(path).entries) == {("Ann", "measuring"), ("Cid", "measuring")}


def test_a_name_steers_no_terminal(tmp_path):
    for name in ("\x1b[2J", "Ann_measuring", "Ann_01_measuring"):
        hand_in(tmp_path / "\x1b]0;mine\x07" / f"{name}.ipynb", "")
    hand_in(tmp_path / "Bob_measuring.ipynb", "")
    _, notes = find([tmp_path], TECHNIQUES)
    assert len(notes) == 2
    assert all(note.isprintable() for note in notes)


@pytest.mark.slow
def test_a_class_goes_on_whatever_a_notebook_does_to_the_reader(klass, tmp_path, monkeypatch):
    def fails(content, parse=reader.parse):
        if content == b"\0\0":
            raise MemoryError("\x1b[2J")
        return parse(content)

    monkeypatch.setattr(reader, "parse", fails)
    assert grade(klass, "--out", tmp_path / "grades.csv") == 0
    rows = {row["learner"]: row for row in table(tmp_path / "grades.csv")}
    assert rows["Ann"]["points"] == "7"
    assert rows["Zoe"]["remarks"] == r"the grader failed on this: MemoryError: \x1b[2J"


def test_whose_it_is(tmp_path):
    hand_in(tmp_path / "a" / "Ann" / "course" / "11_accumulation.ipynb", "")
    hand_in(tmp_path / "a" / "Ann" / ".ipynb_checkpoints" / "11_accumulation.ipynb", "")
    hand_in(tmp_path / "a" / "bob-smith_01_measuring.ipynb", "")
    hand_in(tmp_path / "a" / "cid.measuring.ipynb", "")
    hand_in(tmp_path / "a" / "notes.ipynb", "")
    hand_in(tmp_path / "a" / "new\nline_measuring.ipynb", "")
    found, notes = find([tmp_path / "a"], TECHNIQUES)
    assert [(one.learner, one.technique) for one in found] == [
        ("Ann", "accumulation"),
        ("bob-smith", "measuring"),
        ("cid", "measuring"),
        ("new?line", "measuring"),
    ]
    assert len(notes) == 1
    assert "notes.ipynb: passed over" in notes[0]
    [alone], _ = find([tmp_path / "a" / "Ann" / "course" / "11_accumulation.ipynb"], TECHNIQUES)
    assert (alone.learner, alone.technique) == ("course", "accumulation")


@pytest.mark.slow
def test_two_of_one_learner_are_told_and_neither_is_taken(klass, tmp_path, capsys):
    hand_in(klass / "Ann_measuring.ipynb", ANSWERS)
    grade(klass, "--out", tmp_path / "grades.csv")
    assert "Ann has handed in measuring more than once" in capsys.readouterr().err
    assert "Ann" not in {row["learner"] for row in table(tmp_path / "grades.csv")}


@pytest.mark.slow
def test_bad_input_is_one_line(klass, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("x")
    for arguments, said in [
        ([tmp_path / "empty"], "empty: there is no notebook in it"),
        ([tmp_path / "nowhere"], "nowhere: no such notebook or folder"),
        (
            [klass, "--out", tmp_path / "a file" / "grades.csv"],
            "Not a directory; --out names the table",
        ),
        ([klass, "--jobs", 0, "--out", tmp_path / "g.csv"], "--jobs 0: at least 1"),
        (
            [klass, "--out", tmp_path / "g.csv", "--scheduler", "tcp://127.0.0.1:1"],
            "--scheduler tcp://127.0.0.1:1:",
        ),
        ([], "required: submissions"),
    ]:
        assert grade(*arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.strip().count("\n") == 0


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_graded(klass, tmp_path, monkeypatch, capsys):
    add, written = Journal.add, []

    def until_full(journal, entry):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(entry.learner)
        add(journal, entry)

    monkeypatch.setattr(Journal, "add", until_full)
    assert grade(klass, "--out", tmp_path / "grades.csv") == 2
    assert "No space left on device; 3 of 6 are graded and kept" in capsys.readouterr().err
    assert sorted(
        row["learner"]
        for row in table(tmp_path / "grades.csv")
        if not row["learner"].startswith("'")
    ) == sorted(name for name in written if not name.startswith("="))
    monkeypatch.undo()
    assert grade(klass, "--out", tmp_path / "grades.csv") == 0
    assert len(table(tmp_path / "grades.csv")) == 6


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_graded_and_leaves_nothing(tmp_path):
    for number in range(40):
        hand_in(tmp_path / "class" / f"learner {number}" / "measuring.ipynb", ANSWERS)
    command = [
        sys.executable,
        "-m",
        "accel_lab",
        "grade",
        tmp_path / "class",
        "--out",
        tmp_path / "grades.csv",
        "--jsonl",
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    for _ in range(3):
        assert json.loads(running.stdout.readline())["points"] == 7
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    kept = len(table(tmp_path / "grades.csv"))
    assert 3 <= kept < 40
    assert grade(tmp_path / "class", "--out", tmp_path / "grades.csv") == 0
    assert len(table(tmp_path / "grades.csv")) == 40


def servers_gone(within):
    """Whether no process of the grader's is left after so many seconds at most."""
    deadline = time.monotonic() + within
    while any(
        "inside.zygote" in (process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline"])
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_a_cluster_of_which_one_worker_is_killed(tmp_path, monkeypatch):
    """Two worker processes of dask.distributed; nothing is lost, nothing is graded twice, and the
    killed one leaves nothing behind.
    """
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setenv("TMPDIR", str(folders))  # of the workers
    learners = 24
    for number in range(learners):
        hand_in(
            tmp_path / "class" / f"learner {number:02}" / "measuring.ipynb",
            ANSWERS if number % 3 else FAULTY,
        )
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        out = tmp_path / "grades.csv"
        command = [
            sys.executable,
            "-m",
            "accel_lab",
            "grade",
            tmp_path / "class",
            "--out",
            out,
            "--jsonl",
            "--scheduler",
        ]
        running = subprocess.Popen(
            [*command, cluster.scheduler_address], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(5):
            running.stdout.readline()
        victim = next(iter(cluster.workers.values())).pid
        os.kill(victim, signal.SIGKILL)
        lines = running.communicate(timeout=120)[0].splitlines()
        assert running.returncode == 0
    seen = [json.loads(line)["learner"] for line in lines if line.startswith("{")]
    assert len(seen) == len(set(seen)) == learners - 5
    rows = table(out)
    assert [row["points"] for row in rows] == [
        "7" if number % 3 else "5" for number in range(learners)
    ]
    assert len((tmp_path / "grades" / "journal.jsonl").read_text().splitlines()) == learners
    assert servers_gone(within=10)
    assert not list(folders.glob("grading-*"))


@pytest.mark.slow
def test_an_assignment_that_nbgrader_accepts(tmp_path):
    """The real nbgrader makes the learners' version and grades it: a right answer gets its points,
    an untouched one none.
    """
    course = tmp_path / "course"
    written = export(course, ROOT / "course")
    assert len(written) == len(list((ROOT / "accel_lab" / "exercises").glob("[a-z]*.py")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment["PATH"] = (
        # nbgrader calls alembic by its name
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )

    def nbgrader(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=course,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stderr

    nbgrader("generate_assignment", "01_measuring", "--create")
    name = "01_measuring/01_measuring.ipynb"
    released = (course / "release" / name).read_text()
    assert "reference" not in released
    assert "raise NotImplementedError" in released
    answered = nbformat.reads(released, 4)
    for cell in answered.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "paired_speedup":
            cell.source = "from statistics import median\n\n" + inspect.getsource(
                exercise_module.paired_speedup
            )
    for learner, notebook in (("ann", answered), ("bob", nbformat.reads(released, 4))):
        (course / "submitted" / learner / "01_measuring").mkdir(parents=True)
        nbformat.write(notebook, str(course / "submitted" / learner / name))
    assert "cannot be converted" not in nbgrader("autograde", "01_measuring")
    nbgrader("export")
    with (course / "grades.csv").open() as file:
        scores = {
            row["student_id"]: (float(row["score"]), float(row["max_score"]))
            for row in csv.DictReader(file)
        }
    assert scores == {"ann": (2.0, 7.0), "bob": (0.0, 7.0)}


def test_an_export_writes_over_nothing(tmp_path):
    export(tmp_path, ROOT / "course")
    with pytest.raises(CannotExport, match="is there already"):
        export(tmp_path, ROOT / "course")
    with pytest.raises(CannotExport, match="the chapters are not there"):
        export(tmp_path / "other", tmp_path / "nowhere")


def test_nothing_to_grade_names_the_path(tmp_path):
    hand_in(tmp_path / "notes.ipynb", "")
    with pytest.raises(NothingToGrade, match="passed over"):
        find([tmp_path], TECHNIQUES)


def test_whatever_is_handed_in_is_graded_or_named(tmp_path):
    for name in ("Gil/01_measuring.IPYNB", "01_Measuring_Ida.ipynb", "Hal_01_MEASURING.Ipynb"):
        hand_in(tmp_path / name, "")
    (tmp_path / "Jo_01_measuring.ipynb.txt").write_text("{}")
    found, notes = find([tmp_path, tmp_path / "Gil/01_measuring.IPYNB"], TECHNIQUES)
    assert {(one.learner, one.technique) for one in found} == {
        ("Gil", "measuring"),
        ("Hal", "measuring"),
    }
    assert len(notes) == 2
    assert "Ida" in notes[0]
    assert "Jo_01_measuring.ipynb.txt: passed over" in notes[1]
