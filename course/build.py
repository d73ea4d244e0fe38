"""Build the notebooks: python course/build.py [NAME…]. Each source is read, executed from top to
bottom, and stored with its outputs.

What is stored does not depend on who built it: no widget state, no times, no paths, and cell ids
that follow from the place.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

COURSE = Path(__file__).resolve().parent
KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
MOST_BYTES = 2_000_000


def build(source: Path) -> None:
    notebook = jupytext.read(source)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place:02d}"
    notebook.metadata = nbformat.from_dict(KERNEL)
    where = {"metadata": {"path": str(COURSE)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=where, coalesce_streams=True
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata = nbformat.from_dict(KERNEL)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(
            f"{source.stem}: {len(text.encode()):,} bytes with its outputs; at most {MOST_BYTES:,} "
            "are wanted"
        )
    (COURSE / f"{source.stem}.ipynb").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", help="11_accumulation, or just accumulation; without any, all"
    )
    names = parser.parse_args().names
    sources = [
        path
        for path in sorted((COURSE / "source").glob("*.py"))
        if not names or {path.stem, path.stem[3:]} & set(names)
    ]
    sources.sort(
        key=lambda path: path.stem.startswith("00")
    )  # the front door shows what the others hold, so it comes last
    if not sources:
        sys.exit(f"course/source has no chapter called {', '.join(names)}")
    os.environ["ACCEL_LAB_HEADLESS"] = "1"
    for source in sources:
        start = perf_counter()
        try:
            build(source)
        except CellExecutionError as error:
            sys.exit(f"{source.stem}: a cell failed\n{error}")
        print(f"{source.stem}: built in {perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
