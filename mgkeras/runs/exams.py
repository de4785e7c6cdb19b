"""A finished run's exams: the files that it was trained on, because others would be shown under its numbers, and their
field of view, because tissue of another scale is nothing that it has seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mgkeras.data.cache import exam_cube, exam_name, file_digests
from mgkeras.data.cohort import Subject, read_cohort
from mgkeras.data.phases import load_others
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame, ExamError, Volume
from mgkeras.errors import InputError
from mgkeras.runs import store
from mgkeras.runs.forms import DONE, check_form
from mgkeras.settings import Settings

BEYOND = 0.1  # ours, because the anatomical changes scale a training exam by up to a tenth


def field_of_view(run: Path) -> tuple[float, float] | None:
    """The smallest and the largest field of view, mm, of the exams that a run's finished folds were trained on.

    None of a run that was made before folds kept it, and of mask-only, whose cube is as large as the tumour.

    Raises:
        ValueError: a fold's done.json is damaged.
    """
    found: list[float] = []
    for folder in store.done_folds(run):
        check_form(path := folder / "done.json", done := store.read_json(path), DONE)
        edges = done.get("field_of_view_mm") or []
        if None in edges:
            raise InputError(f"expected numbers at field_of_view_mm of {path}. Received: {edges}")
        found += edges
    return (min(found), max(found)) if found else None


def unlike(mm: float, trained_on: tuple[float, float] | None) -> bool:
    """Whether a field of view in mm lies more than BEYOND outside the range of field_of_view; False without one."""
    return trained_on is not None and not trained_on[0] * (1 - BEYOND) <= mm <= trained_on[1] * (1 + BEYOND)


def range_text(edges: tuple[float, float]) -> str:
    """'96 mm', or '80 to 96 mm'."""
    low, high = (f"{edge:.0f}" for edge in edges)
    return f"{low if low == high else f'{low} to {high}'} mm"


def run_subjects(run: Path) -> dict[str, Subject]:
    """{name: subject} of RUN/cohort.csv, in its order; their files are not opened."""
    outcome = store.load_settings(run).outcome
    return {subject.name: subject for subject in read_cohort(run / "cohort.csv", outcome).subjects}


def exam_names(run: Path) -> set[str]:
    """The names under which the cache holds a run's exams, see cache.exam_name; the exams' own files are not needed."""
    settings = store.load_settings(run)
    return {
        exam_name({name: digest for name, digest in known.items() if name != "label"}, settings)
        for known in store.known_subjects(run).values()
    }


def check_unchanged(run: Path, subjects: Iterable[Subject]) -> None:
    """Makes sure that subjects' files are where the run found them and hold the same bytes.

    Raises:
        ExamError: the first subject whose file is gone or has changed.
    """
    known, volume = store.known_subjects(run), store.load_settings(run).volume
    for subject in subjects:
        try:
            now = file_digests(subject, volume)
        except OSError as error:
            raise ExamError(
                f"expected the exams of {run} where its cohort.csv says. Received: {error}. Where the run "
                "was moved, repeat its fit command: it writes the paths anew"
            ) from None
        if any(now[name] != known[subject.name][name] for name in now):
            raise ExamError(
                f"expected the exams that {run} was trained on. Received: other files for subject {subject.name}"
            )


def run_exam(run: Path, subject: Subject, settings: Settings) -> tuple[Volume, np.ndarray, np.ndarray, CubeFrame]:
    """The early phase on its own grid, then image, mask (side, side, side) and frame, as cache.exam_cube makes them.

    Raises:
        ExamError: as check_unchanged, or a file that cannot be used.
    """
    check_unchanged(run, [subject])
    early, tumour = subject_mask(subject, settings.mask)
    return early, *exam_cube(early, tumour.mask, settings, load_others(subject, early, settings.volume))
