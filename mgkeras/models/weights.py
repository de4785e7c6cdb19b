"""A model's weights and its training state as plain arrays under the layers' names, see data.arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgkeras.data.arrays import ArraysError, read_about, read_arrays, write_arrays

if TYPE_CHECKING:  # so that reading arrays does not import TensorFlow
    import keras

__all__ = ["load_state", "load_weights", "named_weights", "read_about", "read_arrays", "save_state", "save_weights"]


def named_weights(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """(layer/weight, variable) pairs of a network, or of a MaskGuided's; the same names in Keras 2 and Keras 3."""
    for layer in getattr(model, "net", model).layers:
        for variable in layer.weights:
            yield f"{layer.name}/{variable.name.split('/')[-1].split(':')[0]}", variable


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes every weight under its name, whole or not at all.

    Raises:
        ArraysError: a weight is NaN or infinite.
    """
    _save(path, dict(named_weights(model)), {})


def load_weights(model: keras.Model, path: Path) -> None:
    """Sets a model's weights from a file of save_weights.

    Raises:
        ArraysError: the names, shapes or types are not the model's, or the file cannot be used, see read_arrays.
    """
    _load(path, dict(named_weights(model)))


def save_state(path: Path, model: keras.Model, about: dict[str, Any]) -> None:
    """Writes weights, optimizer (with its loss scale) and ``about`` (JSON-able) as one file, whole or not at all.

    Raises:
        ArraysError: a weight or a number of the optimizer is NaN or infinite.
    """
    _save(path, _state(model), about)


def load_state(path: Path, model: keras.Model) -> None:
    """The inverse of save_state, on a compiled model whose optimizer is built.

    Raises:
        ArraysError: as load_weights.
    """
    _load(path, _state(model))


def _state(model: keras.Model) -> dict[str, Any]:
    from mgkeras.models.keras_compat import optimizer_state

    weights = {f"model/{name}": variable for name, variable in named_weights(model)}
    return weights | {f"optimizer/{place}": variable for place, variable in enumerate(optimizer_state(model.optimizer))}


def _save(path: Path, variables: Mapping[str, Any], about: dict[str, Any]) -> None:
    try:
        write_arrays(path, {name: np.asarray(variable) for name, variable in variables.items()}, about)
    except ArraysError as error:
        advice = "lower --learning-rate, or use --precision float32, with another --out"
        raise ArraysError(f"{error}; {advice}") from None


def _load(path: Path, variables: Mapping[str, Any]) -> None:
    ours = {name: np.asarray(variable) for name, variable in variables.items()}
    arrays, _ = read_arrays(path, {name: (array.dtype.name, array.shape) for name, array in ours.items()})
    for name, variable in variables.items():
        variable.assign(arrays[name])
