"""A finished run applied to exams: the folds' mean probability, and the map on the patient's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.augment import ORIENTATIONS, apply_variant, undone
from mgkeras.data.cache import file_digest
from mgkeras.data.cohort import Cohort, Subject
from mgkeras.data.phases import as_batch
from mgkeras.data.volume import CubeFrame, ExamError
from mgkeras.inference.forward import Forward, forward_of
from mgkeras.inference.score import Score, cube_of, score_cohort
from mgkeras.models.guided import MaskGuided, build_model
from mgkeras.models.weights import load_weights
from mgkeras.runs import store
from mgkeras.runs.digests import check_run
from mgkeras.runs.exams import field_of_view
from mgkeras.scores.attention import MAP
from mgkeras.settings import Settings

ARRAYS = {MAP: "decision", "class": "maps"}  # what predict.forward_of calls the kinds of map


def load_folds(run: Path) -> tuple[Settings, list[Forward]]:
    """Settings of a run and, for each finished fold, its model as a plain function.

    Raises:
        RunError: no fold is finished.
    """
    settings = store.load_settings(run)
    forwards = [forward_of(load_fold(folder, settings)) for folder in store.done_folds(run)]
    if not forwards:
        raise store.RunError(f"expected a run with a finished fold at {run}. Received: none; run `mgkeras fit` on.")
    return settings, forwards


def load_fold(folder: Path, settings: Settings) -> MaskGuided:
    """The trained model of one fold's folder."""
    model = build_model(settings)
    load_weights(model, folder / "weights.h5")
    return model


def score_exam(
    subject: Subject, settings: Settings, forwards: Sequence[Forward], kind: str = MAP, *, tta: bool = False
) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
    """Probabilities and the mean map of one exam, that of the class which the folds' mean probability predicts.

    Args:
        subject: the early phase, and the other phases of the run's channels; mask-only needs its mask too, or the pre
            phase to make it.
        settings, forwards: from load_folds.
        kind: 'decision' for the decision map, 'class' for the class activation map literally; see models.cam. The
            decision map's mean over the cube plus a constant is half the log-odds of the predicted class (where the
            network has no pool after the last block), so a cell's value v is worth 2 v / (number of cells) of them.
        tta: test-time augmentation: whether to average over the cube's 24 exact rotations.

    Returns:
        Probabilities by fold, cells and where they lie, see score.Score.

    Raises:
        ExamError: a file that cannot be used, or no way to a mask for a mask-only run.
    """
    image, frame = cube_of(subject, settings)
    return *score_cube(image, forwards, kind, tta=tta), frame


def score_cube(
    image: np.ndarray, forwards: Sequence[Forward], kind: str = MAP, *, tta: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and the mean map (g, g, g) of a cube of exam_cube; arguments as for score_exam.

    The probabilities are (folds,), with ``tta`` (folds, 24): of the cube in each of its exact rotations, whose maps are
    turned back before they are averaged.
    """
    found = []
    for variant in ORIENTATIONS if tta else ORIENTATIONS[:1]:
        turned = apply_variant(image[None], variant, 0)
        for forward in forwards:
            answer = forward(as_batch(turned[None]))
            found.append((answer["probability"][0], answer[ARRAYS[kind]][0], variant))
    probability = np.array([p for p, *_ in found]).reshape(-1, len(forwards)).T  # (folds, variants)
    predicted = int(probability.mean() >= 0.5)
    maps = [undone(cells[..., predicted], variant) for _, cells, variant in found]
    return probability if tta else probability[:, 0], np.mean(maps, axis=0)


def score_some(task: tuple[Path, Sequence[Subject], str, bool]) -> list[Any]:
    """As score_exam for some subjects, with a run's folder, kind and tta; its ExamErrors are among the results."""
    run, subjects, kind, tta = task
    settings, forwards = load_folds(run)
    found: list[Any] = []
    for subject in subjects:
        try:
            found.append(score_exam(subject, settings, forwards, kind, tta=tta))
        except ExamError as error:
            found.append(ExamError(str(error)))
    return found


def predict_cohort(
    run: Path,
    cohort: Cohort,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    kind: str = MAP,
    check: bool = True,
    tta: bool = False,
    score: Score | None = None,
) -> dict[str, Any]:
    """Scores every subject of a cohort with a run, see score.score_cohort; seen is by name or by the bytes of the early
    phase.

    ``kind`` and ``tta`` as for score_exam; ``score`` does its work elsewhere. Raises EditedRun where the run was edited
    after its training, unless ``check`` is false, for who has looked already.
    """
    if check:
        check_run(run)
    if score is None:
        settings, forwards = load_folds(run)

        def score(subject: Subject) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
            return score_exam(subject, settings, forwards, kind, tta=tta)

    known = store.known_subjects(run)
    digests = {digest["early"] for digest in known.values()}
    return score_cohort(
        cohort,
        score,
        out,
        source=str(run),
        kind=kind,
        progress=progress,
        trained_on=field_of_view(run),
        was_seen=lambda subject: subject.name in known or file_digest(subject.early_file) in digests,
    )
