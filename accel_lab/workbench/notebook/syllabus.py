"""The chapters that are there, read from their notebooks: what each asks, its picture, how long it
takes, what it showed here.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat
from PIL import Image

from accel_lab.workbench.look import AT_NIGHT
from accel_lab.workbench.notebook.speed_log import SpeedLog

NAME = re.compile(r"(\d\d)_([a-z][a-z0-9_]*)")
# pixels at most, drawn at half that: sharp where a pixel of the page is two of the screen
THUMBNAIL = (
    480,
    480,
)
# Minutes: of 200 words, of 20 lines of code, of a panel, of an exercise.
WORDS, LINES, PANEL, EXERCISE = 200, 20, 3, 5
CARD = (
    "display:flex;flex-wrap:wrap;gap:16px;margin:0 0 12px;padding:12px;border:1px solid "
    "var(--jp-border-color2,#ccc);border-radius:6px"
)


@dataclass(frozen=True)
class Chapter:
    """One chapter's notebook. ``word``: of its technique · ``picture``: PNG, its first panel, b""
    if it was never run.
    """

    path: Path
    word: str
    title: str
    question: str
    picture: bytes
    minutes: int

    @classmethod
    def read(cls, path: Path) -> Chapter:
        cells = nbformat.read(path, as_version=4).cells
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
        heading, *paragraphs = [part for text in prose for part in text.split("\n\n")]
        question = next((part for part in paragraphs if part[:1] not in "#>|`-"), "")
        return cls(
            path,
            NAME.fullmatch(path.stem)[2],
            heading.lstrip("# "),
            _plain(question),
            _panel(cells),
            _minutes(cells),
        )

    def card(self, verdict: str) -> str:
        link = f'<a href="{escape(self.path.name)}">'
        shown = base64.b64encode(_small(self.picture)).decode() if self.picture else ""
        picture = (
            f'<img class="accel-picture" src="data:image/png;base64,{shown}" alt="" width="240">'
            if shown
            else ""
        )
        done = (
            f"<b>You found:</b> {escape(verdict)}" if verdict else f"about {self.minutes} minutes"
        )
        said = f"<b>{link}{escape(self.title)}</a></b><br>{escape(self.question)}<br><span>{done}</span>"
        return (
            f'<li style="{CARD}">{picture}<div style="flex:1 1 260px;min-width:0">{said}</div></li>'
        )


class Syllabus:
    """The chapters of a folder in their order, those numbered 00 left out; in a notebook a card
    each, with the reader's verdict.
    """

    def __init__(self, folder: str | Path = "."):
        paths = sorted(
            path
            for path in Path(folder).glob("[0-9][0-9]_*.ipynb")
            if not path.stem.startswith("00")
        )
        self.chapters = [Chapter.read(path) for path in paths if NAME.fullmatch(path.stem)]
        self.verdicts = {
            entry["technique"]: entry["verdict"] for entry in SpeedLog.of_the_reader().entries
        }

    @property
    def done(self) -> int:
        return sum(chapter.word in self.verdicts for chapter in self.chapters)

    def __repr__(self) -> str:
        return "\n".join(
            f"{chapter.title} ({chapter.minutes} minutes)" for chapter in self.chapters
        )

    def _repr_html_(self) -> str:
        hours = sum(chapter.minutes for chapter in self.chapters) / 60
        progress = (
            f"{self.done} of {len(self.chapters)} chapters done, about {hours:.0f} hours in all"
        )
        bar = (
            f'<progress value="{self.done}" max="{len(self.chapters)}" aria-label="chapters '
            'done"></progress>'
        )
        cards = "".join(
            chapter.card(self.verdicts.get(chapter.word, "")) for chapter in self.chapters
        )
        return (
            f"<style>{AT_NIGHT}</style><p>{bar} {progress}</p><ul "
            f'style="list-style:none;margin:0;padding:0">{cards}</ul>'
        )


def _plain(markdown: str) -> str:
    """A paragraph without its marks; what only leads over to a quotation is left out."""
    text = re.sub(r"[*_`$]|\[(.*?)\]\(.*?\)", r"\1", markdown).replace("\n", " ").strip()
    return text.rpartition(". ")[0] + "." if text.endswith(":") and ". " in text else text


def _outputs(cells: list) -> list[dict]:
    return [
        output.get("data", {})
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def _panels(cells: list) -> list[dict]:
    return [data for data in _outputs(cells) if data.get("text/plain") == "Panel"]


def _panel(cells: list) -> bytes:
    return next(
        (base64.b64decode(data["image/png"]) for data in _panels(cells) if "image/png" in data), b""
    )


def _minutes(cells: list) -> int:
    """To the next five: reading, running and thinking."""
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(
        1
        for cell in cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
        if line.strip()
    )
    exercises = sum("exercise" in cell.metadata.get("tags", []) for cell in cells)
    exact = words / WORDS + lines / LINES + PANEL * len(_panels(cells)) + EXERCISE * exercises
    return 5 * max(1, round(exact / 5))


def _small(picture: bytes) -> bytes:
    """A thumbnail in few colours: a page of them must stay light."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
