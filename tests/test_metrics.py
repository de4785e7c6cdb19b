"""Scores against slow twins, DeLong against a published example, degenerate cases, and summary.json's content."""

from __future__ import annotations

import json
import time
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from mgkeras.scores import metrics, summary


def _case(seed: int, n: int = 60, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.35).astype(int)
    labels[:2] = 0, 1
    scores = [1 / (1 + np.exp(-(labels + generator.normal(0, s, n) - 0.5))) for s in (1.0, 1.5)]
    return labels, *[np.round(p, 1) if ties else p for p in scores]


def _wins(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(m, n) 1 where a positive outranks a negative, 0.5 for a tie."""
    return np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in p[labels == 0]] for a in p[labels == 1]])


@pytest.mark.parametrize("ties", [False, True])
def test_auc_counts_pairs(ties):
    labels, p, _ = _case(0, ties=ties)
    assert metrics.auc_score(labels, p) == pytest.approx(_wins(labels, p).mean(), abs=1e-12)
    assert metrics.auc_score(1 - labels, 1 - p) == pytest.approx(metrics.auc_score(labels, p))


def test_decisions_by_hand():
    labels, p = [1, 1, 1, 0, 0, 0, 0, 0], [0.9, 0.5, 0.1, 0.8, 0.4, 0.3, 0.2, 0.1]  # tp 2, fn 1, fp 1, tn 4
    expected = {
        "accuracy": 6 / 8,
        "balanced_accuracy": (2 / 3 + 4 / 5) / 2,
        "sensitivity": 2 / 3,
        "specificity": 4 / 5,
        "ppv": 2 / 3,
        "npv": 4 / 5,
    }
    assert metrics.decision_scores(labels, p) == pytest.approx(expected)
    own = np.where(
        np.array(p) > 0.7, 0.95, 0.05
    )  # a threshold a subject: the two high subjects are now called negative
    assert metrics.decision_scores(labels, p, own)["sensitivity"] == pytest.approx(2 / 3)
    assert metrics.brier_loss([1, 0], [0.8, 0.4]) == pytest.approx((0.04 + 0.16) / 2)
    assert metrics.average_precision_score([1, 0, 1], [0.9, 0.5, 0.1]) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("n", [2, 3, 17, 80])
def test_average_precision_is_scikit_learns_with_and_without_ties(n, levels):
    rng = np.random.default_rng(n * levels)
    for _ in range(20):
        labels, p = rng.integers(0, 2, n), rng.integers(0, levels, n) / levels
        labels[:2] = 0, 1
        expected = sk.average_precision_score(labels, p)
        assert metrics.average_precision_score(labels, p) == pytest.approx(expected, abs=1e-12)


def test_undefined_is_none_and_never_nan():
    ones, p = np.ones(4, int), np.array([0.1, 0.6, 0.6, 0.9])
    assert metrics.auc_score(ones, p) is metrics.average_precision_score(ones, p) is None
    assert metrics.youden_threshold(ones, p) is metrics.bootstrap_interval(metrics.auc_score, ones, p) is None
    assert metrics.paired_bootstrap_difference(ones, p, p) is metrics.delong_test(ones, p, p) is None
    assert metrics.calibration(ones, p) == {"slope": None, "intercept": None}
    decisions = metrics.decision_scores(ones, p)
    assert decisions["specificity"] is decisions["balanced_accuracy"] is None and decisions["sensitivity"] == 0.75
    assert metrics.decision_scores([0, 1], [0.1, 0.2])["ppv"] is None
    json.dumps(summary.summarise(ones, p, [0, 0, 1, 1], samples=20), allow_nan=False)


@pytest.mark.parametrize(
    "labels, p, text",
    [
        ([0, 1], [0.1, np.nan], "diverged"),
        ([0, 2], [0.1, 0.2], "0 and 1"),
        ([], [], "n > 0"),
        ([0, 1, 1], [0.1, 0.2], "one length"),
    ],
)
def test_bad_input_is_refused(labels, p, text):
    with pytest.raises(ValueError, match=text):
        metrics.auc_score(labels, p)


def test_three_subjects_have_defined_results():
    labels, a, b = [0, 1, 0], [0.2, 0.7, 0.6], [0.5, 0.5, 0.6]
    assert metrics.bootstrap_interval(metrics.auc_score, labels, a, samples=200) == (1.0, 1.0)
    assert metrics.delong_test(labels, a, b) == {
        "auc_a": 1.0,
        "auc_b": 0.25,
        "difference": 0.75,
        "standard_error": None,
        "z": None,
        "p": None,
        "low": None,
        "high": None,
    }
    json.dumps(summary.summarise(labels, a, [0, 1, 2], samples=50), allow_nan=False)


def test_youden_is_the_best_of_all_thresholds():
    for seed in range(5):
        labels, p, _ = _case(seed, 30, ties=seed % 2 == 0)

        def youden(threshold, labels=labels, p=p):
            scores = metrics.decision_scores(labels, p, threshold)
            return scores["sensitivity"] + scores["specificity"] - 1

        best = max(youden(threshold) for threshold in np.linspace(0, 1.001, 4001))
        assert youden(metrics.youden_threshold(labels, p)) == pytest.approx(best)
    assert metrics.youden_threshold([0, 1, 0], [0.4, 0.4, 0.4]) == 0.4  # nothing separates: everyone is positive


def test_calibration_is_unpenalised_logistic_regression():
    labels, p, _ = _case(3, 200)
    x = np.log(p / (1 - p))[:, None]
    twin = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(x, labels)
    found = metrics.calibration(labels, p)
    assert found["slope"] == pytest.approx(twin.coef_[0, 0], abs=1e-4)
    assert found["intercept"] == pytest.approx(twin.intercept_[0], abs=1e-4)
    flipped = metrics.calibration(1 - labels, 1 - p)
    assert flipped["slope"] == pytest.approx(found["slope"], abs=1e-6)
    assert flipped["intercept"] == pytest.approx(-found["intercept"], abs=1e-6)


def test_calibration_finds_what_was_put_in_and_is_none_when_separated():
    generator = np.random.default_rng(0)
    x = generator.normal(size=40_000)
    labels = (generator.random(x.size) < 1 / (1 + np.exp(-(0.5 * x - 1)))).astype(int)
    assert metrics.calibration(labels, 1 / (1 + np.exp(-x))) == pytest.approx({"slope": 0.5, "intercept": -1}, abs=0.04)
    for labels, p in (([0, 0, 1], [0.1, 0.2, 0.3]), ([0, 0, 1], [0.1, 0.3, 0.3]), ([1, 0, 1], [0.4, 0.4, 0.4])):
        assert metrics.calibration(labels, p)["slope"] is None


def test_fast_bootstrap_equals_the_loop_and_is_fast():
    labels, p, _ = _case(1, 115, ties=True)
    slow = metrics.bootstrap_scores(lambda y, q: metrics.auc_score(y, q), labels, p, samples=60, seed=5)
    np.testing.assert_allclose(metrics.bootstrap_scores(metrics.auc_score, labels, p, samples=60, seed=5), slow)
    start = time.perf_counter()
    low, high = metrics.bootstrap_interval(metrics.auc_score, labels, p)
    assert time.perf_counter() - start < 1
    assert low < metrics.auc_score(labels, p) < high
    assert metrics.bootstrap_interval(metrics.auc_score, labels, p) == (low, high)
    delong = metrics.delong_test(labels, p, np.zeros_like(p))  # against 0.5 without variance: the AUC's own interval
    assert (low, high) == pytest.approx((0.5 + delong["low"], 0.5 + delong["high"]), abs=0.03)


def test_a_means_interval_is_that_of_all_draws_at_once_in_less_memory():
    values = np.random.default_rng(0).random(500)
    index = np.random.default_rng(3).integers(values.size, size=(2000, values.size))
    expected = np.quantile(values[index].mean(axis=1), (0.025, 0.975))
    tracemalloc.start()
    found = summary.mean_interval(values, seed=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found["low"], found["high"]) == tuple(expected) and peak < index.nbytes / 2


def test_of_many_subjects_the_bootstrap_compares_no_pairs():
    """A table of all pairs of this many would alone hold 72 MB."""
    labels, p = np.arange(6000) % 2, np.random.default_rng(0).random(6000)
    tracemalloc.start()
    found = metrics.bootstrap_scores(metrics.auc_score, labels, p, samples=5)
    threshold = metrics.youden_threshold(labels, p)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.allclose(found, 0.5, atol=0.05) and 0 <= threshold <= 1 and peak < 60e6


def test_bootstrap_leaves_undefined_draws_out():
    labels, p = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.45, 0.6])  # one subject called positive

    def ppv(y, q):
        return metrics.decision_scores(y, q)["ppv"]

    values = metrics.bootstrap_scores(ppv, labels, p, samples=300)
    assert np.isnan(values).any() and metrics.bootstrap_interval(ppv, labels, p, samples=300) == (1.0, 1.0)
    assert metrics.bootstrap_interval(lambda y, q: None, labels, p, samples=50) is None


def test_paired_bootstrap():
    labels, a, b = _case(2, 115)
    found = metrics.paired_bootstrap_difference(labels, a, b, samples=500)
    assert found["low"] < found["difference"] < found["high"]
    delong = metrics.delong_test(labels, a, b)
    assert (found["low"], found["high"]) == pytest.approx((delong["low"], delong["high"]), abs=0.04)
    assert metrics.paired_bootstrap_difference(labels, a, a, samples=50) == {
        "difference": 0,
        "low": 0,
        "high": 0,
        "p": 1,
    }
    brier = metrics.paired_bootstrap_difference(labels, a, b, metrics.brier_loss, samples=100)
    assert brier["difference"] == pytest.approx(metrics.brier_loss(labels, a) - metrics.brier_loss(labels, b))


# DeLong, DeLong, Clarke-Pearson 1988: 43 patients, [albumin, total protein, Krebs-Goplerud score], who was helped by
# surgery; results as printed in the SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic
# Curves" (there 10 minus the score is used, as here).
OVARIAN = np.array(
    [
        float(cell)
        for cell in """
    3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
    3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
    4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
    4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
    2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""".split()
    ]
).reshape(-1, 4)


def test_delong_against_the_published_example():
    labels, albumin, protein, score = OVARIAN[:, 3].astype(int), OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]
    for values, printed in (
        (albumin, (0.7366, 0.0927, 0.5549, 0.9182)),
        (protein, (0.6478, 0.1000, 0.4518, 0.8439)),
        (score, (0.7258, 0.1028, 0.5243, 0.9273)),
    ):
        found = metrics.delong_test(labels, values, np.zeros_like(values))  # against 0.5 without variance
        own = found["auc_a"], found["standard_error"], 0.5 + found["low"], 0.5 + found["high"]
        assert own == pytest.approx(printed, abs=6e-5)
    for values, printed in (
        (albumin, (0.0108, 0.0953, -0.1761, 0.1976, 0.0127, 0.9102)),
        (protein, (-0.0780, 0.1046, -0.2830, 0.1271, 0.5554, 0.4561)),
    ):
        t = metrics.delong_test(labels, values, score)
        found = (t["difference"], t["standard_error"], t["low"], t["high"], t["z"] ** 2, t["p"])
        assert found == pytest.approx(printed, abs=6e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_against_structural_components_pair_by_pair(ties):
    for seed in range(4):
        labels, a, b = _case(seed, 40, ties)
        difference = _wins(labels, a) - _wins(labels, b)  # (m, n)
        m, n = difference.shape
        variance = np.var(difference.mean(axis=1), ddof=1) / m + np.var(difference.mean(axis=0), ddof=1) / n
        found = metrics.delong_test(labels, a, b)
        assert found["difference"] == pytest.approx(difference.mean())
        assert found["standard_error"] == pytest.approx(np.sqrt(variance))
        assert metrics.delong_test(labels, b, a)["z"] == pytest.approx(-found["z"])
        assert metrics.delong_test(labels, a**3, b)["z"] == pytest.approx(found["z"])


def test_delong_without_variance():
    labels = np.array([0, 0, 1, 1])
    p = np.array([0.1, 0.2, 0.3, 0.4])
    assert metrics.delong_test(labels, p, p**2)["p"] == 1 and metrics.delong_test(labels, p, p**2)["z"] == 0
    assert metrics.delong_test(labels, p, 1 - p)["p"] is None


def test_summarise():
    labels, p, _ = _case(4, 60)
    folds = np.arange(60) % 3
    found = summary.summarise(labels, p, folds, samples=100)
    aucs = [metrics.auc_score(labels[folds == fold], p[folds == fold]) for fold in range(3)]
    assert found["over_folds"]["auc"] == pytest.approx({"mean": np.mean(aucs), "sd": np.std(aucs, ddof=1), "folds": 3})
    assert found["pooled"]["auc"]["value"] == metrics.auc_score(labels, p)
    assert [row["subjects"] for row in found["per_fold"]] == [20, 20, 20]
    assert (
        set(found["pooled"])
        == set(found["over_folds"])
        == {
            "auc",
            "average_precision",
            "brier_loss",
            "calibration_in_the_large",
            "calibration_slope",
            "calibration_intercept",
            *summary.DECISIONS,
        }
    )
    own = summary.summarise(labels, p, folds, threshold=np.full(60, 0.5), samples=100)
    assert own == found


def _rows(n: int = 30, folds: int = 3) -> tuple[list[dict], list[dict]]:
    labels, p, q = _case(7, n)
    rows, attention = [], []
    for i in range(n):
        for fold in range(folds):
            held = i % folds == fold
            row = {
                "subject": f"s{i}",
                "fold": fold,
                "split": "held-out" if held else "train",
                "label": labels[i],
                "probability": p[i] if held else q[i],
                "p_outside_blurred": q[i] if held and i else "",
                "p_inside_blurred": 1 - q[i] if held and i else "",
            }
            rows.append(row)
        attention.append({"subject": f"s{i}", "fold": i % folds, "mass_in_mask": i / n if i else None, "chance": 0.1})
    return rows, attention


def test_run_summary():
    rows, attention = _rows()
    found = summary.run_summary(rows, attention, samples=100)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    held = [row for row in rows if row["split"] == "held-out"]
    labels, p = [row["label"] for row in held], [row["probability"] for row in held]
    assert (found["subjects"], found["folds"], found["positives"]) == (30, 3, sum(labels))
    assert found["pooled"]["auc"]["value"] == metrics.auc_score(labels, p)
    assert set(found["pooled"]) == {"auc", "accuracy", "majority_accuracy"}  # of altered exams only within folds
    assert found["per_fold"][1]["train"]["subjects"] == 20 and found["per_fold"][1]["held_out"]["subjects"] == 10
    mass = found["attention"]["all"]["mass_in_mask"]
    assert (mass["defined"], mass["undefined"]) == (29, 1)
    assert mass["mean"] == pytest.approx(np.mean(np.arange(1, 30)) / 30)
    groups = found["attention"]
    for a, b in (("class_0", "class_1"), ("right", "wrong")):
        assert groups[a]["chance"]["defined"] + groups[b]["chance"]["defined"] == 30
    right = sum((value >= 0.5) == label for label, value in zip(labels, p, strict=True))
    assert groups["right"]["chance"]["defined"] == right
    as_text = [{key: str(value) for key, value in row.items()} for row in rows]
    assert summary.run_summary(as_text, attention, samples=100) == found


def test_run_summary_of_little():
    rows, attention = _rows(6)
    for row in rows:
        row["label"] = 1
    found = summary.run_summary(rows, [], samples=10)
    assert found["over_folds"]["auc_held_out"] == {"mean": None, "sd": None, "folds": 0}
    assert found["pooled"]["auc"] == {"value": None, "low": None, "high": None, "subjects": 6}
    assert found["attention"] == {} and found["pooled"]["majority_accuracy"] == 1
    held_only = [row for row in rows if row["split"] == "held-out"]
    assert summary.run_summary(held_only, attention, samples=10)["per_fold"][0]["train"]["accuracy"] is None


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda rows, attention: rows.append(dict(rows[0])), "s0 held out more than once"),
        (lambda rows, attention: rows.clear(), "exactly once. Received: none"),
        (lambda rows, attention: rows[0].update(split="test"), "'held-out' or 'train'"),
        (lambda rows, attention: rows[0].update(probability=float("nan")), "s0 needs a probability"),
        (lambda rows, attention: attention[0].update(subject="stranger"), "stranger"),
    ],
)
def test_run_summary_refuses(change, text):
    rows, attention = _rows(6)
    change(rows, attention)
    with pytest.raises(ValueError, match=text):
        summary.run_summary(rows, attention, samples=10)


def test_calibration_in_the_large_is_the_intercept_at_slope_one():
    labels, p, _ = _case(4, 200)
    x = np.log(p / (1 - p))
    found = metrics.calibration_in_the_large(labels, p)
    shifted = 1 / (1 + np.exp(-x - found))
    assert shifted.sum() == pytest.approx(labels.sum(), abs=1e-6)  # the likelihood's slope is 0 there
    assert metrics.calibration_in_the_large(labels, shifted) == pytest.approx(0, abs=1e-6)
    assert metrics.calibration_in_the_large(labels, 1 / (1 + np.exp(-x + 0.7))) == pytest.approx(found + 0.7, abs=1e-6)
    assert metrics.calibration_in_the_large([1, 1], [0.2, 0.4]) is None
    for extreme in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]):
        assert np.isfinite(metrics.calibration_in_the_large([0, 1], extreme))


# --- several exams of a patient ---


def _twice(*arrays):
    """Every exam twice, the second time in another order, and whose they are."""
    order = np.random.default_rng(3).permutation(len(arrays[0]))
    who = np.arange(len(order))
    return [np.concatenate([array, array[order]]) for array in arrays], np.concatenate([who, who[order]])


def test_an_exam_that_counts_twice_makes_no_interval_narrower():
    labels, a, b = _case(5, n=40)
    (labels_2, a_2, b_2), patients = _twice(labels, a, b)
    options = {"samples": 300, "seed": 1}
    for score in (metrics.auc_score, metrics.brier_loss):
        once = metrics.bootstrap_interval(score, labels, a, **options)
        twice = metrics.bootstrap_interval(score, labels_2, a_2, **options, patients=patients)
        alone = metrics.bootstrap_interval(score, labels_2, a_2, **options)
        assert twice == pytest.approx(once, abs=1e-12) and alone[1] - alone[0] < 0.85 * (once[1] - once[0])
        assert metrics.bootstrap_interval(score, labels, a, **options, patients=np.arange(40)[::-1]) == once
    assert metrics.paired_bootstrap_difference(labels_2, a_2, b_2, **options, patients=patients) == pytest.approx(
        metrics.paired_bootstrap_difference(labels, a, b, **options), abs=1e-12
    )
    assert metrics.delong_test(labels_2, a_2, b_2, patients=patients) == pytest.approx(
        metrics.delong_test(labels, a, b), abs=1e-12
    )
    assert summary.mean_interval(a_2, patients=patients) | {"subjects": 40} == pytest.approx(
        summary.mean_interval(a), abs=1e-12
    )
    pooled = summary.summarise(labels_2, a_2, np.zeros(80), samples=200, patients=patients)["pooled"]
    once = summary.summarise(labels, a, np.zeros(40), samples=200)["pooled"]
    for name in once:
        assert pooled[name] == pytest.approx(once[name], abs=1e-6), name


def test_obuchowskis_error_against_its_sums_written_out():
    labels, a, b = _case(9, n=50, ties=True)
    patients = np.random.default_rng(2).integers(0, 20, 50)
    wins = _wins(labels, a) - _wins(labels, b)  # (m, n)
    m, n = wins.shape
    difference = wins.mean()
    s10 = s01 = s11 = 0.0
    diseased, healthy = patients[labels == 1], patients[labels == 0]
    for patient in set(patients.tolist()):
        high = sum(wins[k].mean() - difference for k in range(m) if diseased[k] == patient)
        low = sum(wins[:, k].mean() - difference for k in range(n) if healthy[k] == patient)
        s10, s01, s11 = s10 + high**2, s01 + low**2, s11 + high * low
    i10, i01, units = (len(set(group.tolist())) for group in (diseased, healthy, patients))
    s10, s01, s11 = s10 * i10 / ((i10 - 1) * m), s01 * i01 / ((i01 - 1) * n), s11 * units / (units - 1)
    expected = np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))
    assert metrics.delong_test(labels, a, b, patients=patients)["standard_error"] == pytest.approx(expected, rel=1e-9)


def test_patients_that_are_too_few_or_do_not_fit():
    labels, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.8, 0.7])
    assert metrics.delong_test(labels, p, p[::-1], patients=[1, 1, 1, 1])["p"] is None
    with pytest.raises(ValueError, match="patient for each of 4"):
        metrics.bootstrap_interval(metrics.auc_score, labels, p, patients=[1, 2])
