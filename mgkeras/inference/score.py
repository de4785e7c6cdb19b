"""A cohort scored exam by exam, by a run's models or by a server, and the files that come of it.

In: a function that scores one exam. Out: OUT/predictions.csv, OUT/maps/ and, with labels, OUT/scores.json. Nothing here
imports TensorFlow, since the client of a server need not wait for it.

A map is of one of KINDS and says which in its NIfTI header (descrip); cal_min and cal_max there are symmetric around 0
where the map has a sign, so that viewers draw 0 in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.cache import exam_cube
from mgkeras.data.cohort import Cohort, Subject
from mgkeras.data.phases import load_others
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame, ExamError, from_cube, load_volume, save_like
from mgkeras.errors import MgkerasError
from mgkeras.runs import store
from mgkeras.runs.exams import unlike
from mgkeras.scores.attention import MAP
from mgkeras.scores.patients import numbers_of, patients_of
from mgkeras.scores.summary import summarise
from mgkeras.settings import Settings

KINDS = {  # of maps, in words for the NIfTI header's 79 bytes; all are of the class that is predicted
    MAP: "decision map, log-odds; above 0: for the predicted class, below: against",
    "class": "class activation map as it is; softmax does not fix a part of it",
    "attention": "class activation map brought to 0..1, of an older export",
    "untold": "map of a server that does not tell which kind it is",
}
# a subject -> (folds,) or (folds, variants) probability of class 1 by each fold; (g, g, g) float32, the folds' mean map
# of the class that their mean probability predicts; and where the map lies on the early phase's RAS+ grid
Score = Callable[[Subject], tuple[np.ndarray, np.ndarray, CubeFrame]]


class ScoringStopped(MgkerasError, RuntimeError):
    """What scores exams cannot go on, with this exam or another; the message says why."""


def cube_of(subject: Subject, settings: Settings) -> tuple[np.ndarray, CubeFrame]:
    """What the network sees of a new exam: image float32 as from exam_cube, and where it lies.

    Args:
        subject: the early phase, and the other phases of the run's channels; mask-only needs its mask too, or the pre
            phase to make it.
        settings: of the run.

    Raises:
        ExamError: a file that cannot be used, a phase that is not there, or no way to a mask for a mask-only run.
    """
    if settings.uses_box:
        if subject.mask is None and subject.pre is None:
            raise ExamError(
                f"subject {subject.name}: a mask-only model needs a mask, or the pre phase to make one. "
                "Received: neither"
            )
        early, tumour = subject_mask(subject, settings.mask)
        mask = tumour.mask
    else:
        early = load_volume(subject.early_file)
        mask = np.zeros(early.data.shape, bool)
    image, _, frame = exam_cube(early, mask, settings, load_others(subject, early, settings.volume))
    return image, frame


def score_cohort(
    cohort: Cohort,
    score: Score,
    out: Path,
    *,
    source: str,
    kind: str,
    was_seen: Callable[[Subject], bool] | None = None,
    trained_on: tuple[float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Scores every subject of a cohort and writes OUT/predictions.csv, OUT/maps/ and, with labels, OUT/scores.json.

    Args:
        cohort: with labels or without.
        score: scores one subject. ExamError fails that subject alone; ScoringStopped also all that follow.
        out: folder to write to.
        source: what scores, for scores.json.
        kind: of its maps, one of KINDS.
        was_seen: whether the model was trained on a subject; None where that is not known.
        trained_on: the model's exams' smallest and largest field of view, mm; None where that is not known.
        progress: called with (done, of).

    Returns:
        ``subjects`` (how many were scored), ``scored`` (their names), ``map`` (its kind in words), ``seen`` (names,
        None where it is not known), ``trained_on_mm`` (as given), ``unlike`` ({name: its field of view, mm} of those
        that runs.exams.unlike names), ``failed`` (messages, one a subject that could not be scored; one for all that
        were not tried), ``scores`` (see scores.summary.summarise) or None.
    """
    for old in (out / "predictions.csv", out / "scores.json"):  # of an earlier call
        old.unlink(missing_ok=True)
    rows, seen, failed, count = [], [], [], len(cohort.subjects)
    others: dict[str, float] = {}
    for place, subject in enumerate(cohort.subjects):
        try:
            if was_seen and was_seen(subject):
                seen.append(subject.name)
            probability, cells, frame = score(subject)
            if not (np.isfinite(probability).all() and np.isfinite(cells).all()):
                raise ExamError("expected finite probabilities and a finite map. Received: NaN or infinity")
            save_like(
                subject.early_file,
                from_cube(cells, frame),
                out / "maps" / f"{subject.name}.nii.gz",
                about=KINDS[kind],
                window=_window(cells, kind),
            )
            rows.append(_row(subject, probability))
            if unlike(mm := frame.edge_mm, trained_on):
                others[subject.name] = round(mm, 1)
        except ExamError as error:
            failed.append(f"{subject.name}: {error}")
        except ScoringStopped as error:
            failed.append(f"{subject.name}: {error}")
            if left := count - place - 1:
                failed.append(f"stopped there: {left} more exam{'s were' if left > 1 else ' was'} not tried")
            break
        if progress:
            progress(place + 1, count)
    if rows:
        store.write_rows(out / "predictions.csv", rows)
    labelled = [row for row in rows if row["label"] is not None]
    scores = None
    if labelled:
        labels, p = [row["label"] for row in labelled], [row["probability"] for row in labelled]
        scores = {
            "run": source,
            "map": kind,
            "outcome": cohort.outcome,
            "seen_in_training": seen if was_seen else None,
            **summarise(labels, p, np.zeros(len(labels), int), patients=_patients(cohort, labelled)),
        }
        store.write_json(out / "scores.json", scores)
    return {
        "subjects": len(rows),
        "scored": [row["subject"] for row in rows],
        "map": KINDS[kind],
        "seen": seen if was_seen else None,
        "trained_on_mm": trained_on,
        "unlike": others,
        "failed": failed,
        "scores": scores,
    }


def _patients(cohort: Cohort, rows: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """The number of each row's patient, for the intervals."""
    about = [
        {"subject": subject.name, "site": subject.site or "", "patient": subject.covariates.get("patient", "")}
        for subject in cohort.subjects
    ]
    return numbers_of(patients_of(about), [row["subject"] for row in rows])


def _window(cells: np.ndarray, kind: str) -> tuple[float, float]:
    """What a viewer is to draw as darkest and brightest: symmetric around 0, unless the map has no sign."""
    top = float(np.abs(cells).max())
    return (0.0, 1.0) if kind == "attention" else (-top, top)


def _row(subject: Subject, probability: np.ndarray) -> dict[str, Any]:
    mean, folds = float(probability.mean()), probability.reshape(len(probability), -1).mean(axis=1)
    each = {f"probability_fold_{fold}": round(float(p), 7) for fold, p in enumerate(folds)}
    return {
        "subject": subject.name,
        "label": subject.label,
        "probability": round(mean, 7),
        "predicted": int(mean >= 0.5),
        "spread": round(float(probability.std()), 7),  # over folds, and variants where there are some
        **each,
    }
