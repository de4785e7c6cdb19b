"""Named arrays as plain HDF5, the files of a run: written whole, and read as if a stranger had sent them.

Nothing is ever pickled. HDF5 itself can name other files (external storage, virtual datasets, links) and claim more
than it holds (filters, datasets never written), so what :func:`write_arrays` would not have written is refused, and
names, shapes and types are compared with what is expected before any value is read; before all of it, a checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mgkeras.data.io import written_whole
from mgkeras.data.sealed import intact, sealed
from mgkeras.errors import MgkerasError

KINDS = "biufS"  # numpy's letters for booleans, numbers and bytes: what is written here
DEEPEST, MOST = 4, 10_000  # groups in groups, and datasets; ours have 2 and some hundred
# name -> type ('float32', or a letter of KINDS for any size) and shape (None for any length)
Expected = Mapping[str, tuple[str, tuple[int | None, ...]]]


class ArraysError(MgkerasError, ValueError):
    """A file of arrays cannot be used, or arrays cannot be saved; the message names the file and the array."""


def write_arrays(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes an HDF5 file of named arrays and of an attribute ``about`` (JSON); whole or not at all.

    Args:
        path: of the file.
        arrays: numbers or bytes of any shape; the names may hold slashes.
        about: JSON-able.

    Raises:
        ArraysError: NaN or infinity in an array; the file is left as it was.
        OSError: of a full disk too it names the file.
    """
    arrays, text = {name: np.asarray(array) for name, array in arrays.items()}, json.dumps(about)
    for name, array in arrays.items():
        check_finite(f"{name} for {path}", array)
    content = sealed(arrays, {"about": text})
    with written_whole(path) as part:
        part.write_bytes(content)


def read_arrays(path: Path, expected: Expected | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the ``about`` of a file of write_arrays.

    Args:
        path: of the file.
        expected: exactly these arrays, compared before one is read; without it any, as large as the file.

    Raises:
        FileNotFoundError: no such file.
        ArraysError: damaged, changed, not finite, other arrays, or HDF5 that is never written here.
    """
    with _opened(path) as (file, datasets):
        if expected is not None:
            _compare(path, datasets, expected)
        text = _text(path, file, "about")
        digest = _text(path, file, "sha256") if "sha256" in file.attrs else None  # of before: today all bytes have one
        arrays = {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}
        about = _about(path, text)
    if digest is not None and digest != _digest(arrays, text):
        raise _other_bytes(path)
    for name, array in arrays.items():
        check_finite(f"{name} in {path}", array)
    return arrays, about


def read_about(path: Path) -> dict[str, Any]:
    """The ``about`` of a file of write_arrays. Raises as read_arrays."""
    with _opened(path) as (file, _):
        return _about(path, _text(path, file, "about"))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The arrays' shapes by name; no array is read. Raises as read_arrays."""
    with _opened(path) as (_, datasets):
        return {name: dataset.shape for name, dataset in datasets.items()}


def check_finite(what: str, array: Any) -> None:
    """Makes sure that an array holds no NaN and no infinity.

    Args:
        what: the array and its file, for the message.
        array: of numbers or bytes, of any shape.

    Raises:
        ArraysError: it does.
    """
    array = np.asarray(array)
    if array.dtype.kind == "f" and (wrong := array.size - np.count_nonzero(np.isfinite(array))):
        raise ArraysError(f"expected finite numbers as {what}. Received: NaN or infinity in {wrong} of {array.size}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, h5py.Dataset]]]:
    """The open file and its datasets by name, none of which was read; h5py's own errors name the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        if intact(path) is False:
            raise _other_bytes(path)
        with h5py.File(path, "r") as file:
            yield file, _datasets(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, ArraysError):
            raise
        raise ArraysError(f"expected an HDF5 file of `mgkeras fit` at {path}. Received: {error!s:.300}") from None


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    seen: set[int] = set()
    size = path.stat().st_size

    def visit(group: h5py.Group, prefix: str, depth: int) -> None:
        for name in group:
            where = prefix + name
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _foreign(path, where, "a link")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(found) == MOST or depth == DEEPEST:
                raise _foreign(path, where, "too many arrays or groups, or one that stands there twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                visit(item, f"{where}/", depth + 1)
            elif why := _never_written(item, size):
                raise _foreign(path, where, why)
            else:
                found[where] = item

    seen.add(h5py.h5o.get_info(file.id).addr)
    visit(file, "", 1)
    if (claimed := sum(map(_bytes, found.values()))) > size:
        raise _foreign(path, "all arrays", f"{claimed} bytes in a file of {size}")
    return found


def _other_bytes(path: Path) -> ArraysError:
    return ArraysError(f"expected {path} as it was written. Received: other bytes; it is damaged or was edited")


def _foreign(path: Path, where: str, what: str) -> ArraysError:
    return ArraysError(f"expected {path} as `mgkeras fit` writes it. Received: {what} at {where}; it is not read")


def _never_written(item: Any, size: int) -> str:
    """Why write_arrays did not write a dataset, '' where it may have; ``size`` is the file's in bytes."""
    if not isinstance(item, h5py.Dataset):
        return "neither a group nor a dataset"
    how, layout = item.id.get_create_plist(), (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if how.get_layout() not in layout or how.get_external_count() or how.get_nfilters():
        return "a dataset that is kept elsewhere, in chunks or compressed"
    if item.shape is None or item.dtype.kind not in KINDS:
        return f"a dataset of type {item.dtype}"
    if item.id.get_storage_size() != _bytes(item) or (item.id.get_offset() or 0) + _bytes(item) > size:
        return f"a dataset of {_bytes(item)} bytes that the file does not hold"
    return ""


def _bytes(dataset: h5py.Dataset) -> int:
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def _compare(path: Path, datasets: Mapping[str, h5py.Dataset], expected: Expected) -> None:
    if set(datasets) != set(expected):
        raise ArraysError(f"expected the arrays {sorted(expected)} in {path}. Received: {sorted(datasets)}")
    for name, (kind, shape) in expected.items():
        dataset = datasets[name]
        same_type = dataset.dtype.kind == kind if len(kind) == 1 else dataset.dtype == np.dtype(kind)
        same_shape = len(shape) == len(dataset.shape) and all(
            length in (None, other) for length, other in zip(shape, dataset.shape, strict=True)
        )
        if not (same_type and same_shape):
            raise ArraysError(
                f"expected {name} in {path} to be {kind} of shape {shape}. Received: {dataset.dtype} of shape "
                f"{dataset.shape}"
            )


def _text(path: Path, file: h5py.File, name: str) -> str:
    text = file.attrs[name] if file.attrs.get_id(name).get_storage_size() <= path.stat().st_size else None
    if not isinstance(text, str):
        raise _foreign(path, f"the attribute {name}", "no text")
    return text


def _about(path: Path, text: str) -> dict[str, Any]:
    about = json.loads(text)
    if not isinstance(about, dict):
        raise _foreign(path, "the attribute about", "no JSON object")
    return about


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name}\0{array.dtype.str}\0{np.shape(arrays[name])}\0".encode() + array.tobytes())
    return digest.hexdigest()
