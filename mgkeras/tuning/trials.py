"""One trial of a search: a set of values, trained and scored in the inner folds of an outer fold's training subjects.

A trial's folder holds values.json, inner_J.csv (a row a subject that inner fold J holds out), inner_J.h5 (the state of
its training) and, written last, result.json. What is there is kept, so a trial that was cut off goes on.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mgkeras.data.cache import Cache
from mgkeras.data.cohort import Subject
from mgkeras.data.io import written_whole
from mgkeras.inference.forward import attention_rows, score_rows
from mgkeras.runs import store
from mgkeras.runs.folds import assign_folds
from mgkeras.settings import Settings, with_values
from mgkeras.training.devices import Device
from mgkeras.training.fit import EpochReport, TrainingError, fold_seed, train_fold
from mgkeras.training.progress import Console
from mgkeras.tuning.choice import SHORT, trial_scores

SPLIT = 3  # ours, because one split that holds out a third costs a third of three folds
DIGITS = 4  # significant ones of a value that is tried: more would only look exact


@dataclass(frozen=True)
class Span:
    """Where a setting is searched: dotted ``name``, from ``low`` to ``high``, evenly or evenly in the logarithm."""

    name: str
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        spans: the settings that are searched.
        method: 'random', 'bayesian' or 'hyperband'.
        trials: at most so many an outer fold; None, for hyperband only: one whole sweep.
        inner_folds: of each outer fold's training subjects; 1 is one split that holds out a third.
        attention_floor: what a trial's attention must reach to be ranked by its AUC; None: AUC alone.
    """

    spans: tuple[Span, ...]
    method: str = "random"
    trials: int | None = 12
    inner_folds: int = 3
    attention_floor: float | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """All that a trial needs: RUN/tune, (n,) labels, and, an outer fold, (n,) int from inner_folds."""

    folder: Path
    cache: Cache
    labels: np.ndarray
    inner: Sequence[np.ndarray]
    settings: Settings
    search: Search
    device: Device
    console: Console


def inner_folds(
    subjects: Sequence[Subject], fold: np.ndarray, count: int, seed: int, stratify: Sequence[str] = ()
) -> list[np.ndarray]:
    """The inner folds of each outer fold, stratified as the outer ones are.

    Args:
        subjects: all, in the cache's order.
        fold: (n,) the outer fold that holds a subject out.
        count: how many; 1 for one split, whose inner fold 0 holds a third.
        seed: of the shuffle.
        stratify: columns that the outer folds balance jointly with the outcome, and these too.

    Returns:
        For each outer fold (n,) int: the inner fold that holds a subject out; -1 where the outer fold does. None of
        it depends on the subjects that the outer fold holds out.

    Raises:
        RunError: a class has fewer training subjects than there are inner folds.
    """
    found, parts = [], count if count > 1 else SPLIT
    for outer in range(int(fold.max()) + 1):
        train = [subject for subject, place in zip(subjects, fold, strict=True) if place != outer]
        labels = [subject.label for subject in train if subject.label is not None]
        smallest = int(np.bincount(labels, minlength=2).min())
        if smallest < parts:
            raise store.RunError(
                f"expected {parts} or more training subjects of each class in every outer fold, one "
                f"an inner fold. Received: {smallest} in outer fold {outer + 1}; lower --inner-folds "
                "or raise --folds"
            )
        inner = assign_folds(train, parts, seed, stratify)
        found.append(np.array([inner.get(subject.name, -1) for subject in subjects]))
    return found


def run_trial(job: Job, trial_id: str, values: Mapping[str, Any]) -> float:
    """Trains and scores one trial in its inner folds, going on from what is there, and writes its result.json.

    Args:
        job: all that it needs.
        trial_id: OUTER-NUMBER.
        values: {dotted name: value}, and Keras Tuner's own (tuner/epochs, tuner/trial_id) under hyperband.

    Returns:
        The score, see tuning.choice.

    Raises:
        TrainingError: the training diverged; result.json says so.
    """
    began, (outer, number) = time.monotonic(), trial_id.split("-", 1)
    folder = job.folder / f"fold_{outer}" / f"trial_{number}"
    own = {name: float(f"{value:.{DIGITS}g}") for name, value in values.items() if not name.startswith("tuner/")}
    trial = {
        "outer_fold": int(outer),
        "trial": number,
        "values": own,
        "epochs": values.get("tuner/epochs", job.settings.training.epochs),
    }
    _claim_trial(folder, trial)
    if (folder / "result.json").exists():
        return _score(store.read_json(folder / "result.json"))
    past = values.get("tuner/trial_id")
    try:
        rows = [
            row
            for inner in range(job.search.inner_folds)
            for row in _inner_rows(job, trial, inner, folder, folder.parent / f"trial_{past}" if past else None)
        ]
        result = {**trial, **trial_scores(rows, job.search.attention_floor)}
    except TrainingError as error:
        result = {**trial, "failed": str(error)}
    store.write_json(folder / "result.json", {**result, "seconds": round(time.monotonic() - began, 1)})
    job.console.line(_said(result, len(job.inner)))
    return _score(result)


def _score(result: Mapping[str, Any]) -> float:
    if "failed" in result:
        raise TrainingError(result["failed"])
    return result["score"]


def _claim_trial(folder: Path, trial: Mapping[str, Any]) -> None:
    """Drops what another trial of this number left, where Keras Tuner's own state was lost."""
    path = folder / "values.json"
    if path.exists() and store.read_json(path) != trial:
        for left in (*folder.glob("inner_*"), folder / "result.json"):
            left.unlink(missing_ok=True)
    store.write_json(path, trial)


def _said(result: Mapping[str, Any], outer_folds: int) -> str:
    values = ", ".join(f"{SHORT.get(name, name)} {value:g}" for name, value in result["values"].items())
    begin = f"outer fold {result['outer_fold'] + 1}/{outer_folds}, trial {result['trial']}: {values}"
    if "failed" in result:
        return f"{begin}: failed, {result['failed']}"
    mass = result["attention"]["mean"]
    return (
        f"{begin}, {result['epochs']} epochs: inner AUC {result['auc']['value']:.3f}, mass in tumour "
        f"{'undefined' if mass is None else f'{mass:.3f}'}{'' if result['reached'] else ', under the floor'}"
    )


def _inner_rows(job: Job, trial: Mapping[str, Any], inner: int, folder: Path, past: Path | None) -> list[dict]:
    """A row a held-out subject of the inner fold, as they stand in inner_J.csv; trained where there is none yet."""
    path, state = folder / f"inner_{inner}.csv", folder / f"inner_{inner}.h5"
    if path.exists():
        return store.read_rows(path)
    if past and not state.exists() and (past / state.name).exists():  # hyperband: the same values, trained on
        with written_whole(state) as part:
            shutil.copyfile(past / state.name, part)
    place = job.inner[trial["outer_fold"]]
    train, held_out = np.flatnonzero((place >= 0) & (place != inner)), np.flatnonzero(place == inner)
    labels = np.where(place >= 0, job.labels, -1)  # the outer held-out ones are hidden, whoever asks
    settings = with_values(job.settings, {**trial["values"], "training.epochs": trial["epochs"]})
    number = settings.training.folds + trial["outer_fold"] * job.search.inner_folds + inner

    def report(epoch: EpochReport) -> None:
        where = f"outer fold {trial['outer_fold'] + 1}/{len(job.inner)}  trial {trial['trial']}"
        job.console.tick(
            f"  {where}  inner fold {inner + 1}/{job.search.inner_folds}  epoch {epoch.epoch}/"
            f"{epoch.epochs}  CE {epoch.ce:.3f}  Dice {epoch.dice:.3f}  {epoch.seconds:.1f} s"
        )

    model, _ = train_fold(
        job.cache, labels, train, settings, job.device, seed=fold_seed(settings, number), state=state, report=report
    )
    scored = score_rows(model, job.cache, held_out, causal=False)
    looks = attention_rows(job.cache, held_out, inner, scored, box=settings.uses_box)
    store.write_rows(
        path,
        [
            {
                "subject": job.cache.subjects[row],
                "inner_fold": inner,
                "label": int(labels[row]),
                "probability": round(float(p), 7),
                "mass_in_mask": look["mass_in_mask"],
                "mass_chance": look["mass_chance"],
            }
            for row, p, look in zip(held_out, scored.probability, looks, strict=True)
        ],
    )
    if job.search.method != "hyperband":
        state.unlink(missing_ok=True)  # after a chief's restart two workers may have the same trial
    del model
    keras.backend.clear_session()
    gc.collect()
    return store.read_rows(path)


def results_of(run: Path) -> list[dict[str, Any]]:
    """Every trial's result.json, by outer fold and number."""
    paths = (run / "tune").glob("fold_*/trial_*/result.json")
    return sorted(map(store.read_json, paths), key=lambda trial: (trial["outer_fold"], trial["trial"]))
