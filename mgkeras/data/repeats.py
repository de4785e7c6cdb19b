"""What is wrong with a cohort's exams taken together, above all one exam under several names.

The same exam is told by its voxels, whatever file, compression or axis order they come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mgkeras.data.checks import ERROR, WARNING, Checked, Finding, Problem, few_slices
from mgkeras.data.groups import grouped, patient_numbers

if TYPE_CHECKING:
    from mgkeras.data.cohort import Subject


def across_exams(
    subjects: Sequence[Subject], checked: Sequence[Checked], labels: Sequence[Mapping[str, str]], *, trained: bool
) -> list[Problem]:
    """The problems of exams taken together: one exam under several names, and few slices in many.

    Args:
        subjects: of the table.
        checked: of each subject's files.
        labels, trained: see repeated_exams.
    """
    found = repeated_exams(subjects, [exam.digest for exam in checked], labels, trained=trained)
    few = few_slices({subject.name: exam.slices for subject, exam in zip(subjects, checked, strict=True)})
    problems = [Problem(subject.row, subject.name, *finding) for subject, finding in found]
    return problems + [Problem(1, "", *finding) for finding in few]


def repeated_exams(
    subjects: Sequence[Subject],
    digests: Sequence[str | None],
    labels: Sequence[Mapping[str, str]],
    *,
    trained: bool = True,
) -> list[tuple[Subject, Finding]]:
    """What is wrong where several subjects have the same early phase.

    Errors: labels that differ, told of every subject of the exam; subjects that folds would part, told of all but the
    first. A warning: the same labels and the same patient.

    Args:
        subjects: of the table.
        digests: of each subject's early phase, from voxel_digest; None where it cannot be read.
        labels: of each subject {outcome: '0', '1' or ''}; '' differs from nothing.
        trained: False where nothing is trained on these exams; then all of it is a warning.
    """
    numbers = patient_numbers(
        (subject.name, subject.site or "", subject.covariates.get("patient", "")) for subject in subjects
    )
    groups = grouped((digest, place) for place, digest in enumerate(digests) if digest is not None)
    found = []
    for places in groups.values():
        for at, place in enumerate(places):
            subject, others = subjects[place], [other for other in places if other != place]
            if others and (conflict := _conflict(labels, place, others)):
                other, outcome = conflict
                theirs, ours = labels[other][outcome], labels[place][outcome]
                told = f"{_same(subjects[other])}, whose {outcome} is {theirs} and not {ours}"
                found.append((subject, Finding("early", "one label for one exam", told, ERROR if trained else WARNING)))
            elif at and numbers[subject.name] != numbers[subjects[places[0]].name]:
                expected = "an exam once, or the same text in column patient, so that no fold parts the two"
                told = _same(subjects[places[0]])
                found.append((subject, Finding("early", expected, told, ERROR if trained else WARNING)))
            elif at:
                found.append((subject, Finding("early", "an exam once", _same(subjects[places[0]]), WARNING)))
    return found


def _same(other: Subject) -> str:
    return f"the same voxels as subject {other.name} in line {other.row}"


def _conflict(labels: Sequence[Mapping[str, str]], place: int, others: Sequence[int]) -> tuple[int, str] | None:
    """The first of the others with another label, and the outcome."""
    for other in others:
        for outcome, label in labels[place].items():
            if label and labels[other].get(outcome) and labels[other][outcome] != label:
                return other, outcome
    return None
