"""Finds answers in a notebook. The notebook is data: it is parsed, never run, and nothing in it can be too large or too deep.

An answer is found by the name of its function, not by its cell. It takes along what it needs of the notebook and nothing more: the
imports, definitions and assignments of the names that it uses, of the names that those use, and so on. A training loop or a
plot elsewhere in the notebook is not its business, nor is a cell that is broken.
"""

from __future__ import annotations

import ast
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES, MOST_CELLS, MOST_CODE = 20 << 20, 2000, 400_000  # of a notebook, in it, and characters of code in all


class Unreadable(ValueError):
    """Why an answer, or a whole notebook, cannot be read: one line."""


@dataclass(frozen=True)
class Statement:
    cell: int  # counted from 1, as people do
    line: int
    text: str
    binds: frozenset[str]
    uses: frozenset[str]
    defines: frozenset[str]  # what could be an answer: a function, or a name that is given one

    @property
    def sent(self) -> list:
        return [self.cell, self.line, self.text]


class Notebook:
    """The statements of a notebook that could matter, and the cells that are no Python."""

    def __init__(self, statements: list[Statement], broken: dict[int, tuple[str, str]]):
        self.statements, self._broken = statements, broken

    def answer(self, function: str) -> list[list]:
        """The statements to run, [cell, line, text], so that ``function`` is defined. Raises Unreadable."""
        if not any(function in statement.defines for statement in self.statements):
            for cell, (text, why) in self._broken.items():
                if f"def {function}" in text:
                    raise Unreadable(f"cell {cell}, which defines {function}, is no Python: {why}")
            raise Unreadable(f"no cell defines the function {function}")
        needed, new = set(), {function}
        chosen: set[int] = set()
        while new:
            needed |= new
            chosen |= {i for i, statement in enumerate(self.statements) if statement.binds & new or "*" in statement.binds}
            new = set().union(*(self.statements[i].uses for i in chosen)) - needed
        return [self.statements[i].sent for i in sorted(chosen)]


def content(path: Path) -> bytes:
    """Of a plain file of reasonable size. Raises Unreadable, and OSError where the system refuses."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise Unreadable("a link, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a file")
    if status.st_size > MOST_BYTES:
        raise Unreadable(f"{status.st_size >> 20} MB, more than {MOST_BYTES >> 20}: clear its outputs and hand it in again")
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        return file.read(MOST_BYTES + 1)


def parse(content: bytes) -> Notebook:
    """Raises Unreadable."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise Unreadable("its JSON is nested too deep") from None
    except ValueError as error:
        raise Unreadable(f"not a notebook: {error}"[:200]) from None
    cells = notebook.get("cells") if type(notebook) is dict else None
    if type(cells) is not list:
        raise Unreadable("not a notebook: it has no list of cells")
    if len(cells) > MOST_CELLS:
        raise Unreadable(f"{len(cells)} cells, more than {MOST_CELLS}")
    statements, broken, left = [], {}, MOST_CODE
    for number, cell in enumerate(cells, 1):
        text = _code(cell)
        left -= len(text)
        if left < 0:
            raise Unreadable(f"more than {MOST_CODE} characters of code")
        try:
            statements += _statements(number, text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            broken[number] = text, f"line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)}"[:200]
    return Notebook(statements, broken)


def _code(cell: object) -> str:
    """Its Python, line by line where it stands; of a cell that is none as it stands, magics and shell commands are left out."""
    if type(cell) is not dict or cell.get("cell_type") != "code":
        return ""
    source = cell.get("source", "")
    text = "".join(map(str, source)) if type(source) is list else str(source)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        ast.parse(text)
        return text
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in text.split("\n"))


def _statements(cell: int, text: str) -> list[Statement]:
    lines = text.split("\n")
    statements = []
    for node in ast.parse(text).body:
        binds = _binds(node)
        if binds:
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            uses = frozenset(one.id for one in ast.walk(node) if isinstance(one, ast.Name))
            own = "\n".join(lines[first - 1 : node.end_lineno])
            if first == node.lineno and (node.col_offset or own[-1:] == ";" or ";" in own):
                own = ast.unparse(node)  # several statements on one line
            defines = frozenset() if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef) else binds
            statements.append(Statement(cell, first, own, binds, uses, defines))
    return statements


def _binds(node: ast.stmt) -> frozenset[str]:
    """The names that a statement gives a value, or whose value it changes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return frozenset({node.name})
    if isinstance(node, ast.Import):
        return frozenset(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return frozenset(alias.asname or alias.name for alias in node.names)
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return frozenset(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    return frozenset()
