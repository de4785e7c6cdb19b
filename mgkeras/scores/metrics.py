"""Scores of predicted probabilities, how sure they are, and the content of summary.json.

Glossary:
    labels: (n,) 0 or 1, one a subject. probabilities: (n,) in [0, 1], of class 1.
    undefined: None, never NaN: one class only, no positive call (PPV), separated classes (calibration). Each function
        says when. ``_score`` is better when higher, ``_loss`` when lower.
    interval: (low, high); a percentile bootstrap over subjects unless it says DeLong.
    patients: (n,) a number for each subject that the exams of one patient share (both breasts, several visits), or None
        where each subject is a patient. Patients, not exams, are drawn then, with all their exams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats
from sklearn import metrics as sk

from mgkeras.errors import InputError
from mgkeras.scores.patients import clusters, resamples

THRESHOLD = 0.5  # ours, because two softmax classes are told apart there; a tuned one is passed explicitly
Score = Callable[..., "float | None"]


def checked(labels: ArrayLike, *arrays: ArrayLike) -> list[np.ndarray]:
    """Labels as int and the other arrays as float64, all (n,) with n > 0.

    Raises:
        ValueError: labels other than 0/1, other lengths, no subject, or a value that is not finite.
    """
    found = [np.asarray(labels), *(np.asarray(array, np.float64) for array in arrays)]
    if found[0].ndim != 1 or not found[0].size or any(array.shape != found[0].shape for array in found):
        raise InputError(f"expected arrays of one length, (n,), n > 0. Received: {[array.shape for array in found]}")
    if not np.isin(found[0], (0, 1)).all():
        raise InputError(f"expected labels 0 and 1. Received: {sorted(set(found[0].tolist()))[:5]}")
    if not all(np.isfinite(array).all() for array in found[1:]):
        raise InputError("expected finite values. Received: NaN or infinity; the model diverged or a score is missing")
    return [found[0].astype(np.int64), *found[1:]]


def auc_score(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Area under the ROC curve, ties counted half; None with one class only."""
    labels, p = checked(labels, probabilities)
    return float(sk.roc_auc_score(labels, p)) if 0 < labels.sum() < labels.size else None


def auc_within(labels: ArrayLike, probabilities: ArrayLike, folds: ArrayLike) -> float | None:
    """The AUC of pairs within folds: of two subjects of one fold, one of each class, the share ranked rightly.

    Folds' models differ in offset and scale, which a pooled AUC counts as errors; ties count half. None without a fold
    that holds both classes. within.py has the intervals.
    """
    labels, p, folds = checked(labels, probabilities, folds)
    won = pairs = 0.0
    for fold in np.unique(folds):
        own, inside = labels[folds == fold], p[folds == fold]
        m, n = int(own.sum()), int((1 - own).sum())
        won += stats.rankdata(inside)[own == 1].sum() - m * (m + 1) / 2
        pairs += m * n
    return float(won / pairs) if pairs else None


def average_precision_score(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Area under the precision-recall steps; chance is the share of positives. None with one class only.

    scikit-learn's score in a tenth of its time, which is spent on checks: a bootstrap calls it thousands of times.
    """
    labels, p = checked(labels, probabilities)
    if not 0 < labels.sum() < labels.size:
        return None
    order = np.argsort(-p, kind="stable")
    last = np.append(np.flatnonzero(np.diff(p[order])), labels.size - 1)  # of each run of equal probabilities
    found = np.cumsum(labels[order])[last]
    return float(np.diff(found, prepend=0) @ (found / (last + 1)) / labels.sum())


def brier_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared difference of probability and label, in [0, 1]."""
    labels, p = checked(labels, probabilities)
    return float(np.mean((p - labels) ** 2))


def decision_scores(labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike = THRESHOLD) -> dict[str, Any]:
    """Scores of the decision ``probability >= threshold``.

    Args:
        threshold: a number, or (n,) where each fold has its own.

    Returns:
        accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv; None where a denominator is 0 (no positive
        subject, nobody called positive, and so on).
    """
    labels, p = checked(labels, probabilities)
    called, truth = p >= np.asarray(threshold), labels == 1
    tp, fp = int((called & truth).sum()), int((called & ~truth).sum())
    fn, tn = int((~called & truth).sum()), int((~called & ~truth).sum())
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": _ratio(tp + tn, labels.size),
        "balanced_accuracy": None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def accuracy_score(labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike = THRESHOLD) -> float:
    """Share of subjects on the right side of the threshold."""
    return decision_scores(labels, probabilities, threshold)["accuracy"]


def youden_threshold(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """The threshold of largest sensitivity + specificity; choose it on training subjects only.

    Candidates are the midpoints between neighbouring probabilities, and the lowest one (everyone is called positive);
    of equals the one nearest 0.5. None with one class only.
    """
    labels, p = checked(labels, probabilities)
    if not 0 < labels.sum() < labels.size:
        return None
    values = np.unique(p)
    candidates = np.append(values[0], (values[1:] + values[:-1]) / 2)
    called = [values.size - np.searchsorted(np.sort(values), candidates) for values in (p[labels == 1], p[labels == 0])]
    youden = called[0] / labels.sum() - called[1] / (labels.size - labels.sum())
    best = candidates[youden > youden.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float | None]:
    """Logistic recalibration: logit P(label = 1) = intercept + slope * logit(probability), maximum likelihood.

    1 and 0 are perfect; a slope under 1 is overconfidence. Probabilities are kept 1e-6 from 0 and 1. Both are None
    where no finite maximum exists: one class only, equal probabilities, classes that a threshold separates.
    """
    labels, p = checked(labels, probabilities)
    x = special.logit(np.clip(p, 1e-6, 1 - 1e-6))
    none: dict[str, float | None] = {"slope": None, "intercept": None}
    if not 0 < labels.sum() < labels.size or np.ptp(x) < 1e-9:
        return none
    negative, positive = x[labels == 0], x[labels == 1]
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        return none
    mean, deviation = x.mean(), x.std()
    intercept, slope = _logistic(np.stack([np.ones_like(x), (x - mean) / deviation], axis=1), labels)
    return {"slope": float(slope / deviation), "intercept": float(intercept - slope * mean / deviation)}


def calibration_in_the_large(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """The intercept of logit P(label = 1) = intercept + logit(probability), maximum likelihood; None with one class.

    0 is perfect; above it there are more subjects of class 1 than the probabilities say. Unlike calibration's
    intercept, which goes with a slope, it is that of the probabilities as they stand. They are kept 1e-6 from 0 and 1.

    Reference: Steyerberg EW, Vergouwe Y. Towards better clinical prediction models. Eur Heart J 35, 2014.
    """
    labels, p = checked(labels, probabilities)
    if not 0 < labels.sum() < labels.size:
        return None
    x = special.logit(np.clip(p, 1e-6, 1 - 1e-6))
    reach = float(np.abs(x).max()) + 2 * np.log(labels.size) + 1  # beyond it the likelihood's slope has its last sign
    return float(optimize.brentq(lambda intercept: float((labels - special.expit(x + intercept)).sum()), -reach, reach))


def _logistic(design: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Newton's method with halved steps, which cannot miss the maximum of a concave likelihood."""

    def likelihood(weights: np.ndarray) -> float:
        z = design @ weights
        return float((labels * z - np.logaddexp(0, z)).sum())

    weights = np.zeros(design.shape[1])
    for _ in range(100):
        p = special.expit(design @ weights)
        gradient = design.T @ (labels - p)
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(weights.size), gradient)
        size = next((s for s in 0.5 ** np.arange(30) if likelihood(weights + s * step) >= likelihood(weights)), 0.0)
        weights = weights + size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return weights


def bootstrap_scores(
    score: Score, *arrays: ArrayLike, samples: int = 2000, seed: int = 0, patients: ArrayLike | None = None
) -> np.ndarray:
    """``score(*resampled arrays)`` over patients drawn with replacement; the first array is the labels.

    Returns:
        (samples,) float64, NaN where the score is None on a draw; empty with one class only. AUCs are counted for a
        block of draws at a time, see pairs_won, instead of in a loop.
    """
    labels, *others = checked(*arrays)
    if not 0 < labels.sum() < labels.size:
        return np.empty(0)
    found = []
    for draws, count in resamples(labels, samples, seed, patients):
        if score is auc_score:
            won, pairs = pairs_won(labels, others[0], count)
            found.append(won / pairs)
        else:
            values = [score(*(array[draw] for array in (labels, *others))) for draw in draws]
            found.append(np.array([np.nan if value is None else value for value in values], np.float64))
    return np.concatenate(found)


def pairs_won(labels: np.ndarray, p: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of draws of subjects the pairs of one of each class that ``p`` ranks rightly, ties counted half, and all pairs.

    Args:
        labels, p: (n,) int and float.
        counts: (b, n) int, how often each subject is in each draw.

    Returns:
        (b,) float64, exact, and (b,) int.
    """
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.diff(p[order], prepend=-np.inf))  # of each run of equal values
    drawn, truth = counts[:, order], labels[order]
    positive, negative = (np.add.reduceat(drawn * of, starts, axis=1) for of in (truth, 1 - truth))  # (b, runs)
    lower = 2 * np.cumsum(negative, axis=1) - negative  # twice those below, and once those that are equal
    return (positive * lower).sum(axis=1) / 2, positive.sum(axis=1) * negative.sum(axis=1)


def bootstrap_interval(
    score: Score,
    *arrays: ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    patients: ArrayLike | None = None,
) -> tuple[float, float] | None:
    """Percentile interval of ``score`` over resampled patients (arrays as in :func:`bootstrap_scores`).

    Draws on which the score is undefined are left out; None where they are the majority, or with one class only.
    """
    return percentiles(bootstrap_scores(score, *arrays, samples=samples, seed=seed, patients=patients), level)


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of a score's draws, NaN where undefined; None without draws or with most undefined."""
    defined = values[np.isfinite(values)]
    if not values.size or defined.size < values.size / 2:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap_difference(
    labels: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    score: Score = auc_score,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    patients: ArrayLike | None = None,
) -> dict[str, Any] | None:
    """Score of model a minus score of model b on the same resampled patients.

    Returns:
        difference, low, high, p (two-sided, at least 2 / (samples + 1)); None where the difference is undefined.
    """
    a, b = score(labels, p_a), score(labels, p_b)
    drawn = [bootstrap_scores(score, labels, p, samples=samples, seed=seed, patients=patients) for p in (p_a, p_b)]
    differences = drawn[0] - drawn[1]
    interval = percentiles(differences, level)
    if a is None or b is None or interval is None:
        return None
    return {"difference": a - b, "low": interval[0], "high": interval[1], "p": two_sided(differences)}


def two_sided(differences: np.ndarray) -> float:
    """The p value, at least 2 / (draws + 1), of a bootstrap's differences (draws,), NaN where undefined."""
    defined = differences[np.isfinite(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, 2 * float(tail + 1) / (defined.size + 1))


def _components(labels: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components by midranks: (m,) of the positives, (n,) of the negatives; means are the AUC."""
    positive, negative = p[labels == 1], p[labels == 0]
    ranks = stats.rankdata(p)
    v10 = (ranks[labels == 1] - stats.rankdata(positive)) / negative.size
    v01 = 1 - (ranks[labels == 0] - stats.rankdata(negative)) / positive.size
    return v10, v01


def _standard_error(labels: np.ndarray, v10: np.ndarray, v01: np.ndarray, patients: ArrayLike | None) -> float | None:
    """Of an AUC, or of a difference of two, from its components; None with fewer than two patients in a class.

    With several exams of a patient it is Obuchowski's, whose sums run over patients; with one each it is DeLong's.
    """
    numbers = clusters(patients, labels.size)
    m, n = v10.size, v01.size
    if numbers is None:
        return float(np.sqrt(v10.var(ddof=1) / m + v01.var(ddof=1) / n)) if min(m, n) > 1 else None
    units = int(numbers.max()) + 1
    with_10, with_01 = (len(set(numbers[labels == label].tolist())) for label in (1, 0))
    if min(with_10, with_01) < 2:
        return None
    sum_10 = np.bincount(numbers[labels == 1], v10 - v10.mean(), units)  # (patients,)
    sum_01 = np.bincount(numbers[labels == 0], v01 - v01.mean(), units)
    variance = with_10 / (with_10 - 1) * (sum_10 @ sum_10) / m**2
    variance += with_01 / (with_01 - 1) * (sum_01 @ sum_01) / n**2
    variance += 2 * units / (units - 1) * (sum_10 @ sum_01) / (m * n)
    return float(np.sqrt(max(float(variance), 0.0)))


def delong_test(
    labels: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    level: float = 0.95,
    patients: ArrayLike | None = None,
) -> dict[str, Any] | None:
    """DeLong's test of two correlated AUCs on the same subjects; of clustered ones where patients have several exams.

    Returns:
        auc_a, auc_b, difference (a - b), standard_error, z, p (two-sided), low, high (of the difference). None with
        one class only. From standard_error on: None with fewer than two patients in a class, and where the variance
        is 0 though the AUCs differ; two models that rank alike have difference 0, z 0, p 1.

    Reference: DeLong, DeLong, Clarke-Pearson, Biometrics 44, 1988; midranks after Sun and Xu, IEEE SPL 21, 2014;
    several exams of a patient after Obuchowski, Biometrics 53, 1997.
    """
    labels, p_a, p_b = checked(labels, p_a, p_b)
    if not 0 < labels.sum() < labels.size:
        return None
    (a10, a01), (b10, b01) = _components(labels, p_a), _components(labels, p_b)
    difference = float(a10.mean() - b10.mean())
    found = {"auc_a": float(a10.mean()), "auc_b": float(b10.mean()), "difference": difference}
    undefined = dict.fromkeys(("standard_error", "z", "p", "low", "high"))
    error = _standard_error(labels, a10 - b10, a01 - b01, patients)
    if error is None:
        return found | undefined
    if error < 1e-12:
        same = {"standard_error": 0.0, "z": 0.0, "p": 1.0, "low": 0.0, "high": 0.0}
        return found | (same if abs(difference) < 1e-12 else undefined)
    z, reach = difference / error, float(stats.norm.ppf((1 + level) / 2)) * error
    return found | {
        "standard_error": error,
        "z": z,
        "p": float(2 * stats.norm.sf(abs(z))),
        "low": difference - reach,
        "high": difference + reach,
    }
