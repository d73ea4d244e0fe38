"""The files that say what the course runs on agree with each other, and nothing is committed that
should not be.

pyproject.toml is the one that is believed; environment.yml, binder/, constraints.txt and README are
held against it.
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# where conda-forge calls it otherwise
CONDA_NAMES = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
ONLY_CONDA = {"python", "pip"}
LARGEST = 2 * 1024 * 1024  # bytes
# Written so that these patterns do not match themselves.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:work|Users|home/[a-z]+|root/[a-z]+|opt/(?:wheels|pypi)|tmp/(?:ipykernel_|pytest-)\w*)/"
)
REGISTRIES = re.compile(
    r"(?i)\b(?:pypi|pythonhosted|npmjs|anaconda|debian|ubuntu|download\.pytorch)\.(?:org|com)\b"
)


def pyproject(root: Path = ROOT) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(*, extras: bool) -> list[Requirement]:
    project = pyproject()["project"]
    lines = list(project["dependencies"])
    if extras:
        lines += [line for group in project["optional-dependencies"].values() for line in group]
    return [Requirement(line) for line in lines]


# ---- conda ----


def conda_ranges(path: Path) -> dict[str, SpecifierSet]:
    """package → range, from a conda environment file, its pip section included; ``python=3.12``
    means any 3.12.
    """
    found = {}
    lines = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    for line in (
        name for part in lines for name in (part["pip"] if isinstance(part, dict) else [part])
    ):
        name, range_ = re.fullmatch(r"([\w.-]+)\s*(.*)", line).groups()
        found[name] = SpecifierSet(re.sub(r"^=([\d.]+)$", r"==\1.*", range_))
    return found


def disagreements(conda: dict[str, SpecifierSet], needed: Iterable[Requirement]) -> list[str]:
    expected = {
        CONDA_NAMES.get(requirement.name, requirement.name): requirement.specifier
        for requirement in needed
    }
    found = {name: range_ for name, range_ in conda.items() if name not in ONLY_CONDA}
    return [
        f"{name}: pyproject.toml says {expected.get(name, 'nothing')!s}, the conda file "
        f"{found.get(name, 'nothing')!s}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


@pytest.mark.parametrize("file", ["environment.yml", "binder/environment.yml"])
def test_conda_files_say_what_pyproject_says(file):
    assert disagreements(conda_ranges(ROOT / file), requirements(extras=False)) == []


def test_a_conda_file_that_disagrees_is_found():
    needed = [Requirement("torch>=2.9"), Requirement("numpy>=1.26"), Requirement("tqdm>=4")]
    conda = {"python": "==3.12.*", "pytorch-cpu": ">=2.8", "numpy": ">=1.26", "flax": ""}
    found = disagreements({name: SpecifierSet(range_) for name, range_ in conda.items()}, needed)
    assert [line.partition(":")[0] for line in found] == ["flax", "pytorch-cpu", "tqdm"]


def test_both_conda_files_are_one_environment():
    here, binder = (
        yaml.safe_load((ROOT / folder / "environment.yml").read_text(encoding="utf-8"))
        for folder in (".", "binder")
    )
    assert here == binder
    assert here["channels"] == ["conda-forge"]  # its torch is the CPU build


def test_the_conda_python_is_one_that_pyproject_allows():
    python = (
        str(conda_ranges(ROOT / "environment.yml")["python"]).removeprefix("==").removesuffix(".*")
    )
    project = pyproject()["project"]
    assert SpecifierSet(project["requires-python"]).contains(python)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


# ---- constraints ----


def pins(text: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    found = {}
    for line in filter(None, lines):
        # no option, address or local version
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt: not a plain NAME==VERSION line: {line}"
        found[canonicalize_name(match[1])] = match[2]
    return found


def unsatisfied(pinned: dict[str, str], needed: Iterable[Requirement]) -> list[str]:
    versions = {
        str(requirement): pinned.get(canonicalize_name(requirement.name)) for requirement in needed
    }
    return [
        f"{line}: constraints.txt has {version}"
        for line, version in versions.items()
        if version is None or Version(version) not in Requirement(line).specifier
    ]


def test_constraints_pin_all_that_pyproject_names_within_its_ranges():
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert unsatisfied(pinned, requirements(extras=True)) == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH ?= {pinned['torch']}\n" in makefile


def test_a_wrong_constraint_is_found():
    needed = [Requirement("torch>=2.9"), Requirement("numpy>=1.26"), Requirement("tqdm>=4")]
    assert unsatisfied({"torch": "2.8.1", "numpy": "2.4.6"}, needed) == [
        "torch>=2.9: constraints.txt has 2.8.1",
        "tqdm>=4: constraints.txt has None",
    ]
    for line in ("torch==2.13.0+cpu", "--find-links somewhere", "tqdm", "tqdm @ file:///tqdm"):
        with pytest.raises(AssertionError, match="not a plain"):
            pins(f"numpy==2.4.6\n{line}\n")


# ---- Binder ----


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, so nothing says which files belong to the project")
    out = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    paths = [ROOT / name for name in out.split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def binder_tree(tmp_path_factory):
    """What Binder would clone: the tracked files alone."""
    root = tmp_path_factory.mktemp("clone")
    for path in tracked():
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return root


def binder_complaints(root: Path) -> list[str]:
    """What is wrong with the image that repo2docker would build. It only plans it: no container
    engine is asked.
    """
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    run = subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    if run.returncode:
        return [f"repo2docker refuses: {run.stdout.strip().splitlines()[-1]}"]
    python = (
        str(conda_ranges(ROOT / "environment.yml")["python"]).removeprefix("==").removesuffix(".*")
    )
    planned = {
        f"Building conda environment for python={python}\n": "the Python of environment.yml",
        '--file "binder/environment.yml"': "binder/environment.yml",
        "RUN ./binder/postBuild": "binder/postBuild",
    }
    return [
        f"repo2docker does not use {what}"
        for text, what in planned.items()
        if text not in run.stdout
    ]


def test_repo2docker_accepts_the_project(binder_tree):
    assert binder_complaints(binder_tree) == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("environment.yml", None, "repo2docker does not use binder/environment.yml"),
        ("environment.yml", "dependencies: [\n", "repo2docker refuses: "),
        (
            "environment.yml",
            "dependencies: [numpy]\n",
            "repo2docker does not use the Python of environment.yml",
        ),
        ("postBuild", None, "repo2docker does not use binder/postBuild"),
    ],
)
def test_a_broken_binder_is_found(file, text, complaint, tmp_path):
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    if text is None:
        (tmp_path / "binder" / file).unlink()
    else:
        (tmp_path / "binder" / file).write_text(text, encoding="utf-8")
    assert any(found.startswith(complaint) for found in binder_complaints(tmp_path))


def test_scripts_are_valid_shell_and_may_be_run(binder_tree):
    for name, shell in (
        ("binder/postBuild", "bash"),
        (".ci/run", "bash"),
        (".ci/system-packages", "sh"),
    ):
        path = binder_tree / name
        assert path.stat().st_mode & 0o111, f"{name} is not executable"
        assert path.read_text(encoding="utf-8").startswith("#!"), (
            f"{name} does not say what runs it"
        )
        subprocess.run([shell, "-n", path], check=True)


def test_readme_badge_and_citation_lead_to_the_repository():
    address = pyproject()["project"]["urls"]["Repository"]
    owner_and_name = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["repository-code"], citation["version"]) == (
        address,
        pyproject()["project"]["version"],
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"https://mybinder\.org/v2/gh/([\w.-]+/[\w.-]+)/HEAD", readme) == [
        owner_and_name
    ]


# ---- what is committed ----


def unfit(paths: Iterable[Path], root: Path) -> list[str]:
    """Files that should not be committed as they are: too large, tied to one machine, or naming a
    registry's host.
    """
    complaints = []
    for path in paths:
        name, data = path.relative_to(root), path.read_bytes()
        if len(data) > LARGEST:
            complaints.append(f"{name}: {len(data)} bytes")
        if b"\0" in data:
            continue  # a picture
        text = data.decode("utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            complaints += [
                f"{name}:{number}: {found[0]}"
                for rule in (MACHINE_PATHS, REGISTRIES)
                if (found := rule.search(line))
            ]
        if path.suffix == ".ipynb" and "widgets" in json.loads(text)["metadata"]:
            complaints.append(f"{name}: stores the state of its widgets")
    return complaints


def test_what_is_committed_is_fit_to_be():
    paths = tracked()
    assert ROOT / "pyproject.toml" in paths
    assert unfit(paths, ROOT) == []


def test_an_unfit_file_is_found(tmp_path):
    host = "pypi" + ".org"
    files = {
        "good.ipynb": '{"metadata": {}}',
        "good.md": "a /tmp of its own, homework/work/x, pytorch.org's page",
        "large.txt": "x" * (LARGEST + 1),
        "state.ipynb": '{"metadata": {"widgets": {}}}',
        "path.py": "data = '" + "/" + "work/data'",
        "warning.ipynb": '{"metadata": {}, "x": "'
        + "/"
        + 'tmp/ipykernel_123/4.py:1: UserWarning"}',
        "host.txt": f"--index-url https://{host}/simple",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    complaints = unfit(sorted(tmp_path.iterdir()), tmp_path)
    assert [line.partition(":")[0] for line in complaints] == [
        "host.txt",
        "large.txt",
        "path.py",
        "state.ipynb",
        "warning.ipynb",
    ]


# ---- the build of torch that make installs ----

INSTALLER = ROOT / ".ci" / "install_torch.py"


@pytest.fixture
def installer(monkeypatch, tmp_path):
    """The script as a module, on a Linux machine without torch, a GPU or uv."""
    spec = importlib.util.spec_from_file_location("install_torch", INSTALLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("TORCH_BACKEND", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(module.metadata, "version", lambda name: there(name, None))
    return module


def there(name: str, version: str | None) -> str:
    if version is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return version


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_without_a_gpu_torch_is_the_cpu_build(installer, tmp_path):
    assert installer.build_for("2.13.0") == "cpu"
    program(tmp_path, "nvidia-smi", "echo no devices were found; exit 6")  # a driver, no GPU
    assert installer.build_for("2.13.0") == "cpu"
    program(tmp_path, "nvidia-smi", "echo 'GPU 0: NVIDIA H100'")
    assert installer.build_for("2.13.0") == "auto"


def test_elsewhere_and_when_asked_to_pip_takes_its_own(installer, monkeypatch):
    for system in ("Darwin", "Windows"):
        monkeypatch.setattr(installer.platform, "system", lambda system=system: system)
        assert installer.build_for("2.13.0") == ""
    monkeypatch.setenv("TORCH_BACKEND", "cu126")
    assert installer.build_for("2.13.0") == "cu126"
    monkeypatch.setenv("TORCH_BACKEND", "pip")
    assert installer.build_for("2.13.0") == ""


@pytest.mark.parametrize(
    ("version", "build"),
    [("2.13.0", ""), ("2.13.0+cu126", ""), ("2.12.0+cu126", "cu126"), ("2.12.0", "cpu")],
)
def test_a_torch_that_is_there_stays_and_a_newer_one_is_of_its_build(
    installer, monkeypatch, version, build
):
    monkeypatch.setattr(installer.metadata, "version", lambda name: there(name, version))
    assert installer.build_for("2.13.0") == build


def test_uv_is_asked_for_the_build_and_where_it_cannot_be_had_pip_goes_on(
    installer, tmp_path, capfd
):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.0\ntorch==2.13.0\ntorchvision==9\n")
    program(tmp_path, "uv", f'echo "$@" > {tmp_path}/asked; echo a long story >&2; exit 1')
    installer.main(constraints)
    assert (tmp_path / "asked").read_text().split() == [
        *("pip", "install", "--python", sys.executable),
        *("--no-deps", "--torch-backend", "cpu", "torch==2.13.0"),
    ]
    said = capfd.readouterr()
    first, second = said.out.splitlines()
    assert "the build 'cpu', 0.2 GB" in first
    assert "pip takes its own" in second
    assert said.err == ""
    program(tmp_path, "uv", "exit 0")
    installer.main(constraints)
    assert capfd.readouterr().out.splitlines() == [first]


def test_both_commands_of_readme_look_for_the_build_first():
    recipes = re.findall(
        r"^\.venv/installed.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert len(recipes) == 2
    assert all(recipe.startswith("\t@$(TORCH_FIRST)\n\t$(PIP_INSTALL)") for recipe in recipes)
