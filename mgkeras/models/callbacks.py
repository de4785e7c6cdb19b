"""What training adds to Keras: recomputed batch-norm moments, a count of skipped steps, and states to resume from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mgkeras.models import keras_compat
from mgkeras.models.guided import MaskGuided
from mgkeras.models.weights import load_state, read_about, save_state


class RecomputeMoments(keras.callbacks.Callback):
    """Sets batch normalisation's moments to those of the training volumes, when training ends.

    The moving averages lag behind by many steps: with 100 subjects they cost up to 0.46 of accuracy. The
    normalisations between pooling and output get the exact moments; any before them, in a network of your own, the
    mean of the batches' (as PreciseBN of Wu and Johnson 2021). Frozen ones stay as they are. Put it last in the list of
    callbacks: EarlyStopping with restore_best_weights brings weights and moments of before back.

    Args:
        volumes: an array (n, x, y, z, channels), or a dataset of batches of volumes, of dicts with ``volume``, or of
            tuples that begin with one of these. Not augmented: what the model is to be used on.
        batch_size: of an array.

    Examples:
        >>> model = mgkeras.MaskGuided(mgkeras.vgg3d((16, 16, 16, 1)))
        >>> model.compile("adam")
        >>> volumes = np.random.rand(6, 16, 16, 16, 1)
        >>> recompute = mgkeras.RecomputeMoments(volumes)
        >>> _ = model.fit(volumes, np.array([0, 1] * 3), batch_size=3, callbacks=[recompute], verbose=0)
        >>> pooled = model.head.pooled(model.outputs_of(volumes)["features"])
        >>> bool(np.allclose(model.head.norms[0].moving_mean, np.mean(pooled, axis=0), atol=1e-5))
        True
    """

    def __init__(self, volumes: Any, batch_size: int = 8) -> None:
        super().__init__()
        self.volumes, self.batch_size = volumes, batch_size

    def on_train_end(self, logs: Any = None) -> None:
        recompute_moments(self.model, lambda: _batches(self.volumes, self.batch_size))


def recompute_moments(model: MaskGuided, batches: Any) -> None:
    """Sets a model's batch normalisations to the moments of volumes, as they are.

    Args:
        model: its moments are set.
        batches: a function that gives batches of volumes (b, x, y, z, channels), each time anew.
    """
    own, norms = {id(norm) for norm in model.head.norms}, [norm for norm in model.head.norms if norm.trainable]
    if body := [norm for norm in _norms(model.net) if id(norm) not in own and norm.trainable]:
        _recompute_body(model, body, batches)
    pooled = np.concatenate([model.pooled_features(volumes).numpy() for volumes in batches()]).astype(np.float64)
    for norm in norms:  # each sees what those before it make
        values = model.head.before(norm, pooled)  # (m, k)
        norm.moving_mean.assign(values.mean(axis=0))
        norm.moving_variance.assign(values.var(axis=0))


def _recompute_body(model: MaskGuided, norms: list[Any], batches: Any) -> None:
    momentum = [norm.momentum for norm in norms]
    sums: list[list[Any]] = [[0.0, 0.0] for _ in norms]  # of each the sums over volumes of both moments, (k,)
    count = 0
    try:
        for norm in norms:
            norm.momentum = 0.0  # so that the stored moments are the last batch's
        for volumes in batches():
            model.net(tf.cast(volumes, tf.float32), training=True)
            size = len(volumes)
            count += size
            for total, norm in zip(sums, norms, strict=True):
                mean, variance = (np.array(moment, np.float64) for moment in (norm.moving_mean, norm.moving_variance))
                total[0] = total[0] + size * mean
                total[1] = total[1] + size * (variance + mean**2)
    finally:
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before
    for (first, second), norm in zip(sums, norms, strict=True):
        norm.moving_mean.assign(first / count)
        norm.moving_variance.assign(second / count - (first / count) ** 2)


def _norms(model: keras.Model) -> Iterator[Any]:
    """The batch normalisations of a network and of the networks in it."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from _norms(layer)


def _batches(volumes: Any, size: int) -> Iterable[Any]:
    if hasattr(volumes, "shape"):
        return (volumes[start : start + size] for start in range(0, len(volumes), size))
    first = (batch[0] if isinstance(batch, tuple) else batch for batch in volumes)
    return (batch["volume"] if isinstance(batch, dict) else batch for batch in first)


class SkippedSteps(keras.callbacks.Callback):
    """Adds ``skipped`` to an epoch's logs: the steps whose gradients overflowed float16, which changed no weight.

    Put it first in the list of callbacks, so that the others see it.

    Examples:
        >>> model = mgkeras.MaskGuided(mgkeras.vgg3d((16, 16, 16, 1)))
        >>> model.compile("adam")
        >>> skipped = mgkeras.SkippedSteps()
        >>> history = model.fit(np.zeros((4, 16, 16, 16, 1)), np.zeros(4), callbacks=[skipped], verbose=0)
        >>> history.history["skipped"]
        [0]
    """

    def _done(self) -> int:
        optimizer = self.model.optimizer
        return int(keras_compat.as_number(_steps_of(getattr(optimizer, "inner_optimizer", optimizer))))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.before, self.steps = self._done(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["skipped"] = self.steps - (self._done() - self.before)


def _steps_of(optimizer: Any) -> Any:
    """The counter of an optimizer's steps, those that only gather gradients among them."""
    return getattr(optimizer, "_iterations", optimizer.iterations)


class SaveState(keras.callbacks.Callback):
    """Saves weights, optimizer and a history as one HDF5 file when an epoch ends, whole or not at all.

    ``resume`` reads it into a model. A training that goes on from it makes the same numbers as one that was not
    interrupted, where its batches are a function of the epoch. Nothing is pickled.

    Args:
        path: of the file, whose folder exists; None keeps the history alone.
        about: further values for the file, JSON-able.
        history: what resume gave, where a training goes on.

    Examples:
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.h5"
        >>> def made():
        ...     model = mgkeras.MaskGuided(mgkeras.vgg3d((16, 16, 16, 1)))
        ...     model.compile("adam")
        ...     return model
        >>> _ = made().fit(np.zeros((4, 16, 16, 16, 1)), np.zeros(4), callbacks=[mgkeras.SaveState(path)], verbose=0)
        >>> [sorted(epoch) for epoch in mgkeras.SaveState.resume(path, made())]
        [['ce', 'dice', 'epoch', 'loss']]
    """

    def __init__(self, path: Path | None, about: dict[str, Any] | None = None, history: Sequence[Any] = ()) -> None:
        super().__init__()
        self.path, self.about = path and Path(path), about or {}
        self.history: list[dict[str, float]] = list(history)

    @staticmethod
    def resume(path: Path, model: MaskGuided) -> list[dict[str, float]]:
        """Sets a compiled model's weights and optimizer from the file and gives the history, a dict an epoch."""
        keras_compat.build_optimizer(model.optimizer, model.trainable_variables)
        load_state(Path(path), model)
        return read_about(Path(path))["history"]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in (logs or {}).items()}
        self.history.append({"epoch": epoch + 1, **numbers})
        if self.path:
            save_state(self.path, self.model, {"history": self.history, **self.about})
