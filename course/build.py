"""Build the notebooks: python course/build.py [NAME…].

Each source is read, executed from top to bottom, and stored with its outputs. A notebook whose
source, and all of accel_lab that it imports, are as they were when it was built is left alone.
The front door, which shows what the others hold, is built last whenever one of them was.

What is stored does not depend on who built it: no widget state, no times, no paths, and cell ids
that follow from the place.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import grimp
import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from accel_lab import catalog

COURSE = Path(__file__).resolve().parent
KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
MOST_BYTES = 2_000_000


def build(source: Path, digest: str) -> None:
    """Execute a source and store its notebook. Raises CellExecutionError, and ValueError when the
    notebook is too large.
    """
    notebook = jupytext.read(source)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place:02d}"
    notebook.metadata = nbformat.from_dict(KERNEL)
    where = {"metadata": {"path": str(COURSE)}}
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=where, coalesce_streams=True
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata = nbformat.from_dict({**KERNEL, "accel_lab": {"built_from": digest}})
    text = nbformat.writes(notebook) + "\n"
    if (size := len(text.encode())) > MOST_BYTES:
        raise ValueError(f"{source.stem}: {size:,} bytes with its outputs; at most {MOST_BYTES:,}")
    built_at(source).write_text(text, encoding="utf-8")


def built_at(source: Path) -> Path:
    return COURSE / f"{source.stem}.ipynb"


def digest_of(source: Path, graph: grimp.ImportGraph) -> str:
    """Of the source, and of every module of accel_lab that it imports, however indirectly."""
    content = source.read_bytes()
    found = [node for node in ast.walk(ast.parse(content)) if _is_ours(node)]
    imported = {f"{node.module}.{name.name}" for node in found for name in node.names}
    imported |= {node.module for node in found}
    word = catalog.CHAPTER.fullmatch(source.stem)[2]
    imported.add(f"accel_lab.exercises.{word}")  # found by its name, not imported
    imported &= graph.modules
    imported |= {upstream for one in imported for upstream in graph.find_upstream_modules(one)}
    digest = hashlib.sha256(content)
    for module in sorted(imported):
        digest.update(_file_of(module).read_bytes())
    return digest.hexdigest()[:16]


def _is_ours(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("accel_lab")


def _file_of(module: str) -> Path:
    path = COURSE.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_up_to_date(source: Path, digest: str) -> bool:
    if not (path := built_at(source)).exists():
        return False
    return nbformat.read(path, 4).metadata.get("accel_lab", {}).get("built_from") == digest


def needs_every_core(one: catalog.ChapterFile) -> bool:
    """A chapter that measures what a second core brings, with ranks or by a count of the cores, is
    built with none beside it.
    """
    from accel_lab.workbench.ranks.world import RankKnobs

    counts_cores = "lab.usable_cores()" in one.path.read_text(encoding="utf-8")
    return counts_cores or issubclass(catalog.experiment(one.word).Knobs, RankKnobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", help="11_accumulation, or accumulation; without any, all"
    )
    parser.add_argument("--all", action="store_true", help="also those that are up to date")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (%(default)s)")
    options = parser.parse_args()
    chapters = catalog.chapters(COURSE / "source", ".py")
    names = {*options.names}
    wanted = [one for one in chapters if not names or {one.path.stem, one.word} & names]
    if not wanted:
        sys.exit(f"course/source has no chapter called {', '.join(options.names)}")
    os.environ["ACCEL_LAB_HEADLESS"] = "1"
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as in the Makefile
    graph = grimp.build_graph("accel_lab")
    digests = {one.path: digest_of(one.path, graph) for one in chapters}
    anyway = options.all or names
    due = [one for one in wanted if anyway or not is_up_to_date(one.path, digests[one.path])]
    rooms = [one for one in due if one.teaches_a_technique]
    doors = [one for one in chapters if not one.teaches_a_technique and (one in due or rooms)]
    for one in sorted({*wanted} - {*due, *doors}):
        print(f"{one.path.stem}: is up to date")

    def built(one: catalog.ChapterFile) -> str:
        start = perf_counter()
        try:
            build(one.path, digests[one.path])
        except (CellExecutionError, CellTimeoutError, ValueError) as error:
            return f"{one.path.stem}: failed\n{error}"
        print(f"{one.path.stem}: built in {perf_counter() - start:.0f} s", flush=True)
        return ""

    alone = [one for one in rooms if needs_every_core(one)]
    os.environ["ACCEL_LAB_BESIDE"] = str(options.jobs - 1)
    with ThreadPoolExecutor(options.jobs) as pool:
        failures = [*pool.map(built, [one for one in rooms if one not in alone])]
    os.environ["ACCEL_LAB_BESIDE"] = "0"
    failures += [built(one) for one in alone]
    # The front door shows what the others hold, so it comes last.
    failures += [built(one) for one in doors]
    if said := "\n".join(filter(None, failures)):
        sys.exit(said)


if __name__ == "__main__":
    main()
