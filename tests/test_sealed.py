"""A checksum of all of an HDF5 file is compared before HDF5 reads it, of the cache's and of a run's files alike."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from mgkeras.data import arrays as stored
from mgkeras.data.arrays import ArraysError, read_arrays, write_arrays
from mgkeras.data.sealed import BLOCK, intact, sealed

ARRAYS = {"a": np.arange(6, dtype="f4").reshape(2, 3), "group/b": np.array([b"x", b"yz"])}


def test_it_is_hdf5_for_everybody_and_bound_to_its_name(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(sealed(ARRAYS, {"about": "{}"}, "a"))
    assert intact(path, "a") is True and intact(path, "b") is False and intact(path) is False
    with h5py.File(path) as file:
        assert file.userblock_size == BLOCK and file.attrs["about"] == "{}"
        assert all(np.array_equal(file[name][()], array) for name, array in ARRAYS.items())
    assert sealed(ARRAYS, {"about": "{}"}, "a") == path.read_bytes()  # the same every time


def test_its_bytes_may_be_in_a_reference_loop():
    """A memoryview of BytesIO there ended Python 3.12.1 when garbage was collected; other releases bear it."""
    assert type(sealed(ARRAYS, {})) is bytes
    code = """
import gc, numpy
from mgkeras.data.sealed import sealed
loop = [sealed({"a": numpy.zeros(9)}, {})]
loop.append(loop)
del loop
gc.collect()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_no_flipped_bit_and_no_other_length_of_a_runs_file_is_seen_by_hdf5(tmp_path, monkeypatch):
    path, rng = tmp_path / "state.h5", np.random.default_rng(0)
    write_arrays(path, ARRAYS, {"epoch": 1})
    assert read_arrays(path)[1] == {"epoch": 1}
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("HDF5 reads a file whose checksum is wrong"))
    others = [content[:-1], content + b"\0", content[:BLOCK], content[:100]]
    for place in range(0, len(content), 13):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        others.append(bytes(changed))
    for other in others:
        path.write_bytes(other)
        for read in (read_arrays, stored.read_about, stored.read_shapes):
            with pytest.raises(ArraysError, match=r"expected .*state\.h5 as it was written"):
                read(path)


def test_files_of_before_have_no_checksum_and_are_told_apart(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = ARRAYS["a"]
    assert intact(tmp_path / "a.h5") is None
    (tmp_path / "a.h5").write_bytes(b"")
    assert intact(tmp_path / "a.h5") is False
