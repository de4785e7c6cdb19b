"""What a model said about each subject while it was held out, and the thresholds chosen without that subject.

Glossary:
    model: a network (one run of `mgkeras fit`) or a baseline; both are scored by the same functions.
    training rows: for fold k, the model's probabilities of the subjects it was trained on in fold k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgkeras.data.groups import grouped
from mgkeras.runs.checked import read_table
from mgkeras.scores import metrics
from mgkeras.scores.comparison import ComparedRun
from mgkeras.scores.patients import numbers_of, patients_in
from mgkeras.settings import NEVER

THRESHOLD_RULE = (
    "Each fold's threshold has the largest sensitivity + specificity (Youden) on that fold's training subjects, never "
    "on the held-out ones; 0.5 where the fold's training rows hold one class or are missing. A network that fits its "
    "training subjects too well gets a poor threshold by this rule, which is why 0.5 stands beside it."
)


@dataclass(frozen=True)
class HeldOut:
    """One model's out-of-fold predictions.

    Attributes:
        name: as tables call it.
        kind: 'network' or 'baseline'.
        subjects: names; the order of every array.
        labels, probabilities, folds: (n,) 0/1, P(class 1) by the model that did not see the subject, its fold.
        thresholds: {fold: the threshold of its held-out subjects}.
        fallback: the folds whose threshold is 0.5 for want of training rows with both classes.
        note: how a baseline was made; '' for a network.
        patients: (n,) a number for each subject that the exams of one patient share; None where each is a patient.
    """

    name: str
    kind: str
    subjects: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray
    thresholds: dict[int, float]
    fallback: tuple[int, ...] = ()
    note: str = ""
    patients: np.ndarray | None = None

    def at(self, chosen: np.ndarray) -> HeldOut:
        """The same model's predictions of some subjects: (n,) bool."""
        return replace(
            self,
            subjects=tuple(name for name, wanted in zip(self.subjects, chosen, strict=True) if wanted),
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            folds=self.folds[chosen],
            patients=None if self.patients is None else self.patients[chosen],
        )

    @property
    def scored(self) -> HeldOut:
        """Those that some fold holds out: all, but where a cohort's own split was used (see with_training)."""
        return self.at(self.folds != NEVER)

    @property
    def own_threshold(self) -> np.ndarray:
        """(n,) each subject's threshold."""
        return np.array([self.thresholds[fold] for fold in self.folds.tolist()])


def held_out_of(run: ComparedRun, subjects: Sequence[str] | None = None) -> HeldOut:
    """A network's out-of-fold predictions, with Youden thresholds from the training rows of its predictions.csv.

    Args:
        run: from comparison.read_runs.
        subjects: the order of the arrays; by default that of predictions.csv.
    """
    names = tuple(run.held_out if subjects is None else subjects)
    folds, labels, p = (np.array(column) for column in zip(*(run.held_out[name] for name in names), strict=True))
    train = grouped(
        (int(row["fold"]), (int(row["label"]), float(row["probability"])))
        for row in read_table(run.folder / "predictions.csv")
        if row["split"] == "train"
    )
    columns = {
        fold: (np.array([label for label, _ in rows]), np.array([value for _, value in rows]))
        for fold, rows in train.items()
    }
    thresholds, fallback = thresholds_of(columns, folds)
    return HeldOut(
        run.name,
        "network",
        names,
        labels.astype(np.int64),
        p.astype(np.float64),
        folds.astype(np.int64),
        thresholds,
        fallback,
        patients=_patients(run, names),
    )


def _patients(run: ComparedRun, names: Sequence[str]) -> np.ndarray | None:
    numbers = numbers_of(patients_in(run.folder), names)
    return None if numbers is None else np.array(numbers)


def with_training(model: HeldOut, run: ComparedRun) -> HeldOut:
    """The same model with the subjects added that no fold holds out, for a baseline to train on as well.

    Their fold is NEVER and their probability NaN; ``scored`` leaves them out again. Usually there are none.
    """
    known = set(model.subjects)
    added = {
        row["subject"]: int(row["label"])
        for row in read_table(run.folder / "predictions.csv")
        if row["subject"] not in known
    }
    count = len(added)
    return replace(
        model,
        subjects=(*model.subjects, *added),
        labels=np.append(model.labels, np.array(list(added.values()), model.labels.dtype)),
        probabilities=np.append(model.probabilities, np.full(count, np.nan)),
        folds=np.append(model.folds, np.full(count, NEVER)),
        patients=_patients(run, (*model.subjects, *added)),
    )


def thresholds_of(
    train: Mapping[int, tuple[np.ndarray, np.ndarray]], folds: np.ndarray
) -> tuple[dict[int, float], tuple[int, ...]]:
    """Each fold's threshold by Youden's index on its training rows.

    Args:
        train: {fold: (labels, probabilities) of its training subjects}; a fold may be missing.
        folds: (n,) of the held-out subjects; NEVER counts as none.

    Returns:
        {fold: threshold} and the folds that fell back to 0.5.
    """
    found = {fold: metrics.youden_threshold(*train[fold]) if fold in train else None for fold in held_out_folds(folds)}
    fallback = tuple(fold for fold, threshold in found.items() if threshold is None)
    return {fold: metrics.THRESHOLD if t is None else t for fold, t in found.items()}, fallback


def held_out_folds(folds: np.ndarray) -> list[int]:
    """The numbers of the folds that hold somebody out, of (n,) folds."""
    return [fold for fold in np.unique(folds).astype(int).tolist() if fold != NEVER]
