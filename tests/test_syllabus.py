"""The front door reads the chapters that are there, and shows the reader's own verdicts to the
reader alone.
"""

import base64
import io

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from accel_lab.workbench.notebook import points, syllabus
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.notebook.syllabus import Syllabus


def png(color: str = "white") -> str:
    Image.new("RGB", (810, 540), color).save(buffer := io.BytesIO(), format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def chapter(
    words: int = 400, lines: int = 20, exercises: int = 0, panel: str | None = None
) -> nbformat.NotebookNode:
    shown = {"text/plain": "Panel", "image/png": panel} if panel else {"text/plain": "1"}
    cells = [
        new_markdown_cell(
            "# 07 · *Folding*\n\n## 1. The question\n\nCan **it** fold?\nSo they say. One "
            "reads:\n\n> It cannot."
        ),
        new_markdown_cell("word " * words),
        new_code_cell(
            "x = 1\n" * lines, outputs=[new_output("execute_result", data=shown, execution_count=1)]
        ),
        *(new_code_cell("f()", metadata={"tags": ["exercise"]}) for _ in range(exercises)),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def course(tmp_path, monkeypatch):
    taught = {"folding": "Fold it.", "bending": "Bend it."}
    monkeypatch.setattr(syllabus.catalog, "techniques", lambda: taught)
    for name, book in {
        "07_folding": chapter(panel=png()),
        "03_bending": chapter(),
        "00_start_here": chapter(),
    }.items():
        nbformat.write(book, tmp_path / f"{name}.ipynb")
    nbformat.write(chapter(), tmp_path / "notes.ipynb")
    return tmp_path


def test_it_finds_the_chapters_in_their_order(course):
    found = Syllabus(course)
    assert [one.word for one in found.chapters] == ["bending", "folding"]
    assert found.chapters[1].title == "07 · *Folding*"
    assert found.chapters[1].question == "Can it fold? So they say."
    html = found._repr_html_()
    assert html.index('href="03_bending.ipynb"') < html.index('href="07_folding.ipynb"')
    assert html.count("data:image/png;base64,") == 1  # the other was never run


def test_a_chapter_can_choose_its_picture(course):
    book = chapter(panel=png())
    hero = new_code_cell(metadata={"tags": ["hero"]})
    hero.outputs = [new_output("display_data", {"image/png": png("red")})]
    book.cells.append(hero)
    nbformat.write(book, course / "07_folding.ipynb")
    chosen = {one.word: one.picture for one in Syllabus(course).chapters}["folding"]
    assert chosen == base64.b64decode(png("red"))


def test_what_is_the_readers_own_or_broken_is_passed_over(course):
    nbformat.write(new_notebook(), course / "05_notes.ipynb")
    (course / "03_bending.ipynb").write_text("<<<<<<< half a merge", encoding="utf-8")
    found = Syllabus(course)
    assert [one.word for one in found.chapters] == ["folding"]
    assert "Not readable: 03_bending.ipynb" in found._repr_html_()


def test_the_time_follows_from_what_is_there(course):
    minutes = {
        name: syllabus.minutes_of(book.cells)
        for name, book in {
            "short": chapter(),
            "long": chapter(words=4000),
            "with exercises": chapter(exercises=3),
            "panel": chapter(panel=png()),
        }.items()
    }
    assert minutes == {"short": 5, "long": 25, "with exercises": 35, "panel": 5}


def test_a_thumbnail_is_small_and_still_the_picture():
    Image.effect_noise((810, 540), 90).save(buffer := io.BytesIO(), format="PNG")
    small = syllabus._small(buffer.getvalue())
    assert len(small) < len(buffer.getvalue()) / 2
    assert max(Image.open(io.BytesIO(small)).size) == max(syllabus.THUMBNAIL)


def test_a_verdict_is_shown_to_its_reader_only(course, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path / "reader"))
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    log_verdict("folding", "<b>slower</b>")
    shown = Syllabus(course)
    assert shown.done == 1
    assert "&lt;b&gt;slower" in shown._repr_html_()
    assert "points" not in shown._repr_html_()  # this chapter has no exercises
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    assert Syllabus(course).done == 0


def test_a_chapter_is_done_when_its_exercises_are(course, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path / "reader"))
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    book = chapter()
    for name, most in (("crease", 2), ("unfold", 3)):
        said = {"text/plain": f"Exercise {name}, {most} points"}
        outputs = [new_output("execute_result", data=said, execution_count=1)]
        book.cells.append(new_code_cell(name.upper(), outputs=outputs))
    nbformat.write(book, course / "07_folding.ipynb")
    log_verdict("folding", "slower")
    points.keep("crease", 2)
    assert Syllabus(course).done == 0
    assert "2 of 5 points" in Syllabus(course)._repr_html_()
    points.keep("unfold", 3)
    assert Syllabus(course).done == 1
