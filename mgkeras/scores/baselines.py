"""What can be predicted without a network: from nothing, from the tumour's volume, from clinical columns.

A network that does not beat these has not earned its place. All use the networks' own folds and are scored by the same
functions; whatever is fitted (median, scale, weights, threshold) is fitted on a fold's training subjects alone.

Glossary:
    design: (n, k) float64, a row a subject, NaN where a value is missing.
    like: the subjects, labels and folds of a network, those that every fold trains on included; what is handed back
        holds only those that some fold holds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mgkeras.errors import InputError, few
from mgkeras.scores.held_out import HeldOut, held_out_folds, thresholds_of

MISSING = frozenset(("", "na", "n/a", "nan", "none", "null"))  # a cell that says it does not know
NOT_CLINICAL = ("subject", "pre", "early", "late", "mask")  # columns of cohort.csv that hold files or names
LEVELS = 12  # ours, because a text column of more levels is a name or a date, not a category
STRENGTH = 1.0  # ours, because it is scikit-learn's default: C of the ridge penalty on standardised columns
Rows = Sequence[Mapping[str, str]]


def majority(like: HeldOut) -> HeldOut:
    """The majority class: the share of class 1 in the cohort as everyone's probability, decided at 0.5.

    One share for all folds and not each fold's training share: in stratified folds that one is lowest where the
    held-out share is highest, and would pool to an AUC under 0.5 that means nothing. AUC is 0.5 by construction.
    """
    share = float(like.labels.mean())
    return HeldOut(
        "majority class",
        "baseline",
        like.subjects,
        like.labels,
        np.full(like.labels.shape, share),
        like.folds,
        dict.fromkeys(like.thresholds, 0.5),
        note=f"everyone gets the cohort's share of class 1, {share:.3f}; decides at 0.5",
        patients=like.patients,
    ).scored


def volume(like: HeldOut, masks: Rows) -> HeldOut:
    """Logistic regression on the logarithm of the tumour's volume.

    Args:
        like: subjects, labels and folds.
        masks: rows of RUN/masks.csv; ``volume_mm3`` of each subject. An empty mask (0) counts as a missing volume.

    Raises:
        ValueError: a subject without a row, or a volume that is no number.
    """
    rows = of_subjects(like, masks, "a row for every held-out subject in masks.csv")
    mm3 = _numbers([row.get("volume_mm3", "") for row in rows], like.subjects, "volume_mm3")
    known = mm3 > 0
    design = np.full((mm3.size, 1), np.nan)
    design[known, 0] = np.log(mm3[known])
    note = "logistic regression on log(volume in mm3) of the mask"
    if not known.all():
        note += f"; {int((~known).sum())} of {known.size} have an empty mask and get the training median"
    return cross_fitted("tumour volume", like, design, note)


def clinical(like: HeldOut, cohort: Rows, columns: Sequence[str], outcome: str | None = None) -> HeldOut:
    """Logistic regression (ridge) on columns of the cohort table; arguments and errors as in clinical_design."""
    note = f"regularised logistic regression on {', '.join(dict.fromkeys(columns))}"
    return cross_fitted("clinical", like, clinical_design(like, cohort, columns, outcome), note)


def clinical_design(like: HeldOut, cohort: Rows, columns: Sequence[str], outcome: str | None = None) -> np.ndarray:
    """Columns of the cohort table as a design (n, k); each once.

    Args:
        like: subjects, labels and folds.
        cohort: rows of RUN/cohort.csv.
        columns: names; numeric where every known value is a number, else one 0/1 column a level.
        outcome: the label's own column, which is refused.

    Raises:
        ValueError: no column, an unknown or unfit one, or a text column of more than LEVELS levels.
    """
    rows = of_subjects(like, cohort, "a row for every held-out subject in cohort.csv")
    offered = [name for name in rows[0] if name not in (*NOT_CLINICAL, outcome)]
    wrong = [name for name in columns if name not in offered]
    if wrong or not columns:
        raise InputError(
            f"expected clinical columns of {', '.join(offered) or '(the table has none)'}. "
            f"Received: {', '.join(wrong) or 'none'}"
        )
    named = dict.fromkeys(columns)
    return np.concatenate([encoded(name, [row[name] for row in rows], like.subjects) for name in named], axis=1)


def encoded(name: str, values: Sequence[str | None], subjects: Sequence[str]) -> np.ndarray:
    """A column of text as a design: (n, 1) numbers with NaN where missing, or (n, levels) of 0/1.

    A missing category is a level of its own. Labels are not looked at, so all subjects may share the levels.

    Raises:
        ValueError: no known value, an infinite number, or more than LEVELS levels.
    """
    texts = ["" if (value or "").strip().lower() in MISSING else (value or "").strip() for value in values]
    known = [text for text in texts if text]
    if not known:
        raise InputError(f"expected values in the clinical column {name}. Received: none; leave it out")
    if all(_is_number(text) for text in known):
        return _numbers(texts, subjects, name)[:, None]
    levels = sorted(set(texts))
    if len(levels) > LEVELS:
        raise InputError(
            f"expected numbers or at most {LEVELS} levels in the clinical column {name}. "
            f"Received: {len(levels)} levels: {', '.join(levels[:4])} ..."
        )
    return np.array([[float(text == level) for level in levels] for text in texts])


def cross_fitted(name: str, like: HeldOut, design: np.ndarray, note: str, strength: float = STRENGTH) -> HeldOut:
    """A baseline fitted in each fold on all other folds: out-of-fold probabilities and Youden thresholds.

    ``strength`` is the C of the ridge penalty; a smaller one shrinks more.
    A fold whose training subjects are of one class predicts that class for everyone; its threshold falls back to 0.5.
    """
    p, train = np.full(like.labels.shape, np.nan), {}
    for fold in held_out_folds(like.folds):
        held, rest = like.folds == fold, like.folds != fold
        labels = like.labels[rest]
        if 0 < labels.sum() < labels.size:
            model = _regression(strength).fit(design[rest], labels)
            p[held], fitted = (model.predict_proba(design[part])[:, 1] for part in (held, rest))
            train[fold] = (labels, fitted)
        else:
            p[held] = labels.mean() if labels.size else 0.5
    thresholds, fallback = thresholds_of(train, like.folds)
    return HeldOut(
        name, "baseline", like.subjects, like.labels, p, like.folds, thresholds, fallback, note, like.patients
    ).scored


def _regression(strength: float) -> Pipeline:
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=strength, max_iter=1000),
    )


def of_subjects(like: HeldOut, rows: Sequence[Mapping[str, Any]], wanted: str) -> list[Mapping[str, Any]]:
    """The rows of a network's subjects, in their order; where one has none a ValueError that says what is wanted."""
    if rows and "subject" not in rows[0]:
        raise InputError(f"expected a column subject. Received: {few(rows[0])}")
    by_name = {row["subject"]: row for row in rows}
    absent = [name for name in like.subjects if name not in by_name]
    if absent:
        raise InputError(f"expected {wanted}. Received: none for {few(absent)}")
    return [by_name[name] for name in like.subjects]


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(texts: Sequence[str], subjects: Sequence[str], column: str) -> np.ndarray:
    """(n,) float64, NaN for ''; anything else must be a finite number."""
    for text, subject in zip(texts, subjects, strict=True):
        if text and not (_is_number(text) and np.isfinite(float(text))):
            raise InputError(f"subject {subject}: {column} must be a finite number. Received: {text!r}")
    return np.array([float(text) if text else np.nan for text in texts])
