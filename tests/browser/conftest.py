"""One JupyterLab for all browser tests, a fresh copy of the course in it for each; Debian's
Chromium; screenshots in artefacts/.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.lab import CHROMIUM, CHROMIUM_ARGS, end_kernels, jupyter_lab

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict:
    return {"executable_path": CHROMIUM, "args": CHROMIUM_ARGS}


@pytest.fixture(scope="session")
def browser_context_args() -> dict:
    return {"viewport": {"width": 1280, "height": 1000}}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder that the one JupyterLab serves, and its address."""
    root = tmp_path_factory.mktemp("courses")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACCEL_LAB_HEADLESS", "OMP_NUM_THREADS"):  # a reader has neither
            patch.delenv(name, raising=False)
        patch.setenv("ACCEL_LAB_HOME", str(tmp_path_factory.mktemp("reader")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("ACCEL_LAB_QUICK", "1")  # all is there, in less time
        with jupyter_lab(root, tmp_path_factory.mktemp("lab")) as address:
            yield root, address


@pytest.fixture
def lab(served: tuple[Path, str], page: Page) -> Iterator[str]:
    """The address of a copy of the course that no other test has saved anything in, and whose
    kernels end with the test.
    """
    root, address = served
    copy = Path(tempfile.mkdtemp(dir=root))
    for notebook in (ROOT / "course").glob("*.ipynb"):
        shutil.copy(notebook, copy)
    yield address.replace("{path}", f"{copy.name}/{{path}}")
    end_kernels(page)


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the page's console complains of: exceptions, and messages of the kind error."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on(
        "console", lambda message: heard.append(message.text) if message.type == "error" else None
    )
    return heard


@pytest.fixture(scope="session")
def artefacts() -> Path:
    folder = ROOT / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder
