"""HDF5 files of a run: what is written, and that nothing but that is read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import time
import zlib

import h5py
import numpy as np
import pytest

from mgkeras.data import arrays as stored
from mgkeras.data.arrays import ArraysError, read_arrays, write_arrays
from mgkeras.data.sealed import BLOCK, block_of

SECRET = np.arange(8, dtype=np.float32)


def plain(path, **more):
    """A file as it was written before there were digests."""
    with h5py.File(path, "w") as file:
        for name, array in more.items():
            file[name] = array
        file.attrs["about"] = "{}"
    return path


def reseal(path):
    """Gives an edited file a checksum that fits, as who means to would."""
    content = path.read_bytes()[BLOCK:]
    path.write_bytes(block_of(zlib.crc32(content)) + content)


def external(path):
    (path.parent / "secret").write_bytes(SECRET.tobytes())
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (8,), "f4", external=[(str(path.parent / "secret"), 0, 32)])


def virtual(path):
    plain(path.parent / "other.h5", b=SECRET)
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(path.parent / "other.h5", "b", (8,))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("a", layout)


def external_link(path):
    plain(path.parent / "other.h5", b=SECRET)
    with h5py.File(path, "a") as file:
        file["a"] = h5py.ExternalLink(path.parent / "other.h5", "b")


def soft_link(path):
    with h5py.File(path, "a") as file:
        file["kept"] = SECRET
        file["a"] = h5py.SoftLink("/kept")


def hard_link_twice(path):
    with h5py.File(path, "a") as file:
        file["kept"] = SECRET
        file["a"] = file["kept"]


def circle(path):
    with h5py.File(path, "a") as file:
        file.create_group("a")["a"] = file["/"]


def compressed(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (1 << 20,), "f4", compression="gzip")


def chunked(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (8,), "f4", chunks=(4,))


def never_written(path):
    """298 GiB are claimed by a file of some KB."""
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (80_000_000_000,), "f4")


def texts_of_any_length(path):
    with h5py.File(path, "a") as file:
        file["a"] = ["one", "two"]


def references(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("a", (1,), h5py.ref_dtype)[0] = file.ref


FOREIGN = (
    external,
    virtual,
    external_link,
    soft_link,
    hard_link_twice,
    circle,
    compressed,
    chunked,
    never_written,
    texts_of_any_length,
    references,
)


@pytest.mark.parametrize("way", FOREIGN, ids=lambda way: way.__name__)
def test_what_is_never_written_here_is_never_read(way, tmp_path):
    path = plain(tmp_path / "weights.h5")
    way(path)
    began = time.monotonic()
    with pytest.raises(ArraysError, match=r"weights\.h5.*Received: "):
        read_arrays(path)
    with pytest.raises(ArraysError):
        stored.read_shapes(path)
    assert time.monotonic() - began < 0.5


def test_names_shapes_and_types_are_compared_before_anything_is_read(tmp_path, monkeypatch):
    path = plain(tmp_path / "a.h5", **{"conv/kernel": np.zeros((3, 2), "f4"), "names": np.array([b"x", b"yy"])})
    expected = {"conv/kernel": ("float32", (3, 2)), "names": ("S", (None,))}
    assert set(read_arrays(path, expected)[0]) == set(expected)
    for wrong in (
        expected | {"conv/kernel": ("float32", (2, 3))},
        expected | {"conv/kernel": ("float32", (None,))},
        expected | {"conv/kernel": ("float64", (3, 2))},
        expected | {"names": ("float32", (2,))},
        expected | {"bias": ("float32", (2,))},
    ):
        with monkeypatch.context() as patched:
            patched.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read"))
            with pytest.raises(ArraysError, match=r"expected .*a\.h5.*Received: "):
                read_arrays(path, wrong)
    with pytest.raises(ArraysError, match="names"):
        read_arrays(path, {"conv/kernel": ("float32", (3, 2))})


@pytest.mark.parametrize("damage", ["empty", "text", "half", "no about", "about is no object", "deep about"])
def test_a_damaged_file_is_an_error_that_names_it(damage, tmp_path):
    path = tmp_path / "state.h5"
    write_arrays(path, {"a": np.ones((50, 50), "f4")}, {"epoch": 1})
    content = path.read_bytes()
    if damage in ("empty", "text", "half"):
        path.write_bytes({"empty": b"", "text": b"subject,fold\n", "half": content[: len(content) // 2]}[damage])
    else:
        with h5py.File(path, "r+") as file:
            del file.attrs["about"]
            if damage == "about is no object":
                file.attrs["about"] = "[1]"
            if damage == "deep about":
                file.attrs["about"] = "[" * 50_000
        reseal(path)
    for read in (read_arrays, stored.read_about):
        with pytest.raises(ArraysError, match=r"expected .*state\.h5.*Received: "):
            read(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights\.h5"):
        read_arrays(tmp_path / "weights.h5")


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_flipped_bits_and_exchanged_arrays_are_noticed(bit, tmp_path):
    path = tmp_path / "state.h5"
    values = np.random.default_rng(0).random((2, 40)).astype("f4")
    write_arrays(path, {"optimizer/0": values[0], "optimizer/1": values[1]}, {"history": []})
    content = bytearray(path.read_bytes())
    place = bytes(content).index(values[0].tobytes()) + 17
    content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ArraysError, match=r"as it was written.*state\.h5|state\.h5.*as it was written"):
        read_arrays(path)
    write_arrays(path, {"optimizer/0": values[0], "optimizer/1": values[1]}, {"history": []})
    with h5py.File(path, "r+") as file:
        file["optimizer/0"][:], file["optimizer/1"][:] = values[1], values[0]
    with pytest.raises(ArraysError, match="as it was written"):
        read_arrays(path)


def test_a_digest_of_the_arrays_of_before_is_compared(tmp_path):
    path = plain(tmp_path / "a.h5", a=SECRET)
    with h5py.File(path, "a") as file:
        file.attrs["sha256"] = hashlib.sha256(b"{}\0a\0<f4\0(8,)\0" + SECRET.tobytes()).hexdigest()
    assert np.array_equal(read_arrays(path)[0]["a"], SECRET)
    with h5py.File(path, "a") as file:
        file["a"][3] = 7
    with pytest.raises(ArraysError, match="as it was written"):
        read_arrays(path)


def test_files_of_before_have_no_digest_and_are_read(tmp_path):
    arrays, about = read_arrays(plain(tmp_path / "a.h5", a=SECRET, empty=np.zeros((0, 3), "f4"), one=np.float32(2)))
    assert np.array_equal(arrays["a"], SECRET) and arrays["empty"].shape == (0, 3) and arrays["one"] == 2
    assert about == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_written_nor_read(value, tmp_path):
    path, values = tmp_path / "weights.h5", np.ones((3, 4), "f4")
    write_arrays(path, {"conv/kernel": values}, {})
    before = path.read_bytes()
    values[1, 2] = value
    with pytest.raises(ArraysError, match=r"finite.*conv/kernel.*weights\.h5.*Received: .*1 of 12"):
        write_arrays(path, {"conv/bias": values[0], "conv/kernel": values}, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["weights.h5"]
    with pytest.raises(ArraysError, match=r"finite.*conv/kernel.*weights\.h5.*Received: .*1 of 12"):
        read_arrays(plain(path, **{"conv/kernel": values}))


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_what_was(tmp_path, monkeypatch):
    """h5py is not what writes to the disk: where that is full, it ends the process."""
    path = tmp_path / "state.h5"
    write_arrays(path, {"a": np.ones(5)}, {"epoch": 1})
    before, opened = path.read_bytes(), h5py.File

    def in_memory_only(where, *arguments, **options):
        assert isinstance(where, io.BytesIO), "h5py writes to a path"
        return opened(where, *arguments, **options)

    def full(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5py, "File", in_memory_only)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device.*state\.h5") as caught:
        write_arrays(path, {"a": np.zeros(5)}, {"epoch": 2})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["state.h5"]


def test_what_is_written_is_read(tmp_path):
    arrays = {
        "model/conv/kernel": np.random.default_rng(0).random((3, 3, 3, 1, 8)).astype("f4"),
        "optimizer/0": np.int64(7),
        "subject": np.array([b"a", b"bcd"]),
        "none": np.zeros((0, 2), "f4"),
        "flags": np.array([True, False]),
    }
    write_arrays(tmp_path / "a.h5", arrays, {"history": [{"ce": 0.5}], "text": "ü"})
    found, about = read_arrays(tmp_path / "a.h5")
    assert about == {"history": [{"ce": 0.5}], "text": "ü"} == stored.read_about(tmp_path / "a.h5")
    assert set(found) == set(arrays) and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert stored.read_shapes(tmp_path / "a.h5") == {name: np.shape(array) for name, array in arrays.items()}
    with h5py.File(tmp_path / "a.h5") as file:
        assert json.loads(file.attrs["about"]) == about


def test_a_model_whose_weights_are_not_numbers_is_neither_saved_nor_loaded(small, tmp_path):
    import keras

    from mgkeras.models.guided import build_model
    from mgkeras.models.weights import load_weights, named_weights, save_state, save_weights

    model = build_model(small)
    model.compile(optimizer=keras.optimizers.SGD())
    save_weights(model, tmp_path / "weights.h5")
    name, kernel = next((name, weights) for name, weights in named_weights(model) if name.endswith("kernel"))
    values = np.array(kernel)
    values.flat[3] = np.nan
    kernel.assign(values)
    for save in (
        lambda: save_weights(model, tmp_path / "weights.h5"),
        lambda: save_state(tmp_path / "state.h5", model, {}),
    ):
        with pytest.raises(ValueError, match=f"{name}.*--learning-rate"):
            save()
    load_weights(model, tmp_path / "weights.h5")
    assert np.isfinite(np.array(kernel)).all() and not (tmp_path / "state.h5").exists()
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        file[name][...] = np.nan
    reseal(tmp_path / "weights.h5")
    with pytest.raises(ArraysError, match=rf"{name}.*weights\.h5"):
        load_weights(model, tmp_path / "weights.h5")


def test_weights_of_another_network_are_refused(small, tmp_path):
    from mgkeras.models.guided import build_model
    from mgkeras.models.weights import load_weights, save_weights
    from mgkeras.settings import with_values

    save_weights(build_model(with_values(small, {"backbone.filters": (4, 8, 16, 16)})), tmp_path / "weights.h5")
    with pytest.raises(ArraysError, match=r"expected .*weights\.h5.*Received: "):
        load_weights(build_model(small), tmp_path / "weights.h5")
