"""AUCs of several scores of the same subjects within folds, all from the same bootstrap draws.

Exams that were altered (blurred, transplanted) move each fold's model by an offset of its own, so their AUC is counted
between subjects of one fold only (metrics.auc_within), and subjects are drawn within folds. Because every score of one
set of subjects is drawn alike, differences between them are paired.

Glossary:
    draw: how often each of n subjects was drawn, (n,) int; within a fold they sum to the fold's size, unless patients
        with several exams are drawn (patients.clusters).
    undefined: None; a draw in which no fold has both classes is left out, and where they are the majority the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mgkeras.scores import metrics
from mgkeras.scores.patients import Patients, at_a_time, clusters, drawn, numbers_of
from mgkeras.scores.summary import number

UNDEFINED = {"value": None, "low": None, "high": None}
Scored = Mapping[str, tuple[ArrayLike, ArrayLike]]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Within:
    """AUCs within folds of n subjects.

    Attributes:
        subjects: n.
        values: {score: AUC, or None}.
        drawn: {score: (samples,) its AUC in each draw, NaN where undefined}.
    """

    subjects: int
    values: Mapping[str, float | None]
    drawn: Mapping[str, np.ndarray]

    def auc(self, name: str) -> dict[str, Any]:
        """{value, low, high, subjects} of one score."""
        return interval(self.values[name], self.drawn[name]) | {"subjects": self.subjects}

    def less(self, a: str, b: str) -> dict[str, Any]:
        """{value, low, high} of AUC a less AUC b, paired."""
        value, other = self.values[a], self.values[b]
        return interval(None if value is None or other is None else value - other, self.drawn[a] - self.drawn[b])


def aucs_within(
    folds: ArrayLike, scores: Scored, *, samples: int = 2000, seed: int = 0, patients: ArrayLike | None = None
) -> Within:
    """The AUCs within folds of scores of the same subjects.

    Args:
        folds: (n,) the fold that holds each subject out; n may be 0.
        scores: {name: (labels, values)}, each (n,): 0/1 and finite numbers. Labels may differ between names.
        samples, seed: of the bootstrap.
        patients: (n,) a number for each subject that the exams of one patient share; None: each is a patient.
    """
    folds = np.asarray(folds)
    if not folds.size:
        return Within(0, dict.fromkeys(scores), {name: np.empty(0) for name in scores})
    return Within(
        folds.size,
        {name: metrics.auc_within(labels, p, folds) for name, (labels, p) in scores.items()},
        auc_draws(folds, scores, samples=samples, seed=seed, patients=patients),
    )


def aucs_of(rows: Rows, columns: Mapping[str, str], *, patients: Patients | None, **options: int) -> Within:
    """The AUCs within folds of columns {score: column} of rows, of the subjects that have a number in all of them.

    Args:
        rows: see :func:`complete`.
        columns: of probabilities of class 1.
        patients: see patients.py. options: samples and seed, see :func:`aucs_within`.
    """
    known = complete(rows, list(columns.values()))
    scores = {name: (known["label"], known[column]) for name, column in columns.items()}
    own = numbers_of(patients, known["subject"].tolist())
    return aucs_within(known["fold"], scores, patients=own, **options)


def draws_within(
    folds: np.ndarray, *, samples: int = 2000, seed: int = 0, patients: ArrayLike | None = None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Subjects, or patients with all their exams, drawn with replacement within each fold, a block at a time.

    Yields:
        Which draws (a slice of the samples), the places (m,) of a fold's subjects, and how often each was drawn in each
        draw, (b, m) int. Each draw of each fold comes once.
    """
    generator, numbers = np.random.default_rng(seed), clusters(patients, folds.size)
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        inside = np.arange(own.size) if numbers is None else np.unique(numbers[own], return_inverse=True)[1]
        units = int(inside.max()) + 1
        for start in range(0, samples, at_a_time(units)):
            part = slice(start, min(start + at_a_time(units), samples))
            yield part, own, drawn(generator, units, part.stop - start)[1][:, inside]


def auc_draws(
    folds: np.ndarray, scores: Scored, *, samples: int = 2000, seed: int = 0, patients: ArrayLike | None = None
) -> dict[str, np.ndarray]:
    """metrics.auc_within of each score on each draw: {name: (samples,)}, NaN where no fold of it has both classes.

    Arguments as for :func:`aucs_within`; a subject whose value is NaN is left out of that score.
    """
    found = {name: np.zeros((2, samples)) for name in scores}  # pairs that were won, and all
    for part, own, counts in draws_within(folds, samples=samples, seed=seed, patients=patients):
        for name, (labels, values) in scores.items():
            p = np.asarray(values, np.float64)[own]
            known = np.isfinite(p)
            if known.any():
                found[name][:, part] += metrics.pairs_won(np.asarray(labels)[own][known], p[known], counts[:, known])
    return {
        name: np.divide(won, pairs, out=np.full(samples, np.nan), where=pairs > 0)
        for name, (won, pairs) in found.items()
    }


def interval(value: float | None, drawn: np.ndarray) -> dict[str, Any]:
    """{value, low, high}: a 95 % percentile interval from a score's draws, NaN where undefined."""
    if value is None:
        return dict(UNDEFINED)
    low, high = metrics.percentiles(drawn) or (None, None)
    return {"value": float(value), "low": low, "high": high}


def complete(rows: Rows, names: Sequence[str]) -> dict[str, np.ndarray]:
    """``subject``, ``fold``, ``label`` and some columns of the rows that have a number in all of them: {name: (n,)}.

    Args:
        rows: as csv.DictReader gives them, or of numbers; ``label`` 0/1, ``fold`` (0 where a row has none), and
            ``subject``.
        names: of the columns.
    """
    values = [[number(row.get(name)) for name in names] for row in rows]
    kept = [place for place, row in enumerate(values) if None not in row]
    found = {name: np.array([values[place][at] for place in kept], np.float64) for at, name in enumerate(names)}
    return {
        "subject": np.array([str(rows[place].get("subject") or "") for place in kept]),
        "fold": np.array([int(rows[place].get("fold") or 0) for place in kept], np.int64),
        "label": np.array([int(rows[place]["label"]) for place in kept], np.int64),
        **found,
    }
