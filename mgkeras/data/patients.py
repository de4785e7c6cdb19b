"""Which rows of a cohort are of one patient: both breasts, or several visits."""

from __future__ import annotations

from collections.abc import Iterable


def patient_numbers(rows: Iterable[tuple[str, str, str]]) -> dict[str, int]:
    """A number for each subject that the subjects of one patient share, counted from 0 in the rows' order.

    A patient is a text in the column ``patient`` at one site. Where a row of that text has no site, all rows of the
    text are one patient: to keep two patients together costs less than to part two exams of one.

    Args:
        rows: (subject, site, patient), texts, '' where not known. A subject whose patient is not known is a patient.
    """
    rows = [(subject, site.strip(), patient.strip()) for subject, site, patient in rows]
    placeless = {patient for _, site, patient in rows if not site}
    keys = [
        ("subject", subject) if not patient else ("patient", "" if patient in placeless else site, patient)
        for subject, site, patient in rows
    ]
    numbers: dict[tuple[str, ...], int] = {}
    return {subject: numbers.setdefault(key, len(numbers)) for (subject, _, _), key in zip(rows, keys, strict=True)}
