"""One fold of a run: trained, applied to its rows, scored, and written as RUN/fold_k/."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from mgkeras.data.arrays import check_finite
from mgkeras.data.cache import Cache
from mgkeras.data.stream import steps_per_epoch
from mgkeras.inference.forward import Scored, attention_rows, score_rows
from mgkeras.models.weights import save_weights, write_arrays
from mgkeras.runs import store
from mgkeras.runs.digests import fold_digests, fold_with_digests
from mgkeras.scores.attention import MAP
from mgkeras.settings import Settings
from mgkeras.training.devices import Device
from mgkeras.training.fit import fold_seed, train_fold
from mgkeras.training.progress import Clock, Console


@dataclass(frozen=True, eq=False)
class FoldJob:
    """A fold to be trained, here or by another process, on this machine or on one that has the same shared folder.

    Attributes:
        run: absolute path of the run's folder.
        number: of the fold, from 0.
        settings: that this fold is trained with.
        cache: the open cache.
        labels: (n,) int, class of each cache row.
        fold: (n,) int, the fold that holds a row out, settings.NEVER where none does.
        rounds: how many folds are still trained one after the other, see progress.Clock.
        wait: whether another process waits for one that has the fold.
    """

    run: Path
    number: int
    settings: Settings
    cache: Cache
    labels: np.ndarray
    fold: np.ndarray
    rounds: float = 1
    wait: bool = False

    @property
    def folder(self) -> Path:
        """RUN/fold_K."""
        return self.run / f"fold_{self.number}"

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return not store.unfinished(self.run, [self.number])

    def __str__(self) -> str:
        return f"{self.settings.model}: fold {self.number + 1}"


def fold_job(job: FoldJob, device: Device, console: Console) -> None:
    """What a worker does: one fold, from the cache that is there."""
    with store.locked(job.folder, wait=job.wait):
        store.sweep(job.folder)
        if not job.done:
            run_fold(job, device, Clock(job.settings, console, job.rounds))


def run_fold(job: FoldJob, device: Device, clock: Clock) -> None:
    """Trains a fold from wherever it stopped, scores it and writes its files, done.json last.

    Args:
        job: the fold, whose folder this process has locked.
        device: from choose_device.
        clock: gets the progress.
    """
    folder, number, settings, cache, labels = job.folder, job.number, job.settings, job.cache, job.labels
    folder.mkdir(exist_ok=True)
    train, held_out = np.flatnonzero(job.fold != number), np.flatnonzero(job.fold == number)
    clock.begin(number, len(held_out), len(train))
    began = time.time()
    state = folder / "state.h5"
    if state.exists():
        clock.console.line("  going on from the last finished epoch")
    steps = steps_per_epoch(len(train), settings)
    model, history = train_fold(
        cache,
        labels,
        train,
        settings,
        device,
        seed=fold_seed(settings, number),
        state=state,
        pace=lambda seconds: clock.pace(seconds, steps, device),
        report=clock.epoch,
        step=clock.console.steps,
    )
    scored = score_rows(model, cache, held_out, causal=True)
    rows = _prediction_rows(cache, labels, held_out, number, "held-out", scored)
    rows += _prediction_rows(cache, labels, train, number, "train", score_rows(model, cache, train, causal=False))
    attention = attention_rows(cache, held_out, number, scored, box=settings.uses_box)
    dead = sum(row["mass_in_mask"] is None and row["mass_chance"] is not None for row in attention)
    if dead and settings.guidance.lambda_dice:
        clock.console.line(f"  warning: {dead} of {len(held_out)} held-out maps are 0 everywhere")
    save_weights(model, folder / "weights.h5")
    store.write_rows(folder / "history.csv", history)
    store.write_rows(folder / "predictions.csv", rows)
    store.write_rows(folder / "attention.csv", attention)
    names = np.array([cache.subjects[row] for row in held_out], dtype="S")
    write_arrays(
        folder / "cams.h5",
        {"subject": names, "cam": scored.maps, "attention": scored.attention},
        {
            "cam": "(n, g, g, g, 2) folded class activation maps, literally; less their mean over the last axis "
            "they are the decision maps, which are scored and shown",
            "attention": "(n, g, g, g) in [0, 1], the map that the Dice term sees",
        },
    )
    done = {
        "fold": number,
        "finished": time.time(),
        "seconds": time.time() - began,
        "device": asdict(device),
        "map": MAP,
    }
    if not settings.uses_box:
        edges = cache.voxel_mm[train] * settings.volume.side
        done["field_of_view_mm"] = [round(float(edge), 3) for edge in (edges.min(), edges.max())]
    store.write_json(folder / "done.json", fold_with_digests(folder, done))
    state.unlink(missing_ok=True)
    del model
    keras.backend.clear_session()
    gc.collect()


def score_again(job: FoldJob) -> bool:
    """Scores a finished fold's stored maps by the decision map, where it was scored by class maps, as folds once were.

    Nothing is trained or predicted. Returns whether there was anything to do.
    """
    folder, cache = job.folder, job.cache
    done = store.read_json(folder / "done.json")
    if done.get("map") == MAP:
        return False
    held = {
        row["subject"]: float(row["probability"])
        for row in store.read_rows(folder / "predictions.csv")
        if row["split"] == "held-out"
    }
    arrays = store.read_maps(folder, held)
    names = [name.decode() for name in arrays["subject"]]
    scored = Scored(np.array([held[name] for name in names]), arrays["cam"], arrays["attention"])
    rows = [cache.subjects.index(name) for name in names]
    looks = attention_rows(cache, rows, job.number, scored, box=job.settings.uses_box)
    store.write_rows(folder / "attention.csv", looks)
    if "sha256" in done:
        done["sha256"]["attention.csv"] = fold_digests(folder)["attention.csv"]
    store.write_json(folder / "done.json", done | {"map": MAP})
    return True


def _prediction_rows(
    cache: Cache, labels: np.ndarray, rows: np.ndarray, fold: int, split: str, scored: Scored
) -> list[dict]:
    check_finite(f"probabilities of fold {fold}, {split}", scored.probability)

    def text(values: np.ndarray | None, place: int) -> float | None:
        return None if values is None or np.isnan(values[place]) else round(float(values[place]), 7)

    return [
        {
            "subject": cache.subjects[row],
            "fold": fold,
            "split": split,
            "label": int(labels[row]),
            "probability": text(scored.probability, place),
            "p_outside_blurred": text(scored.outside_blurred, place),
            "p_inside_blurred": text(scored.inside_blurred, place),
            "kept_ml": text(scored.kept_ml, place),
        }
        for place, row in enumerate(rows)
    ]
