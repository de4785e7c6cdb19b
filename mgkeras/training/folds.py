"""Which subject is held out when. Depends on cohort, outcome, number of folds and seed, never on the model kind."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mgkeras.data.cohort import Subject
from mgkeras.settings import NEVER, TrainingSettings

TRAINED_ON, HELD_OUT = ("train", "val"), "test"  # of a cohort's own split; nothing is chosen by a validation set here


def assign_folds(subjects: Sequence[Subject], folds: int, seed: int, stratify: Sequence[str] = ()) -> dict[str, int]:
    """A held-out fold for each subject, stratified by outcome and, within it, by site.

    The subjects are shuffled, ordered by class and site, and dealt out like cards: every class is balanced over the
    folds to within one subject, and so is every site within a class (a splitter over joint strata promises only the
    second). The order of the table does not matter.

    With ``stratify`` the joint strata of outcome and these columns are balanced to within one subject a fold, and so is
    each value of each of them where all of that can hold at once; sites follow as far as that allows.

    Subjects of one patient (the same site, and the same text in the column ``patient``: two breasts, two visits) are
    held out together; the patient is dealt out as a subject of the higher class.

    Args:
        subjects: with labels; None is a class of its own.
        folds: how many.
        seed: of the shuffle.
        stratify: columns of the cohort's table, among the covariates, or 'site'; an empty cell is a value.

    Returns:
        {subject name: fold}, in the subjects' order.

    Raises:
        ValueError: fewer than 2 folds; a column that no subject has.
    """
    if folds < 2:
        raise ValueError(f"cross-validation needs 2 folds or more. Received: {folds}")
    patients = _by_patient(subjects)
    by_name = [max(group, key=_class_and_site) for group in patients]  # who stands for the patient
    rng = np.random.default_rng(seed)
    shuffled = [by_name[index] for index in rng.permutation(len(by_name))]
    sizes = {who.name: len(group) for who, group in zip(by_name, patients, strict=True)}
    dealt = sorted(shuffled, key=lambda one: (_class_and_site(one)[0], sizes[one.name], one.site or ""))
    if stratify:
        fold_of = _jointly(dealt, folds, stratify, rng)
    else:
        fold_of = {subject.name: place % folds for place, subject in enumerate(dealt)}
    fold_of = {one.name: fold_of[who.name] for who, group in zip(by_name, patients, strict=True) for one in group}
    return {subject.name: fold_of[subject.name] for subject in subjects}


def plan_folds(subjects: Sequence[Subject], training: TrainingSettings, seed: int) -> dict[str, int]:
    """Who is held out when, as the settings ask for it; Raises as assign_folds and split_folds."""
    if training.split:
        return split_folds(subjects)
    return assign_folds(subjects, training.folds, seed, training.stratify)


def split_folds(subjects: Sequence[Subject]) -> dict[str, int]:
    """The cohort's own split as one fold: 0 for 'test' in the column split, NEVER for 'train' and 'val'.

    Raises:
        ValueError: another split, or a class that is missing among those held out or trained on.
    """
    splits = {subject.name: subject.covariates.get("split", "").lower() for subject in subjects}
    if wrong := [name for name, split in splits.items() if split not in (*TRAINED_ON, HELD_OUT)]:
        found = ", ".join(f"{name}: {splits[name] or 'empty'}" for name in wrong[:5])
        raise ValueError(
            f"expected a column split with {', '.join(TRAINED_ON)} or {HELD_OUT} for every subject. "
            f"Received: {len(wrong)} others, such as {found}"
        )
    counts = Counter((splits[subject.name] == HELD_OUT, subject.label) for subject in subjects)
    for held_out, where in ((True, "held out"), (False, "trained on")):
        if not counts[held_out, 0] or not counts[held_out, 1]:
            raise ValueError(
                f"expected subjects of both classes to be {where} by the column split. Received: "
                f"{counts[held_out, 0]} of class 0, {counts[held_out, 1]} of class 1"
            )
    return {name: 0 if split == HELD_OUT else NEVER for name, split in splits.items()}


def folds_digest(assignment: dict[str, int]) -> str:
    """A short hash of who is held out when, to compare runs by."""
    return hashlib.sha256(repr(sorted(assignment.items())).encode()).hexdigest()[:16]


def _by_patient(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The subjects in groups of one patient each, by name; one whose patient is not told is a patient."""
    groups: dict[tuple[str | None, ...], list[Subject]] = {}
    for subject in sorted(subjects, key=lambda subject: subject.name):
        patient = subject.covariates.get("patient", "")
        groups.setdefault((subject.site, patient) if patient else (subject.name,), []).append(subject)
    return list(groups.values())


def _class_and_site(subject: Subject) -> tuple[int, str]:
    return -1 if subject.label is None else subject.label, subject.site or ""


def _jointly(dealt: Sequence[Subject], folds: int, stratify: Sequence[str], rng: np.random.Generator) -> dict[str, int]:
    """{name: fold}: of each joint stratum as many a fold as its size divides into; who gets the rest is solved for."""
    missing = [name for name in stratify if name != "site" and not any(name in one.covariates for one in dealt)]
    if missing:
        raise ValueError(f"expected columns of the cohort to stratify by. Received: {', '.join(missing)}")
    strata: dict[tuple[str, ...], list[Subject]] = {}
    for subject in dealt:
        values = {"site": subject.site or "", **subject.covariates}
        key = (str(subject.label), *(values.get(name, "") for name in stratify))
        strata.setdefault(key, []).append(subject)
    more = _who_gets_more(list(strata), np.array([len(group) for group in strata.values()]), folds, rng)
    fold_of = {}
    for group, extra in zip(strata.values(), more, strict=True):
        order = [fold for fold in range(folds) if extra[fold]] + [fold for fold in range(folds) if not extra[fold]]
        fold_of |= {subject.name: order[place % folds] for place, subject in enumerate(group)}
    return fold_of


def _who_gets_more(
    keys: Sequence[tuple[str, ...]], sizes: np.ndarray, folds: int, rng: np.random.Generator
) -> np.ndarray:
    """(strata, folds) of 0 and 1: which folds get one subject more of a stratum.

    Each stratum's remainder is handed out such that the folds' sums over every value of every factor, and over all,
    differ by one at most; a sum that cannot is off by as little as can be (a mixed-integer linear program).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups = [np.ones(len(keys), bool)]
    groups += [
        np.array([key[factor] == value for key in keys])
        for factor in range(len(keys[0]))
        for value in sorted({key[factor] for key in keys})
    ]
    cells, rows = len(keys) * folds, [np.kron(np.eye(len(keys)), np.ones(folds))]  # a stratum's extras are its rest
    rest, low, high = sizes % folds, [sizes % folds], [sizes % folds]
    for group in groups:
        rows.append(np.kron(group.astype(float), np.eye(folds)))  # a fold's extras of the group
        low.append(np.full(folds, rest[group].sum() // folds))
        high.append(np.full(folds, -(-rest[group].sum() // folds)))
    slack = np.vstack([np.zeros((len(keys), len(groups) * folds)), np.eye(len(groups) * folds)])
    matrix = np.hstack([np.vstack(rows), slack, -slack])  # every sum of a group may be short or over, at a price
    cost = np.concatenate([1e-3 * rng.random(cells) / cells, np.ones(2 * len(groups) * folds)])
    found = milp(
        cost,
        constraints=LinearConstraint(matrix, np.concatenate(low), np.concatenate(high)),
        integrality=np.ones(cost.size),
        bounds=Bounds(0, np.r_[np.ones(cells), np.full(cost.size - cells, 9)]),
        options={"time_limit": 20},
    )
    if found.x is None:
        raise ValueError(
            f"no folds were found for {len(keys)} joint strata. Stratify by fewer columns. Received: {found.message}"
        )
    return np.rint(found.x[:cells]).astype(int).reshape(len(keys), folds)
