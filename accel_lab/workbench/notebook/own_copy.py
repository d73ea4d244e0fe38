"""The learner's own copy of the chapters: made once, brought up to date, never overwritten.

What a learner runs and writes must neither get in the way of the next ``git pull`` nor be lost by
it. So they work in a folder of their own. Beside the chapters it holds what each of them was copied
from: a chapter whose cells are still those is replaced by a newer one, any other is left alone, and
the newer one laid beside it, in ``new/``.

The copy comes without what the cells have shown: an answer under a question that nobody has
answered yet spoils it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from accel_lab import catalog
from accel_lab.workbench.look import counted

ORIGINS = ".origins.json"
NEW = "new"


@dataclass
class Copied:
    """Names of chapters: made or renewed · kept as the learner has them, though there is a newer
    one, which lies in ``new/``.
    """

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = [f"{counted(len(self.made), 'chapter')} made or renewed"] if self.made else []
        if self.kept:
            said.append(f"yours were kept, the newer ones are in {NEW}/: {', '.join(self.kept)}")
        return "; ".join(said) or "all chapters are up to date"


def bring_up_to_date(course: Path, folder: Path) -> Copied:
    """Copy the chapters of ``course`` into ``folder``, whose notebooks Jupyter then trusts.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origins, done = _origins(folder), Copied()
    for chapter in catalog.chapters(course):
        name = chapter.path.name
        own, newest = folder / name, _cells_of(chapter.path)
        here = _cells_of(own) if own.exists() else None
        if here is not None and newest in (here, origins.get(name)):
            continue
        if here is None or here == origins.get(name):
            _put(chapter.path, own)
            done.made.append(name)
        else:
            (folder / NEW).mkdir(exist_ok=True)
            _put(chapter.path, folder / NEW / name)
            done.kept.append(name)
        origins[name] = newest
    (folder / ORIGINS).write_text(json.dumps(origins, indent=1), encoding="utf-8")
    return done


def _put(source: Path, target: Path) -> None:
    """Whole or not at all, and trusted: else a notebook that is loaded again loses its panels."""
    import nbformat
    from nbformat.sign import NotebookNotary

    notebook, beside = nbformat.read(source, as_version=4), target.with_suffix(".part")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, beside)
    beside.replace(target)
    NotebookNotary().sign(notebook)


def _origins(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cells_of(path: Path) -> str:
    """A digest of what is in the cells, not of what they have shown; "" where it cannot be read."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()
