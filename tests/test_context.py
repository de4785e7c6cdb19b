"""What stands around a tumour, changed: dilation, filling, blurring, transplants, partners; against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from mgkeras.data import context

SIDE = 24


def ball(centre, radius, side=SIDE):
    return ((np.indices((side,) * 3).T - centre) ** 2).sum(-1).T <= radius**2


def test_dilation_is_a_ball_in_mm():
    rng = np.random.default_rng(0)
    mask = rng.random((SIDE,) * 3) > 0.999
    slow = np.zeros_like(mask)
    for voxel in np.argwhere(mask):
        slow |= ((np.indices(mask.shape).T - voxel) ** 2).sum(-1).T * 2.5**2 <= 6**2 + 1e-9
    assert np.array_equal(context.dilated(mask, 2.5, 6.0), slow)
    assert np.array_equal(context.dilated(mask, 2.5, 0.0), mask)
    assert not context.dilated(np.zeros_like(mask), 2.5, 6.0).any()


@pytest.mark.parametrize(("field_of_view", "side"), [(96, 48), (340, 128)])
def test_the_same_mm_keep_the_same_volume_at_any_size(field_of_view, side):
    """Before, dilation was a share of the side: at 340 mm it kept 290 ml of a tumour of 8 ml."""
    voxel = field_of_view / side
    mask = ball(np.full(3, side / 2), 12.5 / voxel, side)
    ml = context.dilated(mask, voxel, 5.0).sum() * voxel**3 / 1000
    assert ml == pytest.approx(4 / 3 * np.pi * 1.75**3, rel=0.2)  # a ball of 17.5 mm, on whole voxels


def test_filling_takes_nothing_from_inside_the_hole():
    rng = np.random.default_rng(1)
    image, hole = rng.normal(1, 0.2, (SIDE,) * 3).astype(np.float32), ball((8, 9, 10), 4.5)
    brighter = np.where(hole, 3 + image, image)
    found, other = (context.filled(volume, hole, 3.0) for volume in (image, brighter))
    assert np.array_equal(found, other) and np.array_equal(found[~hole], image[~hole])
    outside = (~hole).astype(np.float64)
    weight, value = (
        ndimage.gaussian_filter(part, 3.0, mode="constant", truncate=3) for part in (outside, image * outside)
    )
    assert np.abs(found - value / weight)[hole].max() < 1e-4
    assert np.allclose(context.filled(np.full_like(image, 0.7), hole, 3.0), 0.7)


@pytest.mark.parametrize("hole", [np.zeros((SIDE,) * 3, bool), np.ones((SIDE,) * 3, bool), ball((0, 0, 0), 30)])
def test_filling_survives_no_hole_and_one_that_is_nearly_everything(hole):
    image = np.random.default_rng(2).random((SIDE,) * 3).astype(np.float32)
    found = context.filled(image, hole, 2.0)
    assert np.isfinite(found).all() and np.array_equal(found[~hole], image[~hole])


def test_a_transplant_holds_one_tumour_and_the_other_ones_tissue():
    own, other = np.full((SIDE,) * 3, 1.0), np.full((SIDE,) * 3, 2.0)
    keep, hole = ball((8, 8, 8), 4), ball((14, 14, 14), 4)
    other[hole] = 9.0
    found = context.transplanted(own, keep, other, hole, 3.0)
    assert np.array_equal(found, np.where(keep, 1.0, 2.0))  # nothing of 9 is left, in the hole nor beside it
    assert np.array_equal(context.transplanted(own, np.zeros_like(keep), other, hole, 3.0), own)


def test_blurring_is_gaussian_inside_or_outside():
    rng = np.random.default_rng(3)
    image, keep = rng.random((SIDE,) * 3).astype(np.float32), ball((12, 12, 12), 5)
    blurred = ndimage.gaussian_filter(image, 3.0, mode="constant", truncate=9)
    blurred = blurred / ndimage.gaussian_filter(np.ones_like(image), 3.0, mode="constant", truncate=9)
    assert np.abs(context.blurred_outside(image, keep, 3.0) - np.where(keep, image, blurred)).max() < 1e-4
    assert np.abs(context.blurred_inside(image, keep, 3.0) - np.where(keep, blurred, image)).max() < 1e-4
    for blur in (context.blurred_outside, context.blurred_inside):
        assert np.array_equal(blur(image, np.zeros_like(keep), 3.0), image)  # an empty mask


def test_noise_is_the_exams_own_voxels_in_another_order():
    image, keep = np.random.default_rng(4).random((SIDE,) * 3).astype(np.float32), ball((12, 12, 12), 5)
    found = context.shuffled_outside(image, keep, np.random.default_rng(7))
    assert np.array_equal(found[keep], image[keep]) and not np.array_equal(found, image)
    assert np.array_equal(np.sort(found[~keep]), np.sort(image[~keep]))
    assert np.array_equal(found, context.shuffled_outside(image, keep, np.random.default_rng(7)))


def test_coverage_is_the_share_of_a_tumours_place_that_is_tissue_in_another():
    """Half of the first subject's tumour lies where the second has air."""
    left = np.zeros((SIDE,) * 3, np.float32)
    left[2:12, 2:22, 2:22] = 1
    whole = np.zeros_like(left)
    whole[2:22, 2:22, 2:22] = 1
    wide, small = np.zeros(left.shape, bool), np.zeros(left.shape, bool)
    wide[8:16, 8:16, 8:16], small[4:8, 8:12, 8:12] = True, True
    found = context.coverage([whole, left, whole], [wide, small, np.zeros_like(small)])
    assert found[0, 1] == pytest.approx(0.5, abs=0.1) and found[0, 2] == pytest.approx(1)
    assert found[1].tolist() == pytest.approx([1, 1, 1]) and found[2].tolist() == [1, 1, 1]


def test_partners_are_covered_and_never_few_nor_the_subject_itself():
    covered = np.full((8, 8), 0.2)
    covered[0, 1:6], covered[1, 2:4] = 1.0, 0.95
    found = context.partners(covered)
    assert found[0].tolist() == [1, 2, 3, 4, 5]
    assert len(found[1]) == 4 and {2, 3} <= set(found[1].tolist())  # the best, where too few are covered
    assert all(row not in near for row, near in enumerate(found))
    assert context.partners(np.ones((1, 1)))[0].size == 0


@pytest.mark.parametrize("positives", [11, 20, 33])
def test_a_perfect_reader_of_tumours_is_at_chance_for_balanced_partners(positives):
    labels = np.random.default_rng(positives).permutation(np.arange(60) < positives).astype(int)
    partner = context.balanced_partners(labels, np.ones((60, 60)), seed=3)
    assert np.all(partner != np.arange(60)) and set(labels[partner]) == {0, 1}
    assert roc_auc_score(labels[partner], labels) == pytest.approx(0.5, abs=0.03)  # but for rounding
    assert np.array_equal(partner, context.balanced_partners(labels, np.ones((60, 60)), seed=3))


def test_of_many_subjects_some_are_partners_of_all(monkeypatch):
    labels, covered, seed = np.random.default_rng(1).permutation(np.arange(60) < 20).astype(int), np.ones((60, 60)), 3
    every = context.balanced_partners(labels, covered, seed)
    assert np.array_equal(context.balanced_partners(labels, covered, seed, context.drawn_candidates(60, seed)), every)
    monkeypatch.setattr(context, "CANDIDATES", 15)
    chosen = context.drawn_candidates(60, seed)
    partner = context.balanced_partners(labels, covered[:, :15], seed, chosen)
    assert set(partner.tolist()) <= set(chosen.tolist()) and len(chosen) == 15
    assert np.all(partner != np.arange(60)) and set(labels[partner]) == {0, 1}
    assert roc_auc_score(labels[partner], labels) == pytest.approx(0.5, abs=0.03)  # but for rounding


def test_balanced_partners_of_one_subject_or_one_class():
    assert context.balanced_partners(np.array([1]), np.ones((1, 1))).tolist() == [0]
    one_class = context.balanced_partners(np.ones(4, int), np.ones((4, 4)))
    assert np.all(one_class != np.arange(4))
