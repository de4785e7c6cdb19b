"""A run's exams in, RUN/radiomics.csv out: what a radiomics baseline needs; RUN/radiomics.json has its digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mgkeras.data.io import written_whole
from mgkeras.data.tumour import subject_mask
from mgkeras.runs import store
from mgkeras.runs.digests import RADIOMICS, with_digests
from mgkeras.runs.exams import check_unchanged, run_subjects
from mgkeras.scores import radiomics


def write_radiomics(run: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes the radiomics features of every subject of a run, of the early phase on its own grid inside the tumour
    mask.

    A table that is there already is kept: a run's exams do not change.

    Args:
        run: folder of a finished run.
        progress: called with (subjects done, subjects) after each.

    Returns:
        The path of RUN/radiomics.csv: ``subject`` and radiomics.FEATURES; a cell is empty where undefined.

    Raises:
        radiomics.RadiomicsError: the library is not installed. ExamError: a file that cannot be used, or
            is not the one that the run was trained on.
    """
    path = run / "radiomics.csv"
    if path.exists():
        return path
    settings = store.load_settings(run)
    subjects, rows = run_subjects(run).values(), []
    check_unchanged(run, subjects)
    for subject in subjects:
        early, tumour = subject_mask(subject, settings.mask)
        rows.append({"subject": subject.name} | radiomics.features(early.data, tumour.mask, early.zooms))
        if progress:
            progress(len(rows), len(subjects))
    with written_whole(path) as part:
        store.write_rows(part, rows)
        store.write_json(
            run / RADIOMICS, with_digests(run, RADIOMICS, {}, {path.name: part})
        )  # before the table has its name
    return path
