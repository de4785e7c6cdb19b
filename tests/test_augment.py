"""The 34 variants against slow twins: voxels carried one by one, and turns by an explicit rotation matrix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mgkeras.data.augment import (
    ORIENTATIONS,
    PAPER,
    SHIFTS,
    STORED,
    TURNS,
    Variant,
    apply_variant,
    stored_volumes,
    turn,
    variants,
)

# Liu et al. 2021, for 10 voxels
PAPER_SHIFTS = [
    (10, 10, 10),
    (10, 10, -10),
    (10, -10, 10),
    (10, -10, -10),
    (-10, -10, -10),
    (-10, -10, 10),
    (-10, 10, -10),
    (-10, 10, 10),
]


def noise(side, seed=0):
    return np.random.default_rng(seed).normal(size=(side,) * 3).astype(np.float32)


def bare(cube):
    """Stored volumes where the turned volumes are not looked at."""
    return np.stack([cube, np.zeros_like(cube), np.zeros_like(cube)])


def slow_rotation(cube, matrix):
    """Each voxel's offset from the centre, carried by a rotation matrix."""
    middle = (cube.shape[0] - 1) / 2
    out = np.empty_like(cube)
    for index in np.ndindex(cube.shape):
        target = matrix @ (np.array(index) - middle) + middle
        out[tuple(np.rint(target).astype(int))] = cube[index]
    return out


def slow_shift(cube, by, background):
    """Each voxel carried by `by` voxels; what leaves is lost."""
    out = np.full_like(cube, background)
    for index in np.ndindex(cube.shape):
        target = np.array(index) + by
        if (target >= 0).all() and (target < cube.shape).all():
            out[tuple(target)] = cube[index]
    return out


def slow_turn(cube, degrees, background, order=1):
    """A turn about z by the textbook's matrix: counter-clockwise from x to y, so y is carried toward -x."""
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = (np.array(cube.shape) - 1) / 2
    back = matrix.T  # affine_transform asks where an output voxel comes from
    return ndimage.affine_transform(cube, back, middle - back @ middle, order=order, mode="constant", cval=background)


def test_there_are_34_and_none_twice():
    assert (len(ORIENTATIONS), len(SHIFTS), len(TURNS), len(PAPER)) == (24, 8, 2, 34)
    assert PAPER[0] == Variant() and len(set(PAPER)) == 34
    assert variants("paper") == PAPER and variants("none") == (Variant(),)
    with pytest.raises(ValueError, match="'none' or 'paper'. Received: 'all'"):
        variants("all")
    stored, seen = stored_volumes(noise(8), 10.0), set()
    for variant in PAPER:
        seen.add(apply_variant(stored, variant, 2).tobytes())
    assert len(seen) == 34


def test_orientations_are_the_24_proper_rotations():
    matrices = [variant.matrix for variant in ORIENTATIONS]
    keys = {matrix.tobytes() for matrix in matrices}
    assert len(keys) == 24
    np.testing.assert_array_equal(matrices[0], np.eye(3))
    for a in matrices:
        assert np.linalg.det(a) == pytest.approx(1)
        np.testing.assert_array_equal(a @ a.T, np.eye(3))
        assert all((a @ b).tobytes() in keys for b in matrices)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("variant", ORIENTATIONS, ids=lambda v: f"{v.axes}{v.flips}")
def test_an_orientation_carries_every_voxel_by_its_matrix(variant, side):
    cube = noise(side)
    found = apply_variant(bare(cube), variant, 10)
    np.testing.assert_array_equal(found, slow_rotation(cube, variant.matrix))
    assert found.flags.c_contiguous and found.dtype == cube.dtype


def test_orientations_compose_as_their_matrices_do():
    cube = noise(8)
    by_matrix = {variant.matrix.tobytes(): variant for variant in ORIENTATIONS}
    for a in ORIENTATIONS[::5]:
        for b in ORIENTATIONS:
            both = apply_variant(bare(apply_variant(bare(cube), a, 0)), b, 0)
            at_once = apply_variant(bare(cube), by_matrix[(b.matrix @ a.matrix).tobytes()], 0)
            np.testing.assert_array_equal(both, at_once)


def test_shifts_are_the_papers_list():
    assert [tuple(10 * direction for direction in variant.shift) for variant in SHIFTS] == PAPER_SHIFTS


@pytest.mark.parametrize("voxels", [3, 10])
@pytest.mark.parametrize("variant", SHIFTS, ids=lambda v: str(v.shift))
def test_a_shift_carries_every_voxel_and_fills_with_background(variant, voxels):
    cube = noise(12)
    found = apply_variant(bare(cube), variant, voxels, background=-5.0)
    np.testing.assert_array_equal(found, slow_shift(cube, voxels * np.array(variant.shift), -5.0))
    assert (found == -5).sum() == 12**3 - (12 - voxels) ** 3
    assert found.flags.c_contiguous and found.dtype == cube.dtype


@pytest.mark.parametrize("voxels", [8, 9, 50])
@pytest.mark.parametrize("variant", SHIFTS, ids=lambda v: str(v.shift))
def test_a_shift_of_the_side_or_more_leaves_background_alone(variant, voxels):
    assert (apply_variant(bare(noise(8)), variant, voxels, background=2.5) == 2.5).all()
    assert not apply_variant(bare(np.ones((8, 8, 8), bool)), variant, voxels, False).any()


def test_a_shift_of_nothing_is_the_identity():
    cube = noise(8)
    for variant in SHIFTS:
        np.testing.assert_array_equal(apply_variant(bare(cube), variant, 0, -1.0), cube)


@pytest.mark.parametrize("background", [0.0, -3.0])
@pytest.mark.parametrize("degrees", [10.0, -10.0, 37.0])
@pytest.mark.parametrize("side", [11, 16])
def test_a_turn_equals_an_explicit_rotation_matrix(side, degrees, background):
    cube = noise(side)
    np.testing.assert_allclose(turn(cube, degrees, background), slow_turn(cube, degrees, background), atol=1e-3)
    mask = ndimage.gaussian_filter(cube, 2) > 0
    np.testing.assert_array_equal(turn(mask, degrees), slow_turn(mask.astype(np.uint8), degrees, 0, order=0) > 0)
    assert turn(mask, degrees).dtype == bool and turn(cube, degrees).dtype == np.float32


def test_a_positive_turn_carries_anterior_toward_left():
    """In RAS+ left is where x decreases; a quarter turn carries the front all the way there."""
    cube = np.zeros((15, 15, 15), np.float32)
    cube[7, 13, 4] = 1  # in front of the centre
    counter, clockwise = (np.array(ndimage.center_of_mass(turn(cube, degrees))) for degrees in (10.0, -10.0))
    assert counter[0] < 6.5 and clockwise[0] > 7.5
    np.testing.assert_allclose([counter[2], clockwise[2]], 4, atol=1e-5)
    assert np.unravel_index(turn(cube, 90.0).argmax(), cube.shape) == (1, 7, 4)


def test_stored_volumes_are_as_named():
    cube = noise(10)
    stored = stored_volumes(cube, 10.0, -2.0)
    assert STORED == ("as it is", "turned clockwise", "turned counter-clockwise")
    assert stored.shape == (3, 10, 10, 10) and stored.dtype == np.float32
    np.testing.assert_array_equal(stored[0], cube)
    for index, degrees in ((1, -10.0), (2, 10.0)):
        np.testing.assert_allclose(stored[index], slow_turn(cube, degrees, -2.0), atol=1e-3)
        np.testing.assert_array_equal(apply_variant(stored, TURNS[index - 1], 10), stored[index])


@pytest.mark.parametrize("index", range(34))
def test_image_and_mask_stay_aligned(index):
    """An image that is its own mask's picture stays that: exactly where voxels move, to half a voxel in a turn."""
    variant, side = PAPER[index], 16
    mask = np.zeros((side,) * 3, bool)
    mask[8:13, 5:9, 7:10] = mask[8:10, 5:12, 7:10] = True
    image = mask.astype(np.float32)
    moved_image = apply_variant(stored_volumes(image, 10.0), variant, 3)
    moved_mask = apply_variant(stored_volumes(mask, 10.0), variant, 3)
    assert moved_mask.dtype == bool and moved_mask.any()
    if variant.stored == 0:
        np.testing.assert_array_equal(moved_image == 1, moved_mask)
        return
    centres = [np.array(ndimage.center_of_mass(volume)) for volume in (moved_image, moved_mask.astype(float))]
    assert np.abs(centres[0] - centres[1]).max() < 0.25
    both = ((moved_image > 0.5) & moved_mask).sum() * 2 / ((moved_image > 0.5).sum() + moved_mask.sum())
    assert both > 0.9


def test_an_integer_mask_moves_as_a_bool_one():
    mask = noise(9) > 0.3
    for variant in ORIENTATIONS + SHIFTS:
        as_bytes = apply_variant(bare(mask.astype(np.uint8)), variant, 4)
        np.testing.assert_array_equal(as_bytes > 0, apply_variant(bare(mask), variant, 4, False))
