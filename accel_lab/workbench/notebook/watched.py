"""Whether somebody watches the notebook around a chapter."""

from __future__ import annotations

import os

from IPython import get_ipython


def someone_watches() -> bool:
    """Whether a person sits at the front end: one who could answer an ``input()``.
    ACCEL_LAB_HEADLESS=1 or 0 overrides.
    """
    if (told := os.environ.get("ACCEL_LAB_HEADLESS")) is not None:
        return told == "0"
    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return False
    return bool(shell.get_parent().get("content", {}).get("allow_stdin"))
