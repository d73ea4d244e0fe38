"""What is there: the techniques, their experiments, their exercises and the chapters.

The one place that looks. Everything is found by its file name, and nothing is imported before it
is asked for: a new technique is its files, and no list has to be kept in step.
"""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
NOT_TECHNIQUES = {"catalog", "command_line"}
CHAPTER = re.compile(r"(\d\d)_([a-z][a-z0-9_]*)")


def techniques(root: Path = HERE) -> dict[str, str]:
    """name → first paragraph of its docstring, in one line; read without importing any of them."""
    names = sorted(_modules(root) - NOT_TECHNIQUES)
    return {name: _summary(root / f"{name}.py") for name in names}


def experiment(name: str) -> ModuleType:
    """``accel_lab.experiments.<name>``: its ``Knobs``, and ``run(knobs)``, which yields Steps."""
    return importlib.import_module(f"accel_lab.experiments.{name}")


def with_exercises() -> list[str]:
    """The techniques whose chapters have exercises."""
    return sorted(_modules(HERE / "exercises"))


def exercises_of(name: str) -> ModuleType:
    """``accel_lab.exercises.<name>``."""
    return importlib.import_module(f"accel_lab.exercises.{name}")


@dataclass(frozen=True, order=True)
class ChapterFile:
    """A chapter's file: ``16_ddp.ipynb`` or ``16_ddp.py``. ``word`` is its technique's name."""

    path: Path
    number: str
    word: str

    @property
    def teaches_a_technique(self) -> bool:
        """All but the front door, 00, do."""
        return self.number != "00"


def chapters(folder: Path, suffix: str = ".ipynb") -> list[ChapterFile]:
    """The chapters of a folder, in their order; files with other names are passed over."""
    found = [
        (path, CHAPTER.fullmatch(path.stem)) for path in sorted(Path(folder).glob(f"*{suffix}"))
    ]
    return [ChapterFile(path, match[1], match[2]) for path, match in found if match]


def _modules(folder: Path) -> set[str]:
    """Modules whose name has no leading underscore."""
    return {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())
