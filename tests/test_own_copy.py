"""The learner's copy of the chapters is made, renewed, and never overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_notebook, new_output

from accel_lab.workbench.notebook.own_copy import bring_up_to_date

NAME = "11_accumulation.ipynb"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def a_jupyter_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "course"
    folder.mkdir()
    write(folder / NAME, "as it was", shown="what came out")
    (folder / "source").mkdir()
    (folder / "panel.png").write_bytes(b"")
    return folder


def write(path: Path, *sources: str, shown: str = "") -> None:
    outputs = [new_output("stream", text=shown)] if shown else []
    cells = [new_code_cell(source, id="a", outputs=outputs) for source in sources]
    nbformat.write(new_notebook(cells=cells), path)


def source_of(path: Path) -> str:
    return nbformat.read(path, 4).cells[0].source


def test_it_holds_the_chapters_alone_and_jupyter_trusts_them(course, tmp_path):
    own = tmp_path / "own"
    assert str(bring_up_to_date(course, own)) == "1 chapter made or renewed"
    assert sorted(path.name for path in own.iterdir()) == [".origins.json", NAME]
    assert nbformat.read(own / NAME, 4).cells[0].outputs == []  # no answer before the question
    assert NotebookNotary().check_signature(nbformat.read(own / NAME, 4))
    assert str(bring_up_to_date(course, own)) == "all chapters are up to date"


def test_a_chapter_that_was_only_run_is_renewed_and_one_that_was_changed_is_kept(course, tmp_path):
    own = tmp_path / "own"
    bring_up_to_date(course, own)
    write(own / NAME, "as it was", shown="my results")
    assert bring_up_to_date(course, own).made == []  # nothing newer: not even these are lost
    assert nbformat.read(own / NAME, 4).cells[0].outputs
    write(course / NAME, "newer")
    assert bring_up_to_date(course, own).made == [NAME]
    write(own / NAME, "mine")
    write(course / NAME, "newest")
    assert str(bring_up_to_date(course, own)) == (
        f"yours were kept, the newer ones are in new/: {NAME}"
    )
    assert source_of(own / NAME) == "mine"
    assert source_of(own / "new" / NAME) == "newest"
    assert bring_up_to_date(course, own).kept == []  # said once


def test_what_cannot_be_read_is_the_learners_too(course, tmp_path):
    own = tmp_path / "own"
    bring_up_to_date(course, own)
    (own / NAME).write_text("<<<<<<< half of it")
    (own / ".origins.json").write_text('{"half')
    assert bring_up_to_date(course, own).kept == [NAME]
    assert (own / NAME).read_text() == "<<<<<<< half of it"


@pytest.mark.slow
def test_the_command_says_what_it_did_and_what_it_cannot(tmp_path):
    def copy(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "accel_lab", "copy", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    done = copy("own")
    chapters = [path.name for path in (ROOT / "course").glob("[0-9]*.ipynb")]
    assert done.stdout == f"own: {len(chapters)} chapters made or renewed\n"
    assert sorted(json.loads((tmp_path / "own/.origins.json").read_text())) == sorted(chapters)
    (tmp_path / "file").write_text("")
    refused = copy("file/below")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
