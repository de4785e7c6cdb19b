"""Wrong voxels and wrong facts in the cache are noticed when it is opened, and made anew."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest

from mgkeras.data import cache as caching
from mgkeras.data import exam_file
from mgkeras.data.exam_file import open_exam
from mgkeras.data.sealed import BLOCK
from mgkeras.data.stream import fetch, plain_stream
from mgkeras.data.volume import ExamError


@pytest.fixture(scope="module")
def whole(cohort, small, tmp_path_factory):
    """The cache of three subjects, in a folder of its own."""
    return caching.cached(cohort.subjects[:3], small, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole, tmp_path):
    """The files of a copy to damage, in the subjects' order."""
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    return [tmp_path / caching.EXAMS / file.path.name for file in whole.image.files]


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def again(copy, cohort, small):
    """The cache as it is opened again, which exams were made, and what was told."""
    made, told, folder = [], [], copy[0].parents[1]
    found = caching.cached(cohort.subjects[:3], small, folder, lambda done, of: made.append((done, of)), told.append)
    return found, made, told


def same(found, whole):
    return (
        np.array_equal(found.image, whole.image)
        and np.array_equal(found.mask, whole.mask)
        and np.array_equal(found.voxel_mm, whole.voxel_mm)
        and (found.subjects, found.reports) == (whole.subjects, whole.reports)
    )


def same_exam(found, whole):
    return all(np.array_equal(found.array(name), whole.array(name)) for name in ("image", "mask")) and (
        found.voxel_mm,
        found.report,
    ) == (whole.voxel_mm, whole.report)


def test_a_cache_as_it_was_written_is_opened_and_nothing_is_told(copy, whole, cohort, small):
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == told == []
    found.image[0][:], found.mask[0, 1][:] = 7, True  # copies
    assert same(found, whole)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_flipped_bit_of_a_voxel_is_noticed_and_that_exam_alone_made_anew(name, seed, copy, whole, cohort, small):
    rng, row = np.random.default_rng(seed), seed % 3
    with h5py.File(copy[row]) as file:
        offset, size = file[name].id.get_offset(), file[name].nbytes
    flip(copy[row], offset + int(rng.integers(size)), int(rng.integers(8)))
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 1)]
    assert len(told) == 1 and f"1 exams changed on the disk ({cohort.subjects[row].name})" in told[0]
    assert again(copy, cohort, small)[1:] == ([], [])


def test_no_flipped_bit_is_used_nor_seen_by_hdf5(copy, monkeypatch):
    """Every 97th byte of voxels and structure: of a wrong bit of the latter HDF5 was seen to read for minutes."""
    path, rng = copy[0], np.random.default_rng(0)
    assert open_exam(path)
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("HDF5 reads a file whose checksum is wrong"))
    for place in [*range(0, len(content), 97), len(content) - 1]:
        flip(path, place, int(rng.integers(8)))
        assert open_exam(path) is None, f"byte {place}"
        path.write_bytes(content)


def test_hdf5_without_a_checksum_is_no_exam(copy):
    path = copy[0]
    path.write_bytes(path.read_bytes()[BLOCK:])
    with h5py.File(path):
        assert open_exam(path) is None


@pytest.mark.parametrize("what", ["voxel_mm", "report", "type", "unfinished"])
def test_facts_that_were_changed_are_not_used(what, copy, whole, cohort, small):
    with h5py.File(copy[1], "r+") as file:
        about = json.loads(file.attrs["about"])
        if what == "voxel_mm":
            about["voxel_mm"] *= 2
        if what == "report":
            about["report"]["volume_mm3"] = 1.0
        file.attrs["about"] = json.dumps(about)
        if what == "unfinished":
            del file.attrs["about"]
        if what == "type":
            image = file["image"][:].view("i2")
            del file["image"]
            file["image"] = image
    found, made, told = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 1)] and len(told) == 1


@pytest.mark.parametrize("left", [0, 1000, -5000, -1])
def test_a_file_that_was_cut_off_is_made_anew(left, copy, whole, cohort, small):
    os.truncate(copy[2], left if left >= 0 else copy[2].stat().st_size + left)
    found, made, _ = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 1)]


def test_exchanged_exams_are_noticed(copy, whole, cohort, small):
    content = copy[0].read_bytes()
    copy[0].write_bytes(copy[2].read_bytes())
    copy[2].write_bytes(content)
    found, made, _ = again(copy, cohort, small)
    assert same(found, whole) and made == [(1, 2), (2, 2)]


@pytest.mark.parametrize("cut", ["a little", "half", "all", "removed"])
def test_a_file_that_is_cut_off_while_it_is_used_is_an_error(cut, copy, whole, small, cohort):
    """In a process of its own, which a read of a map beyond the end would kill by SIGBUS; so also without check()."""
    size = copy[1].stat().st_size
    left = {"a little": size - 5000, "half": size // 2, "all": 0}.get(cut)
    job = f"""
import os, pathlib
from mgkeras.data import exam_file
found = exam_file.open_exam(pathlib.Path({str(copy[1])!r}))
found.check()
if {left}  is None:
    exam_file._opened.cache_clear()  # as where more files are used than stay open
    os.remove(found.path)
else:
    os.truncate(found.path, {left})
for read in (found.check, lambda: found.array("mask"), lambda: found.array("image")):
    try:
        read()
    except exam_file.CacheError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(f"expected {copy[1]} to stay as it is") == 3, done.stderr
    if cut == "removed":
        return
    copy[1].unlink()
    found = again(copy, cohort, small)[0]
    found.check()
    os.truncate(copy[1], left)
    for read in (
        lambda: fetch(found, np.ones((1, 4), np.int32) * [1, 0, 0, 0], small),
        lambda: next(plain_stream(found, [0, 1], 2)),
        found.check,
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
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_checksum_is_that_of_the_name_and_all_that_follows(whole):
    for file in whole.image.files:
        content = file.path.read_bytes()
        checksum = zlib.crc32(file.path.stem.encode() + content[BLOCK:])
        assert content[:BLOCK].rstrip(b"\0").endswith(f" {checksum:08x}\n".encode())


@pytest.mark.parametrize(
    "index", [0, -1, (1, 2), (1, -1), np.int64(2), slice(0, 2), ([2, 0], 1), (1, 1, 3), (0, slice(1))]
)
def test_exams_are_indexed_as_an_array(index, whole):
    for each in (whole.image, whole.mask):
        found, expected = each[index], np.asarray(each)[index]
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    with pytest.raises(IndexError):
        whole.image[0, 3]


def test_files_are_closed_when_others_are_used(copy, monkeypatch):
    monkeypatch.setattr(exam_file, "_opened", functools.lru_cache(1)(exam_file._opened.__wrapped__))
    files, before = [open_exam(path) for path in copy], len(os.listdir("/proc/self/fd"))
    for file in files * 3:
        file.array("mask", 1)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_file_that_is_cut_off_between_the_look_at_its_size_and_the_read_is_an_error(copy, monkeypatch):
    found, really = open_exam(copy[0]), os.preadv

    def cut(descriptor, buffers, offset):
        os.truncate(copy[0], min(copy[0].stat().st_size, offset + 1000))
        return really(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(caching.CacheError, match=f"expected {copy[0]} to stay.*{found.size} bytes"):
        found.array("image", 1)


def test_a_failing_disk_is_an_error_that_names_the_file(copy, monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    found = open_exam(copy[0])
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(caching.CacheError, match=f"expected {copy[0]} to stay.*Input/output error"):
        found.array("image", 0)
