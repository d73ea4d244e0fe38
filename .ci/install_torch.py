"""Install the build of torch that fits this machine: python .ci/install_torch.py CONSTRAINTS

pip's own on Linux is built for CUDA, several gigabytes with its libraries, also where there is no
GPU. uv knows where the other builds lie. Where they cannot be reached, whoever called goes on, and
pip takes its own. A torch that is there already, of the version asked for, is left alone.
TORCH_BACKEND=cpu, cu126, … asks for a build, TORCH_BACKEND=pip for pip's own.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# Whoever cannot reach a build is to know within seconds.
IN_A_HURRY = {"UV_HTTP_CONNECT_TIMEOUT": "4", "UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "0"}
SIZES = {"cpu": "0.2 GB to download", "auto": "up to several GB to download"}


def wanted(constraints: Path) -> str:
    """The version that the constraints name."""
    return re.search(r"^torch==(\S+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)[1]


def build_for(version: str) -> str:
    """As uv calls it; "" where pip's own is right, or is there."""
    if asked := os.environ.get("TORCH_BACKEND"):
        return asked.removeprefix("pip")
    try:
        there, _, build = metadata.version("torch").partition("+")
    except metadata.PackageNotFoundError:
        there, build = "", ""
    if there == version or platform.system() != "Linux":
        return ""
    return build or ("auto" if has_gpu() else "cpu")


def has_gpu() -> bool:
    """NVIDIA's driver is there, and sees one."""
    if shutil.which("nvidia-smi") is None:
        return False
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return said.returncode == 0 and said.stdout.startswith("GPU")


def install(version: str, build: str) -> bool:
    """Whether it worked. torch alone: what it needs is pip's to choose."""
    with tempfile.TemporaryDirectory() as folder:
        uv = shutil.which("uv")
        if uv is None:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"]
            if subprocess.run(pip, capture_output=True, check=False).returncode:
                return False
            uv = str(Path(folder, "bin", "uv"))
        command = [uv, "pip", "install", "--python", sys.executable, "--no-deps"]
        command += ["--torch-backend", build, f"torch=={version}"]
        hurried = {**IN_A_HURRY, **os.environ}
        return (
            subprocess.run(command, env=hurried, capture_output=True, check=False).returncode == 0
        )


def main(constraints: Path) -> None:
    version = wanted(constraints)
    if not (build := build_for(version)):
        return
    size = SIZES.get(build, "several GB to download")
    what = f"torch {version}: the build {build!r}, {size}; TORCH_BACKEND=… asks for another one"
    print(what, flush=True)
    if not install(version, build):
        print("that build cannot be had from here: pip takes its own")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
