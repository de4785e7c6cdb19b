"""Weights and training state as plain HDF5 arrays under the layers' names; nothing is ever pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mgkeras.errors import InputError

if TYPE_CHECKING:  # so that reading arrays does not import TensorFlow
    import keras


def named_weights(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """(layer/weight, variable) pairs of a network, or of a MaskGuided's; the same names in Keras 2 and Keras 3."""
    for layer in getattr(model, "net", model).layers:
        for variable in layer.weights:
            yield f"{layer.name}/{variable.name.split('/')[-1].split(':')[0]}", variable


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes every weight under its name, through a temporary name and a rename."""
    write_arrays(path, {name: np.asarray(variable) for name, variable in named_weights(model)}, {})


def load_weights(model: keras.Model, path: Path) -> None:
    """Sets a model's weights from a file of save_weights.

    Raises:
        ValueError: the file's names or shapes are not the model's.
    """
    arrays, _ = read_arrays(path)
    ours = dict(named_weights(model))
    if set(arrays) != set(ours):
        raise InputError(f"expected the weights {sorted(ours)} in {path}. Received: {sorted(arrays)}")
    for name, variable in ours.items():
        variable.assign(arrays[name])


def save_state(path: Path, model: keras.Model, about: dict[str, Any]) -> None:
    """Writes weights, optimizer (with its loss scale) and ``about`` (JSON-able) as one file, by rename."""
    from mgkeras.models.keras_compat import optimizer_state

    arrays = {f"model/{name}": np.asarray(variable) for name, variable in named_weights(model)}
    state = optimizer_state(model.optimizer)
    arrays |= {f"optimizer/{index}": np.asarray(variable) for index, variable in enumerate(state)}
    write_arrays(path, arrays, about)


def load_state(path: Path, model: keras.Model) -> None:
    """The inverse of save_state, on a compiled model whose optimizer is built."""
    from mgkeras.models.keras_compat import optimizer_state

    arrays, _ = read_arrays(path)
    for name, variable in named_weights(model):
        variable.assign(arrays[f"model/{name}"])
    for index, variable in enumerate(optimizer_state(model.optimizer)):
        variable.assign(arrays[f"optimizer/{index}"])


def write_arrays(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """An HDF5 file of named arrays and a JSON attribute ``about``; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(temporary, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            file.attrs["about"] = json.dumps(about)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_about(path: Path) -> dict[str, Any]:
    """The ``about`` of a file of write_arrays."""
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["about"])


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the ``about`` of a file of write_arrays."""
    arrays: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        return arrays, json.loads(file.attrs["about"])
