"""The chapters that are there: what each asks, its picture, how long it takes, what it showed here.

All of it is read from the notebooks themselves.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from accel_lab import catalog
from accel_lab.workbench.look import AT_NIGHT
from accel_lab.workbench.notebook import points
from accel_lab.workbench.notebook.speed_log import SpeedLog

COURSE = catalog.HERE.parent / "course"
# Pixels at most, drawn at half that: sharp where a pixel of the page is two of the screen.
THUMBNAIL = (480, 480)
# In a minute a fresh reader reads so many words or lines of code; minutes at a panel, an exercise.
WORDS, LINES, PANEL, EXERCISE = 180, 12, 3, 10
CARD = (
    "display:flex;flex-wrap:wrap;gap:16px;margin:0 0 12px;padding:12px;"
    "border:1px solid var(--jp-border-color2,#ccc);border-radius:6px"
)


@dataclass(frozen=True)
class Chapter:
    """One chapter's notebook.

    word: of its technique · picture: PNG, what its cell with the tag "hero" draws, else its first
    panel; b"" if it was never run · minutes: to read it, play with it and do its exercises ·
    exercises: name → points.
    """

    path: Path
    word: str
    title: str
    question: str
    picture: bytes
    minutes: int
    exercises: dict[str, int]

    @classmethod
    def read(cls, file: catalog.ChapterFile) -> Chapter:
        import nbformat  # a chapter that shows no syllabus does without its 18 MB

        cells = nbformat.read(file.path, as_version=4).cells
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
        heading, *paragraphs = [part for text in prose for part in text.split("\n\n")]
        question = next((part for part in paragraphs if part[:1] not in "#>|`-"), "")
        said = heading.lstrip("# "), _plain(question)
        return cls(
            file.path, file.word, *said, _picture(cells), minutes_of(cells), _exercises(cells)
        )

    def card(self, verdict: str, earned: int) -> str:
        picture = ""
        if self.picture:
            data = f"data:image/png;base64,{base64.b64encode(_small(self.picture)).decode()}"
            picture = f'<img class="accel-picture" src="{data}" alt="" width="240">'
        found = f"<b>You found:</b> {escape(verdict)}" if verdict else ""
        done = found or f"about {self.minutes} minutes"
        if self.exercises:
            done += f" · {earned} of {sum(self.exercises.values())} points"
        link = f'<a href="{escape(self.path.name)}">{escape(self.title)}</a>'
        said = f"<b>{link}</b><br>{escape(self.question)}<br><span>{done}</span>"
        beside = f'<div style="flex:1 1 260px;min-width:0">{said}</div>'
        return f'<li style="{CARD}">{picture}{beside}</li>'


class Syllabus:
    """The chapters of a folder in their order, the front door left out.

    folder: by default that of the course, whose pictures are not the reader's own. In a notebook a
    card each, with the reader's verdict, and a link to the chapter beside the notebook.
    """

    def __init__(self, folder: str | Path | None = None):
        if folder is None:
            folder = COURSE if COURSE.is_dir() else "."
        taught = catalog.techniques()
        self.chapters: list[Chapter] = []
        self.unreadable: list[str] = []
        for file in catalog.chapters(Path(folder)):
            if not file.teaches_a_technique or file.word not in taught:  # a reader's own notebook
                continue
            try:
                self.chapters.append(Chapter.read(file))
            except Exception:  # half a file, one with the marks of a merge: nbformat raises many
                self.unreadable.append(file.path.name)
        entries = SpeedLog.of_the_reader().entries
        self.verdicts = {entry["technique"]: entry["verdict"] for entry in entries}
        self._points = points.earned()

    @property
    def done(self) -> int:
        """Chapters with a verdict, all of whose exercises are solved."""
        return sum(
            chapter.word in self.verdicts and chapter.exercises.keys() <= self._points.keys()
            for chapter in self.chapters
        )

    def _earned(self, chapter: Chapter) -> int:
        return sum(self._points.get(name, 0) for name in chapter.exercises)

    def __repr__(self) -> str:
        return "\n".join(f"{one.title} ({one.minutes} minutes)" for one in self.chapters)

    def _repr_html_(self) -> str:
        count, hours = len(self.chapters), sum(chapter.minutes for chapter in self.chapters) / 60
        bar = f'<progress value="{self.done}" max="{count}" aria-label="chapters done"></progress>'
        progress = f"{self.done} of {count} chapters done, about {hours:.0f} hours in all"
        cards = "".join(
            one.card(self.verdicts.get(one.word, ""), self._earned(one)) for one in self.chapters
        )
        listed = f'<ul style="list-style:none;margin:0;padding:0">{cards}</ul>'
        broken = f"<p>Not readable: {escape(', '.join(self.unreadable))}</p>" * bool(
            self.unreadable
        )
        return f"<style>{AT_NIGHT}</style><p>{bar} {progress}</p>{listed}{broken}"


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


def _exercises(cells: list) -> dict[str, int]:
    """As the chapter shows them: name → points."""
    said = "\n".join(str(data.get("text/plain", "")) for data in _outputs(cells))
    return {name: int(most) for name, most in re.findall(r"Exercise (\w+), (\d+) points", said)}


def _panels(cells: list) -> list[dict]:
    return [data for data in _outputs(cells) if data.get("text/plain") == "Panel"]


def _picture(cells: list) -> bytes:
    hero = _outputs([cell for cell in cells if "hero" in cell.metadata.get("tags", [])])
    drawn = [data["image/png"] for data in hero + _panels(cells) if "image/png" in data]
    return base64.b64decode(drawn[0]) if drawn else b""


def minutes_of(cells: list) -> int:
    """Of a chapter's cells, to the next five: reading, running, playing and thinking."""
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    lines = sum(bool(line.strip()) for source in code for line in source.splitlines())
    exercises = sum("exercise" in cell.metadata.get("tags", []) for cell in cells)
    exact = words / WORDS + lines / LINES + PANEL * len(_panels(cells)) + EXERCISE * exercises
    return 5 * max(1, round(exact / 5))


def _small(picture: bytes) -> bytes:
    """A thumbnail in few colours: a page of them must stay light."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
