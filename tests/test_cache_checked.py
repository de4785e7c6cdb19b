"""Wrong voxels and wrong facts in a cache are noticed when it is opened, and made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest

from mgkeras.data import cache as caching
from mgkeras.data.volume import ExamError


@pytest.fixture(scope="module")
def whole(cohort, small, tmp_path_factory):
    """The cache of three subjects, in a folder of its own."""
    return caching.cached(cohort.subjects[:3], small, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of its file to damage, under its name."""
    path = tmp_path / whole.path.name
    path.write_bytes(whole.path.read_bytes())
    return path


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def again(path, cohort, small):
    """The cache as it is opened again, which exams were made, and what was told."""
    made, told = [], []
    found = caching.cached(
        cohort.subjects[:3], small, path.parent, lambda done, of: made.append((done, of)), told.append
    )
    return found, made, told


def same(found, whole):
    return (
        np.array_equal(found.image, whole.image)
        and np.array_equal(found.mask, whole.mask)
        and np.array_equal(found.voxel_mm, whole.voxel_mm)
        and (found.subjects, found.reports, found.checksums) == (whole.subjects, whole.reports, whole.checksums)
    )


def test_a_cache_as_it_was_written_is_opened_and_nothing_is_told(copy, whole, cohort, small):
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == told == []
    assert not found.image.flags.writeable and caching.changed_exams(found) == []


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_flipped_bit_of_a_voxel_is_noticed_and_that_exam_alone_made_anew(name, seed, copy, whole, cohort, small):
    rng, row = np.random.default_rng(seed), seed % 3
    with h5py.File(copy) as file:
        offset, size = file[name].id.get_offset(), file[name][row].nbytes
    flip(copy, offset + row * size + int(rng.integers(size)), int(rng.integers(8)))
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 1)]
    assert len(told) == 1 and f"1 exams changed on the disk ({cohort.subjects[row].name})" in told[0]
    assert again(copy, cohort, small)[1:] == ([], [])


def test_no_flipped_bit_of_anything_else_is_used(copy, whole):
    """Every byte outside of the voxels, a random bit of each; None makes the cache anew."""
    with h5py.File(copy) as file:
        voxels = [(file[n].id.get_offset(), file[n].id.get_offset() + file[n].nbytes) for n in ("image", "mask")]
    content, rng = copy.read_bytes(), np.random.default_rng(0)
    places = [place for place in range(len(content)) if not any(low <= place < high for low, high in voxels)]
    used = 0
    for place in rng.permutation(places)[:400].tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        copy.write_bytes(changed)
        found = caching.open_cache(copy, copy.stem)
        if found is not None and not caching.changed_exams(found):
            used += 1
            assert same(found, whole), f"byte {place}"
    assert used  # what HDF5 never reads


@pytest.mark.parametrize("what", ["names", "voxel_mm", "reports", "type", "before"])
def test_facts_that_were_changed_are_not_used(what, copy, whole, cohort, small):
    with h5py.File(copy, "r+") as file:
        about = json.loads(file.attrs["about"])
        if what == "names":
            about["subjects"] = about["subjects"][::-1]
        if what == "reports":
            about["reports"][0]["volume_mm3"] = 1.0
        if what == "before":  # as caches were written that had no checksums
            del about["checksum"], about["checksums"]
        file.attrs["about"] = json.dumps(about)
        if what == "voxel_mm":
            file["voxel_mm"][1] *= 2
        if what == "type":
            image = file["image"][:].view("i2")
            del file["image"]
            file["image"] = image
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 3), (2, 3), (3, 3)]
    assert len(told) == 1 and "damaged, or of an earlier version" in told[0]


def test_exchanged_exams_are_noticed(copy, whole, cohort, small):
    with h5py.File(copy, "r+") as file:
        file["image"][0], file["image"][2] = file["image"][2], file["image"][0]
    found, made, _ = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 2), (2, 2)]


@pytest.mark.parametrize("cut", ["a little", "half"])
def test_a_file_that_is_cut_off_while_it_is_mapped_is_an_error(cut, copy, whole, small):
    """In a process of its own, which a read beyond the end would kill by SIGBUS."""
    from mgkeras.data.stream import fetch, plain_stream

    size = copy.stat().st_size
    job = f"""
import os, pathlib, numpy as np
from mgkeras.data import cache as caching
path = pathlib.Path({str(copy)!r})
found = caching.open_cache(path, path.stem)
found.check()
os.truncate(path, {size // 2 if cut == "half" else size - 5000})
try:
    found.check()
except caching.CacheError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True)
    assert done.returncode == 0 and f"expected {copy} to stay as it is" in done.stdout, done.stderr
    copy.write_bytes(whole.path.read_bytes())
    found = caching.open_cache(copy, copy.stem)
    os.truncate(copy, size // 2)
    for read in (
        lambda: fetch(found, np.zeros((1, 4), np.int32), small),
        lambda: next(plain_stream(found, [0, 1], 2)),
    ):
        with pytest.raises(caching.CacheError, match="the same command again makes it anew"):
            read()


def test_voxels_that_are_not_finite_are_never_cached(cohort, small, tmp_path, monkeypatch):
    real = caching.stored_volumes

    def broken(volume, *arguments):
        found = np.array(real(volume, *arguments))
        if found.dtype.kind == "f":
            found[0, 0, 0, 0] = np.nan
        return found

    monkeypatch.setattr(caching, "stored_volumes", broken)
    with pytest.raises(ExamError, match=f"{cohort.subjects[0].name}: expected finite voxels"):
        caching.cached(cohort.subjects[:1], small, tmp_path)
    assert not list(tmp_path.glob("*.h5"))


def test_the_checksum_is_that_of_the_stored_bytes(whole):
    with h5py.File(whole.path) as file:
        for row in range(3):
            stored = file["image"][row].tobytes() + file["mask"][row].tobytes()
            assert whole.checksums[row] == zlib.crc32(stored)
