"""Finds answers in a notebook. The notebook is data: it is parsed, never run, and nothing in it can
be too large or too deep.

An answer is found by the name of its function, not by its cell. It takes along what it needs of the
notebook and nothing more: the imports, definitions and assignments of the names that it uses, of
the names that those use, and so on. A training loop or a plot elsewhere in the notebook is not its
business, nor is a cell that is broken.
"""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import symtable
import textwrap
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES, MOST_CELLS = 20 << 20, 2000  # of a notebook, and in it
# characters of code, and what is divided by line ends and semicolons
MOST_CODE, MOST_LINES = 400_000, 20_000

NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what Python says of it
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# other cell magics give the text to something else
_PYTHON_CELLS = ("%%time", "%%capture", "%%prun")
_MAGIC = re.compile(
    r"^([ \t]*+)(?:[%!?].*|[\w ,.]++=[ \t]*+[%!].*|[\w.]++\?\??[ \t]*+)$", re.MULTILINE
)
# CPython before 3.11.8 counts the depth of all trees being made together, and then fails
_PARSING = threading.Lock()


class Unreadable(ValueError):
    """Why an answer, or a whole notebook, cannot be read: one line."""


@dataclass(frozen=True)
class Statement:
    cell: int  # counted from 1, as people do
    line: int
    text: str
    binds: frozenset[str]
    imports: frozenset[str]
    changes: frozenset[str]  # by a method that is called for that alone, such as append
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
        """The statements to run, [cell, line, text], so that ``function`` is defined. Raises
        Unreadable.
        """
        if not any(function in statement.defines for statement in self.statements):
            for cell, (text, why) in self._broken.items():
                if f"def {function}" in text:
                    raise Unreadable(
                        f"cell {cell}, which defines {function}, is not valid Python: {why}"
                    )
            raise Unreadable(f"no cell defines the function {function}")
        binding = defaultdict(list)
        imported = frozenset().union(*(statement.imports for statement in self.statements))
        for i, statement in enumerate(self.statements):
            # what uses the answer is not a part of it
            changed = set() if function in statement.uses else statement.changes - imported
            for name in statement.binds | changed:
                binding[name].append(i)
        chosen, wanted = set(), [function, "*"]
        while wanted:
            new = set(binding.pop(wanted.pop(), ())) - chosen
            chosen |= new
            wanted += set().union(*(self.statements[i].uses for i in new))
        return [self.statements[i].sent for i in sorted(chosen)]


def content(path: Path) -> bytes:
    """Of a plain file of reasonable size. Raises Unreadable, or OSError if the system refuses."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise Unreadable("a link, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a file")
    if status.st_size > MOST_BYTES:
        raise Unreadable(
            f"{status.st_size >> 20} MB, more than {MOST_BYTES >> 20}: clear its outputs and hand "
            "it in again"
        )
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
    statements, broken, characters, lines = [], {}, MOST_CODE, MOST_LINES
    for number, cell in enumerate(cells, 1):
        text = _code(cell)
        characters -= len(text)
        lines -= text.count("\n") + text.count(";")
        if characters < 0 or lines < 0:
            raise Unreadable(f"more than {MOST_CODE} characters or {MOST_LINES} lines of code")
        try:
            statements += _statements(number, text)
        except NO_PYTHON as error:
            broken[number] = (
                text,
                f"line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)}"[:200],
            )
    return Notebook(statements, broken)


def _code(cell: object) -> str:
    if type(cell) is not dict or cell.get("cell_type") != "code":
        return ""
    source = cell.get("source", "")
    text = "".join(map(str, source)) if type(source) is list else str(source)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _statements(cell: int, text: str) -> list[Statement]:
    """The text is taken as it stands; where that is no Python, magics, shell commands and what
    indents all of it are left out.
    """
    if text.lstrip().startswith("%%") and not text.lstrip().startswith(_PYTHON_CELLS):
        return []
    try:
        return _read(cell, text)
    except NO_PYTHON:
        plain = textwrap.dedent(_MAGIC.sub(r"\1pass", text))
        if plain == text:
            raise
        return _read(cell, plain)


def _read(cell: int, text: str) -> list[Statement]:
    """The statements of a cell that give a name a value or change it. Raises SyntaxError and what
    else Python says of code that is not valid.
    """
    tree = _parsed(text)
    lines = text.split("\n")
    statements = []
    for node in tree.body:
        first = min(
            [node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]
        )
        own = "\n".join(lines[first - 1 : node.end_lineno])
        if first == node.lineno and (node.col_offset or ";" in own):
            own = ast.unparse(node)  # several statements on one line
        names = symtable.symtable(own, f"<cell {cell}>", "exec")
        binds, changes = _bound(node, names), _changed(node)
        if binds or changes:
            imports = frozenset(one.get_name() for one in names.get_symbols() if one.is_imported())
            defines = (
                frozenset()
                if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)
                else binds
            )
            statements.append(
                Statement(cell, first, own, binds, imports, changes, _used(names), defines)
            )
    return statements


def _parsed(text: str) -> ast.Module:
    with _PARSING:
        return ast.parse(text)


def _bound(node: ast.stmt, names: symtable.SymbolTable) -> frozenset[str]:
    """The names that a statement of the notebook gives a value, or whose value it changes. names:
    of the statement, as a module.
    """
    bound = {
        one.get_name() for one in names.get_symbols() if one.is_assigned() or one.is_imported()
    }
    for part in ast.walk(node) if not isinstance(node, _SCOPES) else ():
        if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store):
            bound |= _owner(part)
        if isinstance(part, ast.ImportFrom) and part.names[0].name == "*":
            bound.add("*")
    return frozenset(bound)


def _changed(node: ast.stmt) -> frozenset[str]:
    """The names of whose values a method is called where nobody takes what it returns, or
    decorates.
    """
    alone = (part.value for part in ast.walk(node) if isinstance(part, ast.Expr))
    calls = node.decorator_list if isinstance(node, _SCOPES) else alone
    methods = [call.func if isinstance(call, ast.Call) else call for call in calls]
    return frozenset().union(
        *(_owner(method) for method in methods if isinstance(method, ast.Attribute))
    )


def _owner(part: ast.expr) -> set[str]:
    """The name at the root of an attribute, or of an entry: a of a.b[0].c; none where that is no
    name.
    """
    while isinstance(part, ast.Attribute | ast.Subscript):
        part = part.value
    return {part.id} if isinstance(part, ast.Name) else set()


def _used(names: symtable.SymbolTable) -> frozenset[str]:
    """The names that a statement, and all functions and classes in it, want from the notebook."""
    used, tables = set(), [names]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        # a class may use a name of the notebook and then bind it, as in ``two = two``
        inner = table.get_type() == "function"
        used |= {
            one.get_name()
            for one in table.get_symbols()
            if (one.is_global() if inner else one.is_referenced())
        }
    return frozenset(used)
