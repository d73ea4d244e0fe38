"""What a class and each of its learners get to read: a table for the gradebook, a page for the
teacher, a page for each learner.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from accel_lab.grading.journal import replace_file
from accel_lab.grading.judging import NOT_ATTEMPTED, Verdict
from accel_lab.grading.marking import Entry
from accel_lab.workbench import look

COLUMNS = [
    "learner",
    "chapter",
    "points",
    "of",
    "practice_points",
    "remarks",
    "isolation",
    "seed",
    "notebook",
    "graded",
]
NOT_ISOLATED = "NOT ISOLATED: practice result only"

STYLE = """
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --line: #8884;
  --right: light-dark(#00664b, #4fd1a5); --wrong: light-dark(#a33c00, #ffa168) }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid var(--line) }
td.points { text-align: right; font-variant-numeric: tabular-nums }
pre { overflow: auto; padding: .6rem; border: 1px solid var(--line) }
section { border-left: 4px solid var(--line); padding: 0 1rem; margin: 1rem 0 }
.right { color: var(--right); border-color: var(--right) }
.wrong { color: var(--wrong); border-color: var(--wrong) }
section > * { color: CanvasText }
</style>
"""

PAGES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
PAGES.filters["marked_up"] = look.marked_up  # escapes what is not its own
PAGES.globals |= {"NOT_ISOLATED": NOT_ISOLATED}

CLASS = PAGES.from_string(
    """<!doctype html><html lang="en"><title>Grades</title>{{ style|safe }}
<h1>Grades</h1>
<p>{{ learners|length }} learners, {{ entries|length }} notebooks.</p>
{% if unmarked %}<p class="wrong"><b>{{ unmarked }} {{ NOT_ISOLATED }}</b></p>{% endif %}
<table><tr><th>Learner{% for technique in techniques %}<th>{{ technique }}{% endfor %}</tr>
{% for learner, by in learners.items() %}
<tr><td><a href="{{ pages[learner] }}">{{ learner }}</a>
{% for technique in techniques %}<td class="points">{% if technique in by %}
{% if by[technique].unreadable %}<span class="wrong">unreadable</span>
{% else %}{{ by[technique].points }} / {{ by[technique].most }}{% endif %}{% endif %}
{% endfor %}</tr>
{% endfor %}</table>
<h2>Exercises</h2>
<table><tr><th>Chapter<th>Exercise<th>Right<th>Most frequent reason</tr>
{% for row in difficulty %}
<tr><td>{{ row.technique }}<td>{{ row.exercise }}
<td class="points">{{ row.right }} of {{ row.tried }}<td>{{ row.reason }}</tr>
{% endfor %}</table></html>"""
)

LEARNER = PAGES.from_string(
    """<!doctype html><html lang="en"><title>{{ learner }}</title>{{ style|safe }}
<h1>{{ learner }}</h1>
{% for entry in entries %}
<h2>{{ entry.technique }}: {{ entry.points }} of {{ entry.most }} points</h2>
{% if not entry.isolated %}
<p class="wrong"><b>{{ NOT_ISOLATED }}</b> ({{ entry.why }}).</p>
{% endif %}
{% if entry.unreadable %}
<section class="wrong"><p>The notebook is unreadable: {{ entry.unreadable }}</p></section>
{% endif %}
{% for verdict in entry.verdicts %}
<section class="{{ 'right' if verdict.points == verdict.most else 'wrong' }}">
<h3>{{ verdict.exercise }}: {{ verdict.points }} of {{ verdict.most }}</h3>
{% if verdict.reason %}<p>{{ verdict.reason }}</p>{% endif %}
{% if verdict.right %}<p><b>Right already:</b> {{ verdict.right }}</p>{% endif %}
{% if verdict.case %}<p><b>The case:</b></p><pre>{{ verdict.case }}</pre>{% endif %}
{% for hint in verdict.hint.splitlines() %}<p><b>Hint:</b> {{ hint|marked_up|safe }}</p>{% endfor %}
{% if verdict.report %}<pre>{{ verdict.report }}</pre>{% endif %}
</section>
{% endfor %}
<p>Isolation: {{ entry.isolation }}. Seed {{ entry.seed }}.
Graded {{ entry.graded }} by accel_lab {{ entry.version }}.</p>
{% endfor %}</html>"""
)


def write(entries: Iterable[Entry], table: Path, folder: Path) -> None:
    """The table, ``report.html`` and one page for each learner. Raises OSError; a file that was
    there before stays whole.
    """
    entries = sorted(entries, key=lambda entry: (entry.learner, entry.technique))
    replace_file(table, lambda path: _write_table(entries, path))
    learners: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        learners.setdefault(entry.learner, {})[entry.technique] = entry
    (folder / "learners").mkdir(exist_ok=True)
    pages = {learner: f"learners/{_file_name(learner)}" for learner in learners}
    for learner, by in learners.items():
        _write_page(
            folder / pages[learner],
            LEARNER.render(style=STYLE, learner=learner, entries=by.values()),
        )
    techniques = sorted({entry.technique for entry in entries})
    unmarked = sum(not entry.isolated for entry in entries)
    links = {learner: quote(page) for learner, page in pages.items()}
    what = {
        "learners": learners,
        "entries": entries,
        "techniques": techniques,
        "unmarked": unmarked,
    }
    page = CLASS.render(style=STYLE, pages=links, difficulty=_difficulty(entries), **what)
    _write_page(folder / "report.html", page)


def _write_table(entries: list[Entry], path: Path) -> None:
    # the byte order mark tells Excel that this is UTF-8
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for entry in entries:
            said = [
                f"{verdict.exercise}: {verdict.reason}"
                for verdict in entry.verdicts
                if verdict.reason
            ]
            remarks = "; ".join([entry.unreadable, *said] if entry.unreadable else said)
            marked, practice = (entry.points, "") if entry.isolated else ("", entry.points)
            isolation = entry.isolation if entry.isolated else f"{entry.isolation}: {NOT_ISOLATED}"
            row = [entry.learner, entry.technique, marked, entry.most, practice, remarks, isolation]
            rows.writerow(
                [_harmless(cell) for cell in [*row, entry.seed, entry.notebook[:16], entry.graded]]
            )


def _harmless(cell: object) -> object:
    """A spreadsheet takes text that begins so for a formula, and learners wrote part of it."""
    text = cell.encode(errors="backslashreplace").decode() if isinstance(cell, str) else cell
    return (
        f"'{text}"
        if isinstance(text, str) and text.startswith(("=", "+", "-", "@", "\t", "\r"))
        else text
    )


def _write_page(path: Path, page: str) -> None:
    replace_file(
        path, lambda fresh: fresh.write_text(page, encoding="utf-8", errors="backslashreplace")
    )


def _file_name(learner: str) -> str:
    safe = quote(learner, safe=" ()'")
    return (
        f"{safe}.html"
        if len(safe) < 150
        else f"{safe[:100]}-{hashlib.sha256(learner.encode()).hexdigest()[:16]}.html"
    )


def _difficulty(entries: list[Entry]) -> list[dict]:
    rows: dict[tuple[str, str], list[Verdict]] = {}
    for entry in entries:
        for verdict in entry.verdicts:
            rows.setdefault((entry.technique, verdict.exercise), []).append(verdict)
    table = []
    for (technique, exercise), verdicts in rows.items():
        reasons = [
            verdict.hint.partition("\n")[0] or verdict.reason
            for verdict in verdicts
            if verdict.reason not in ("", NOT_ATTEMPTED)
        ]
        right = sum(verdict.points == verdict.most for verdict in verdicts)
        [(reason, _)] = Counter(reasons).most_common(1) or [("", 0)]
        table.append(
            {
                "technique": technique,
                "exercise": exercise,
                "right": right,
                "tried": len(verdicts),
                "reason": reason,
            }
        )
    return table
