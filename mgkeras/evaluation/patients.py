"""Which subjects of a run are exams of one patient, for intervals that draw patients and not exams.

Glossary:
    patients: {subject: a number that the exams of one patient share}; None where each subject is a patient of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from mgkeras.data.patients import patient_numbers

Patients = Mapping[str, int]


def patients_of(rows: Sequence[Mapping[str, str]]) -> dict[str, int] | None:
    """The patients of a cohort's rows, see data.patients.patient_numbers; None where no two subjects share one."""
    found = patient_numbers((row["subject"], row.get("site") or "", row.get("patient") or "") for row in rows)
    return found if len(set(found.values())) < len(found) else None


def patients_in(run: Path) -> dict[str, int] | None:
    """The patients of RUN/cohort.csv; None where there is no such file too."""
    path = run / "cohort.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return patients_of(list(csv.DictReader(file)))


def numbers_of(patients: Patients | None, names: Sequence[str]) -> list[int] | None:
    """The number of each subject's patient, as metrics.clusters takes them; one that is not known is a patient."""
    return None if patients is None else [patients.get(name, -1 - place) for place, name in enumerate(names)]
