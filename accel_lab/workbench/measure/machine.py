"""What this machine has, and what that means for whoever runs the course on it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import psutil
import torch

from accel_lab import __version__

NEEDS = [
    "torch",
    "jupyterlab",
    "ipywidgets",
    "bqplot",
    "matplotlib",
    "pydantic",
    "accelerate",
    "mlxtend",
    "scikit-learn",
]
PROGRAMS = {
    "bwrap": ("isolates what learners hand in, for grading", "bubblewrap"),
    "chromium": ("the browser tests", "chromium"),
    "ip": ("the tests of training across hosts", "iproute2"),
}
# Where a container's limit on memory stands: cgroup v2, and v1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
LITTLE = 3 * 2**30  # bytes: two chapters open at once may not fit


@dataclass(frozen=True)
class Fact:
    """name · value: as found here · meaning: what the reader can expect from it, may be empty."""

    name: str
    value: str
    meaning: str = ""


def hardware() -> list[Fact]:
    """Cores, memory, GPU and how ranks start: what decides which of the course's effects can be
    seen here.
    """
    cores, (memory, origin) = usable_cores(), usable_memory()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    threads = (
        f"{psutil.cpu_count()}, {cores} of them usable here; torch uses "
        f"{torch.get_num_threads()} threads"
    )
    fits = "every chapter is made to run in 1 GB" + (
        ": have one open at a time" if memory < LITTLE else ""
    )
    device = "the chapters train on it, unless their device knob says otherwise"
    no_device = "everything runs on the CPU, and each verdict is one for CPUs"
    system = (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"accel_lab {__version__}"
    )
    start = (
        "within a fraction of a second"
        if hasattr(os, "fork")
        else "within seconds, each loading torch anew"
    )
    return [
        Fact("cores", threads, _ranks(cores)),
        Fact("memory", f"{memory / 2**30:.1f} GiB {origin}", fits),
        Fact("GPU", ", ".join(gpus) or "none that torch can use", device if gpus else no_device),
        Fact("system", system, f"ranks start {start}"),
    ]


def packages() -> list[Fact]:
    return [Fact(package, _version(package)) for package in NEEDS]


def programs() -> list[Fact]:
    """What reading the course needs none of, but grading and testing do."""
    missing = "missing; needed for {}: apt-get install {}, or your system’s own package"
    return [
        Fact(program, shutil.which(program) or missing.format(*purpose))
        for program, purpose in PROGRAMS.items()
    ]


def usable_cores() -> int:
    """What this process may use: neither those that it is kept from, nor more than its container
    grants.
    """
    return joblib.cpu_count()


def usable_memory() -> tuple[int, str]:
    """bytes, and what they are: a container's limit where that is less than what is free."""
    free = psutil.virtual_memory().available
    granted = [int(text) for path in LIMITS if (text := _read(path)).isdigit()]
    return min(
        [
            (free, f"free of {psutil.virtual_memory().total / 2**30:.1f}"),
            *((limit, "granted") for limit in granted),
        ]
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _ranks(cores: int) -> str:
    """What a technique on several ranks can show."""
    if cores == 1:
        return (
            "ranks, processes that train together, take turns: you will see what their talking "
            "costs and nothing that it gains"
        )
    if cores == 2:
        return (
            "two ranks, processes that train together, have a core each: you will find "
            "the size "
            "of model from which on they pay"
        )
    return (
        f"up to {cores} ranks, processes that train together, have a core each: you will see "
        "how far that carries"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"missing; pip install {package}"


class Machine:
    """What this machine has; in a notebook a table, as text what ``python -m accel_lab doctor``
    prints.
    """

    def __repr__(self) -> str:
        facts = [*hardware(), *packages(), *programs()]
        return "\n".join(
            f"{fact.name:<11} {fact.value}" + (f"\n{'':11} {fact.meaning}" if fact.meaning else "")
            for fact in facts
        )

    def _repr_markdown_(self) -> str:
        facts = hardware() + [fact for fact in packages() if fact.value.startswith("missing")]
        rows = [f"| {fact.name} | {fact.value} | {fact.meaning} |" for fact in facts]
        return "\n".join(["| this machine | has | so |", "| --- | --- | --- |", *rows])
