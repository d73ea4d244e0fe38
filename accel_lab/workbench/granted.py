"""What this process may use of its machine: the cores and the memory that its container grants.

Linux holds a limit for a group of processes, and for all groups below it (man 7 cgroups). So what
is in force is the least, from our own group up to the top that can be seen. Two versions of the
groups are in use, and a machine may have both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """What this process may use: neither those that it is kept from, nor more than its container
    grants.
    """
    return max(1, min([len(own_cores()), *_quotas(root).values()]))


def own_cores() -> list[int]:
    """The numbers of the cores that this process is not kept from."""
    this = psutil.Process()
    kept_to = this.cpu_affinity() if hasattr(this, "cpu_affinity") else None
    return list(kept_to or range(os.cpu_count() or 1))


def used_of_quota(root: Path = ROOT) -> float | None:
    """Seconds of CPU that all programs together took of the quota that is in force, since the
    container began; None without a quota.
    """
    quotas = _quotas(root)
    if not quotas or min(quotas.values()) > len(own_cores()):
        return None
    for line in _text(min(quotas, key=quotas.__getitem__) / "cpu.stat").splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    first_version = (_text(group / "cpuacct.usage") for group in _groups(root, "cpuacct"))
    return next((int(text) / 1e9 for text in first_version if text.isdigit()), None)


def _quotas(root: Path) -> dict[Path, int]:
    """Groups that have a quota → cores of it."""
    quotas = {}
    for group in _groups(root, "cpu"):
        both = _text(group / "cpu.max")
        both = both or " ".join(_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        match both.split():  # microseconds of work in so many; "max" and -1 are no limit
            case [quota, period] if quota.isdigit() and int(period):
                quotas[group] = ceil(int(quota) / int(period))
    return quotas


def granted_memory(root: Path = ROOT) -> int | None:
    """bytes; None without a limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [_text(group / name) for group in _groups(root, "memory") for name in names]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that we are in, up to the top of what is mounted."""
    ours = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)  # version 2 names no controller
        ours |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, how = line.partition(" - ")
        kind, *_, options = how.split()
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name not in ours or (name and name not in options.split(",")):
            continue
        shown, at = mount.split()[3:5]  # a container may be shown its own group as the top
        top, group = root / at.lstrip("/"), ours[name]
        below = group.relative_to(shown) if group.is_relative_to(shown) else PurePosixPath()
        if ".." in below.parts:  # seen from a group beside ours
            below = PurePosixPath()
        yield from (top / part for part in (below, *below.parents))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
