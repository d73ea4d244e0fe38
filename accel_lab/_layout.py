"""A doubt about the layout of pictures, for ``accel_lab.normalization`` and ``…augmentation``."""

from __future__ import annotations

import warnings

from torch import Tensor


def doubt_layout(x: Tensor) -> None:
    """Warn of what looks like [n, height, width, channels], whose rows would pass for channels.

    Only warns: [5, 16, 100, 1] may as well be 16 channels of 100 × 1. The warning points at the
    caller of the function that calls the one that asks.
    """
    if x.dim() == 4 and x.shape[3] <= 4 and min(x.shape[1:3]) >= 8:
        warnings.warn(
            f"layout: {list(x.shape)} is taken for [n, channels, height, width]; if it is "
            "[n, height, width, channels], give x.movedim(-1, 1)",
            stacklevel=4,
        )
