"""What this machine has, and what that means for whoever runs the course on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import psutil
import torch

from accel_lab import __version__
from accel_lab.workbench.granted import granted_memory, usable_cores

# Instructions that compute in few bits, by the names that torch has for them.
LOW_PRECISION = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16"),
    "float16": ("amx_fp16", "avx512_fp16", "avx10_1", "fp16_arith"),
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "dot", "i8mm"),
}
PROGRAMS = {
    "bwrap": ("isolates what learners hand in, for grading", "bubblewrap"),
    "chromium": ("the browser tests", "chromium"),
    "ip": ("the tests of training across hosts", "iproute2"),
}
LITTLE = 3 * 2**30  # bytes: two chapters open at once may not fit


@dataclass(frozen=True)
class Fact:
    """name · value: as found here · meaning: what the reader can expect from it, may be empty."""

    name: str
    value: str
    meaning: str = ""


def hardware() -> list[Fact]:
    """Cores, memory, GPU, precision, how ranks start: what decides what can be seen here."""
    memory, origin = usable_memory()
    alone = ": have one open at a time" if memory < LITTLE else ""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    on_gpu = "the chapters train on it, unless their device knob says otherwise"
    on_cpu = "everything runs on the CPU, and each verdict is one for CPUs"
    python = f"Python {platform.python_version()}, accel_lab {__version__}"
    forks = hasattr(os, "fork")
    start = (
        "as copies of a process that has torch already"
        if forks
        else "within seconds, each loading torch anew"
    )
    return [
        _cores(),
        Fact("memory", f"{memory / 2**30:.1f} GiB {origin}", f"every chapter runs in 1 GB{alone}"),
        Fact("GPU", ", ".join(gpus) or "none that torch can use", on_gpu if gpus else on_cpu),
        _precision(),
        Fact(
            "system", f"{platform.system()} {platform.machine()}, {python}", f"ranks start {start}"
        ),
    ]


def low_precision() -> dict[str, list[str]]:
    """dtype → the instructions of this CPU that compute in it; without any it is left out."""
    try:
        has = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch does not tell
        return {}
    found = {
        dtype: [one for one in names if has.get(one)] for dtype, names in LOW_PRECISION.items()
    }
    return {dtype: names for dtype, names in found.items() if names}


def packages() -> list[Fact]:
    """What accel_lab says it needs, and which version is here."""
    try:
        lines = requires("accel-lab") or []
    except PackageNotFoundError:
        return [Fact("accel-lab", "is not installed; pip install --editable . in its folder")]
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    return [Fact(name, _version(name)) for name in names]


def programs() -> list[Fact]:
    """What reading the course needs none of, but grading and testing do."""
    missing = "missing; needed for {}: apt-get install {}, or your system’s own package"
    return [
        Fact(program, shutil.which(program) or missing.format(*purpose))
        for program, purpose in PROGRAMS.items()
    ]


def usable_memory() -> tuple[int, str]:
    """bytes, and what they are: a container's limit where that is less than what is free."""
    memory, limit = psutil.virtual_memory(), granted_memory()
    if limit is not None and limit < memory.available:
        return limit, "granted"
    return memory.available, f"free of {memory.total / 2**30:.1f}"


def _cores() -> Fact:
    """How many, and what a technique on several ranks can show with them."""
    cores = usable_cores()
    value = f"{psutil.cpu_count()}, {cores} of them usable here; torch uses "
    value += f"{torch.get_num_threads()} threads"
    ranks = "processes that train together"
    if cores == 1:
        means = f"ranks, {ranks}, take turns: you see what their talking costs, not what it gains"
    elif cores == 2:
        means = f"two ranks, {ranks}, have a core each: you find the model size from which they pay"
    else:
        means = f"up to {cores} ranks, {ranks}, have a core each: you see how far that carries"
    return Fact("cores", value, means)


def _precision() -> Fact:
    found = low_precision()
    if not found:
        value = "no instructions for bfloat16, float16 or int8 that torch knows of"
        return Fact(
            "precision", value, "fewer bits save memory here; whether time, too, is measured"
        )
    value = "; ".join(f"{dtype}: {', '.join(names)}" for dtype, names in found.items())
    return Fact("precision", value, "this CPU can compute in fewer bits faster than in float32")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"missing; pip install {package}"


class Machine:
    """What this machine has: in a notebook a table, as text what the command ``doctor`` prints."""

    def __repr__(self) -> str:
        facts = [*hardware(), *packages(), *programs()]
        return "\n".join(
            f"{fact.name:<14} {fact.value}" + (f"\n{'':14} {fact.meaning}" if fact.meaning else "")
            for fact in facts
        )

    def _repr_markdown_(self) -> str:
        facts = hardware() + [fact for fact in packages() if fact.value.startswith("missing")]
        rows = [f"| {fact.name} | {fact.value} | {fact.meaning} |" for fact in facts]
        return "\n".join(["| this machine | has | so |", "| --- | --- | --- |", *rows])
