"""A file is hashed while it is read, so that nothing reads it again for its digest."""

from __future__ import annotations

import hashlib
import os

import nibabel as nib
import numpy as np
import pytest

from mgkeras.data import io
from mgkeras.data.nifti import read_grid, read_nifti


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_read_whole_is_hashed_on_the_way_and_not_read_again(ending, tmp_path, monkeypatch):
    """fit checks each file and names its exam by the file's digest: that took two readings."""
    path = tmp_path / f"a{ending}"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((90, 60, 70)).astype("f4"), np.eye(4)), path)
    assert path.stat().st_size > 1 << 20  # more than is read at a time
    content = path.read_bytes()
    other = tmp_path / f"b{ending}"
    other.write_bytes(content)
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    read_grid(path)  # reads its beginning alone
    known = len(io._digests)
    read_nifti(path)
    assert len(io._digests) == known + 1
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda *_, **__: pytest.fail("the file is read again"))
        assert io.digest_of(path, "blake2b") == expected
    assert io.digest_of(other, "blake2b") == expected and io.digest_of(path, "sha256") != expected
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    assert io.digest_of(path, "blake2b") == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() != expected


def test_a_file_that_is_not_read_to_its_end_or_changes_meanwhile_has_no_digest(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)) * 30000)
    with io.opened_to_hash(path) as file:
        file.seek(3 << 20)
        file.read()
    with io.opened_to_hash(path) as file:
        file.read(100)
    with io.opened_to_hash(path) as file:
        file.read(7000000)
        path.write_bytes(bytes(6000000))
    assert ("blake2b", *io._version(path.stat())) not in io._digests
    with io.opened_to_hash(path) as file:  # twice over the same bytes is no harm
        file.read(5000000)
        file.seek(100)
        while file.read(4000):
            pass
    found = io._digests[("blake2b", *io._version(path.stat()))]
    assert found == hashlib.blake2b(bytes(6000000), digest_size=16).hexdigest()
