"""One JupyterLab for all browser tests, over a copy of the course; Debian's Chromium; screenshots in artefacts/."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.lab import CHROMIUM, CHROMIUM_ARGS, jupyter_lab

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict:
    return {"executable_path": CHROMIUM, "args": CHROMIUM_ARGS}


@pytest.fixture(scope="session")
def browser_context_args() -> dict:
    return {"viewport": {"width": 1280, "height": 1000}}


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing a test saves lands in the repository."""
    copy = tmp_path_factory.mktemp("course")
    for notebook in (ROOT / "course").glob("*.ipynb"):
        shutil.copy(notebook, copy)
    return copy


@pytest.fixture(scope="session")
def lab(course: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACCEL_LAB_HEADLESS", raising=False)
        patch.setenv("ACCEL_LAB_HOME", str(tmp_path_factory.mktemp("reader")))
        patch.setenv("PYTHONPATH", str(ROOT))
        with jupyter_lab(course, tmp_path_factory.mktemp("lab")) as address:
            yield address


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the page's console complains of: exceptions, and messages of the kind error."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    return heard


@pytest.fixture(scope="session")
def artefacts() -> Path:
    folder = ROOT / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder
