"""Transplants, holes and ledgers: on readers whose answers are known, and on a small run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mgkeras.data import context
from mgkeras.data.cache import Cache
from mgkeras.data.stream import changed_context
from mgkeras.probes.fold import Fold
from mgkeras.probes.interventions import controls, transplant
from mgkeras.probes.seen import seen
from mgkeras.probes.transplant import altered_rows, partners_of
from mgkeras.settings import for_model

SIDE = 24
COUNT = 12
TUMOUR, BREAST = (slice(6, 10), slice(10, 14), slice(10, 14)), (slice(15, 19), slice(15, 19), slice(4, 8))


def exams(empty=()):
    """Exams of tissue at 1 in a body that air surrounds; the tumour says the label, so does a spot in the breast."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % 2
    image = np.zeros((COUNT, 1, SIDE, SIDE, SIDE), np.float16)
    image[:, :, 2:22, 2:22, 2:22] = 1 + 0.02 * rng.standard_normal((COUNT, 1, 20, 20, 20))
    mask = np.zeros(image.shape, bool)
    for at, label in enumerate(labels):
        image[at, 0][TUMOUR], image[at, 0][BREAST] = 2 + label, 1 + 0.5 * label
        if at not in empty:
            mask[at, 0][TUMOUR] = True
    names = tuple(f"s{at:02d}" for at in range(COUNT))
    return Cache(None, names, image, mask, np.full(COUNT, 4.0), ()), labels


def fold_of(cache, where, small, model="guided"):
    """A fold whose network reads the mean of some voxels."""

    def forward(volumes):
        z = 4 * volumes[(slice(None), *where, 0)].mean(axis=(1, 2, 3)) - (10 if where is TUMOUR else 5)
        return {"probability": 1 / (1 + np.exp(-z))}

    settings = for_model(small, model)
    return Fold(0, np.arange(COUNT), np.arange(0), cache, SimpleNamespace(settings=settings), forward)


def asked(where, small, empty=(), model="guided"):
    cache, labels = exams(empty)
    fold = fold_of(cache, where, small, model)
    p = fold.forward(cache.image[:, 0].astype(np.float32)[..., None])["probability"]
    rows = [
        {"fold": 0, "label": int(label), "probability": float(probability), **row}
        for label, probability, row in zip(labels, p, altered_rows(fold, labels), strict=True)
    ]
    return rows, fold, labels


def test_a_reader_of_tumours_follows_the_owner_and_a_reader_of_breasts_the_breast(small):
    tumour, breast = (transplant(asked(where, small)[0], False, samples=50) for where in (TUMOUR, BREAST))
    assert tumour["owner"]["value"] == tumour["soft_owner"]["value"] == 1 and tumour["breast"]["value"] == 0.5
    assert tumour["same_decision"] == {"mean": 1, "low": 1, "high": 1, "subjects": COUNT}
    assert tumour["owner_less_breast"]["value"] == 0.5 and tumour["swap_trained"] is False
    assert breast["breast"]["value"] == breast["soft_breast"]["value"] == 1 and breast["owner"]["value"] == 0.5
    assert breast["soft_owner"]["value"] == 0.5 and breast["same_decision"]["mean"] == 0.5


def test_partners_come_from_the_fold_and_have_a_mask(small):
    rows, fold, labels = asked(TUMOUR, small, empty=(3, 4))
    partners = partners_of(fold, labels)
    assert partners[3] is partners[4] is None and not {3, 4} & set(partners)
    assert all(at != other for at, other in enumerate(partners))
    assert rows[0]["partner"] == fold.cache.subjects[partners[0]]
    assert rows[0]["partner_label"] == labels[partners[0]]
    for name in ("partner", "partner_label", "p_transplant", "p_transplant_soft", "p_inside_filled", "p_hole"):
        assert rows[3][name] is None, "there is no tumour to move or to take away"
    alone = replace(fold, held_out=np.arange(1))
    assert partners_of(alone, labels[:1]) == [None]


def test_of_many_held_out_subjects_some_breasts_get_all_tumours(small, monkeypatch):
    """So the table of who may get whose tumour grows with the fold, not with its square."""
    _, fold, labels = asked(TUMOUR, small, empty=(3, 4))
    every = partners_of(fold, labels)
    for bound in (10, 4):  # ten have a mask
        monkeypatch.setattr(context, "CANDIDATES", bound)
        found = partners_of(fold, labels)
        assert found == every or bound == 4
        assert found[3] is found[4] is None and all(at != other for at, other in enumerate(found))
    assert len(set(found) - {None}) <= 4 < len(set(every) - {None})


def test_the_hard_transplant_is_the_trainings(small):
    rows, fold, labels = asked(BREAST, small)
    partner = fold.cache.subjects.index(rows[5]["partner"])
    cube = changed_context(fold.cache, 5, 0, "swap", partner, fold.settings.guidance, {}).astype(np.float32)
    assert rows[5]["p_transplant"] == pytest.approx(fold.forward(cube[None, ..., None])["probability"][0], abs=1e-6)


def test_controls_by_readers(small):
    tumour, breast = (controls(asked(where, small)[0], samples=50) for where in (TUMOUR, BREAST))
    assert tumour["filled"]["auc"]["value"] < 0.9 and tumour["filled"]["less_whole"]["value"] < -0.1
    assert tumour["hole"]["auc"]["value"] == 1 and tumour["hole"]["change"]["mean"] < 0.01
    assert breast["filled"]["auc"]["value"] == 1 and breast["filled"]["less_whole"]["value"] == 0


def test_a_mask_only_network_is_not_transplanted(small):
    rows, _, _ = asked(TUMOUR, small, model="mask-only")
    assert set(rows[0]) == {"fold", "label", "probability", "p_inside_filled"}
    assert transplant(rows, False) is None
    assert controls(rows, samples=20)["hole"]["auc"] == {"value": None, "low": None, "high": None, "subjects": 0}
    assert controls([{"label": 1, "probability": 0.5}]) is None, "of a run that was probed before"


# --- the soft seam and the hole elsewhere


def test_a_soft_transplant_passes_from_one_exam_to_the_other_within_five_mm():
    own, other = np.full((SIDE,) * 3, 1.0, np.float32), np.full((SIDE,) * 3, 3.0, np.float32)
    keep, none = np.zeros((SIDE,) * 3, bool), np.zeros((SIDE,) * 3, bool)
    keep[:12] = True
    found = context.softly_transplanted(own, keep, other, none, 3.0, seam=2.0)  # voxels of 1 mm
    line = (found[:, 12, 12] - 1) / 2
    assert line[0] < 0.001 and line[-1] > 0.999 and np.all(np.diff(line) >= 0)
    assert np.interp(0.9, line, np.arange(SIDE)) - np.interp(0.1, line, np.arange(SIDE)) == pytest.approx(5.1, abs=0.3)
    assert line[11] + line[12] == pytest.approx(1, abs=1e-5)  # half and half on the edge
    other[15:18, 10:14, 10:14], none[15:18, 10:14, 10:14] = 9, True
    assert context.softly_transplanted(own, keep, other, none, 3.0, 2.0)[16, 12, 12] < 5, "the other tumour is blurred"
    assert np.array_equal(context.softly_transplanted(own, np.zeros_like(keep), other, none, 3.0, 2.0), own)


def cube(*spans):
    found = np.zeros((SIDE,) * 3, bool)
    found[tuple(slice(*span) for span in spans)] = True
    return found


def test_a_hole_elsewhere_is_mirrored_where_that_is_free_and_moved_where_not():
    rng, body = np.random.default_rng(0), cube((2, 22), (2, 22), (2, 22))
    side = cube((4, 8), (10, 14), (9, 13))
    assert np.array_equal(context.elsewhere(side, body, rng), cube((16, 20), (10, 14), (9, 13)))
    middle = cube((10, 14), (10, 14), (9, 13))
    moved = context.elsewhere(middle, body, rng)
    assert moved.sum() == middle.sum() and not (moved & middle).any() and body[moved].mean() >= 0.9
    spans = np.ptp(np.argwhere(moved), axis=0)
    assert spans.tolist() == [3, 3, 3], "the shape is kept"
    half = cube((2, 12), (2, 22), (2, 22))  # air where the mirrored place is
    assert not (context.elsewhere(side, half, rng) & ~half).any()
    assert np.array_equal(
        context.elsewhere(middle, body, np.random.default_rng(3)),
        context.elsewhere(middle, body, np.random.default_rng(3)),
    )


def test_no_place_is_told():
    rng, nothing = np.random.default_rng(0), np.zeros((SIDE,) * 3, bool)
    whole = cube((2, 22), (2, 22), (2, 22))
    assert context.elsewhere(whole, whole, rng) is None
    assert context.elsewhere(nothing, whole, rng) is None and context.elsewhere(whole, nothing, rng) is None


def test_one_pass_gives_ledger_controls_and_features(small, monkeypatch):
    cache, labels = exams(empty=(2,))
    maps = np.random.default_rng(1).standard_normal((COUNT, 3, 3, 3, 2)).astype(np.float32)
    evidence = maps.astype(float)[..., 1] - maps[..., 0]

    def forward(volumes):
        at = [
            int(np.argmax([np.array_equal(volume[..., 0], image[0].astype(np.float32)) for image in cache.image]))
            for volume in volumes
        ]
        return {"maps": maps[at], "evidence": evidence[at].mean((1, 2, 3)) + 0.25, "pooled": volumes[:, 5, 5, 5, :]}

    fold = replace(fold_of(cache, TUMOUR, small), forward=forward)
    fold.model.head = SimpleNamespace(weights=lambda: (None, [0.5, 0.75]), exact=True)
    found = seen(fold, labels)
    assert [row["subject"] for row in found.ledger] == [name for name in cache.subjects if name != "s02"]
    for row in found.ledger:
        total = row["constant"] + sum(row[part] for part in ("tumour", "ring", "body", "outside"))
        assert total == pytest.approx(row["log_odds"], abs=1e-6)
    assert found.features.shape == (COUNT, 1) and found.controls[2] == {"mass_chance_body": None, "mass_of_t1": None}
    settings = SimpleNamespace(training=small.training, uses_box=False, backbone=SimpleNamespace(last_pool=True))
    pooled = replace(fold, model=SimpleNamespace(settings=settings, head=fold.model.head))
    assert seen(pooled, labels).ledger == []
