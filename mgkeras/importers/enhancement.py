"""The curve of what enhances in a dynamic series, from which its phase of peak enhancement is read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from mgkeras.data.shift import block_mean, factors
from mgkeras.importers.found import SourceError

STRONGEST = 0.01  # of the tissue: the share of it that enhances most makes the curve
LEAST_RISE = 0.1  # of that tissue's signal before contrast
LEAST_OVER_FALL = 1.5  # how many times the loss of what loses most the gain must be, which noise and drift are not


def enhancement_curve(volumes: Iterable[np.ndarray]) -> np.ndarray:
    """The mean signal, by phase, of what enhances most.

    Volumes are averaged to at most 64 voxels a side and smoothed before they are compared, so that noise makes no
    curve, and only the small copies are kept. What enhances is the percent of the tissue whose mean over all phases
    rises most above the first phase.

    Args:
        volumes: (x, y, z) of one shape, in the order of time, the first before contrast, in the scanner's units.

    Returns:
        (phases,) in the volumes' units.

    Raises:
        SourceError: fewer than two volumes, volumes that are not finite, or nothing that enhances.
    """
    small = np.stack([ndimage.uniform_filter(block_mean(data, factors(data.shape)), 3) for data in volumes])
    if len(small) < 2 or not np.isfinite(small).all():
        raise SourceError("expected two phases or more of finite voxels. Received: fewer, or NaN or infinity")
    first, change = small[0], small[1:].mean(axis=0) - small[0]
    tissue = first > first.mean()
    if not tissue.any():
        raise SourceError("expected phases in which something enhances. Received: the same value in every voxel")
    low, high = np.quantile(change[tissue], (STRONGEST, 1 - STRONGEST))
    chosen = tissue & (change >= high)
    rise = change[chosen].mean() / max(float(first[chosen].mean()), 1e-12)
    if rise < LEAST_RISE or high < -LEAST_OVER_FALL * low:
        fall = -low / max(float(first[tissue].mean()), 1e-12)
        raise SourceError(
            f"expected phases in which something enhances, by {LEAST_RISE:.0%} or more and more than anything darkens. "
            f"Received: {rise:.0%} more in what enhances most, {fall:.0%} less in what darkens most; name the phases "
            "by --early-phase and --late-phase"
        )
    return small[:, chosen].mean(axis=1)
