"""Anatomical changes against slow twins: a trilinear interpolation voxel by voxel, a rotation written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mgkeras.data.anatomical import NUMBERS, Change, changed, drawn, moved
from mgkeras.data.stream import epoch_plan, fetch, steps_per_epoch
from mgkeras.settings import TrainingSettings, for_model, with_values

SIDE = 9
CUBE = np.random.default_rng(0).uniform(0.2, 3.9, (SIDE,) * 3).astype(np.float32)
MASK = np.random.default_rng(1).random((SIDE,) * 3) < 0.3
SOME = Change(exchange=True, turns=(11.0, -7.0, 14.0), scale=1.08, shift=(1.3, -0.6, 0.4), gain=0.9)


def both(change, cube=CUBE, mask=MASK, background=0.0):
    image, inside = np.empty_like(cube), np.empty_like(mask)
    changed(cube, change, background, 4.0, image)
    moved(mask, change, inside)
    return image, inside


def axis_turn(axis, degrees):
    """The right-handed turn about an axis, written out."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = cos
    matrix[b, a], matrix[a, b] = sin, -sin
    return matrix


def slow(cube, change, nearest, background=0.0):
    """Where each output voxel comes from, and the eight voxels about that place, one by one; NaN on a voxel's edge."""
    middle = (SIDE - 1) / 2
    turn = axis_turn(2, change.turns[2]) @ axis_turn(1, change.turns[1]) @ axis_turn(0, change.turns[0])
    out = np.full(cube.shape, float(background))
    for index in np.ndindex(cube.shape):
        at = turn.T @ (np.array(index) - middle - change.shift) / change.scale
        at[0] *= -1 if change.exchange else 1
        at += middle
        if (at < 0).any() or (at > SIDE - 1).any():
            continue
        if nearest:
            close = np.abs(at % 1 - 0.5).min() < 1e-6
            out[index] = np.nan if close else cube[tuple(np.rint(at).astype(int))]
            continue
        low = np.minimum(np.floor(at).astype(int), SIDE - 2)
        part, value = at - low, 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part))
            value += weight * cube[tuple(low + corner)]
        out[index] = value
    return out


def test_nothing_changed_is_the_same_volume():
    image, inside = both(Change())
    assert np.array_equal(image, CUBE) and np.array_equal(inside, MASK)
    image, inside = both(Change(exchange=True))
    assert np.array_equal(image, CUBE[::-1]) and np.array_equal(inside, MASK[::-1])


@pytest.mark.parametrize("background", [0.0, 0.1])
def test_a_change_equals_the_slow_twin(background):
    image, inside = both(SOME, background=background)
    twin = np.where(np.isnan(want := slow(CUBE, SOME, False, background)), 0, want) * 0.9
    assert np.abs(image - twin).max() < 1e-5  # float32 beside float64
    mask = slow(MASK, SOME, True)
    known = ~np.isnan(mask)
    assert known.mean() > 0.99 and np.array_equal(inside[known], mask[known] > 0)


def test_image_and_mask_stay_aligned_and_a_shift_carries_toward_higher_indices():
    cube = np.where(MASK, 2.0, 0.5).astype(np.float32)
    image, inside = both(replace(SOME, gain=1.0), cube)
    assert ((image > 1.25) == inside)[image > 0].mean() > 0.85  # linear beside nearest: voxels of an edge may differ
    image, inside = both(Change(shift=(2.0, 0.0, 0.0)))
    assert np.array_equal(image[2:], CUBE[:-2]) and not image[:2].any()
    assert np.array_equal(inside[2:], MASK[:-2]) and not inside[:2].any()


def test_noise_is_the_seeds_and_leaves_the_background():
    cube = np.where(np.arange(SIDE)[:, None, None] < 4, 0, CUBE / 4 + 1).astype(np.float32)
    first, _ = both(Change(noise=0.1, seed=3), cube)
    again, _ = both(Change(noise=0.1, seed=3), cube)
    other, _ = both(Change(noise=0.1, seed=4), cube)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not first[:4].any() and 0.09 < (first - cube)[4:].std() < 0.11
    loud, _ = both(Change(gain=9.0, noise=3.0), cube)
    assert loud.min() >= 0 and loud.max() <= 4


def test_draws_are_the_numbers_own_and_within_the_settings():
    training = TrainingSettings(turn_degrees=15, shift_voxels=4, scale=0.2, gain=0.3, noise=0.05)
    draws = [drawn(number, training) for number in range(300)]
    assert draws == [drawn(number, training) for number in range(300)] and drawn(NUMBERS - 1, training)
    assert 100 < sum(draw.exchange for draw in draws) < 200
    turns, shifts = np.array([draw.turns for draw in draws]), np.array([draw.shift for draw in draws])
    assert 14 < turns.max() <= 15 and -15 <= turns.min() < -14 and 3.5 < shifts.max() <= 4
    for name, most in (("scale", 1.2), ("gain", 1.3)):
        values = np.array([getattr(draw, name) for draw in draws])
        assert most * 0.98 < values.max() <= most and 1 / most <= values.min() < 1.02 / most
    assert 0.04 < max(draw.noise for draw in draws) <= 0.05
    still = TrainingSettings(turn_degrees=0, shift_voxels=0, scale=0, gain=0, noise=0)
    assert replace(drawn(7, still), exchange=False, seed=0) == Change()


@pytest.mark.parametrize("model", ["no-mask", "guided-context"])
def test_an_epochs_volumes_are_the_changed_ones_and_the_same_again(cache, small, model):
    values = {"training.augment": "anatomical", "training.variants_per_epoch": 2, "training.noise": 0.1}
    settings = with_values(for_model(small, model), values)
    plans = epoch_plan([1, 4, 6], settings, 5)
    assert len(plans) == steps_per_epoch(3, settings) and sum(map(len, plans)) == 6
    assert all(np.array_equal(a, b) for a, b in zip(plans, epoch_plan([1, 4, 6], settings, 5), strict=True))
    plan = np.concatenate(plans)
    assert len(set(plan[:, 1])) == 6 and set(plan[:, 0]) == {1, 4, 6}
    images, masks = fetch(cache, plan, settings)
    again, _ = fetch(cache, plan, settings)
    assert np.array_equal(images, again) and images.dtype == np.float16
    for (row, number, way, _), image, mask in zip(plan, images, masks, strict=True):
        change = drawn(int(number), settings.training)
        side = len(image)
        wanted, inside = np.empty_like(image), np.empty((side,) * 3, bool)
        changed(cache.image[row, 0], change, 0.0, 4.0, wanted)
        moved(cache.mask[row, 0], change, inside)
        assert np.array_equal(mask, inside) and mask.any()
        assert np.array_equal(image, wanted) == (not way)
        if way:  # another patient's tissue stands around a tumour that is moved as ever
            assert np.array_equal(image[mask] > 0, wanted[mask] > 0)
            assert np.abs(image[mask].astype(float) - wanted[mask]).mean() < 0.05
