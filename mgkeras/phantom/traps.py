"""The traps of a phantom: what else than the tumour's texture goes with its outcome, how strongly, and how it looks.

A trap is on or off in each patient; how often that agrees with `recurrence` is the phantom's agreement. The strengths
are to be such that a network without guidance falls for each trap: no-mask alone, trained on 100 patients, AUC 0.95 or
more on new patients where the trap still leaks and below 0.75 where it does not. So were all measured, one training
each, but near, which has 0.949, and marker, which has 0.935 (benchmarks/trap_strength.py; the table is in
benchmarks/README.md).

Coordinates are RAS+ mm from the middle of the field of view, as in phantom_case.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mgkeras.errors import InputError
from mgkeras.settings import TRAPS

if TYPE_CHECKING:
    from mgkeras.phantom.case import Case

BALL = (1300, 0.0)  # pre signal and enhancement of spot and near: like an artefact, brighter than any tumour
NEAR_RADII_MM = (5.0, 7.0)  # those of the spot
NEAR_GAPS_MM = (6.0, 8.0)  # from the tumour's surface: beyond the dilated mask, which is 6 mm at side 48
MARKER = 1300  # as bright as the balls
MARKER_CENTRE_MM = (38.0, 36.0, 36.0)  # along the grid's axes: toward the right, the front and the head, in air
MARKER_MM = 10.0  # its edge; at least one voxel
BIAS = 0.8  # the coil's gain is e to the power of so much higher at the field's right edge than in its middle
NOISE_FACTOR = 3.0  # of the noise's sigma; more and air is taken for tissue when masks are made
ENHANCEMENT_FACTOR = 3.0  # of tissue's enhancement; glands reach the gate of 70 % at 3.5, and masks suffer from 3.25 on
SOUTH_SLICES = 1.8  # slices in shares of the in-plane spacing; north's are 1.3
SOUTH_FALLOFF = 0.010  # the gain's fall from the chest wall to the front, 1/mm: a surface coil's; north's is 0.0025


def in_order(traps: Iterable[str]) -> tuple[str, ...]:
    """The traps, each once, in the order of TRAPS.

    Raises:
        ValueError: for one that is none of TRAPS.
    """
    wanted = (traps,) if isinstance(traps, str) else tuple(traps)
    if unknown := [trap for trap in wanted if trap not in TRAPS]:
        raise InputError(f"traps of a phantom must be of {', '.join(TRAPS)}. Received: {', '.join(map(repr, unknown))}")
    return tuple(trap for trap in TRAPS if trap in wanted)


def balls(case: Case) -> list[tuple[np.ndarray, float]]:
    """(centre (3,) mm, radius mm) of the bright balls that a patient has."""
    return [
        (centre, radius)
        for trap, centre, radius in (
            ("spot", case.spot_centre, case.spot_radius),
            ("near", case.near_centre, case.near_radius),
        )
        if case.traps.get(trap)
    ]


def tissue_factor(case: Case) -> float:
    """What the enhancement of all but the tumour and the vessels is multiplied by."""
    return ENHANCEMENT_FACTOR if case.traps.get("enhancement") else 1.0


def noise_factor(case: Case) -> float:
    """What the noise's sigma is multiplied by."""
    return NOISE_FACTOR if case.traps.get("noise") else 1.0


def bias(case: Case, points: np.ndarray) -> np.ndarray | float:
    """A coil's gain at points (n, 3), (n,): growing to the right where the trap is on, to the left where it is off."""
    if "bias" not in case.traps:
        return 1.0
    return np.exp((BIAS if case.traps["bias"] else -BIAS) * points[:, 0] / 48)


def marker_block(case: Case, shape: tuple[int, ...], affine: np.ndarray) -> tuple[slice, ...]:
    """The voxels of a file's grid that the marker is burnt into: a block along the grid's own axes."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    toward = case.turn.T @ affine[:3, :3] / zooms  # the grid's axes in the patient, as if it were not turned
    middle = np.asarray(MARKER_CENTRE_MM) @ np.rint(toward) / zooms + (np.asarray(shape) - 1) / 2  # voxels
    nearest, half = np.rint(middle), MARKER_MM / 2 / zooms
    low, high = np.minimum(np.ceil(middle - half), nearest), np.maximum(np.floor(middle + half), nearest)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
