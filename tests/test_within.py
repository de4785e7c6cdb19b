"""AUCs within folds: against a double loop, scikit-learn and a bootstrap one draw at a time."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mgkeras.probes.causal import causal_scores
from mgkeras.scores import metrics
from mgkeras.scores.summary import mean_interval
from mgkeras.scores.within import auc_draws, aucs_within, complete, draws_within


def slow_auc(labels, p, folds):
    won = pairs = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == 1 and labels[j] == 0 and folds[i] == folds[j]:
                won += 1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0
                pairs += 1
    return won / pairs if pairs else None


def counts_of(folds, samples, **options):
    """(samples, n) how often each subject was drawn in each draw."""
    found = np.full((samples, len(folds)), -1)
    for part, places, counts in draws_within(folds, samples=samples, **options):
        assert (found[part, places] == -1).all()  # each once
        found[part, places] = counts
    return found


def cohort(seed, n=40, folds=3):
    rng = np.random.default_rng(seed)
    labels, where = rng.integers(0, 2, n), rng.integers(0, folds, n)
    return labels, np.round(rng.random(n) + 0.3 * labels, 1), where  # rounded: ties


@pytest.mark.parametrize("seed", range(4))
def test_within_folds_equals_a_double_loop(seed):
    labels, p, folds = cohort(seed)
    assert metrics.auc_within(labels, p, folds) == pytest.approx(slow_auc(labels, p, folds))
    assert metrics.auc_within(labels, p, np.zeros(40)) == pytest.approx(roc_auc_score(labels, p))


def test_folds_of_other_offsets_cost_a_pooled_auc_and_not_this_one():
    labels = np.tile([0, 1], 20)
    folds = np.repeat([0, 1], 20)
    p = 0.1 * labels + np.where(folds == 0, 0.0, 0.5)  # each fold ranks perfectly, the second is shifted
    assert metrics.auc_within(labels, p, folds) == 1
    assert metrics.auc_score(labels, p) == pytest.approx(0.75)


def test_it_is_the_mean_of_the_folds_weighed_by_their_pairs():
    labels, p, folds = cohort(7)
    parts = [(labels[folds == k], p[folds == k]) for k in range(3)]
    weights = [part.sum() * (1 - part).sum() for part, _ in parts]
    expected = np.average([roc_auc_score(*part) for part in parts], weights=weights)
    assert metrics.auc_within(labels, p, folds) == pytest.approx(expected)


def test_a_fold_of_one_class_has_no_say_and_one_class_is_undefined():
    labels, p, folds = np.array([1, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 0, 1, 1])
    assert metrics.auc_within(labels, p, folds) == 1
    assert metrics.auc_within([1, 1], [0.1, 0.2], [0, 0]) is None
    assert metrics.auc_within([1, 0], [0.1, 0.2], [0, 1]) is None
    found = aucs_within(folds[:2], {"a": (labels[:2], p[:2])}, samples=20)
    assert found.auc("a") == {"value": None, "low": None, "high": None, "subjects": 2}
    assert aucs_within([], {"a": ([], [])}).auc("a")["subjects"] == 0


def test_draws_stay_within_folds_and_their_aucs_are_those_of_the_drawn_subjects():
    labels, p, folds = cohort(3, n=15)
    counts = counts_of(folds, 50, seed=1)
    for fold in range(3):
        assert (counts[:, folds == fold].sum(1) == (folds == fold).sum()).all()
    some = np.where(np.arange(15) % 4, p, np.nan)  # a subject without a value is left out of that score alone
    drawn = auc_draws(folds, {"all": (labels, p), "some": (labels, some)}, samples=50, seed=1)
    for name, values in (("all", p), ("some", some)):
        for count, found in zip(counts, drawn[name], strict=True):
            rows = np.repeat(np.arange(15), count * np.isfinite(values))
            expected = slow_auc(labels[rows], values[rows], folds[rows])
            assert np.isnan(found) if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [1, 50, 1 << 19])
def test_draws_in_blocks_are_those_of_one_call(numbers, monkeypatch):
    monkeypatch.setattr("mgkeras.scores.patients.BLOCK", numbers)
    folds, generator = np.arange(17) % 2, np.random.default_rng(4)
    blocks = [counts for _, _, counts in draws_within(folds, samples=600, seed=4)]
    assert max(block.size for block in blocks) <= max(numbers, 9)
    counts = counts_of(folds, 600, seed=4)
    for fold, size in ((0, 9), (1, 8)):
        index = generator.integers(size, size=(600, size))
        expected = [np.bincount(row, minlength=size) for row in index]
        assert (counts[:, folds == fold] == expected).all()
    labels, p, _ = cohort(2)
    scores = [metrics.bootstrap_scores(metrics.auc_score, labels, p, samples=300), mean_interval(p, samples=300)["low"]]
    monkeypatch.undo()
    again = [metrics.bootstrap_scores(metrics.auc_score, labels, p, samples=300), mean_interval(p, samples=300)["low"]]
    assert (scores[0] == again[0]).all() and scores[1] == again[1]


def test_differences_are_paired():
    labels, p, folds = cohort(5, n=90)
    scores = {"a": (labels, p), "same": (labels, 2 * p + 1), "other": (labels, np.random.default_rng(0).random(90))}
    found = aucs_within(folds, scores, samples=300, seed=2)
    assert found.less("a", "same") == {"value": 0, "low": 0, "high": 0}
    less = found.less("a", "other")
    assert less["value"] == found.auc("a")["value"] - found.auc("other")["value"]
    assert less["low"] < less["value"] < less["high"]
    assert found.auc("a")["low"] < found.auc("a")["value"] < found.auc("a")["high"]


def predictions(kept=True):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(30):
        label, fold = i % 2, i // 15
        row = {
            "subject": f"s{i}",
            "fold": str(fold),
            "split": "held-out",
            "label": str(label),
            "probability": str(0.2 * label + 0.4 * fold + 0.1 * rng.random()),
            "p_inside_blurred": str(rng.random()),
            "p_outside_blurred": "" if i == 4 else str(0.2 * label + 0.1 * rng.random()),
        }
        rows.append(row | ({"kept_ml": "" if i == 4 else str(10.0 + i)} if kept else {}))
    return [*rows, {**rows[0], "split": "train", "fold": "1", "p_outside_blurred": "", "p_inside_blurred": ""}]


def test_causal_scores_of_a_runs_rows():
    found = causal_scores(predictions(), samples=100)
    assert found["auc_whole"]["value"] == found["auc_outside_blurred"]["value"] == 1
    assert {found[f"auc_{name}"]["subjects"] for name in ("whole", "outside_blurred", "inside_blurred")} == {29}
    assert found["outside_less_whole"] == {"value": 0, "low": 0, "high": 0}
    inside = found["auc_inside_blurred"]["value"]
    assert found["inside_less_whole"]["value"] == inside - 1 and found["outside_less_inside"]["value"] == 1 - inside
    assert found["kept_ml"]["subjects"] == 29
    assert found["kept_ml"]["mean"] == pytest.approx(np.mean([10 + i for i in range(30) if i != 4]))


def test_runs_of_before_have_no_kept_ml_and_older_ones_nothing():
    before = predictions(kept=False)
    found = causal_scores(before, samples=50)
    assert found["kept_ml"] is None and found["auc_whole"]["value"] == 1
    bare = [{name: row[name] for name in ("subject", "fold", "split", "label", "probability")} for row in before]
    assert causal_scores(bare) == {}


def test_complete_rows_only():
    rows = [{"label": "1", "fold": "2", "a": "0.5", "b": ""}, {"label": "0", "a": "0.25", "b": 1}]
    found = complete(rows, ["a", "b"])
    assert {name: values.tolist() for name, values in found.items()} == {
        "subject": [""],
        "fold": [0],
        "label": [0],
        "a": [0.25],
        "b": [1],
    }
    assert complete(rows, ["a"])["fold"].tolist() == [2, 0]


def test_patients_are_drawn_with_all_their_exams():
    labels, p, folds = cohort(3)
    twice = [np.concatenate([values, values]) for values in (labels, p, folds)]
    patients = np.tile(np.arange(40), 2)
    counts = counts_of(twice[2], 50, patients=patients)
    assert (counts[:, :40] == counts[:, 40:]).all() and (counts[:, :40] == counts_of(folds, 50)).all()
    once = aucs_within(folds, {"a": (labels, p)}, samples=100).auc("a")
    both = aucs_within(twice[2], {"a": (twice[0], twice[1])}, samples=100, patients=patients).auc("a")
    assert both | {"subjects": 40} == pytest.approx(once)
    rows = [
        {"subject": f"S{n}", "split": "held-out", "fold": f, "label": y, "probability": v}
        | {"p_outside_blurred": v, "p_inside_blurred": 1 - v}
        for n, (y, v, f) in enumerate(zip(*twice, strict=True))
    ]
    names = {f"S{n}": int(patients[n]) for n in range(80)}
    clustered, plain = causal_scores(rows, samples=100, patients=names), causal_scores(rows[:40], samples=100)
    assert clustered["auc_whole"] | {"subjects": 40} == pytest.approx(plain["auc_whole"])
