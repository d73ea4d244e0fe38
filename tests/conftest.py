"""What the tests share: who needs which program, which tests are the browser's, and what two
workers may share out.
"""

import shutil
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

BROWSER = Path(__file__).parent / "browser"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(BROWSER):
            item.add_marker("browser")
        programs = [program for mark in item.iter_markers("needs") for program in mark.args]
        if missing := [program for program in programs if shutil.which(program) is None]:
            reason = (
                f"not installed here: {', '.join(missing)} (sh .ci/system-packages says how "
                "to get it)"
            )
            item.add_marker(pytest.mark.skip(reason=reason))


class ByFile(LoadFileScheduling):
    """Workers take whole files, as a notebook's cells need one kernel; but whole notebooks under
    papermill one by one.
    """

    def _split_scope(self, nodeid):
        return nodeid if nodeid.startswith("tests/notebooks/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)
