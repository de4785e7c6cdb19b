"""The cache by content: which exams share a file, who makes them, what a kill costs, and how arrays read them."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgkeras.data import cache as caching
from mgkeras.data import exam_file
from mgkeras.settings import for_model, with_values


@pytest.fixture(scope="module")
def tiny(small):
    return with_values(small, {"volume.side": 16})


@pytest.fixture
def made(monkeypatch):
    """The names of the subjects whose exams are prepared, as they are."""
    names, real = [], caching._prepared
    monkeypatch.setattr(
        caching, "_prepared", lambda subject, settings: names.append(subject.name) or real(subject, settings)
    )
    return names


def files(folder):
    return sorted(path.name for path in (folder / caching.EXAMS).iterdir())


def test_one_subject_more_prepares_one_exam(cohort, tiny, tmp_path, made):
    first = caching.cached(cohort.subjects[:3], tiny, tmp_path)
    assert len(made) == 3 == len(files(tmp_path))
    made.clear()
    more = caching.cached(cohort.subjects[3::-1], tiny, tmp_path)  # in any order
    assert made == [cohort.subjects[3].name]
    assert np.array_equal(more.image[1:], first.image[::-1]) and more.reports[:0:-1] == first.reports


def test_outcomes_folds_and_models_share_exams_and_other_volumes_do_not(cohort, tiny, tmp_path, made):
    subject = replace(cohort.subjects[0], name="other", label=1 - cohort.subjects[0].label)
    caching.cached(cohort.subjects[:1], tiny, tmp_path)
    for settings in (for_model(tiny, "no-mask"), with_values(tiny, {"training.epochs": 9, "training.folds": 3})):
        assert caching.cached([subject], replace(settings, outcome="her2"), tmp_path).subjects == ("other",)
    assert len(made) == 1
    for settings in (
        for_model(tiny, "mask-only"),
        with_values(tiny, {"volume.side": 24}),
        with_values(tiny, {"volume.background": 0.5}),
        with_values(tiny, {"mask.smallest_mm3": 50.0}),
        with_values(tiny, {"training.augment": "none"}),
        with_values(tiny, {"training.turn_degrees": 5.0}),
    ):
        caching.cached([subject], settings, tmp_path)
    assert len(made) == 7 == len(files(tmp_path))


def test_subjects_of_the_same_bytes_share_an_exam(cohort, tiny, tmp_path, made):
    first = cohort.subjects[0]
    found = caching.cached([first, cohort.subjects[1], replace(first, name="again")], tiny, tmp_path)
    assert len(made) == 2 and found.subjects[2] == "again" and np.array_equal(found.image[0], found.image[2])


def test_another_format_prepares_all_anew(cohort, tiny, tmp_path, made, monkeypatch):
    for number in (caching.FORMAT, caching.FORMAT + 1):
        monkeypatch.setattr(caching, "FORMAT", number)
        caching.cached(cohort.subjects[:1], tiny, tmp_path)
    assert len(made) == 2 == len(files(tmp_path))


def test_the_voxels_are_those_that_were_prepared(cohort, tiny, tmp_path):
    found = caching.cached(cohort.subjects[:2], tiny, tmp_path)
    for row in (0, 1):
        image, mask, voxel_mm, report = caching._prepared(cohort.subjects[row], tiny)
        assert np.array_equal(found.image[row], image) and np.array_equal(found.mask[row], mask.astype(bool))
        assert found.voxel_mm[row] == voxel_mm and found.reports[row] == json.loads(json.dumps(report))


@pytest.mark.parametrize("name", ["image", "mask"])
def test_arrays_are_indexed_as_numpy_indexes_them(name, cache):
    stored = getattr(cache, name)
    plain = np.asarray(stored)
    assert stored.shape == plain.shape and stored.dtype == plain.dtype and len(stored) == 12
    for key in (
        3,
        -1,
        np.int64(2),
        (4, 1),
        (0, 0, 3),
        np.s_[:, 0],
        np.s_[2:5],
        np.s_[:, 0, ..., None],
        np.s_[[5, 1], 2],
    ):
        assert np.array_equal(stored[key], plain[key]), key
    assert all(np.array_equal(batch, other) for batch, other in zip(stored, plain, strict=True))  # ends after the last
    with pytest.raises(IndexError):
        stored[12]


def test_open_files_are_bounded_and_all_exams_are_read(cache, monkeypatch):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc: this system does not tell a process' open files")
    monkeypatch.setattr(exam_file, "_opened", exam_file.functools.lru_cache(3)(exam_file._opened.__wrapped__))
    before = descriptors()
    sums = [int(cache.mask[row].sum()) for row in [*range(12), *range(12)]]
    assert sums[:12] == sums[12:] and min(sums) > 0 and descriptors() <= before + 3


def test_another_process_may_be_handed_a_cache(cache):
    found = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(found.image, cache.image) and found.subjects == cache.subjects


def _make(arguments):
    """Names of the subjects whose exams this process prepared."""
    subjects, settings, folder = arguments
    real, names, counted = caching._prepared, [], []

    def slow(subject, settings):
        names.append(subject.name)
        time.sleep(0.2)  # longer than one process takes to start after the other
        return real(subject, settings)

    caching._prepared = slow
    caching.cached(subjects, settings, folder, lambda done, of: counted.append((done, of)))
    return names, counted


def test_two_processes_make_each_exam_once(cohort, tiny, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_make, [(cohort.subjects[:8], tiny, tmp_path)] * 2, chunksize=1)
    assert sorted(sum((names for names, _ in found), [])) == [subject.name for subject in cohort.subjects[:8]]
    assert all(not counted or counted[-1][0] == counted[-1][1] for _, counted in found)
    assert len(files(tmp_path)) == 8


def test_an_exam_that_another_process_makes_is_waited_for(cohort, tiny, tmp_path, made):
    """Its file is held; it is not waited for where that is not asked, and made once its maker is gone."""
    subject = cohort.subjects[0]
    path = caching.exam_path(subject, tiny, tmp_path)
    path.parent.mkdir()
    with open(path.with_name(f".{path.name}.part"), "ab") as held:
        held.write(b"half an exam")
        fcntl.flock(held, fcntl.LOCK_EX)
        assert caching.prepare_exam(subject, tiny, tmp_path, wait=False) is None and made == []
    assert caching.prepare_exam(subject, tiny, tmp_path, wait=False) and made == [subject.name]
    assert files(tmp_path) == [path.name]
    assert caching.prepare_exam(subject, tiny, tmp_path).path == path and len(made) == 1


def test_a_file_system_without_locks_makes_exams_too(cohort, tiny, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    found = caching.cached(cohort.subjects[:2], tiny, tmp_path)
    assert files(tmp_path) == sorted(file.path.name for file in found.image.files)


def test_a_kill_loses_the_exams_in_work_alone(cohort, tiny, tmp_path, made):
    """Killed with the second exam half written, the first is kept and the second made again."""
    script = f"""
import os, pickle, sys
from mgkeras.data import cache as caching
subjects, settings, folder = pickle.loads(bytes.fromhex(sys.argv[1]))
def killed(part, *_):
    if len(os.listdir(part.parent)) > 1:
        part.write_bytes(b"half")
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    real(part, *_)
real, caching.write_exam, caching.WORKERS = caching.write_exam, killed, 1
caching.cached(subjects, settings, folder)
"""
    given = pickle.dumps((cohort.subjects[:4], tiny, tmp_path)).hex()
    assert subprocess.run([sys.executable, "-c", script, given]).returncode == -signal.SIGKILL
    assert [name[0] for name in files(tmp_path)].count(".") == 1 and len(files(tmp_path)) == 2
    caching.cached(cohort.subjects[:4], tiny, tmp_path)
    assert len(made) == 3 and len(files(tmp_path)) == 4


def test_an_exam_that_cannot_be_made_leaves_the_others(cohort, tiny, tmp_path):
    broken = tmp_path / "early.nii.gz"
    broken.write_bytes(b"no gzip")
    subjects = [*cohort.subjects[:2], replace(cohort.subjects[2], early=broken)]
    with pytest.raises(ValueError, match=r"early\.nii\.gz"):
        caching.cached(subjects, tiny, tmp_path)
    assert len(files(tmp_path)) == 2


def test_a_full_disk_is_told_before_anything_is_written(cohort, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(caching.CacheError, match="1 more exams at 16.3 needs 0.00 GB.*Make room"):
        caching.cached(cohort.subjects[:1], tiny, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_meanwhile_is_told_and_leaves_nothing(cohort, tiny, tmp_path, monkeypatch):
    """By Python, not by h5py, which ends the process."""

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(caching.CacheError, match="No space left on device"):
        caching.cached(cohort.subjects[:1], tiny, tmp_path)
    assert not files(tmp_path)


def test_the_estimate_holds(cache, small):
    sizes = [file.path.stat().st_size for file in cache.image.files]
    assert max(sizes) <= caching.estimated_bytes(1, small) <= 1.2 * min(sizes)
