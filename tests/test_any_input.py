"""Whatever a table or a file holds, it is read rightly or refused: drawn at random, the same draws every time."""

from __future__ import annotations

import csv
import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import broken
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mgkeras.data.cohort import OWN_COLUMNS, Cohort, CohortError, Subject, read_cohort, write_cohort
from mgkeras.data.volume import ExamError, Volume, load_volume, same_space, save_like

drawn = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = (
    "subject",
    "pre",
    "early",
    "late",
    "mask",
    "site",
    "her2",
    "0",
    "1",
    "a",
    "b.nii",
    "=1+1",
    "",
    " ",
    '"',
    "ä",
    "\ufeff",
    "\0",
    "\r",
    "\n",
    "\r\n",
    ",",
    ";",
    "\t",
    "../..",
    "/etc",
    "\u2028",
    "\x1b[2J",
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # all but lone surrogates, which no UTF-8 holds
STRIPPED = TEXT.map(str.strip).filter(lambda text: "\0" not in text)
NAME = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9._+-]{0,20}[A-Za-z0-9_+-])?", fullmatch=True)
PATH = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=9).map(
    lambda text: f"images/{text}.nii.gz"
)
SMALL = {"packed": gzip.compress(broken.nifti(), mtime=0), "stored": gzip.compress(broken.nifti(), 0, mtime=0)}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def loaded(path: Path) -> Volume | None:
    """The volume, or None for an error that names the file; anything else fails the test."""
    try:
        volume = load_volume(path)
    except ExamError as error:
        assert str(path) in str(error) and "Received" in str(error)
        return None
    assert volume.data.dtype == np.float32 and volume.data.ndim == 3 and np.isfinite(volume.affine).all()
    return volume


# Tables


def cohort_of(path: Path, outcome: str | None, predict: bool) -> None:
    try:
        cohort = read_cohort(path, outcome, predict=predict)
    except CohortError as error:
        assert error.problems and str(path) in str(error)
    else:
        assert isinstance(cohort, Cohort) and cohort.subjects


@drawn
@given(
    st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(WORDS), max_size=60).map("".join).map(str.encode)),
    st.sampled_from([None, "her2", "", "subject"]),
    st.booleans(),
)
@example(b"\xff\xfes\0u\0b\0", None, False)
@example(b'subject,pre,early,her2\na,b,"c,1\nd,e,f,0\n', "her2", False)
def test_any_text_is_a_cohort_or_its_problems(folder: Path, content: bytes, outcome: str | None, predict: bool) -> None:
    (folder / "any.csv").write_bytes(content)
    cohort_of(folder / "any.csv", outcome, predict)


@drawn
@given(st.data())
def test_what_is_written_is_read_again(folder: Path, data: st.DataObject) -> None:
    columns = data.draw(
        st.lists(STRIPPED.filter(lambda name: name and name not in (*OWN_COLUMNS, "y")), unique=True, max_size=4)
    )
    names = data.draw(st.lists(NAME, unique_by=str.casefold, min_size=2, max_size=5))
    strategy = st.builds(
        lambda early, pre, late, mask, site, label, cells: dict(
            early=folder / early,
            pre=folder / pre,
            late=late and folder / late,
            mask=mask and folder / mask,
            site=site or None,
            label=label,
            covariates=dict(zip(columns, cells, strict=True)),
        ),
        PATH,
        PATH,
        st.none() | PATH,
        st.none() | PATH,
        STRIPPED,
        st.sampled_from([0, 1]),
        st.lists(STRIPPED, min_size=len(columns), max_size=len(columns)),
    )
    subjects = tuple(Subject(name, **data.draw(strategy)) for name in names)
    path = write_cohort(folder / "written.csv", subjects, "y")
    assert read_cohort(path, "y").subjects == subjects
    assert [left.name for left in folder.glob("*.part")] == []


@drawn
@given(
    st.lists(st.lists(STRIPPED, min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_every_spreadsheets_csv_reads_the_same(
    folder: Path, rows: list[list[str]], delimiter: str, end: str, marked: bool
) -> None:
    header = ["subject", "early", "x", "y", "z"]
    with open(folder / "sheet.csv", "w", encoding="utf-8-sig" if marked else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([header, *([f"s{i}", "t1.nii", *row] for i, row in enumerate(rows))])
    found = read_cohort(folder / "sheet.csv", predict=True).subjects
    assert [list(subject.covariates.values()) for subject in found] == rows


# Files


@drawn
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=20),
    st.sampled_from(["x.nii", "x.nii.gz"]),
)
def test_any_header_is_read_or_refused(folder: Path, changes: list[tuple[int, int]], name: str) -> None:
    content = bytearray(broken.nifti())
    for place, value in changes:
        content[place] = value
    broken.written(bytes(content))(folder / name)
    volume = loaded(folder / name)
    if volume is not None:  # a header that is not what it was may still be a header, but of as many bytes
        assert volume.data.size * 8 >= broken.voxels().nbytes


@drawn
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_a_changed_gzip_file_never_passes_for_another_exam(folder: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(SMALL[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "changed.nii.gz").write_bytes(content)
    volume = loaded(folder / "changed.nii.gz")
    if volume is not None:  # gzip's own header has bytes that mean nothing: the time, the system
        np.testing.assert_array_equal(volume.data[::-1, ::-1], broken.voxels())


@drawn
@given(st.sampled_from(sorted(SMALL)), st.data(), st.binary(max_size=5))
def test_a_cut_file_is_refused(folder: Path, kind: str, data: st.DataObject, more: bytes) -> None:
    cut = data.draw(st.integers(0, len(SMALL[kind]) - 1))
    assume(not SMALL[kind].startswith(SMALL[kind][:cut] + more))
    (folder / "cut.nii.gz").write_bytes(SMALL[kind][:cut])
    assert loaded(folder / "cut.nii.gz") is None
    (folder / "cut.nii.gz").write_bytes(SMALL[kind] + more)
    assert (loaded(folder / "cut.nii.gz") is None) == bool(more.strip(b"\0"))
    unpacked = broken.nifti()
    (folder / "cut.nii").write_bytes(unpacked[: data.draw(st.integers(0, len(unpacked) - 1))])
    assert loaded(folder / "cut.nii") is None


@drawn
@given(
    st_numpy.arrays(np.float64, (3, 4), elements=st.floats(allow_nan=True, allow_infinity=True, width=32)),
    st.booleans(),
)
def test_any_affine(folder: Path, rows: np.ndarray, turned: bool) -> None:
    """Drawn whole, and as a turned grid of the drawn voxel sizes; what is read can be written and read again."""
    if turned:
        q, _ = np.linalg.qr(np.nan_to_num(rows[:, :3], posinf=1, neginf=-1) / 1e38 + np.eye(3))
        rows = np.hstack([q * np.nan_to_num(np.abs(rows[:, 0])), rows[:, 3:]])
    content = broken.patched((broken.SROW, "<12f", tuple(np.clip(rows, -3e38, 3e38).ravel())))
    (folder / "affine.nii").write_bytes(content)
    volume = loaded(folder / "affine.nii")
    with np.errstate(over="ignore", invalid="ignore"):
        zooms = np.linalg.norm(rows[:, :3], axis=0)
    if volume is None:
        return
    assert ((zooms > 0.99e-3) & (zooms < 1.01e3)).all() and nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    again = load_volume(save_like(folder / "affine.nii", volume.data, folder / "again.nii"))
    np.testing.assert_array_equal(again.data, volume.data)
    far = np.abs(volume.affine[:3, 3]).max()
    assert same_space(volume, again, tolerance_mm=0.01 + 1e-6 * far) is None
