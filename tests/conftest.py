"""What the tests share: who needs which program, and which tests are the browser's."""

import shutil
from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "browser"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(BROWSER):
            item.add_marker("browser")
        programs = [program for mark in item.iter_markers("needs") for program in mark.args]
        if missing := [program for program in programs if shutil.which(program) is None]:
            reason = f"not installed here: {', '.join(missing)} (sh .ci/system-packages says how to get it)"
            item.add_marker(pytest.mark.skip(reason=reason))
