"""One question to one answer, in a process of its own: load the learner's definitions, let the
driver ask, send what came of it.

Everything in here can be seen and changed by the learner's code, and that does not matter: the
grader takes no more from it than plain data, or that it failed.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import linecache
import sys
import traceback
import types
from typing import Any

import torch

from . import frames

MAP_THRESHOLD = -3  # of glibc's mallopt
# bytes: where memory is measured, a block of so many goes back to the system when freed
APART = 256 << 10
NAME = "__main__"  # the module that a learner's definitions are in, as in a notebook


def give(request: dict, channel: int) -> None:
    """Answer the request, and more of the same kind in this process while ``again`` says that more
    will come.

    Where time or memory is measured (``again``, ``bytes``) the answer is this one process, of one
    thread.
    """
    asked = None
    while True:
        number = request["id"]
        try:
            if asked is None:
                if request["bytes"] is not None or request["again"]:
                    _stay_one()
                if request["bytes"] is not None:
                    _import(request["statements"])
                    _hold_to(request["bytes"])
                asked = _prepare(request, channel)
            frames.send(channel, {"id": number, "value": asked(request)})
        except BaseException as error:
            frames.send(channel, {"id": number, "failed": describe(error)})
        if not request["again"]:
            return
        request = frames.receive(channel)


def _stay_one() -> None:
    """The system starts no process and no thread for it any more."""
    import resource  # Windows, where answers are only tried, has none

    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _import(statements: list) -> None:
    """Load the packages that are imported anywhere in there, before anything else in there is run:
    what they hold is not the answer's. One that is missing is told where it is wanted.
    """
    for _, _, text in statements:
        for part in ast.walk(ast.parse(text)):
            if isinstance(part, ast.Import | ast.ImportFrom):
                with contextlib.suppress(Exception):
                    exec(ast.unparse(part), {})


def _hold_to(most: int) -> None:
    """No more memory than this beyond what is there now, its own or shared, and none in files: the
    system refuses what goes beyond it, and nobody can take that back.
    """
    import resource

    getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)(MAP_THRESHOLD, APART)
    for kind, size in (
        (resource.RLIMIT_DATA, most + status("VmData")),
        (resource.RLIMIT_AS, most + status("VmSize")),
    ):
        resource.setrlimit(kind, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def status(name: str) -> int:
    """bytes, of this process, from a line of the kernel's such as ``VmSize:   12345 kB``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024


def _prepare(request: dict, channel: int):
    names, trouble = _load(request["statements"])
    if request["function"] not in names:
        raise NameError(
            f"{request['function']} is not defined: {trouble or 'no statement defines it'}"
        )
    driver: dict = {"__name__": "driver"}
    exec(compile(request["driver"], "<driver>", "exec"), driver)
    drive, function = driver[request["drive"]], names[request["function"]]

    def ask(request: dict) -> object:
        links = [Links(request["id"], channel)] if request["linked"] else []
        try:
            return driven(drive, function, request["case"], *links)
        except NameError as error:
            if trouble:
                raise NameError(f"{error} ({trouble})").with_traceback(
                    error.__traceback__
                ) from None
            raise

    return ask


def _load(statements: list) -> tuple[dict, str]:
    """Run each statement as its cell would; one that fails leaves the others alone, as in a
    notebook.
    """
    module = types.ModuleType(NAME)
    sys.modules[NAME], trouble = module, ""
    module.display = print  # a notebook has it without an import
    for cell, line, text in statements:
        file = f"<cell {cell}>"
        entry: Any = linecache.cache.get(file)
        known = entry[2] if entry else []
        lines = text.splitlines(keepends=True)
        known += ["\n"] * (line - 1 + len(lines) - len(known))
        known[line - 1 : line - 1 + len(lines)] = lines
        linecache.cache[file] = (len(known), None, known, file)
        try:
            exec(compile("\n" * (line - 1) + text, file, "exec"), module.__dict__)
        except Exception as error:
            trouble = (
                trouble or f"line {line} of cell {cell} failed with {type(error).__name__}: {error}"
            )
    return module.__dict__, trouble


class Links:
    """A rank's connection to the others. The grader carries every message, so it knows what was
    sent, and who waits for whom.
    """

    def __init__(self, number: str, channel: int):
        self._number, self._channel = number, channel

    def send(self, to: int, tensor: torch.Tensor) -> None:
        self._tell("send", to, tensor)

    def receive(self, source: int) -> torch.Tensor:
        return self._ask("receive", source, None)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Replaces the tensor by its sum over all ranks."""
        tensor.detach().copy_(self._ask("all_reduce", None, tensor))

    def _tell(self, what: str, other: int | None, tensor: torch.Tensor | None) -> None:
        frame = sys._getframe()
        while frame and not _cell(frame.f_code.co_filename):
            frame = frame.f_back
        line = f"line {frame.f_lineno} of {_cell(frame.f_code.co_filename)}" if frame else ""
        frames.send(
            self._channel,
            {"id": self._number, "does": what, "other": other, "tensor": tensor, "where": line},
        )

    def _ask(self, what: str, other: int | None, tensor: torch.Tensor | None) -> torch.Tensor:
        self._tell(what, other, tensor)
        return frames.receive(self._channel)


def driven(drive, answer, *arguments) -> object:
    """``drive(answer, …)``. Where it cannot use what the answer returned because that is None, the
    error says so.
    """
    nothing = False

    def asked(*given, **named) -> object:
        nonlocal nothing
        nothing = False
        returned = answer(*given, **named)
        nothing = returned is None
        return returned

    try:
        return drive(asked, *arguments)
    except (TypeError, AttributeError, ValueError) as error:
        if nothing and "None" in str(error):
            raise TypeError("you returned nothing: end the function with return …") from None
        raise


def describe(error: BaseException, file: str = "", called: str = "its cell") -> dict[str, str]:
    """An exception as plain data. ``where``: the last line of it in a cell, or in the ``file`` that
    is ``called`` so.
    """
    told = traceback.TracebackException.from_exception(error)
    theirs = [
        i for i, frame in enumerate(told.stack) if frame.filename == file or _cell(frame.filename)
    ]
    where = ""
    if theirs:
        last = told.stack[theirs[-1]]
        where = f"line {last.lineno} of {_cell(last.filename) or called}"
        told.stack[:] = told.stack[theirs[0] :]  # how we came there is nobody's business
    report = "".join(told.format())
    return {
        "kind": type(error).__name__,
        "text": str(error)[:1000],
        "where": where,
        "report": report[-4000:],
    }


def _cell(file: str) -> str:
    return file[1:-1] if file.startswith("<cell ") else ""
