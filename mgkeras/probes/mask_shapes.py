"""The shapes of a run's masks: rows of RUN/probes/shapes.csv, which the baseline of probes.shape is made from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mgkeras.data.cache import Cache
from mgkeras.data.cohort import Subject
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import frame_of, mask_to_cube
from mgkeras.probes.shape import shape_features
from mgkeras.settings import Settings


def shape_rows(cache: Cache, subjects: Sequence[Subject], settings: Settings) -> list[dict[str, Any]]:
    """A row a subject, in the cache's order: ``subject`` and shape.FEATURES of its mask on the whole exam's cube.

    A cache of boxes does not hold that cube, so that the masks are then made again.
    """

    def mask_of(row: int) -> tuple[np.ndarray, float]:
        if not settings.uses_box:
            return np.asarray(cache.mask[row, 0]), float(cache.voxel_mm[row])
        early, tumour = subject_mask(subjects[row], settings.mask)
        frame = frame_of(early.data.shape, early.zooms, settings.volume.side)
        return mask_to_cube(tumour.mask, frame), frame.voxel_mm

    def shaped(row: int) -> dict[str, Any]:
        return {"subject": cache.subjects[row], **shape_features(*mask_of(row))}

    with ThreadPoolExecutor() as workers:
        return list(workers.map(shaped, range(len(subjects))))
