"""Which subject is held out when. Depends on cohort, outcome, number of folds and seed, never on the model kind."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mgkeras.data.cohort import Cohort, Subject, without
from mgkeras.data.groups import grouped, patient_numbers
from mgkeras.data.phases import check_phases
from mgkeras.errors import InputError, few
from mgkeras.settings import NEVER, Settings, TrainingSettings

TRAINED_ON, HELD_OUT = ("train", "val"), "test"  # of a cohort's own split; nothing is chosen by a validation set here


def assign_folds(subjects: Sequence[Subject], folds: int, seed: int, stratify: Sequence[str] = ()) -> dict[str, int]:
    """A held-out fold for each subject, stratified by outcome and, within it, by site.

    The subjects are shuffled, ordered by class and site, and dealt out like cards: every class is balanced over the
    folds to within one subject, and so is every site within a class (a splitter over joint strata promises only the
    second). The order of the table does not matter.

    With ``stratify`` the joint strata of outcome and these columns are balanced to within one subject a fold, and so is
    each value of each of them where all of that can hold at once; sites follow as far as that allows. How sites are
    called does not matter: they are ordered by the first of their subjects' names.

    Subjects of one patient (see data.groups: two breasts, two visits) are held out together; the patient is dealt out
    as a subject of the higher class.

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
        raise InputError(f"cross-validation needs 2 folds or more. Received: {folds}")
    patients, sites = _by_patient(subjects), _site_numbers(subjects)

    def order(subject: Subject) -> tuple[int, int]:
        return -1 if subject.label is None else subject.label, sites[subject.site or ""]

    by_name = [max(group, key=order) for group in patients]  # who stands for the patient
    rng = np.random.default_rng(seed)
    shuffled = [by_name[index] for index in rng.permutation(len(by_name))]
    sizes = {who.name: len(group) for who, group in zip(by_name, patients, strict=True)}
    dealt = sorted(shuffled, key=lambda subject: (order(subject)[0], sizes[subject.name], order(subject)[1]))
    if stratify:
        fold_of = _jointly(dealt, folds, stratify, rng, sites)
    else:
        fold_of = {subject.name: place % folds for place, subject in enumerate(dealt)}
    fold_of = {
        subject.name: fold_of[who.name] for who, group in zip(by_name, patients, strict=True) for subject in group
    }
    return {subject.name: fold_of[subject.name] for subject in subjects}


def plan_folds(subjects: Sequence[Subject], training: TrainingSettings, seed: int) -> dict[str, int]:
    """Who is held out when, as the settings ask for it; Raises as assign_folds, split_folds and leave_out_folds."""
    if training.leave_out:
        return leave_out_folds(subjects, training.leave_out)
    if training.split:
        return split_folds(subjects)
    return assign_folds(subjects, training.folds, seed, training.stratify)


def drawn_folds(training: TrainingSettings) -> int | None:
    """How many folds are drawn, as data.cohort.open_cohort asks for it; None where columns of the cohort make them."""
    return None if training.split or training.leave_out else training.folds


def planned(cohort: Cohort, settings: Settings, say: Callable[[str], None]) -> tuple[Cohort, Settings]:
    """Who takes part in a run, and its settings with their outcome and as many folds as there will be.

    Args:
        cohort: checked; every subject has a label.
        settings: of the run.
        say: gets a line that names who is left out of the cohort's own split, before anything is refused.

    Raises:
        ValueError: folds that cannot be, told before a folder is claimed. ExamError: a subject without a phase of the
            run.
    """
    training = settings.training
    unsplit = (
        [subject.name for subject in cohort.subjects if not subject.covariates.get("split")] if training.split else []
    )
    if unsplit:
        say(f"{len(unsplit)} subjects left out, their split is empty: {few(unsplit, 10)}")
        cohort = without(cohort, unsplit)
    settings = with_folds(settings, cohort.subjects)
    counts = Counter(subject.label for subject in cohort.subjects)
    if (folds := drawn_folds(training)) and min(counts[0], counts[1]) < folds:
        raise InputError(
            f"expected a subject of each class for each of {folds} folds. Received: {counts[0]} of class 0, "
            f"{counts[1]} of class 1"
        )
    for subject in cohort.subjects:
        check_phases(subject, settings.volume)
    plan_folds(cohort.subjects, settings.training, settings.seed)
    return cohort, replace(settings, outcome=cohort.outcome or "")


def left_out(subjects: Sequence[Subject], column: str) -> list[str]:
    """The values of a column, by fold: in the order of the first of their subjects' names, so that theirs do not count.

    Raises:
        ValueError: an empty cell, or fewer than 2 values.
    """
    cells = sorted((subject.name, _value(subject, column)) for subject in subjects)
    if empty := [name for name, value in cells if not value]:
        raise InputError(
            f"expected a {column} for every subject, to leave one out. Received: {len(empty)} without, such as "
            f"{', '.join(empty[:5])}"
        )
    values = list(dict.fromkeys(value for _, value in cells))
    if len(values) < 2:
        raise InputError(f"expected 2 values or more of {column}, to leave one out. Received: {', '.join(values)}")
    return values


def leave_out_folds(subjects: Sequence[Subject], column: str) -> dict[str, int]:
    """{subject name: fold}, a fold for each value of a column, as left_out orders them.

    Raises:
        ValueError: as left_out; a patient with exams in two of them, or one class only in what is left to train on.
    """
    values = left_out(subjects, column)
    for group in _by_patient(subjects):
        if len({_value(subject, column) for subject in group}) > 1:
            found = ", ".join(f"{subject.name}: {_value(subject, column)}" for subject in group)
            raise InputError(f"expected all exams of a patient to have one {column}. Received: {found}")
    for value in values:
        rest = {subject.label for subject in subjects if _value(subject, column) != value and subject.label is not None}
        if not {0, 1} <= rest:
            raise InputError(
                f"expected subjects of both classes beside {column} {value}, to train on. Received: class "
                f"{', '.join(map(str, sorted(rest)))} only"
            )
    return {subject.name: values.index(_value(subject, column)) for subject in subjects}


def with_folds(settings: Settings, subjects: Sequence[Subject]) -> Settings:
    """The settings with as many folds as the column to leave out has values; unchanged where none is left out."""
    training = settings.training
    if not training.leave_out:
        return settings
    return replace(settings, training=replace(training, folds=len(left_out(subjects, training.leave_out))))


def _value(subject: Subject, column: str) -> str:
    return (subject.site if column == "site" else subject.covariates.get(column)) or ""


def split_folds(subjects: Sequence[Subject]) -> dict[str, int]:
    """The cohort's own split as one fold: 0 for 'test' in the column split, NEVER for 'train' and 'val'.

    Raises:
        ValueError: another split, a patient of whom one exam is held out and another trained on, or a class that is
            missing among those held out or trained on.
    """
    splits = {subject.name: subject.covariates.get("split", "").lower() for subject in subjects}
    if wrong := [name for name, split in splits.items() if split not in (*TRAINED_ON, HELD_OUT)]:
        found = ", ".join(f"{name}: {splits[name] or 'empty'}" for name in wrong[:5])
        raise InputError(
            f"expected a column split with {', '.join(TRAINED_ON)} or {HELD_OUT} for every subject. "
            f"Received: {len(wrong)} others, such as {found}"
        )
    if parted := parted_patients(subjects):
        found = "; ".join(
            ", ".join(f"{subject.name}: {splits[subject.name]}" for subject in group) for group in parted[:5]
        )
        raise InputError(
            "expected all exams of a patient (columns patient and site) on one side of the column split. Received: "
            f"{len(parted)} patients on both, such as {found}. Correct the column split, or leave --split out"
        )
    counts = Counter((splits[subject.name] == HELD_OUT, subject.label) for subject in subjects)
    for held_out, where in ((True, "held out"), (False, "trained on")):
        if not counts[held_out, 0] or not counts[held_out, 1]:
            raise InputError(
                f"expected subjects of both classes to be {where} by the column split. Received: "
                f"{counts[held_out, 0]} of class 0, {counts[held_out, 1]} of class 1"
            )
    return {name: 0 if split == HELD_OUT else NEVER for name, split in splits.items()}


def folds_digest(assignment: dict[str, int]) -> str:
    """A short hash of who is held out when, to compare runs by."""
    return hashlib.sha256(repr(sorted(assignment.items())).encode()).hexdigest()[:16]


def parted_patients(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The patients of whom the column split holds one exam out and trains on another."""
    sides = {subject.name: subject.covariates.get("split", "").lower() == HELD_OUT for subject in subjects}
    return [group for group in _by_patient(subjects) if len({sides[subject.name] for subject in group}) > 1]


def _by_patient(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The subjects in groups of one patient each, by name; one whose patient is not told is a patient."""
    ordered = sorted(subjects, key=lambda subject: subject.name)
    numbers = patient_numbers(
        (subject.name, subject.site or "", subject.covariates.get("patient", "")) for subject in ordered
    )
    return list(grouped((numbers[subject.name], subject) for subject in ordered).values())


def _site_numbers(subjects: Sequence[Subject]) -> dict[str, int]:
    """A number for each site, in the order of the first of its subjects' names, so that its own name does not count."""
    ordered = sorted(subjects, key=lambda subject: subject.name)
    return {site: number for number, site in enumerate(dict.fromkeys(subject.site or "" for subject in ordered))}


def _jointly(
    dealt: Sequence[Subject],
    folds: int,
    stratify: Sequence[str],
    rng: np.random.Generator,
    sites: Mapping[str, int],
) -> dict[str, int]:
    """{name: fold}: of each joint stratum as many a fold as its size divides into; who gets the rest is solved for."""
    missing = [name for name in stratify if name != "site" and not any(name in subject.covariates for subject in dealt)]
    if missing:
        raise InputError(f"expected columns of the cohort to stratify by. Received: {', '.join(missing)}")
    strata: dict[tuple[str, ...], list[Subject]] = {}
    for subject in dealt:
        values = {"site": f"{sites[subject.site or '']:09d}", **subject.covariates}
        key = (str(subject.label), *(values.get(name, "") for name in stratify))
        strata.setdefault(key, []).append(subject)
    more = _who_gets_more(list(strata), np.array([len(group) for group in strata.values()]), folds, rng)
    fold_of: dict[str, int] = {}
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
        raise InputError(
            f"no folds were found for {len(keys)} joint strata. Stratify by fewer columns. Received: {found.message}"
        )
    return np.rint(found.x[:cells]).astype(int).reshape(len(keys), folds)
