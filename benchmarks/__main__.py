"""python -m benchmarks NAME…: each benchmark is a module here whose ``cases()`` yields one finished
line per case.

A line reads ``CASE: ratio MEDIAN (MIN–MAX of N pairs) vs PEER``: our time over the peer's, below 1
is faster. The results page, benchmarks/results/README.md, is brought up to date.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks import _page


def known() -> list[str]:
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(":")[2]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"without any, all: {', '.join(known())}"
    )
    names = parser.parse_args().names or known()
    if unknown := [name for name in names if name not in known()]:
        print(
            f"benchmarks: there is none called {unknown[0]!r}; there are: {', '.join(known())}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    print(f"# {_page.machine()}, {torch.get_num_threads()} threads", flush=True)
    for name in names:
        print(f"# {name}", flush=True)
        lines = []
        for line in importlib.import_module(f"benchmarks.{name}").cases():
            print(line, flush=True)
            lines.append(line)
        _page.write(name, lines)


if __name__ == "__main__":
    main()
