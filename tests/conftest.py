"""What the tests share: who needs which program, which tests are the browser's, and what stays together on one worker."""

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
        item.add_marker(pytest.mark.xdist_group(together(item)))


def together(item):
    """A file stays on one worker, and a notebook's cells share a kernel; but each chapter and each exercise may go where there is time."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return f"{item.path}{parameters.get('chapter', '')}{parameters.get('exercise', '')!r}"
