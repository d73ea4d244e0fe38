"""Who handed in what: notebooks in files and folders, by learner and chapter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


class NothingToGrade(ValueError):
    """One line that names the path."""


@dataclass(frozen=True)
class Submission:
    learner: str
    technique: str
    path: Path


def find(paths: Iterable[Path], techniques: Iterable[str]) -> tuple[list[Submission], list[str]]:
    """The submissions below these paths, and a line for whatever cannot be graded.

    A notebook's name ends with its chapter: ``Ann_11_accumulation.ipynb`` is Ann's, and so is
    ``Ann/11_accumulation.ipynb``. Where a learner has two for one chapter neither is taken: which
    one counts is not for a program to guess. Raises NothingToGrade.
    """
    chapter = re.compile(
        r"(?:^|(?P<learner>.*?)[_\-. ])(?:\d+[_\-. "
        rf"])?(?P<technique>{'|'.join(map(re.escape, techniques))})$",
        re.DOTALL | re.IGNORECASE,
    )
    found: dict[tuple[str, str], list[Path]] = {}
    notes = []
    for root in paths:
        notebooks = list(_notebooks(root))
        if not notebooks:
            raise NothingToGrade(
                f"{root}: there is no notebook in it"
                if root.is_dir()
                else f"{root}: no such notebook or folder"
            )
        for path in notebooks:
            match = chapter.match(path.stem)
            if not match:
                notes.append(
                    f"{_shown(path)}: passed over, its name does not end with a chapter's (such as "
                    "11_accumulation.ipynb)"
                )
                continue
            found.setdefault(
                (_shown(match["learner"] or _folder(path, root)), match["technique"].lower()), []
            ).append(path)
    submissions = [
        Submission(*key, paths[0]) for key, paths in sorted(found.items()) if len(set(paths)) == 1
    ]
    for (learner, technique), paths in sorted(found.items()):
        if len(set(paths)) > 1:
            notes.append(
                f"{learner} has handed in {technique} more than once "
                f"({', '.join(map(_shown, paths))}): keep one, then grade again"
            )
    if not submissions:
        raise NothingToGrade(notes[0])
    return submissions, notes


def _notebooks(root: Path) -> Iterator[Path]:
    if _is_notebook(root.name) and (root.is_file() or root.is_symlink()):
        yield root
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(folder, name)
            for name in sorted(files)
            if _is_notebook(name) and not name.startswith(".")
        )


def _is_notebook(name: str) -> bool:
    """Or is meant to be: some systems write ``.IPYNB``, some browsers save as ``.ipynb.txt``."""
    return ".ipynb" in name.lower()


def _folder(path: Path, root: Path) -> str:
    """The folder that is the learner's: the first one below what was given."""
    inside = path.relative_to(root).parts if path != root else ()
    return inside[0] if len(inside) > 1 else path.resolve().parent.name


def _shown(name: str | Path) -> str:
    """A name that can stand in a line of text: file systems allow newlines, and bytes that are
    none.
    """
    name = str(name).encode(errors="surrogateescape").decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in name).strip() or "?"
