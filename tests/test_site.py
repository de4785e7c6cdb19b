"""The site in a network's features, and the mask's shape as a baseline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mgkeras.probes import shape
from mgkeras.probes.site import cross_fitted_scores, site_columns, site_probe
from mgkeras.scores import metrics
from mgkeras.scores.held_out import HeldOut

COUNT = 60
FOLDS = np.arange(COUNT) % 3
NAMES = [f"s{at:02d}" for at in range(COUNT)]


def cohort(sites):
    return [
        {"subject": name, "early": "e", "age": "50", "site": site, "recurrence": "0"}
        for name, site in zip(NAMES, sites, strict=True)
    ]


def features(sites, strength):
    """Of each fold on another scale and turned another way, as those of three models are."""
    rng = np.random.default_rng(0)
    level = np.array([sorted(set(sites)).index(site) for site in sites])
    values = rng.standard_normal((COUNT, 4))
    values[np.arange(COUNT), FOLDS] += strength * level * np.where(FOLDS == 1, -1, 1)
    return dict(zip(NAMES, values * (1 + 10 * FOLDS)[:, None] + 100.0 * FOLDS[:, None], strict=True))


def held(labels, p):
    return {
        name: (int(fold), int(label), float(score))
        for name, fold, label, score in zip(NAMES, FOLDS, labels, p, strict=True)
    }


def test_columns_that_say_where_an_exam_was_made():
    row = {
        "subject": "a",
        "early": "b",
        "site": "x",
        "scanner_model": "y",
        "Field_Strength": "1.5",
        "opposite": "z",
        "recurrence": "1",
        "manufacturer": "m",
    }
    assert site_columns([row], "recurrence") == ["site", "scanner_model", "Field_Strength", "manufacturer"]


@pytest.mark.parametrize("sites", [["A", "B"], ["A", "B", "C"]], ids=len)
def test_a_site_in_the_features_is_found_though_every_fold_has_features_of_its_own(sites):
    """The label is the site's, so within a site nothing is left of the AUC."""
    sites = [sites[(at // 3) % len(sites)] for at in range(COUNT)]
    labels = np.array([at // 3 % 2 for at in range(COUNT)])
    model = held(labels, 0.2 + 0.5 * np.array([site == "B" for site in sites]))
    known, blind = (
        site_probe(features(sites, strength), model, cohort(sites), "recurrence", samples=60)["columns"][0]
        for strength in (6.0, 0.0)
    )
    assert known["column"] == "site" and known["groups"] == len(set(sites))
    assert known["predicted_auc"]["value"] > (0.95 if len(set(sites)) == 2 else 0.75)
    assert known["predicted_auc"]["subjects"] == COUNT
    assert abs(blind["predicted_auc"]["value"] - 0.5) < 0.2
    assert known["predicted_auc"]["low"] <= known["predicted_auc"]["value"] <= known["predicted_auc"]["high"]
    for group in known["within"]:
        members = [at for at in range(COUNT) if sites[at] == group["group"]]
        p = np.array([model[NAMES[at]][2] for at in members])
        assert group["subjects"] == len(members)
        assert group["auc"]["value"] == metrics.auc_within(labels[members], p, FOLDS[members])


def test_the_scores_are_of_regressions_that_did_not_see_the_subject():
    rng = np.random.default_rng(1)
    design, target, folds = rng.standard_normal((8, 3)), np.array([0, 1] * 4), np.zeros(8, int)
    found = cross_fitted_scores(design, target, folds)
    assert found.mean() == pytest.approx(0) and np.isfinite(found).all()
    turned = cross_fitted_scores(-3 * design + 7, target, folds)
    assert turned == pytest.approx(found, abs=1e-6), "standardised"
    whole = StandardScaler().fit_transform(design)
    seen = LogisticRegression(C=0.1, class_weight="balanced").fit(whole, target).decision_function(whole)
    assert metrics.auc_score(target, found) < metrics.auc_score(target, seen), "noise is fitted only where it is seen"


def test_few_unknown_or_single_sites():
    folds, target = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([1, 0, 0, 1, 1, 0, 0])
    found = cross_fitted_scores(np.random.default_rng(0).standard_normal((7, 2)), target, folds)
    assert np.isnan(found[:3]).all() and np.isfinite(found[3:]).all()
    model = held(np.arange(COUNT) % 2, np.linspace(0, 1, COUNT))
    assert site_probe({}, model, cohort(["A"] * COUNT), "recurrence") is None
    lone = ["A"] * 58 + ["B", ""]
    column = site_probe(features(["A"] * COUNT, 0), model, cohort(lone), "recurrence", samples=20)["columns"][0]
    assert column["predicted_auc"] == {"value": None, "low": None, "high": None, "subjects": 0}
    assert [(group["group"], group["subjects"]) for group in column["within"]] == [("A", 58), ("B", 1)]


# --- the mask's shape


def test_shape_features_of_a_box_by_hand():
    mask = np.zeros((20,) * 3, bool)
    mask[4:8, 10:12, 0:1] = True
    found = shape.shape_features(mask, 2.0)
    surface = 2 * (4 * 2 + 4 * 1 + 2 * 1) * 4
    assert found == pytest.approx(
        {
            "volume_mm3": 64,
            "surface_mm2": surface,
            "compactness": 36 * np.pi * 64**2 / surface**3,
            "extent_r_mm": 8,
            "extent_a_mm": 4,
            "extent_s_mm": 2,
            "centre_r": 0.3,
            "centre_a": 0.55,
            "centre_s": 0.025,
        }
    )
    assert set(shape.shape_features(np.zeros_like(mask), 2.0).values()) == {None}


def test_compactness_is_largest_for_a_ball_and_free_of_scale():
    at = (np.indices((41,) * 3).T - 20).T
    ball, flat = (at**2).sum(0) <= 15**2, (at[0] ** 2 + at[1] ** 2 + 16 * at[2] ** 2) <= 15**2
    compact, other = (shape.shape_features(mask, 1.0)["compactness"] for mask in (ball, flat))
    assert compact == pytest.approx((2 / 3) ** 3, rel=0.05) and other < compact
    assert shape.shape_features(ball, 3.0)["compactness"] == pytest.approx(compact)


def test_the_baseline_reads_the_shape_and_gives_an_empty_mask_the_median():
    labels = np.arange(COUNT) % 2
    like = HeldOut("x", "network", tuple(NAMES), labels, np.zeros(COUNT), FOLDS, {0: 0.5, 1: 0.5, 2: 0.5})
    rows = [
        {"subject": name, **{key: str(1.0 + at % 7) for key in shape.FEATURES}, "extent_r_mm": str(5 + 9 * label)}
        for at, (name, label) in enumerate(zip(NAMES, labels, strict=True))
    ]
    rows[7] = {"subject": NAMES[7], **dict.fromkeys(shape.FEATURES, "")}
    found = shape.baseline(like, rows)
    assert found.name == "mask shape" and found.kind == "baseline" and "1 of 60" in found.note
    assert metrics.auc_score(labels, found.probabilities) > 0.95
    with pytest.raises(ValueError, match="shapes.csv"):
        shape.baseline(like, rows[1:])
