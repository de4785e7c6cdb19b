"""Training volumes whose context is changed, against the operators of data/context.py one volume at a time."""

from __future__ import annotations

import numpy as np
import pytest

from mgkeras.data import context, stream
from mgkeras.data.stream import CONTEXT_WAYS, changed_context, epoch_plan, fetch, partners_of
from mgkeras.settings import for_model, with_values


def kept(cache, row, stored, settings):
    return context.kept(cache.mask[row, stored], float(cache.voxel_mm[row]), settings.guidance)


@pytest.mark.parametrize("stored", [0, 1])
def test_a_swap_is_a_transplant(cache, small, stored):
    settings, patches = for_model(small, "guided-context"), {}
    sigma = settings.guidance.blur_mm / float(cache.voxel_mm[3])
    slow = context.transplanted(
        cache.image[0, stored],
        kept(cache, 0, stored, settings),
        cache.image[3, stored],
        kept(cache, 3, stored, settings),
        sigma,
    )
    for _ in range(2):  # made anew, and from what was kept
        found = changed_context(cache, 0, stored, "swap", 3, settings.guidance, patches)
        assert found.dtype == np.float16 and np.array_equal(found, slow.astype(np.float16))
    assert list(patches) == [(3, stored)]


def test_every_way_keeps_the_tumour_and_its_rim(cache, small):
    settings = for_model(small, "guided-context")
    keep = kept(cache, 0, 0, settings)
    for way in CONTEXT_WAYS[1:]:
        found = changed_context(cache, 0, 0, way, 2, settings.guidance, {})
        assert np.array_equal(found[keep], cache.image[0, 0][keep]), way
        assert (found != cache.image[0, 0])[~keep].mean() > 0.2, way


def test_masks_and_variants_are_those_of_the_patient(cache, small):
    """A swap changes neither mask, label nor the variants' order; only what lies around the tumour."""
    whole = with_values(small, {"training.variants_per_epoch": 5})
    rows = [0, 1, 2, 3]
    swap = for_model(whole, "guided-context")
    for own, swapped in zip(epoch_plan(rows, whole, 0), epoch_plan(rows, swap, 0), strict=True):
        (images, masks), (others, same) = fetch(cache, own, whole), fetch(cache, swapped, swap)
        assert np.array_equal(masks, same)
        assert all(np.array_equal(a[m], b[m]) for a, b, m in zip(images, others, masks, strict=True))
        assert not np.array_equal(images, others)


def test_the_share_and_the_ways_are_the_settings(cache, small):
    rows = list(range(6))
    for share, way, seen in (
        (0.0, "swap", {0}),
        (1.0, "blur", {3}),
        (1.0, "noise", {4}),
        (1.0, "mix", {1, 2}),
        (0.5, "swap", {0, 1}),
    ):
        values = {"guidance.context_dropout": share, "guidance.context": way, "training.variants_per_epoch": 34}
        plan = np.concatenate(epoch_plan(rows, with_values(small, values), 0))
        assert set(plan[:, 2].tolist()) == seen
        if share == 0.5:
            assert (plan[:, 2] > 0).mean() == pytest.approx(0.5, abs=0.1)
        partners = plan[(plan[:, 2] == 1) | (plan[:, 2] == 2)]
        assert set(partners[:, 3].tolist()) <= set(rows) and np.all(partners[:, 0] != partners[:, 3])


def test_partners_are_training_rows_only(cache, small):
    rows = [0, 2, 4, 5]
    found = partners_of(cache, rows, for_model(small, "guided-context"))
    assert set(found) == set(rows) and all(set(near.tolist()) < set(rows) for near in found.values())
    assert partners_of(cache, rows, small) is None  # guided has no other's tissue
    plan = np.concatenate(epoch_plan(rows, for_model(small, "guided-context"), 0, found))
    assert all(number in found[row] for row, _, _, number in plan)


def test_a_single_training_row_has_no_partner(small):
    plan = np.concatenate(
        epoch_plan([3], with_values(for_model(small, "guided-context"), {"training.variants_per_epoch": 4}), 0)
    )
    assert not plan[:, 2].any()


def test_of_many_rows_some_stand_around_all_tumours(cache, small, monkeypatch):
    """So the table of who may stand around whom grows with the cohort, not with its square."""
    settings, rows = for_model(small, "guided-context"), list(range(1, 12))
    every = partners_of(cache, rows, settings)
    monkeypatch.setattr(context, "CANDIDATES", 5)
    found = partners_of(cache, rows, settings)
    chosen = set(np.concatenate(list(found.values())).tolist())
    assert set(found) == set(rows) and len(chosen) == 5 and chosen < set(rows)
    assert all(row not in near for row, near in found.items())
    assert any(len(near) < len(every[row]) for row, near in found.items())
    assert partners_of(cache, rows, settings).keys() == found.keys()
    monkeypatch.setattr(context, "CANDIDATES", 11)
    assert all(np.array_equal(near, every[row]) for row, near in partners_of(cache, rows, settings).items())


def test_what_is_filled_is_kept_for_so_many_volumes(cache, small, monkeypatch):
    settings, patches = for_model(small, "guided-context"), {}
    right = [changed_context(cache, 0, 0, "swap", other, settings.guidance, {}) for other in (1, 2, 3, 1)]
    monkeypatch.setattr(stream, "PATCHES", 2)
    for other, expected in zip((1, 2, 3, 1), right, strict=True):
        assert np.array_equal(changed_context(cache, 0, 0, "swap", other, settings.guidance, patches), expected)
        assert len(patches) <= 2
