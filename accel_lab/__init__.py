"""accel_lab: how deep learning is made faster, one technique to a file.

Each technique is a module named after it (``accel_lab.accumulation``), readable on its own beside
PyTorch's form. ``accel_lab.workbench`` holds what all of them work with; chapters live in
``course/``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("accel-lab")
except PackageNotFoundError:  # read from a source tree that was never installed
    __version__ = "0+source"
