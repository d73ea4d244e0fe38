"""One word runs through everything, and each part of the house knows only what it may.

Every rule is a function from the root of a tree to a list of complaints, empty when the rule holds;
so each is shown to fail on a small made-up tree before it is trusted on ours.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest

from accel_lab import catalog

ROOT = Path(__file__).parents[1]
UI = {"ipywidgets", "bqplot"}
NOT_IN_A_TECHNIQUE = UI | {"IPython"}
ABOVE = {f"accel_lab.{part}" for part in ("experiments", "exercises", "grading", "command_line")}


# ---- what is there ----


def modules(folder: Path) -> set[str]:
    """The modules of a folder that count: those whose name has no leading underscore."""
    return {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}


def techniques_of(root: Path) -> set[str]:
    return modules(root / "accel_lab") - catalog.NOT_TECHNIQUES


def sources(root: Path) -> list[Path]:
    return sorted((root / "course/source").glob("*.py"))


def chapters(root: Path) -> list[str]:
    """The words of the chapters that teach a technique: all but those numbered 00."""
    names = [catalog.CHAPTER.fullmatch(path.stem) for path in sources(root)]
    return [name[2] for name in names if name and name[1] != "00"]


def imports(path: Path, root: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it, in full.

    ``accel_lab.ddp`` also for ``from accel_lab import ddp``.
    """
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_techniques(path: Path, root: Path) -> list[str]:
    """Names of the technique modules, their experiments or exercises, that a file imports."""
    techniques = techniques_of(root)
    found = set()
    for name in imports(path, root):
        first, _, rest = name.partition(".")
        parts = rest.removeprefix("exercises.").removeprefix("experiments.").split(".")
        if first == "accel_lab" and parts[0] in techniques:
            found.add(parts[0])
    return sorted(found)


# ---- the rules ----


def chapter_names(root: Path) -> list[str]:
    """course/source holds nothing but NN_name.py; no number and no name twice."""
    found = [(path.name, catalog.CHAPTER.fullmatch(path.stem)) for path in sources(root)]
    complaints = [
        f"course/source/{name}: a chapter is called NN_name.py"
        for name, match in found
        if not match
    ]
    for group, what in ((1, "number"), (2, "name")):
        values = [match[group] for _, match in found if match]
        twice = sorted({value for value in values if values.count(value) > 1})
        complaints += [f"course/source: two chapters have the {what} {value}" for value in twice]
    return complaints


PARTS = ("accel_lab", "accel_lab/experiments", "accel_lab/exercises")


def one_word(root: Path) -> list[str]:
    """Each chapter has its technique, experiment, exercises, tests and benchmark; no technique,
    experiment or exercise is without its chapter.

    A benchmark may also be named after any other part of accel_lab (``panel`` after
    ``workbench/panel``), or after a folder beside it (``binder``).
    """
    words = chapters(root)
    files = [*(f"{folder}/{{}}.py" for folder in PARTS), "tests/test_{}.py", "benchmarks/{}.py"]
    complaints = [
        f"{path.format(word)}: missing, and course/source has a chapter called {word}"
        for word in words
        for path in files
        if not (root / path.format(word)).is_file()
    ]
    for folder in PARTS:
        orphans = sorted(modules(root / folder) - catalog.NOT_TECHNIQUES - set(words))
        complaints += [
            f"{folder}/{word}.py: course/source has no chapter called {word}" for word in orphans
        ]
    ours = (root / "accel_lab").rglob("*")
    parts = {path.stem for path in ours if path.is_dir() or path.suffix == ".py"}
    parts |= {path.name for path in root.iterdir() if path.is_dir()}
    orphans = sorted(modules(root / "benchmarks") - parts)
    return complaints + [
        f"benchmarks/{word}.py: neither accel_lab nor the project has a part called {word}"
        for word in orphans
    ]


def notebooks(root: Path) -> list[str]:
    """Each chapter's notebook is there, was run whole, and says what its source says."""
    expected = {path.stem: path for path in sources(root)}
    built = {path.stem: path for path in sorted((root / "course").glob("*.ipynb"))}
    complaints = [
        f"course/{name}.ipynb: missing; make course builds it"
        for name in expected
        if name not in built
    ]
    complaints += [
        f"course/{name}.ipynb: has no source in course/source"
        for name in built
        if name not in expected
    ]
    for name in sorted(expected.keys() & built.keys()):
        cells = json.loads(built[name].read_text(encoding="utf-8"))["cells"]
        if [said(cell) for cell in cells] != [
            said(cell) for cell in jupytext.read(expected[name]).cells
        ]:
            complaints.append(
                f"course/{name}.ipynb: not what its source says; make course builds it again"
            )
        if any(
            cell["execution_count"] is None
            for cell in cells
            if cell["cell_type"] == "code" and said(cell)[1].strip()
        ):
            complaints.append(
                f"course/{name}.ipynb: has cells that were never run; make course builds it again"
            )
    return complaints


def front_door(root: Path) -> list[str]:
    """The stored 00 shows a card of every other chapter, so that it is complete where nothing runs
    it.
    """
    doors = sorted((root / "course").glob("00_*.ipynb"))
    shown = [path.name for path in sources(root) if not path.stem.startswith("00")]
    return [
        f"course/{door.name}: shows nothing of {name}; make course COURSE_ARGS={door.stem} builds "
        "it again"
        for door in doors
        for name in (Path(name).with_suffix(".ipynb").name for name in shown)
        if name not in door.read_text(encoding="utf-8")
    ]


def said(cell) -> tuple[str, str, list[str]]:
    return (
        cell["cell_type"],
        "".join(cell["source"]).rstrip("\n"),
        sorted(cell["metadata"].get("tags", [])),
    )


def chapters_spoken_of(root: Path) -> list[str]:
    """Who sends the reader to a chapter by its number sends them to one that is there."""
    numbers = {path.stem[:2] for path in sources(root)}
    return [
        f"{path.relative_to(root)}: speaks of chapter {number}, and there is none"
        for path in [*sources(root), *sorted((root / "accel_lab").rglob("*.py"))]
        for number in sorted(
            set(re.findall(r"\b[Cc]hapter (\d\d)\b", path.read_text(encoding="utf-8"))) - numbers
        )
    ]


def leads_on(root: Path) -> list[str]:
    """The last cell of a chapter links to the chapter after it, and to the front door."""
    doors = [path.stem for path in sources(root) if path.stem.startswith("00")]
    rooms = [path for path in sources(root) if not path.stem.startswith("00")]
    complaints = []
    for place, path in enumerate(rooms):
        last = jupytext.read(path).cells[-1]["source"]
        wanted = [*(after.stem for after in rooms[place + 1 : place + 2]), *doors]
        complaints += [
            f"course/source/{path.name}: its last cell does not link to {name}.ipynb"
            for name in wanted
            if f"({name}.ipynb)" not in last
        ]
    return complaints


def leaves_a_line(root: Path) -> list[str]:
    """Each chapter leaves a line of what it builds to the reader, in a cell that is folded, for its
    source holds the answer.
    """
    complaints = []
    for path in sources(root):
        cells = [cell for cell in jupytext.read(path).cells if cell["cell_type"] == "code"]
        asking = [cell for cell in cells if "lab.MissingLine(" in cell["source"]]
        if not asking and not path.stem.startswith("00"):
            complaints.append(f"course/source/{path.name}: leaves no line to the reader")
        complaints += [
            f"course/source/{path.name}: lab.MissingLine stands in a cell that is not folded"
            for cell in asking
            if not cell["metadata"].get("jupyter", {}).get("source_hidden")
        ]
    return complaints


def glossary(root: Path) -> list[str]:
    """Each word of the glossary, in the order of the alphabet, is used by the chapter that it names
    as the one that explains it.
    """
    prose = {path.stem: prose_of(path) for path in sources(root)}
    row = re.compile(r"^- \*\*(.+?)\*\* \(\[(\d\d)\]\((\w+)\.ipynb\)\): ", re.MULTILINE)
    rows = [found for name in prose if name.startswith("00") for found in row.findall(prose[name])]
    complaints = [
        f"glossary: {word!r} is not used in chapter {number}, {name}"
        for word, number, name in rows
        if not name.startswith(number)
        or word.lower() not in " ".join(prose.get(name, "").lower().split())
    ]
    listed = [word.lower() for word, *_ in rows]
    return complaints + ["glossary: not in the order of the alphabet"] * (listed != sorted(listed))


def prose_of(path: Path) -> str:
    cells = jupytext.read(path).cells
    return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


def readme_lists_the_chapters(root: Path) -> list[str]:
    """README's table has a row for each chapter, in their order, and no other."""
    text = (root / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d\d) .*?\]\(course/(\w+)\.ipynb\) \|", text, re.MULTILINE)
    there = [path.stem for path in sources(root)]
    if [name for _, name in listed] == there and all(name[:2] == n for n, name in listed):
        return []
    return [f"README.md: its table lists {[name for _, name in listed]}, there are {there}"]


def workbench_knows_no_technique(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: imports {name}, and the workbench knows no technique"
        for path in sorted((root / "accel_lab/workbench").rglob("*.py"))
        for name in imported_techniques(path, root)
    ]


def techniques_stand_alone(root: Path) -> list[str]:
    """A technique draws nothing and knows neither its experiment nor its exercises; it uses another
    only where its docstring tells the reader so by the full name.
    """
    complaints = []
    for word in sorted(techniques_of(root)):
        path = root / "accel_lab" / f"{word}.py"
        drawing = {name.partition(".")[0] for name in imports(path, root)} & NOT_IN_A_TECHNIQUE
        complaints += [
            f"accel_lab/{word}.py: imports {name}, and a technique draws nothing"
            for name in sorted(drawing)
        ]
        above = sorted({".".join(name.split(".")[:2]) for name in imports(path, root)} & ABOVE)
        complaints += [
            f"accel_lab/{word}.py: imports {name}, which builds upon techniques" for name in above
        ]
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        complaints += [
            f"accel_lab/{word}.py: imports {other}, "
            f"and its docstring does not speak of accel_lab.{other}"
            for other in imported_techniques(path, root)
            if other != word and not re.search(rf"\baccel_lab\.{other}\b", docstring)
        ]
    return complaints


def only_the_panel_draws_widgets(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: imports {name}, which only accel_lab/workbench/panel may"
        for path in sorted((root / "accel_lab").rglob("*.py"))
        if root / "accel_lab/workbench/panel" not in path.parents
        for name in sorted({name.partition(".")[0] for name in imports(path, root)} & UI)
    ]


RULES = [
    chapter_names,
    one_word,
    notebooks,
    front_door,
    chapters_spoken_of,
    leads_on,
    leaves_a_line,
    glossary,
    readme_lists_the_chapters,
    workbench_knows_no_technique,
    techniques_stand_alone,
    only_the_panel_draws_widgets,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    assert (ROOT / "accel_lab/workbench").is_dir()  # an empty tree would keep any rule
    assert rule(ROOT) == []


# ---- each rule can fail ----


def notebook(*cells: tuple[str, str], count: int | None = 1, shows: str = "") -> str:
    made = [
        {"cell_type": kind, "source": text.splitlines(keepends=True), "metadata": {}}
        for kind, text in cells
    ]
    for cell in made:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [shows] if shows else [], "execution_count": count}
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


SOURCE = "# %% [markdown]\n# A *question*\n\n# %%\nx = 1\nx\n"
CELLS = [("markdown", "A *question*"), ("code", "x = 1\nx")]
ASKS = ("code", "lab.MissingLine(fold, {}, flat)")
FOLDED = '# %% jupyter={"source_hidden": true}\n'


def room(*links: str) -> tuple[str, list[tuple[str, str]]]:
    """A chapter that leads on to these: its source and its cells."""
    last = " · ".join(f"[on]({name}.ipynb)" for name in (*links, "00_start_here"))
    source = f"{SOURCE}\n{FOLDED}{ASKS[1]}\n\n# %% [markdown]\n# {last}\n"
    return source, [*CELLS, ASKS, ("markdown", last)]


def table(*names: str) -> str:
    rows = (f"| [{name[:2]} a title](course/{name}.ipynb) | what |\n" for name in names)
    return "# accel_lab\n\n| chapter | shows |\n| --- | --- |\n" + "".join(rows)


ROOM, ROOM_CELLS = room()
GOOD = {
    "course/source/00_start_here.py": SOURCE,
    "course/00_start_here.ipynb": notebook(*CELLS, shows="07_folding.ipynb"),
    "course/source/07_folding.py": ROOM,
    "course/07_folding.ipynb": notebook(*ROOM_CELLS),
    "README.md": table("00_start_here", "07_folding"),
    "accel_lab/__init__.py": "",
    "accel_lab/__main__.py": "from accel_lab import command_line\n",
    "accel_lab/command_line.py": "from accel_lab import catalog\n",
    "accel_lab/catalog.py": "",
    "accel_lab/experiments/folding.py": "from accel_lab import folding\n",
    "accel_lab/folding.py": '"""Folding."""\nfrom accel_lab.workbench.step import Step\n',
    "accel_lab/exercises/folding.py": "from accel_lab import folding\n",
    "accel_lab/workbench/step.py": "import torch\n",
    "accel_lab/workbench/panel/__init__.py": "import ipywidgets as w\nfrom bqplot import Figure\n",
    "accel_lab/grading/__init__.py": "",
    "tests/test_folding.py": "",
    "tests/test_step.py": "",
    "benchmarks/__main__.py": "",
    "benchmarks/folding.py": "",
    "benchmarks/panel.py": "",
    "benchmarks/grading.py": "",
}


def complaints_about(changes: dict[str, str | None], root: Path) -> list[str]:
    """What all rules say about GOOD with some files changed, added, or (None) left out."""
    for path, text in (GOOD | changes).items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    return [complaint for rule in RULES for complaint in rule(root)]


def test_a_good_tree_has_no_complaint(tmp_path):
    assert complaints_about({}, tmp_path) == []


FAULTS = {
    "a word that its chapter does not use": (
        {
            "course/source/00_start_here.py": f"{SOURCE}\n# %% [markdown]\n"
            "# - **crease** ([07](07_folding.ipynb)): a line.\n"
        },
        "glossary: 'crease' is not used in chapter 07, 07_folding",
    ),
    "a file that is no chapter": (
        {"course/source/folding2.py": SOURCE},
        "a chapter is called NN_name.py",
    ),
    "a number twice": (
        {"course/source/00_again.py": SOURCE, "course/00_again.ipynb": notebook(*CELLS)},
        "the number 00",
    ),
    "a name twice": (
        {"course/source/08_folding.py": SOURCE, "course/08_folding.ipynb": notebook(*CELLS)},
        "the name folding",
    ),
    "no module": ({"accel_lab/folding.py": None}, "accel_lab/folding.py: missing"),
    "no experiment": (
        {"accel_lab/experiments/folding.py": None},
        "accel_lab/experiments/folding.py: missing",
    ),
    "no exercises": (
        {"accel_lab/exercises/folding.py": None},
        "accel_lab/exercises/folding.py: missing",
    ),
    "no tests": ({"tests/test_folding.py": None}, "tests/test_folding.py: missing"),
    "no benchmark": ({"benchmarks/folding.py": None}, "benchmarks/folding.py: missing"),
    "a chapter that leads nowhere": (
        {"course/source/07_folding.py": SOURCE},
        "07_folding.py: its last cell does not link to 00_start_here.ipynb",
    ),
    "a chapter that leaves no line to the reader": (
        {"course/source/07_folding.py": ROOM.replace("MissingLine", "show_source")},
        "07_folding.py: leaves no line to the reader",
    ),
    "a chapter that shows the line it asks for": (
        {"course/source/07_folding.py": ROOM.replace(FOLDED, "# %%\n")},
        "07_folding.py: lab.MissingLine stands in a cell that is not folded",
    ),
    "a chapter that README leaves out": (
        {"README.md": table("00_start_here")},
        "README.md: its table lists ['00_start_here'], there are ['00_start_here', '07_folding']",
    ),
    "a chapter that README calls by another number": (
        {"README.md": table("00_start_here", "07_folding").replace("[07", "[08")},
        "README.md: its table lists",
    ),
    "a technique that knows its experiment": (
        {"accel_lab/folding.py": "from accel_lab.experiments.folding import Knobs\n"},
        "accel_lab/folding.py: imports accel_lab.experiments, which builds upon techniques",
    ),
    "a technique without a chapter": ({"accel_lab/bending.py": ""}, "no chapter called bending"),
    "exercises without a chapter": (
        {"accel_lab/exercises/bending.py": ""},
        "accel_lab/exercises/bending.py: course/source has no",
    ),
    "a benchmark of nothing": (
        {"benchmarks/bending.py": ""},
        "neither accel_lab nor the project has a part called bending",
    ),
    "no notebook": ({"course/07_folding.ipynb": None}, "course/07_folding.ipynb: missing"),
    "a notebook without a source": (
        {"course/09_left.ipynb": notebook()},
        "course/09_left.ipynb: has no source",
    ),
    "a stale notebook": (
        {"course/07_folding.ipynb": notebook(CELLS[0], ("code", "x = 2\nx"), *ROOM_CELLS[2:])},
        "not what its source says",
    ),
    "a cell too few": ({"course/07_folding.ipynb": notebook(CELLS[0])}, "not what its source says"),
    "a tag too few": (
        {"course/source/07_folding.py": ROOM.replace("# %%\n", '# %% tags=["exercise"]\n')},
        "not what its source says",
    ),
    "a front door that hides a chapter": (
        {"course/00_start_here.ipynb": notebook(*CELLS)},
        "shows nothing of 07_folding",
    ),
    "a chapter that is spoken of and not there": (
        {"accel_lab/folding.py": '"""Folding, as in chapter 12."""'},
        "accel_lab/folding.py: speaks of chapter 12",
    ),
    "a notebook never run": (
        {"course/07_folding.ipynb": notebook(*ROOM_CELLS, count=None)},
        "never run",
    ),
    "a workbench that knows a technique": (
        {"accel_lab/workbench/step.py": "from accel_lab import folding\n"},
        "step.py: imports folding",
    ),
    "the same, relative": (
        {"accel_lab/workbench/step.py": "from ..folding import update\n"},
        "step.py: imports folding",
    ),
    "the same, its exercises": (
        {"accel_lab/workbench/step.py": "import accel_lab.exercises.folding\n"},
        "step.py: imports folding",
    ),
    "the same, inside a function": (
        {"accel_lab/workbench/step.py": "def f():\n    from .. import folding\n"},
        "step.py: imports folding",
    ),
    "a technique that draws": (
        {"accel_lab/folding.py": "from IPython.display import display\n"},
        "imports IPython",
    ),
    "widgets outside the panel": (
        {"accel_lab/workbench/step.py": "import bqplot.marks\n"},
        "step.py: imports bqplot",
    ),
    "widgets in exercises": (
        {"accel_lab/exercises/folding.py": "from ipywidgets import HTML\n"},
        "folding.py: imports ipywidgets",
    ),
}
BENDING = {
    "course/00_start_here.ipynb": notebook(*CELLS, shows="07_folding.ipynb 08_bending.ipynb"),
    "course/source/07_folding.py": room("08_bending")[0],
    "course/07_folding.ipynb": notebook(*room("08_bending")[1]),
    "course/source/08_bending.py": ROOM,
    "course/08_bending.ipynb": notebook(*ROOM_CELLS),
    "README.md": table("00_start_here", "07_folding", "08_bending"),
    "accel_lab/experiments/bending.py": "",
    "accel_lab/exercises/bending.py": "",
    "tests/test_bending.py": "",
    "benchmarks/bending.py": "",
}


@pytest.mark.parametrize(("changes", "complaint"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_found(changes, complaint, tmp_path):
    assert any(complaint in found for found in complaints_about(changes, tmp_path))


def test_a_technique_may_use_another_when_its_docstring_says_so(tmp_path):
    told = {
        "accel_lab/bending.py": '"""Bending what ``accel_lab.folding`` folded."""\nfrom '
        "accel_lab.folding import update\n"
    }
    untold = {"accel_lab/bending.py": '"""Bending."""\nfrom accel_lab.folding import update\n'}
    assert complaints_about(BENDING | told, tmp_path / "told") == []
    assert complaints_about(BENDING | untold, tmp_path / "untold") == [
        "accel_lab/bending.py: imports folding, and its docstring does not speak of "
        "accel_lab.folding"
    ]
