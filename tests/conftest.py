"""What the tests share: threads, who needs which program, and what two workers may share out."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

BROWSER = Path(__file__).parent / "browser"

# Before anything imports torch, here and in the kernels that tests start: its threads would wait
# for each other on cores that are taken, and a test take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
# No example may depend on the machine being quiet; the first one pays for starting up, too.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


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


@pytest.fixture(autouse=True)
def the_environment_stays_as_it_is():
    """Dask's clusters leave settings in it: threads, hashing."""
    before = os.environ.copy()
    yield
    for name in os.environ.keys() | before.keys():
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture(autouse=True)
def a_reader_without_a_past(tmp_path_factory, monkeypatch):
    """What a test writes into a speed log is nobody's, no verdict is kept back for how busy the
    machine was in tests before it, and nobody has asked for a quick look.
    """
    monkeypatch.delenv("ACCEL_LAB_QUICK", raising=False)
    monkeypatch.setattr("accel_lab.workbench.measure.load._of_cells", {})
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path_factory.mktemp("reader")))


class ByFile(LoadFileScheduling):
    """Workers take whole files, for a notebook's cells need one kernel; papermill's one by one."""

    def _split_scope(self, nodeid):
        return nodeid if nodeid.startswith("tests/notebooks/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)
