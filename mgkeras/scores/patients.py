"""Which subjects of a run are exams of one patient, for intervals that draw patients and not exams.

Glossary:
    patients: {subject: a number that the exams of one patient share}; None where each subject is a patient of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mgkeras.data.groups import patient_numbers
from mgkeras.errors import InputError
from mgkeras.runs.checked import read_table

Patients = Mapping[str, int]
BLOCK = 1 << 19  # numbers in an array of draws: memory grows neither with the draws nor with the subjects


def patients_of(rows: Sequence[Mapping[str, str]]) -> dict[str, int] | None:
    """The patients of a cohort's rows, see data.groups.patient_numbers; None where no two subjects share one."""
    found = patient_numbers((row["subject"], row.get("site") or "", row.get("patient") or "") for row in rows)
    return found if len(set(found.values())) < len(found) else None


def patients_in(run: Path) -> dict[str, int] | None:
    """The patients of RUN/cohort.csv; None where there is no such file too."""
    path = run / "cohort.csv"
    if not path.is_file():
        return None
    return patients_of(read_table(path))


def numbers_of(patients: Patients | None, names: Sequence[str]) -> list[int] | None:
    """The number of each subject's patient, as patients.clusters takes them; one that is not known is a patient."""
    return None if patients is None else [patients.get(name, -1 - place) for place, name in enumerate(names)]


def clusters(patients: ArrayLike | None, size: int) -> np.ndarray | None:
    """(size,) numbers that the subjects of one patient share, from 0 in the order of the patients' first subjects.

    None where each subject is a patient.

    Raises:
        ValueError: not as many patients as subjects.
    """
    if patients is None:
        return None
    found, first, numbers = np.unique(np.asarray(patients), return_index=True, return_inverse=True)
    if numbers.shape != (size,):
        raise InputError(f"expected a patient for each of {size} subjects. Received: an array {numbers.shape}")
    return np.argsort(np.argsort(first))[numbers] if found.size < size else None


def at_a_time(units: int) -> int:
    """How many draws of so many subjects or patients are in memory at a time: 256, or as many as have BLOCK numbers."""
    return max(1, min(256, BLOCK // max(units, 1)))


def drawn(generator: np.random.Generator, units: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of so many units with replacement, (count, units): their numbers, and how often each was drawn."""
    index = generator.integers(units, size=(count, units))
    counts = np.bincount((index + units * np.arange(count)[:, None]).ravel(), minlength=index.size)
    return index, counts.reshape(index.shape)


def resamples(
    labels: np.ndarray, samples: int, seed: int, patients: ArrayLike | None = None
) -> Iterator[tuple[Iterable[np.ndarray], np.ndarray]]:
    """Blocks of subjects, or patients, drawn with replacement; a draw without both classes is drawn again.

    Yields:
        b draws, each an array of subject indices, and how often each subject is in each, (b, n).
    """
    generator, left = np.random.default_rng(seed), samples
    numbers = clusters(patients, labels.size)
    units = labels.size if numbers is None else int(numbers.max()) + 1
    step = at_a_time(units)
    while left > 0:
        index, counts = drawn(generator, units, step)
        counts = counts if numbers is None else counts[:, numbers]
        positives = counts @ labels
        kept = np.flatnonzero((positives > 0) & (positives < counts.sum(axis=1)))[:left]
        left -= kept.size
        draws = index[kept] if numbers is None else [np.repeat(np.arange(labels.size), row) for row in counts[kept]]
        yield draws, counts[kept]
