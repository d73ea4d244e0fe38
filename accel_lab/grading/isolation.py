"""What holds learners' code: the best isolation that this machine has, by name.

- ``bubblewrap``: no file but Python's own (read-only), no network, no other process; the sandboxes
  inside are isolated from one another as well (see ``inside.supervisor``). Only this makes a mark.
- ``landlock``: the kernel refuses files and TCP, but a sandbox sees other processes and what it has
  started can outlive it.
- ``none``: limits of time and memory alone.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
INSIDE = Path(__file__).parent / "inside"
MB = 1 << 20
STARTING = 60.0  # seconds: for importing torch on a busy machine


@dataclass(frozen=True)
class Limits:
    """seconds: for all cases of one exercise · memory, output: bytes of all processes of a sandbox
    · processes: of a sandbox.
    """

    seconds: float = 20.0
    memory: int = 2048 * MB
    processes: int = 64
    output: int = 20 * MB
    folder: int = 64 * MB

    def inside(self) -> dict[str, int]:
        """What the system holds each process to. It counts processes by user. With root each
        sandbox has a user of its own; without, all are one user's, and there is room for those of
        others until one that starts too many is seen. The fewer, the sooner a fork bomb is gone.
        """
        users = 1 if os.getuid() == 0 else 1 + len(os.sched_getaffinity(0))
        return {
            "address space": self.memory,
            "file size": self.folder,
            "processes": self.processes * users + 16,
            "cpu seconds": int(self.seconds) * 3,
            "open files": 256,
            "core": 0,
            "folder bytes": self.folder,
            "files": 4096,  # in a folder: empty ones take memory, too
        }


@dataclass(frozen=True)
class Isolation:
    """name · why: there is no better one, '' for the best."""

    name: str
    why: str = ""

    @property
    def has_namespaces(self) -> bool:
        """Whether each sandbox has its own view of the files, and so a folder of its own."""
        return self.name == "bubblewrap"

    @property
    def makes_a_mark(self) -> bool:
        return self.has_namespaces


@functools.cache
def best() -> Isolation:
    why = _no_bubblewrap()
    if not why:
        return Isolation("bubblewrap")
    # with torch, which takes a while and is rarely needed here
    from accel_lab.grading.inside import supervisor

    return Isolation("landlock" if supervisor.landlock_version() else "none", why)


def _no_bubblewrap() -> str:
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed (Debian: apt-get install bubblewrap)"
    tried = subprocess.run([*_bubblewrap(), "true"], capture_output=True, text=True)
    return tried.stderr.strip().partition("\n")[0] if tried.returncode else ""


def command(
    isolation: Isolation, control: int, limits: Limits, scratch: Path | None
) -> tuple[list[str], dict[str, str]]:
    """How to start the zygote in isolation: the command, and its whole environment. scratch: the
    only writable folder where sandboxes have none of their own.
    """
    inside = limits.inside()
    if isolation.name == "landlock":
        inside |= {
            "readable": [*_readable(), "/proc", "/sys", "/dev/null", "/dev/urandom", str(INSIDE)],
            "writable": [str(scratch), "/dev/null"],
        }
    home = str(scratch)
    if isolation.has_namespaces:
        home = inside["scratch"] = _scratch_of_each(_readable())
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONPATH": "/sandbox" if isolation.has_namespaces else str(INSIDE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
    }
    python = [
        sys.executable,
        "-m",
        "inside.zygote",
        str(control),
        isolation.name,
        json.dumps(inside),
    ]
    return [*(_bubblewrap() if isolation.has_namespaces else ()), *python], environment


def _bubblewrap() -> list[str]:
    """As root, who needs no user namespace, the zygote keeps what it takes to make sandboxes; each
    of them gives that up first of all.
    """
    if os.geteuid() == 0:
        kept = ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP")
        apart = [
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
    else:
        kept, apart = (
            ("SYS_ADMIN", "SETPCAP"),
            ["--unshare-all", "--unshare-user", "--uid", "60000", "--gid", "60000"],
        )
    line = [
        "bwrap",
        *apart,
        "--die-with-parent",
        "--new-session",
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
    ]
    for capability in kept:
        line += ["--cap-add", f"CAP_{capability}"]
    line += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    bound = _readable()
    scratch = _scratch_of_each(bound)
    for path in bound:
        for parent in reversed(Path(path).parents[:-1]):
            line += ["--dir", str(parent)]  # bubblewrap would make them, and for its own user alone
        line += ["--ro-bind", path, path]
    if any(PACKAGE.is_relative_to(path) for path in bound):
        line += ["--tmpfs", str(PACKAGE)]  # the references are no learner's to import
    if scratch != "/tmp":
        line += ["--remount-ro", "/tmp", "--tmpfs", scratch]
    line += [
        "--dir",
        "/sandbox",
        "--ro-bind",
        str(INSIDE),
        "/sandbox/inside",
        "--remount-ro",
        "/",
        "--chdir",
        scratch,
        "--",
    ]
    return line


def _scratch_of_each(readable: list[str]) -> str:
    """The folder over which each sandbox has one of its own: not one that holds what it reads."""
    return "/scratch" if any(Path(path).is_relative_to("/tmp") for path in readable) else "/tmp"


def _readable() -> list[str]:
    """The folders of Python, of its packages and of the system's libraries."""
    system = [
        path
        for path in (
            "/usr",
            "/lib",
            "/lib64",
            "/bin",
            "/etc/ld.so.cache",
            "/sys/devices/system/cpu",
        )
        if os.path.exists(path)
    ]
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    python = {
        sys.prefix,
        sys.base_prefix,
        str(Path(sys.executable).resolve().parents[1]),
        *packages,
    }
    return system + sorted(
        path for path in python if not any(Path(path).is_relative_to(one) for one in system)
    )
