"""Which subject is held out when. Depends on cohort, outcome, number of folds and seed, never on the model kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mgkeras.data.cohort import Subject


def assign_folds(subjects: Sequence[Subject], folds: int, seed: int) -> dict[str, int]:
    """A held-out fold for each subject, stratified by outcome and, within it, by site.

    The subjects are shuffled, ordered by class and site, and dealt out like cards: every class is balanced over the
    folds to within one subject, and so is every site within a class (a splitter over joint strata promises only the
    second). The order of the table does not matter.

    Args:
        subjects: with labels.
        folds: how many.
        seed: of the shuffle.

    Returns:
        {subject name: fold}, in the subjects' order.

    Raises:
        ValueError: fewer than 2 folds.
    """
    if folds < 2:
        raise ValueError(f"cross-validation needs 2 folds or more. Received: {folds}")
    by_name = sorted(subjects, key=lambda subject: subject.name)
    shuffled = [by_name[index] for index in np.random.default_rng(seed).permutation(len(by_name))]
    dealt = sorted(shuffled, key=lambda subject: (subject.label, subject.site or ""))
    fold_of = {subject.name: place % folds for place, subject in enumerate(dealt)}
    return {subject.name: fold_of[subject.name] for subject in subjects}


def folds_digest(assignment: dict[str, int]) -> str:
    """A short hash of who is held out when, to compare runs by."""
    return hashlib.sha256(repr(sorted(assignment.items())).encode()).hexdigest()[:16]
