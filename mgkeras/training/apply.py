"""A finished run applied to exams: the folds' mean probability, and the map on the patient's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.cache import exam_cube, file_digest
from mgkeras.data.cohort import Cohort, Subject
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame, ExamError, from_cube, load_volume, save_like
from mgkeras.evaluation.summary import summarise
from mgkeras.models import cam
from mgkeras.models.guided import MaskGuided, build_model
from mgkeras.models.weights import load_weights
from mgkeras.settings import Settings
from mgkeras.training import run as files
from mgkeras.training.predict import Forward, forward_of


def load_folds(run: Path) -> tuple[Settings, list[Forward]]:
    """Settings of a run and, for each finished fold, its model as a plain function.

    Raises:
        RunError: no fold is finished.
    """
    settings = files.load_settings(run)
    forwards = [forward_of(load_fold(folder, settings)) for folder in files.done_folds(run)]
    if not forwards:
        raise files.RunError(f"expected a run with a finished fold at {run}. Received: none; run `mgkeras fit` on.")
    return settings, forwards


def load_fold(folder: Path, settings: Settings) -> MaskGuided:
    """The trained model of one fold's folder."""
    model = build_model(settings)
    load_weights(model, folder / "weights.h5")
    return model


def score_exam(
    subject: Subject, settings: Settings, forwards: Sequence[Forward]
) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
    """Probabilities and the mean map of one exam.

    Args:
        subject: T1 is enough for the whole-volume models; mask-only needs its mask, or T0 to make it.
        settings, forwards: from load_folds.

    Returns:
        (folds,) probability of class 1 by each fold; (g, g, g) float32 in [0, 1], the folds' mean map of the class that
        their mean probability predicts; and where the cube lies on T1's RAS+ grid.

    Raises:
        ExamError: a file that cannot be used, or no way to a mask for a mask-only run.
    """
    if settings.uses_box:
        if subject.mask is None and subject.pre is None:
            raise ExamError(f"subject {subject.name}: a mask-only model needs a mask, or T0 (pre) to make one. "
                            "Received: neither")  # fmt: skip
        t1, tumour = subject_mask(subject, settings.mask)
        mask = tumour.mask
    else:
        t1 = load_volume(subject.early)
        mask = np.zeros(t1.data.shape, bool)
    image, _, frame = exam_cube(t1, mask, settings)
    found = [forward(image[None, ..., None]) for forward in forwards]
    probability = np.array([one["probability"][0] for one in found])
    predicted = int(probability.mean() >= 0.5)
    maps = [cam.attention_map(one["maps"][..., predicted], settings.guidance).numpy()[0] for one in found]
    return probability, np.mean(maps, axis=0), frame


def predict_cohort(
    run: Path, cohort: Cohort, out: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Scores every subject of a cohort and writes OUT/predictions.csv, OUT/maps/ and, with labels, OUT/scores.json.

    Returns:
        ``subjects``, ``seen`` (names that the run was trained on, by name or by the bytes of T1), ``failed`` (messages,
        one a subject that could not be scored), ``scores`` (see evaluation.summary.summarise) or None.
    """
    settings, forwards = load_folds(run)
    known = files.read_json(run / "data.json")["subjects"]
    digests = {one["early"] for one in known.values()}
    for old in (out / "predictions.csv", out / "scores.json"):  # of an earlier call
        old.unlink(missing_ok=True)
    rows, seen, failed = [], [], []
    for place, subject in enumerate(cohort.subjects):
        try:
            if subject.name in known or file_digest(subject.early) in digests:
                seen.append(subject.name)
            probability, attention, frame = score_exam(subject, settings, forwards)
            save_like(subject.early, from_cube(attention, frame), out / "maps" / f"{subject.name}.nii.gz")
        except ExamError as error:
            failed.append(f"{subject.name}: {error}")
            continue
        mean = float(probability.mean())
        each = {f"probability_fold_{fold}": round(float(p), 7) for fold, p in enumerate(probability)}
        rows.append({"subject": subject.name, "label": subject.label, "probability": round(mean, 7),
                     "predicted": int(mean >= 0.5), **each})  # fmt: skip
        if progress:
            progress(place + 1, len(cohort.subjects))
    if rows:
        files.write_rows(out / "predictions.csv", rows)
    labelled = [row for row in rows if row["label"] is not None]
    scores = None
    if labelled:
        labels, p = [row["label"] for row in labelled], [row["probability"] for row in labelled]
        scores = {"run": str(run), "outcome": cohort.outcome, "seen_in_training": seen,
                  **summarise(labels, p, np.zeros(len(labels), int))}  # fmt: skip
        files.write_json(out / "scores.json", scores)
    return {"subjects": len(rows), "seen": seen, "failed": failed, "scores": scores}
