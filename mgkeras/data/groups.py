"""What belongs together: values of one key, in whatever order they come, and the exams of one patient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """{key: its values} of (key, value) pairs, sorted or not; keys in the order of their first values."""
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def patient_numbers(rows: Iterable[tuple[str, str, str]]) -> dict[str, int]:
    """A number for each subject that the subjects of one patient share (both breasts, or several visits), counted from
    0 in the rows' order.

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
