"""The paper's 34 variants of a volume: 24 orientations, 8 corner shifts, 2 turns in the axial plane.

Orientations and shifts move voxels and are exact; only the turns interpolate. So three volumes are stored (as it is,
turned one way, turned the other) and every variant is made from one of them by a permutation of axes, flips and a
slice. Image and mask go through the same call.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from scipy import ndimage

from mgkeras.errors import InputError

STORED = ("as it is", "turned clockwise", "turned counter-clockwise")
PLANES = 8  # copied at once where neighbours in memory end up farthest apart: all at once, every voxel is a cache miss


@dataclass(frozen=True)
class Variant:
    """One of the 34: which stored volume, and what moves its voxels.

    Attributes:
        stored: index into STORED.
        axes: output axis k is input axis axes[k].
        flips: whether output axis k is then reversed.
        shift: corner direction, each -1, 0 or 1; content moves toward higher indices for 1.
    """

    stored: int = 0
    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    shift: tuple[int, int, int] = (0, 0, 0)

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) signed permutation that carries input directions to output directions."""
        turn = np.zeros((3, 3), int)
        for out, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            turn[out, axis] = -1 if flip else 1
        return turn


def _orientations() -> list[Variant]:
    both = (False, True)
    candidates = [
        Variant(axes=(a, b, c), flips=flips)
        for a, b, c in permutations(range(3))
        for flips in product(both, both, both)
    ]
    return [variant for variant in candidates if round(np.linalg.det(variant.matrix)) == 1]


ORIENTATIONS: tuple[Variant, ...] = tuple(_orientations())  # 24 rotations of the cube, the identity first
SHIFTS: tuple[Variant, ...] = tuple(
    Variant(shift=corner)
    for corner in (
        (1, 1, 1),
        (1, 1, -1),
        (1, -1, 1),
        (1, -1, -1),
        (-1, -1, -1),
        (-1, -1, 1),
        (-1, 1, -1),
        (-1, 1, 1),
    )  # in the paper's order
)
TURNS: tuple[Variant, ...] = (Variant(stored=1), Variant(stored=2))
PAPER: tuple[Variant, ...] = ORIENTATIONS + SHIFTS + TURNS  # 34


def turn(cube: np.ndarray, degrees: float, background: float = 0.0) -> np.ndarray:
    """A cube turned about its superior axis, in the axial plane, about its centre.

    Args:
        cube: (side, side, side) RAS+; float is interpolated linearly, bool by nearest neighbour.
        degrees: positive carries the anterior axis toward the left: counter-clockwise seen from above the head.
        background: fills what turns in from outside.

    Returns:
        (side, side, side), the same dtype.
    """
    is_mask = cube.dtype == bool
    turned = ndimage.rotate(
        cube.astype(np.uint8) if is_mask else cube,
        degrees,
        axes=(0, 1),
        reshape=False,
        order=0 if is_mask else 1,
        mode="constant",
        cval=0 if is_mask else background,
    )
    return turned.astype(cube.dtype)


def stored_volumes(cube: np.ndarray, degrees: float, background: float = 0.0) -> np.ndarray:
    """(3, side, side, side): the cube as it is, turned clockwise, turned counter-clockwise by ``degrees``."""
    return np.stack([cube, turn(cube, -degrees, background), turn(cube, degrees, background)])


def apply_variant(
    stored: np.ndarray, variant: Variant, shift_voxels: int, background: float = 0.0, out: np.ndarray | None = None
) -> np.ndarray:
    """One variant of a subject, made from its stored volumes without interpolation.

    Args:
        stored: (3, side, side, side), or (3, side, side, side, channels), from :func:`stored_volumes`, of image or
            mask.
        variant: one of PAPER.
        shift_voxels: how far a corner shift moves along each axis (10 in the paper).
        background: fills what is shifted in.
        out: (side, side, side) of the same dtype to write to, so that a batch is written once; by default a new array.

    Returns:
        (side, side, side) of the same dtype, contiguous: ``out`` where it was given.
    """
    cube = stored[variant.stored]
    cube = cube.transpose(*variant.axes, *range(3, cube.ndim))
    cube = cube[tuple(slice(None, None, -1 if flip else 1) for flip in variant.flips)]
    out = np.empty(cube.shape, cube.dtype) if out is None else out
    side = cube.shape[0]
    if any(variant.shift):
        to, source = zip(*(_slices(side, shift_voxels * direction) for direction in variant.shift), strict=True)
        out[...] = background
        out[to] = cube[source]
    elif variant.axes[0] == 2:
        for start in range(0, side, PLANES):
            out[:, start : start + PLANES] = cube[:, start : start + PLANES]
    else:
        out[...] = cube
    return out


def undone(cells: np.ndarray, variant: Variant) -> np.ndarray:
    """A map (g, g, g) of a cube in one of ORIENTATIONS, back in the cube's own: the inverse of apply_variant."""
    flipped = cells[tuple(slice(None, None, -1 if flip else 1) for flip in variant.flips)]
    return flipped.transpose(np.argsort(variant.axes))


def _slices(side: int, by: int) -> tuple[slice, slice]:
    by = max(-side, min(side, by))
    return slice(max(by, 0), side + min(by, 0)), slice(max(-by, 0), side - max(by, 0))


def variants(augment: str) -> tuple[Variant, ...]:
    """The variants that ``augment`` names: 'none' is the identity alone, 'paper' the 34; 'anatomical' has no list.

    Raises:
        ValueError: for another name.
    """
    if augment == "none":
        return (Variant(),)
    if augment == "paper":
        return PAPER
    raise InputError(f"variants are those of augment 'none' or 'paper'. Received: {augment!r}")
