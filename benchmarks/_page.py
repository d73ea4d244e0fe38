"""The results page: for each benchmark the table of its lines, the picture of its ratios, and the
machine that they were taken on.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import matplotlib
import psutil
import torch

from accel_lab.workbench.drawing import figure

FOLDER = Path(__file__).parent / "results"
LINE = re.compile(
    r"(?P<case>.+): ratio (?P<ratio>[\d.]+) \((?P<low>[\d.]+)–(?P<high>[\d.]+) of (?P<pairs>\d+) "
    r"pairs\) vs (?P<peer>.+)"
)


@dataclass(frozen=True)
class Row:
    case: str
    peer: str
    ratio: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, line: str) -> Row | None:
        if found := LINE.fullmatch(line):
            numbers = (float(found[name]) for name in ("ratio", "low", "high"))
            return cls(found["case"], found["peer"], *numbers, int(found["pairs"]))
        return None


def write(name: str, lines: list[str], folder: Path = FOLDER) -> None:
    """``folder/name.md`` and its picture, and ``folder/README.md``, which shows them all."""
    folder.mkdir(exist_ok=True)
    rows = [row for line in lines if (row := Row.of(line))]
    said = [line for line in lines if not Row.of(line)]
    page = [f"## {name}", "", f"{date.today()}, {machine()}", ""]
    if rows:
        picture(rows).savefig(
            folder / f"{name}.png",
            dpi=90,
            bbox_inches="tight",
            facecolor="white",
            metadata={"Software": None},
        )
        page += [f"![{name}: our time over the peer's]({name}.png)", ""]
        page += [
            "| case | peer or limit | our time over the peer's | least to greatest | pairs |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        page += [
            f"| {row.case} | {row.peer} | {row.ratio:.2f} | {row.low:.2f} to {row.high:.2f} | "
            f"{row.pairs} |"
            for row in rows
        ]
        page += [""]
    page += [f"- {line}" for line in said]
    (folder / f"{name}.md").write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")
    sections = [
        path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.md"))
        if path.name != "README.md"
    ]
    (folder / "README.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")


HEAD = """# Results

Ours beside each peer, alternated in one run: the median of the ratios of the pairs, and their
spread. Below 1, ours takes less time.
`make bench` takes them anew on your machine, `make bench BENCH="ddp grading"` some of them.
"""


def machine() -> str:
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{psutil.cpu_count()} cores"
    )
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return (
        f"{platform.system()} {platform.machine()}, {device}, {memory}, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def picture(rows: list[Row]) -> matplotlib.figure.Figure:
    drawing, (axes,) = figure.axes(9, 0.6 + 0.3 * len(rows))
    axes.axvline(1, **figure.LIMIT)
    for place, row in enumerate(rows):
        axes.plot([row.low, row.high], [place, place], color=figure.BLUE, linewidth=2, alpha=0.5)
        axes.plot(row.ratio, place, "o", color=figure.BLUE)
    axes.set(
        xscale="log",
        yticks=range(len(rows)),
        xlabel="our time over the peer's: median, and all pairs",
    )
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.set_yticklabels([f"{row.case} vs {row.peer}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    return drawing
