"""One fold: train a model from wherever it stopped, recompute its batch-norm moments, hand it back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mgkeras.data.arrays import ArraysError
from mgkeras.data.cache import Cache
from mgkeras.data.stream import Rows, epoch_plan, plain_stream, steps_per_epoch, train_stream
from mgkeras.errors import InputError, MgkerasError
from mgkeras.models import keras_compat
from mgkeras.models.callbacks import SaveState, SkippedSteps, recompute_moments
from mgkeras.models.guided import MaskGuided, build_model
from mgkeras.models.weights import read_about
from mgkeras.settings import Settings
from mgkeras.training.devices import Device, make_optimizer, replicated, steps_at_once

TIMED = 10  # ours, because after so many steps the next ones take as long
History = list[dict[str, float]]


class TrainingError(MgkerasError, RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class EpochReport:
    """What is known at the end of an epoch: its number from 1, of how many, its means, seconds, skipped steps."""

    epoch: int
    epochs: int
    ce: float
    dice: float
    auc: float
    seconds: float
    skipped: int  # steps whose gradients overflowed float16, and which therefore changed nothing


def fold_seed(settings: Settings, fold: int) -> int:
    """Seed of a fold's initial weights; the same for every model kind."""
    return (settings.seed * 1009 + fold) % (2**31 - 1)


def train_fold(
    cache: Cache,
    labels: np.ndarray,
    rows: Rows,
    settings: Settings,
    device: Device,
    *,
    seed: int = 0,
    state: Path | None = None,
    pace: Callable[[float], None] | None = None,
    report: Callable[[EpochReport], None] | None = None,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[MaskGuided, History]:
    """Trains on the given cache rows and recomputes the batch-norm moments over them (of SWA: its averages).

    Args:
        cache: the open cache.
        labels: (n,) int, class of each cache row.
        rows: cache rows to train on; no other row is touched.
        settings: of the run.
        device: from choose_device.
        seed: of the initial weights and dropout.
        state: file in which an epoch's state is kept; where it exists, training goes on from it.
        pace: called once, after TIMED steps, with the seconds that a step takes.
        report: called at the end of each epoch.
        step: called with (done, of) of an epoch's steps.

    Returns:
        The model, and a dict an epoch of epoch, ce, dice, auc, seconds, skipped.

    Raises:
        TrainingError: the loss is no longer a number, the state cannot go on here, the device computes it wrong, or
            some of its GPUs would get no volume of a batch.
        NeedsAddons: of models.keras_compat, where the optimizer is not in this lane.
    """
    _check_grid(settings, device)
    _check_shares(len(rows), settings, device)
    weights = class_weights(labels[list(rows)], settings.training.class_weight)
    steps, epochs = steps_per_epoch(len(rows), settings), settings.training.epochs
    with replicated(device).scope():
        model = build_model(settings, seed=seed, dtype=device.policy, s2d_blocks=device.s2d_blocks)
        optimizer = make_optimizer(
            settings.training.optimizer,
            settings.training.learning_rate,
            device.policy,
            steps=steps,
            epochs=epochs,
            schedule=settings.training.schedule,
            warmup=settings.training.warmup,
            weight_decay=settings.training.weight_decay,
        )
        reduction = {"reduction": "sum"} if settings.guidance.ce == "sum" else {}
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, **reduction),
            weighted_metrics=[keras.metrics.AUC(name="auc")],
            jit_compile=device.jit,
            steps_per_execution=steps_at_once(device, steps),
        )
        history = _resume(state, model, device)
    stepped = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: step(batch + 1, steps))
    saved = _Epochs(state, device.policy, history, report, pace, epochs)
    if len(history) < epochs:
        try:
            model.fit(
                train_stream(cache, labels, rows, settings, range(len(history), epochs), device.prefetch_to, weights),
                initial_epoch=len(history),
                epochs=epochs,
                steps_per_epoch=steps,
                callbacks=[stepped, SkippedSteps(), saved],
                shuffle=False,
                verbose=0,
            )
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise TrainingError(
                f"a batch of {settings.training.batch_size} volumes of {settings.volume.side}^3 must fit into memory. "
                "Received: out of memory. Lower --batch-size or --side, with another --out."
            ) from error
        except tf.errors.OpError:
            cache.check()  # TensorFlow wraps what its input raises
            raise
    keras_compat.assign_averages(optimizer, model.trainable_variables)
    recompute_batch_norm(model, cache, rows, settings.training.batch_size)
    return model, saved.history


def _check_grid(settings: Settings, device: Device) -> None:
    """Refuses bfloat16 on a CPU for the smallest maps: on 2x2x2 cells oneDNN's gradients of a kernel are wrong."""
    pools = len(settings.backbone.filters) - 1
    cells = settings.volume.side >> pools
    if device.kind == "cpu" and device.policy == "mixed_bfloat16" and cells < 3:
        raise TrainingError(
            f"bfloat16 on a CPU needs maps of 3 or more cells a side. Received: {cells}; use --side "
            f"{3 << pools} or more, or --precision float32, with another --out"
        )


def _check_shares(subjects: int, settings: Settings, device: Device) -> None:
    """Refuses batches of which a GPU would get none: TensorFlow gives each ceil(size / gpus) while there are any."""
    gpus = device.gpus
    sizes = {len(batch) for batch in epoch_plan(range(subjects), settings, 0)} if gpus > 1 else set()
    if empty := sorted(size for size in sizes if -(-size // gpus) * (gpus - 1) >= size):
        raise TrainingError(
            f"expected batches of which each of {gpus} GPUs gets a volume. Received: batches of "
            f"{', '.join(map(str, empty))} volumes; change --gpus or --batch-size"
        )


def _resume(state: Path | None, model: MaskGuided, device: Device) -> History:
    """The history of a state that is there, once it is in the model; the optimizer is built in any case."""
    if state is None or not state.exists():
        keras_compat.build_optimizer(model.optimizer, model.trainable_variables)
        return []
    about = read_about(state)
    if about["policy"] != device.policy:
        raise TrainingError(
            f"{state} was trained in {about['policy']} and cannot go on in {device.policy}. Choose --precision "
            "accordingly, or another --out."
        )
    if about.get("keras", 3) != keras_compat.GENERATION:
        raise TrainingError(
            f"{state} was trained in Keras {about.get('keras', 3)}, whose optimizers cannot go on in Keras "
            f"{keras_compat.GENERATION}. Go on where it was begun, or choose another --out."
        )
    return SaveState.resume(state, model)


class _Epochs(SaveState):
    """Saves each epoch's state, with its seconds; tells the pace and the epochs; stops at a loss that is no number."""

    def __init__(
        self,
        state: Path | None,
        policy: str,
        history: History,
        report: Callable[[EpochReport], None] | None,
        pace: Callable[[float], None] | None,
        epochs: int,
    ) -> None:
        super().__init__(state, {"policy": policy, "keras": keras_compat.GENERATION}, history)
        self.report, self.pace, self.epochs = report, pace, epochs
        self.first: tuple[int, float] | None = None  # how many steps were done, and when

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.pace is None:
            return
        done = len(self.history) * self.params["steps"] + batch + 1
        if self.first is None:  # the first execution may compile
            self.first = done, time.monotonic()
        elif done - self.first[0] >= TIMED:
            self.pace((time.monotonic() - self.first[1]) / (done - self.first[0]))
            self.pace = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(logs[name]) for name in ("ce", "dice", "auc")}
        if not keras_compat.as_number(self.model.ce_mean.count):  # the loss of every step overflowed float16
            values["ce"] = math.nan
        if not all(map(math.isfinite, values.values())):
            raise TrainingError(
                f"the loss must stay a number. Received: {values} in epoch {epoch + 1}; lower --learning-rate, or use "
                "--precision float32, with another --out"
            )
        seconds, skipped = time.monotonic() - self.began, int(logs["skipped"])
        try:
            super().on_epoch_end(epoch, {**values, "seconds": round(seconds, 3), "skipped": skipped})
        except ArraysError as error:  # a weight that ReLU hides from the loss
            raise TrainingError(str(error)) from None
        if self.report:
            self.report(EpochReport(epoch + 1, self.epochs, **values, seconds=seconds, skipped=skipped))


def class_weights(labels: np.ndarray, kind: str) -> tuple[float, float] | None:
    """Weights of class 0 and 1 in cross-entropy: None for 'none'; inverse to their frequency for 'balanced'.

    Raises:
        ValueError: 'balanced' with one class only.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=2)
    if counts.min() == 0:
        raise InputError(f"balanced class weights need subjects of both classes. Received: {counts.tolist()}")
    negative, positive = (float(len(labels) / (2 * count)) for count in counts)
    return negative, positive


def recompute_batch_norm(model: MaskGuided, cache: Cache, rows: Rows, batch_size: int) -> None:
    """Sets the batch normalisation's moments to those of cache rows as they are; see callbacks.recompute_moments."""
    recompute_moments(model, lambda: (volumes for volumes, _ in plain_stream(cache, rows, batch_size)))
