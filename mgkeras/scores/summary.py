"""A run's rows in, its summary.json out: plain dicts of str, int, float and None, ready for json.dump.

Glossary:
    over folds: mean and SD (n - 1 in the denominator) of the folds' own scores, as the paper's tables give them.
    pooled: one score over all subjects' out-of-fold probabilities, with a bootstrap interval over subjects.
    defined, undefined: subjects with and without a value; undefined ones are left out of a mean and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mgkeras.errors import InputError
from mgkeras.scores import metrics
from mgkeras.scores.attention import MAP
from mgkeras.scores.patients import Patients, at_a_time, clusters, numbers_of

DECISIONS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv")
CAUSAL = {"auc_outside_blurred": "p_outside_blurred", "auc_inside_blurred": "p_inside_blurred"}
Rows = Sequence[Mapping[str, Any]]


def decision(name: str, labels: np.ndarray, p: np.ndarray, threshold: ArrayLike = metrics.THRESHOLD) -> float | None:
    """One of metrics.decision_scores."""
    return metrics.decision_scores(labels, p, threshold)[name]


def _calibration(name: str, labels: np.ndarray, p: np.ndarray, threshold: np.ndarray) -> float | None:
    return metrics.calibration(labels, p)[name]


def summarise(
    labels: ArrayLike,
    probabilities: ArrayLike,
    folds: ArrayLike,
    *,
    threshold: ArrayLike = metrics.THRESHOLD,
    samples: int = 2000,
    seed: int = 0,
    patients: ArrayLike | None = None,
) -> dict[str, Any]:
    """Every score of out-of-fold probabilities, pooled and by fold.

    Args:
        labels, probabilities, folds: (n,) held-out subjects: 0/1, P(class 1), fold number.
        threshold: a number, or (n,) each subject's own, chosen on its fold's training subjects.
        samples, seed: of the bootstrap.
        patients: (n,) a number for each subject that the exams of one patient share; None: each is a patient.

    Returns:
        ``pooled`` {score: {value, low, high}}, ``per_fold`` [{fold, subjects, positives, score...}], ``over_folds``
        {score: {mean, sd, folds}}, ``subjects``, ``positives``. Scores: auc, average_precision, brier_loss,
        calibration_in_the_large, calibration_slope, calibration_intercept, accuracy, balanced_accuracy, sensitivity,
        specificity, ppv, npv.
    """
    labels, p, folds = metrics.checked(labels, probabilities, folds)
    thresholds = np.broadcast_to(np.asarray(threshold, np.float64), labels.shape)
    scores = {
        "auc": metrics.auc_score,
        "average_precision": metrics.average_precision_score,
        "brier_loss": metrics.brier_loss,
        "calibration_in_the_large": metrics.calibration_in_the_large,
    }
    with_threshold = {f"calibration_{name}": partial(_calibration, name) for name in ("slope", "intercept")}
    with_threshold |= {name: partial(decision, name) for name in DECISIONS}
    inputs: dict[str, tuple[metrics.Score, tuple[np.ndarray, ...]]]
    inputs = {name: (score, (labels, p)) for name, score in scores.items()}
    inputs |= {name: (score, (labels, p, thresholds)) for name, score in with_threshold.items()}
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients}
    pooled = {name: with_interval(score, *arrays, **options) for name, (score, arrays) in inputs.items()}
    per_fold = []
    for fold in np.unique(folds).astype(int).tolist():
        inside = folds == fold
        values = {name: score(*(array[inside] for array in arrays)) for name, (score, arrays) in inputs.items()}
        per_fold.append({"fold": fold, **_counts(labels[inside]), **values})
    over = {name: mean_and_sd([row[name] for row in per_fold]) for name in inputs}
    return {**_counts(labels), "pooled": pooled, "per_fold": per_fold, "over_folds": over}


def _counts(labels: np.ndarray) -> dict[str, int]:
    return {"subjects": len(labels), "positives": int(np.sum(labels))}


def with_interval(
    score: metrics.Score, *arrays: np.ndarray, samples: int, seed: int, patients: ArrayLike | None = None
) -> dict[str, Any]:
    """{value, low, high} of a score of arrays over subjects; an undefined interval is None, None.

    ``patients`` is that of patients.clusters.
    """
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients}
    low, high = metrics.bootstrap_interval(score, *arrays, **options) or (None, None)
    return {"value": score(*arrays), "low": low, "high": high}


def mean_interval(
    values: ArrayLike, *, samples: int = 2000, seed: int = 0, patients: ArrayLike | None = None
) -> dict[str, Any]:
    """{mean, low, high, subjects}: a 95 % bootstrap interval of the mean of (n,) defined values, one a subject.

    ``patients`` is that of patients.clusters. low and high are None under two patients, mean under one value.
    """
    values = np.asarray(values, np.float64)
    low = high = None
    numbers = clusters(patients, values.size)
    if numbers is None:
        numbers = np.arange(values.size)
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)  # by patient
    if sums.size > 1:
        generator, step = np.random.default_rng(seed), at_a_time(sums.size)
        blocks = (min(step, samples - start) for start in range(0, samples, step))
        draws = (generator.integers(sums.size, size=(block, sums.size)) for block in blocks)
        means = np.concatenate([sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in draws])
        low, high = (float(edge) for edge in np.quantile(means, (0.025, 0.975)))
    mean = float(values.mean()) if values.size else None
    return {"mean": mean, "low": low, "high": high, "subjects": int(values.size)}


def mean_and_sd(values: Iterable[float | None]) -> dict[str, Any]:
    """{mean, sd (ddof 1), folds}: of the folds where the score is defined; sd None under two, mean None under one."""
    defined = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "folds": len(defined),
    }


def run_summary(
    rows: Rows,
    attention_rows: Rows = (),
    *,
    samples: int = 2000,
    seed: int = 0,
    patients: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        rows: the rows of predictions.csv (strings as csv.DictReader gives them, or numbers): ``subject``, ``fold``,
            ``split`` ('held-out' or 'train'), ``label`` (0/1), ``probability`` (of class 1), ``p_outside_blurred``,
            ``p_inside_blurred`` ('' or None where not scored: train rows, an empty mask). Each subject is held out
            once; train rows may be missing, then the train scores are None.
        attention_rows: held-out subjects only: ``subject``, ``fold`` and the keys of attention.attention_scores
            ('' or None where undefined).
        samples, seed: of the bootstrap intervals.
        patients: {subject: a number that the exams of one patient share}; None: each subject is a patient.

    Returns:
        ::

            {"subjects": 115, "positives": 35, "folds": 5, "threshold": 0.5, "map": "decision",
             "per_fold": [{"fold": 0,
                           "train":    {"subjects": 92, "positives": 28, "accuracy": 0.8, "auc": 0.8},
                           "held_out": {"subjects": 23, "positives": 7, "accuracy": 0.7, "auc": 0.7,
                                        "auc_outside_blurred": 0.7, "auc_inside_blurred": 0.5}}, ...],
             "over_folds": {"accuracy_train": {"mean": 0.8, "sd": 0.04, "folds": 5}, "accuracy_held_out": ...,
                            "auc_train": ..., "auc_held_out": ..., "auc_outside_blurred": ...,
                            "auc_inside_blurred": ...},
             "pooled": {"auc": {"value": 0.79, "low": 0.70, "high": 0.88, "subjects": 115}, "accuracy": {...},
                        "majority_accuracy": 0.70},
             "attention": {"all": {"mass_in_mask": {"mean": 0.6, "sd": 0.1, "median": 0.6, "defined": 110,
                                                    "undefined": 5}, ...},
                           "class_0": {...}, "class_1": {...}, "right": {...}, "wrong": {...}}}

        A score is None where it is undefined (one class only). ``attention`` is {} without attention rows. ``map`` is
        what they are of; runs of before have none, and attention of the class map.

    Raises:
        ValueError: no held-out row, a subject held out twice, an unknown split, a row without a probability (or NaN),
            or attention of a subject that was not held out.
    """
    parsed = [_parsed(row) for row in rows]
    held = [row for row in parsed if row["split"] == "held-out"]
    names = [row["subject"] for row in held]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not held or twice:
        problem = f"{', '.join(twice)} held out more than once" if twice else "none"
        raise InputError(f"expected each subject held out exactly once. Received: {problem}")
    per_fold = []
    for fold in sorted({row["fold"] for row in held}):
        train = [row for row in parsed if row["split"] == "train" and row["fold"] == fold]
        own = [row for row in held if row["fold"] == fold]
        causal = {name: _auc(own, column) for name, column in CAUSAL.items()}
        per_fold.append({"fold": fold, "train": _basic(train), "held_out": _basic(own) | causal})
    labels = np.array([row["label"] for row in held])
    return {
        **_counts(labels),
        "folds": len(per_fold),
        "threshold": metrics.THRESHOLD,
        "map": MAP,
        "per_fold": per_fold,
        "over_folds": _over_folds(per_fold),
        "pooled": _pooled(held, samples, seed, patients),
        "attention": _attention(held, attention_rows),
    }


def _parsed(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["split"] not in ("held-out", "train"):
        raise InputError(f"split of {row['subject']} must be 'held-out' or 'train'. Received: {row['split']!r}")
    found = {
        "subject": str(row["subject"]),
        "split": row["split"],
        "fold": int(row["fold"]),
        "label": int(row["label"]),
    }
    found |= {name: number(row.get(name)) for name in ("probability", *CAUSAL.values())}
    if found["probability"] is None:
        raise InputError(f"subject {found['subject']} needs a probability. Received: {row.get('probability')!r}")
    return found


def number(value: Any) -> float | None:
    """A cell of a CSV file, or a value, as float; None for '', None and NaN.

    Raises:
        ValueError: another text, or infinity.
    """
    if value is None or value == "":
        return None
    try:
        found = {"True": 1.0, "False": 0.0}.get(value) if isinstance(value, str) else None
        found = float(value) if found is None else found
    except ValueError:
        found = math.inf
    if math.isinf(found):
        raise InputError(f"expected a number or an empty cell. Received: {value!r:.50}")
    return None if math.isnan(found) else found


def _columns(rows: Sequence[dict[str, Any]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and a column's probabilities of the rows that have one."""
    scored = [(row["label"], row[column]) for row in rows if row[column] is not None]
    return np.array([label for label, _ in scored], np.int64), np.array([p for _, p in scored], np.float64)


def _auc(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    labels, p = _columns(rows, column)
    return metrics.auc_score(labels, p) if labels.size else None


def _basic(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labels, p = _columns(rows, "probability")
    accuracy = metrics.accuracy_score(labels, p) if labels.size else None
    return {**_counts(labels), "accuracy": accuracy, "auc": _auc(rows, "probability")}


def _over_folds(per_fold: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    places = {f"{name}_{part}": (part, name) for name in ("accuracy", "auc") for part in ("train", "held_out")}
    places |= {name: ("held_out", name) for name in CAUSAL}
    return {name: mean_and_sd(fold[part][key] for fold in per_fold) for name, (part, key) in places.items()}


def _pooled(
    held: Sequence[dict[str, Any]], samples: int, seed: int, patients: Mapping[str, int] | None
) -> dict[str, Any]:
    labels, p = _columns(held, "probability")
    numbers = [patients[row["subject"]] for row in held] if patients else None
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": numbers}
    scores = {"auc": metrics.auc_score, "accuracy": metrics.accuracy_score}
    found = {
        name: with_interval(score, labels, p, **options) | {"subjects": len(held)} for name, score in scores.items()
    }
    positives = float(np.mean([row["label"] for row in held]))
    return {**found, "majority_accuracy": max(positives, 1 - positives)}


def _attention(held: Sequence[dict[str, Any]], attention_rows: Rows) -> dict[str, Any]:
    if not attention_rows:
        return {}
    by_name = {row["subject"]: row for row in held}
    strangers = sorted({str(row["subject"]) for row in attention_rows} - set(by_name))
    if strangers:
        raise InputError(f"expected attention of held-out subjects only. Received: {', '.join(strangers)}")
    called = {name: (row["label"], row["probability"]) for name, row in by_name.items()}
    groups = by_group(attention_rows, called)
    every = dict.fromkeys(key for row in attention_rows for key in row)
    keys = [key for key in every if key not in ("subject", "fold")]
    return {
        name: {key: moments([number(row.get(key)) for row in group]) for key in keys} for name, group in groups.items()
    }


def by_group(rows: Rows, called: Mapping[str, tuple[int, float]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of attention.csv by group: {'all', 'class_0', 'class_1', 'right', 'wrong': rows}.

    Args:
        rows: with ``subject``.
        called: {subject: (label 0/1, probability of class 1)}; right or wrong is by 0.5.
    """
    groups: dict[str, list] = {name: [] for name in ("all", "class_0", "class_1", "right", "wrong")}
    for row in rows:
        label, p = called[str(row["subject"])]
        for name in ("all", f"class_{label}", "right" if (p >= metrics.THRESHOLD) == label else "wrong"):
            groups[name].append(row)
    return groups


def excess(rows: Rows, *, patients: Patients | None = None, **options: int) -> dict[str, Any]:
    """:func:`mean_interval` of mass in mask less what a map without knowledge expects, of rows where both are known.

    ``patients`` is that of scores.patients: exams of one patient are drawn together.
    """
    found = [(row, number(row.get("mass_in_mask")), number(row.get("mass_chance"))) for row in rows]
    known = [(row, mass - chance) for row, mass, chance in found if mass is not None and chance is not None]
    return _mean_of(known, patients, options)


def column_mean(rows: Rows, column: str, *, patients: Patients | None = None, **options: int) -> dict[str, Any]:
    """:func:`mean_interval` of a column's numbers; rows without one are left out. ``patients`` as for excess."""
    known = [(row, value) for row in rows if (value := number(row.get(column))) is not None]
    return _mean_of(known, patients, options)


def _mean_of(known: Sequence[tuple[Any, float]], patients: Patients | None, options: Mapping[str, int]) -> dict:
    numbers = numbers_of(patients, [str(row.get("subject") or "") for row, _ in known])
    return mean_interval([value for _, value in known], patients=numbers, **options)


def moments(values: Sequence[float | None]) -> dict[str, Any]:
    """{mean, sd (ddof 1), median, defined, undefined} of values of which some may be None."""
    defined = [value for value in values if value is not None]
    found = mean_and_sd(defined)
    return {
        "mean": found["mean"],
        "sd": found["sd"],
        "median": float(np.median(defined)) if defined else None,
        "defined": len(defined),
        "undefined": len(values) - len(defined),
    }
