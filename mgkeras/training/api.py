"""Runs from Python: make one with fit, open one with load_run, read its tables, apply it to an exam.

The same objects are behind the command line: a run's folder is the same whichever made it.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.cache import exam_cube
from mgkeras.data.cohort import Cohort, open_cohort
from mgkeras.data.nifti import ExamError, read_nifti
from mgkeras.data.volume import Volume, from_cube, oriented, same_space, turned_back
from mgkeras.errors import InputError
from mgkeras.inference.forward import Forward
from mgkeras.inference.predict import load_folds, predict_cohort, score_cube
from mgkeras.runs import store
from mgkeras.runs.exams import field_of_view, range_text, unlike
from mgkeras.runs.folds import planned
from mgkeras.runs.forms import SUMMARY, check_form
from mgkeras.scores.attention import MAP
from mgkeras.settings import Settings, as_dict, flatten, for_model, preset, with_values
from mgkeras.training.crossval import cross_validate
from mgkeras.training.devices import choose_device
from mgkeras.training.progress import Console

Exam = str | os.PathLike | np.ndarray  # a NIfTI file, or voxels (x, y, z)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of one exam.

    Attributes:
        probability: of class 1, the mean of the folds'.
        fold_probabilities: (folds,) float of class 1 by each fold, or (folds, 24) with test-time augmentation.
        map: (x, y, z) float32 on the exam's own grid: the map of the predicted class, above 0 for it, below against.
        affine: (4, 4) of that grid, voxel to mm.
    """

    probability: float
    fold_probabilities: np.ndarray
    map: np.ndarray
    affine: np.ndarray

    @property
    def spread(self) -> float:
        """Standard deviation of fold_probabilities: how unsure the run is of this exam."""
        return float(self.fold_probabilities.std())

    @property
    def predicted(self) -> int:
        """The class of the larger probability."""
        return int(self.probability >= 0.5)


class Run:
    """A finished run of fit, read from its folder.

    Args:
        path: of the folder.

    Raises:
        RunError: there is no run, or none of its folds is finished.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.settings: Settings = store.load_settings(self.path)
        if not store.done_folds(self.path):
            raise store.RunError(f"expected a run with a finished fold at {path}. Received: none; repeat its fit.")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self.settings.model} on {self.settings.outcome}"

    @property
    def summary(self) -> dict[str, Any]:
        """Scores by fold and pooled, with intervals: summary.json."""
        check_form(path := self.path / "summary.json", found := store.read_json(path), SUMMARY)
        return found

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """A dict a subject and fold: subject, fold, split, label, probability, ... Give it to pandas.DataFrame."""
        return self._rows("predictions.csv")

    @property
    def attention(self) -> list[dict[str, Any]]:
        """A dict a held-out subject: where its map lies. Give it to pandas.DataFrame."""
        return self._rows("attention.csv")

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dict an epoch of each fold: fold, epoch, ce, dice, auc, seconds, skipped."""
        folders = {int(folder.name.split("_")[1]): folder for folder in store.done_folds(self.path)}
        return [
            {"fold": fold, **_typed(row)}
            for fold, folder in folders.items()
            for row in store.read_rows(folder / "history.csv")
        ]

    def predict(
        self,
        exam: Exam,
        *,
        affine: Any = None,
        mask: Exam | None = None,
        pre: Exam | None = None,
        late: Exam | None = None,
        kind: str = MAP,
        tta: bool = False,
    ) -> Prediction:
        """Scores one exam that is new to the run; warns where its field of view is not like that of the run's exams.

        Args:
            exam: the early phase: a NIfTI file, or its voxels (x, y, z) in any units.
            affine: (4, 4) voxel to mm, with voxels.
            mask: the tumour mask on the same grid; only a mask-only run needs it.
            pre: the pre phase on the same grid; only a run whose channels are made of it needs it.
            late: the late phase, in the same way.
            kind: 'decision' or 'class', see models.cam.
            tta: whether to average over the exam's 24 exact rotations.

        Raises:
            ExamError: a file that cannot be used, voxels without an affine, a mask or a phase on another grid, or
                none where the run needs one.
        """
        if kind not in (MAP, "class"):
            raise InputError(f"kind must be {MAP!r} or 'class'. Received: {kind!r}")
        early, grid = _volume(exam, affine)
        given = {"mask": mask, "pre": pre, "late": late}
        others = {name: _volume(exam, affine)[0] for name, exam in given.items() if exam is not None}
        for name, volume in others.items():
            if different := same_space(early, volume):
                raise ExamError(f"expected {name} on the exam's grid. Received: {different}")
        tumour = np.zeros(early.data.shape, bool)
        if "mask" in others:
            tumour = others.pop("mask").data > 0
        elif self.settings.uses_box:
            raise ExamError("a mask-only run needs the tumour's mask. Received: mask=None")
        image, _, frame = exam_cube(early, tumour, self.settings, others)
        if (edges := self._trained_on) and unlike(mm := frame.edge_mm, edges):
            warnings.warn(
                f"the field of view, {mm:.0f} mm, is not like that of the exams the run was trained on, "
                f"{range_text(edges)}: the run has not seen tissue of this scale",
                stacklevel=2,
            )
        each, cells = score_cube(image, self._forwards, kind, tta=tta)
        return Prediction(float(each.mean()), each, turned_back(from_cube(cells, frame), grid), grid)

    def predict_cohort(self, cohort: Cohort, out: str | os.PathLike) -> dict[str, Any]:
        """Scores every subject of a cohort and writes OUT/predictions.csv, OUT/maps/ and, with labels, OUT/scores.json.

        Returns:
            See inference.score.score_cohort.
        """
        return predict_cohort(self.path, cohort, Path(out))

    @functools.cached_property
    def _forwards(self) -> list[Forward]:
        store.check_run(self.path)
        return load_folds(self.path)[1]

    @functools.cached_property
    def _trained_on(self) -> tuple[float, float] | None:
        return field_of_view(self.path)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if not (path := self.path / name).exists():
            raise store.RunError(f"expected {path}, which is there once all folds are. Received: none; repeat its fit.")
        return [_typed(row) for row in store.read_rows(path)]


def load_run(path: str | os.PathLike) -> Run:
    """Opens the folder of a run; see Run.

    Examples:
        >>> run = mgkeras.load_run(RUN)
        >>> sorted(run.predictions[0])[:4]
        ['fold', 'kept_ml', 'label', 'p_inside_blurred']
        >>> run.history[0]["epoch"]
        1
    """
    return Run(path)


def load_cohort(path: str | os.PathLike, outcome: str | None = None, *, predict: bool = False) -> Cohort:
    """Reads a cohort.csv and checks every file of it.

    Args:
        path: of the table; docs/exams.md tells its columns.
        outcome: the column of 0 and 1 to predict. None takes the only column that could be one.
        predict: whether labels may be missing, for Run.predict_cohort.

    Raises:
        CohortError: with every problem of the table and its files.
    """
    need = ("early",) if predict else None
    return open_cohort(Path(path), outcome, need=need, predict=predict)[0]


def fit(
    cohort: Cohort,
    model: str = "guided",
    *,
    out: str | os.PathLike | None = None,
    start: str = "paper",
    cache: str | os.PathLike = ".mgkeras-cache",
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
    precision: str = "auto",
    jobs: int = 1,
    **changes: Any,
) -> Run:
    """Trains and scores a model by cross-validation, as ``mgkeras fit``; repeated, it goes on where it was stopped.

    Args:
        cohort: from load_cohort.
        model: 'no-mask', 'mask-only', 'guided' or 'guided-context'.
        out: the run's folder; runs/OUTCOME-MODEL where None.
        start: the preset to start from, of settings.PRESETS: 'paper', 'workstation' or 'demo'.
        cache: where prepared volumes are kept.
        progress: gets lines of text; where None they go to the logger ``mgkeras``, which prints nothing by itself.
        seed: of folds, weights, order and dropout.
        precision: of the convolutions, see training.devices.choose_device.
        jobs: how many folds are trained at a time, each in a process of its own. In a script the call must then stand
            under ``if __name__ == "__main__":``, as for every use of multiprocessing.
        changes: settings that differ from the preset's, by the last part of their names, as epochs=60, side=64,
            lambda_dice=1.0; see mgkeras.settings.

    Raises:
        TypeError: a change that names no setting.
        RunError: the folder holds another run.

    Examples:
        >>> cohort = mgkeras.load_cohort(COHORT, "recurrence")
        >>> run = mgkeras.fit(cohort, "no-mask", start="demo", out=OUT, cache=OUT / "cache", epochs=1, folds=2, side=16)
        >>> run.path.name, len(run.history)
        ('fitted', 2)
    """
    values = named(changes)
    for name in ("training.stratify", "volume.phases"):
        if isinstance(values.get(name), str):
            values[name] = (values[name],)
    if values.get("training.split"):
        values["training.folds"] = 1
    say = progress or logging.getLogger("mgkeras").info
    settings = with_values(replace(preset(start), seed=seed), values)
    cohort, settings = planned(cohort, for_model(settings, model, values), say)
    run = Path(out) if out is not None else Path("runs") / f"{cohort.outcome}-{model}"
    console = Console(say, say)
    cross_validate(
        cohort,
        settings,
        run,
        cache_folder=Path(cache),
        device=choose_device(precision=precision),
        console=console,
        jobs=jobs,
    )
    return Run(run)


def named(changes: Mapping[str, Any]) -> dict[str, Any]:
    """{last part of a setting's name: value} as {dotted name: value}.

    Raises:
        TypeError: a name that is no setting of the method.
    """
    dotted = {name.rpartition(".")[2]: name for name in flatten(as_dict(Settings())) if "." in name}
    if unknown := [name for name in changes if name not in dotted]:
        raise TypeError(f"expected settings among {', '.join(sorted(dotted))}. Received: {', '.join(unknown)}")
    return {dotted[name]: value for name, value in changes.items()}


def _volume(exam: Exam, affine: Any) -> tuple[Volume, np.ndarray]:
    """An exam or a mask in RAS+, and the affine (4, 4) of the grid that it came on."""
    if not isinstance(exam, np.ndarray):
        data, grid = read_nifti(exam)
        return oriented(data, grid.affine), grid.affine
    if affine is None or np.shape(affine) != (4, 4) or exam.ndim != 3:
        raise ExamError(
            "expected voxels (x, y, z) together with affine=, (4, 4), voxel to mm. Received: "
            f"shape {exam.shape}, affine {'None' if affine is None else np.shape(affine)}"
        )
    return oriented(np.asarray(exam, np.float32), np.asarray(affine, float)), np.asarray(affine, float)


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV file with numbers as numbers and empty cells as None; the subject stays text."""
    return {name: value if name == "subject" else _number(value) for name, value in row.items()}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
