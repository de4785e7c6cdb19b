"""Every kind of problem of a cohort, with its row, subject, what was expected and what was found."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from anatomy import make_anatomy, missing
from scipy import ndimage

from mgkeras.data.checks import (
    check_enhancement,
    check_mask,
    check_motion,
    check_name,
    check_order,
    checked_exam,
    estimate_shift,
)
from mgkeras.data.cohort import (
    Cohort,
    CohortError,
    Problem,
    Subject,
    check_cohort,
    open_cohort,
    read_cohort,
    without,
    write_cohort,
)
from mgkeras.data.volume import Volume, load_volume

SIDE = 20
SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
TABLE = "subject,pre,early,recurrence\n"


def breast(n: int = SIDE, seed: int = 0) -> np.ndarray:
    """(n, n, n) a textured ball of tissue in dark air."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=(n, n, n)), 1.5)
    radius = np.square(np.stack(np.meshgrid(*[np.linspace(-1, 1, n)] * 3, indexing="ij"))).sum(0)
    return ((100 * (radius < 0.7) * (1 + 0.2 * texture / texture.std())) + 5).astype("f4")


def noisy(data: np.ndarray, seed: int) -> np.ndarray:
    return np.abs(data + np.random.default_rng(seed).normal(scale=2.0, size=data.shape)).astype("f4")


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one good exam and of one file for everything that can be wrong."""
    folder = tmp_path_factory.mktemp("exams")
    pre, early = noisy(breast(), 1), noisy(breast(), 2)
    early[8:12, 8:12, 8:12] *= 3
    mask = np.zeros(pre.shape, np.uint8)
    mask[8:12, 8:12, 8:12] = 1
    save(folder / "pre.nii.gz", pre)
    save(folder / "early.nii.gz", early)
    save(folder / "late.nii.gz", early)
    for number in range(6):  # of other patients: no two exams are the same
        save(folder / f"early{number}.nii.gz", early + number / 8)
    save(folder / "mask.nii.gz", mask)
    save(folder / "mask255.nii.gz", mask * 255)
    save(folder / "empty.nii.gz", mask * 0)
    save(folder / "full.nii.gz", mask * 0 + 1)
    save(folder / "three.nii.gz", mask + (pre > 90).astype(np.uint8))
    save(folder / "minus.nii.gz", -mask.astype(np.int16))
    save(folder / "series.nii.gz", np.stack([pre, pre], -1))
    save(folder / "constant.nii.gz", np.full_like(pre, 7))
    save(folder / "dark.nii.gz", -pre - 1)
    save(folder / "cropped.nii.gz", pre[1:])
    save(folder / "digits.nii.gz", pre, np.diag([2.0001, 2, 2, 1]))
    save(folder / "scaled.nii.gz", pre, np.diag([2.1, 2, 2, 1]))
    save(folder / "shifted.nii.gz", np.roll(pre, 3, axis=1))
    save(folder / "mask_cropped.nii.gz", mask[:, 1:])
    holes = pre.copy()
    holes[0, 0, :3], holes[1, 1, 1] = np.nan, np.inf
    save(folder / "holes.nii.gz", holes)
    whole = save(folder / "whole.nii", pre).read_bytes()
    (folder / "cut.nii").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.nii.gz").write_bytes((folder / "pre.nii.gz").read_bytes()[:-2000])
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"no image at all"))
    (folder / "folder.nii.gz").mkdir()
    return folder


def table(folder: Path, text: str, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def good_rows(count: int = 4) -> str:
    return "".join(f"s{i},pre.nii.gz,early{i}.nii.gz,{i % 2}\n" for i in range(count))


def table_problems(path: Path, outcome: str | None = None, **options: object) -> tuple[Problem, ...]:
    with pytest.raises(CohortError) as caught:
        read_cohort(path, outcome, **options)
    return caught.value.problems


def file_problems(files: Path, **columns: str) -> list[Problem]:
    """The problems of one exam, good but for these columns, in line 7 of a table."""
    paths = {name: files / file for name, file in {"early": "early.nii.gz", "pre": "pre.nii.gz", **columns}.items()}
    return check_cohort(Cohort(files / "cohort.csv", "recurrence", (Subject("s1", label=0, row=7, **paths),)))


# --- the table ---


def test_a_good_table(files: Path) -> None:
    text = "subject,pre,early,late,mask,site,age,recurrence,her2\n"
    text += "a,pre.nii.gz,early.nii.gz,late.nii.gz,mask.nii.gz,north,54,1,0\n"
    text += "b,pre.nii.gz,early1.nii.gz,,,,,0.0,1\nc,pre.nii.gz,early2.nii.gz,,,south,61,,0\n"
    cohort = read_cohort(table(files, text), "recurrence")
    a, b = cohort.subjects
    assert (cohort.outcome, cohort.unlabelled) == ("recurrence", ("c",))
    assert (a.name, a.row, a.label, a.site) == ("a", 2, 1, "north") and (b.label, b.site, b.late, b.mask) == (
        0,
        None,
        None,
        None,
    )
    assert a.early == files / "early.nii.gz" and a.mask == files / "mask.nii.gz"
    assert a.covariates == {"age": "54", "her2": "0"}  # the outcome itself is no covariate
    assert check_cohort(cohort) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("comma", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_spreadsheets_habits(tmp_path: Path, end: str, comma: str, mark: str) -> None:
    lines = ["subject,pre,early,recurrence,", "", ' a ,x,"y",1,', "b,x,y,0,", ",,,,"]
    path = table(tmp_path, mark + end.join(line.replace(",", comma) for line in lines) + end)
    subjects = read_cohort(path).subjects
    assert [(s.name, s.label, s.row) for s in subjects] == [("a", 1, 3), ("b", 0, 4)]
    assert subjects[0].covariates == {} and subjects[0].early == tmp_path / "y"


def test_a_row_is_the_line_where_it_begins(tmp_path: Path) -> None:
    text = 'subject,pre,early,note,recurrence\na,x,y,"two\nlines",1\nb,x,y,\x0b\u2028,0\nc,x,y,,2\n'
    (problem,) = table_problems(table(tmp_path, text), "recurrence")
    assert (problem.row, problem.subject) == (5, "c")


def test_the_only_outcome_is_taken_and_several_are_listed(tmp_path: Path) -> None:
    text = "subject,pre,early,age,stage,all0,recurrence\na,x,y,1,0,0,1\nb,x,y,0,2,0,0\nc,x,y,54,1,0,\n"
    assert read_cohort(table(tmp_path, text)).outcome == "recurrence"
    two = "subject,pre,early,her2,recurrence\na,x,y,1.0,0\nb,x,y,0.0,1\n"
    (problem,) = table_problems(table(tmp_path, two))
    assert (problem.row, problem.found) == (1, "no name")
    assert problem.expected == "one of these outcomes, named by --outcome: her2, recurrence"
    none = "subject,pre,early,age\na,x,y,54\n"
    (problem,) = table_problems(table(tmp_path, none))
    assert "0 and 1" in problem.expected and "age" in problem.found


def test_an_unknown_outcome_lists_those_that_could_be(tmp_path: Path) -> None:
    path = table(tmp_path, "subject,pre,early,site,age,her2\na,x,y,0,54,0\nb,x,y,1,61,1\n")
    (problem,) = table_problems(path, "recurence")
    assert problem == Problem(
        1, "", "recurence", "a column that could be the outcome: her2", "columns subject, pre, early, site, age, her2"
    )
    (problem,) = table_problems(path, "site")
    assert problem.found == "a column with a meaning of its own"


def test_every_bad_label_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, TABLE + "a,x,y,1\nb,x,y,2\nc,x,y,yes\nd,x,y,\n")
    problems = table_problems(path, "recurrence")
    assert [(p.row, p.subject, p.column, p.found) for p in problems] == [
        (3, "b", "recurrence", "'2'"),
        (4, "c", "recurrence", "'yes'"),
    ]
    assert problems[0].expected == "0 or 1, or empty where it is not known"
    assert str(problems[0]) == (
        "error: line 3, subject b, column recurrence: expected 0 or 1, or empty where it is not known. Received: '2'"
    )


def test_a_column_without_any_label_is_one_error(tmp_path: Path) -> None:
    path = table(tmp_path, "subject,pre,early,age,recurrence\na,x,y,54,0\nb,x,y,61,1\nc,x,y,47,1\nd,x,y,70,0\n")
    (problem,) = table_problems(path, "age")
    expected = "0 and 1, or empty where it is not known"
    assert problem == Problem(1, "", "age", expected, "neither, but 47, 54, 61 ...")


def test_one_exam_is_a_cohort_to_predict(tmp_path: Path) -> None:
    path = tmp_path / "Müller (2).T1.NII.GZ"
    path.touch()
    (subject,) = read_cohort(path, "recurrence", predict=True).subjects
    assert (subject.name, subject.early, subject.label) == ("M_ller_2_.T1", path, None)
    with pytest.raises(CohortError, match="csv file"):
        read_cohort(path)


def test_missing_columns_and_cells(tmp_path: Path) -> None:
    problems = table_problems(table(tmp_path, "subject,early,recurrence\na,y,1\nb,,0\n"))
    assert [(p.row, p.subject, p.column, p.found) for p in problems] == [
        (1, "", "pre", "columns subject, early, recurrence"),
        (3, "b", "early", "an empty cell"),
    ]
    problems = table_problems(table(tmp_path, "early,recurrence,recurrence\ny,1,1\ny,0,0\n"), need=("early",))
    assert [(p.row, p.column, p.found) for p in problems] == [
        (1, "recurrence", "2 columns"),
        (1, "subject", "columns early, recurrence"),
    ]


def test_t0_is_needed_only_where_there_is_no_mask(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "subject,early,mask,recurrence\na,y,m,1\nb,y,m,0\n"))
    assert [(subject.name, subject.pre) for subject in cohort.subjects] == [("a", None), ("b", None)]
    rows = "subject,pre,early,mask,recurrence\na,,y,m,1\nb,x,y,,0\nc,,y,,0\n"
    (problem,) = table_problems(table(tmp_path, rows))
    assert (problem.row, problem.column, problem.found) == (4, "pre", "an empty cell") and "mask" in problem.expected
    (problem,) = table_problems(table(tmp_path, "subject,early,mask,recurrence\na,y,m,1\nb,y,,0\n"))
    assert (problem.row, problem.column) == (1, "pre") and "mask in every row" in problem.expected


def test_ragged_rows(tmp_path: Path) -> None:
    problems = table_problems(table(tmp_path, TABLE + "a,x,y,1\nb,x,y,0,9\nc,x,y\n"), "recurrence")
    assert [(p.row, p.subject, p.expected, p.found) for p in problems] == [
        (3, "b", "4 cells", "5 cells"),
        (4, "c", "4 cells", "3 cells"),
    ]


def test_names_occur_once_and_can_name_files(tmp_path: Path) -> None:
    names = ["a1", "b", "A1", "", "../x", ".hidden", "x y", "con", "a1"]
    rows = "".join(f"{name},x,y,{i % 2}\n" for i, name in enumerate(names))
    problems = table_problems(table(tmp_path, TABLE + rows))
    assert [(p.row, p.found) for p in problems] == [
        (4, "A1, as in line 2"),
        (5, "an empty cell"),
        (6, "'../x'"),
        (7, "'.hidden'"),
        (8, "'x y'"),
        (9, "'con'"),
        (10, "a1, as in line 2"),
    ]
    for name in ("ACRIN-6698-102212", "ISPY1_1001", "Breast_MRI_001", "1.2.840", "x" * 100):
        assert check_name(name) == []
    for name in ("x.", "-x", "x" * 101, "ä", "x/y", "x\\y", "x:y", "COM1.nii", "x\n"):
        assert check_name(name)


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), (b"", "an empty file"), (b"\n\r\n", "an empty file"), (b"subject\xe4", "utf-8")],
)
def test_no_table_at_all(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "cohort.csv"
    if content is not None:
        path.write_bytes(content)
    (problem,) = table_problems(path)
    assert problem.row == 1 and found in problem.found and "UTF-8" in problem.expected


def test_no_subject_is_left(tmp_path: Path) -> None:
    (problem,) = table_problems(table(tmp_path, TABLE + "a,x,y,\nb,x,y,\n"), "recurrence")
    assert problem.found == "2 subjects, all with an empty outcome"
    (problem,) = table_problems(table(tmp_path, TABLE), "recurrence")
    assert problem.found == "no subjects"


def test_to_predict_only_early_is_needed(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "subject,early\na,y\nb,y\n"), "recurrence", predict=True)
    assert cohort.outcome is None and [s.label for s in cohort.subjects] == [None, None]
    path = table(tmp_path, TABLE + "a,,y,1\nb,x,y,\n")
    cohort = read_cohort(path, "recurrence", predict=True)
    assert [(s.name, s.label, s.pre is None) for s in cohort.subjects] == [("a", 1, True), ("b", None, False)]
    assert cohort.outcome == "recurrence" and cohort.unlabelled == ()
    (problem,) = table_problems(path, predict=True, need=("pre",))
    assert (problem.row, problem.column) == (2, "pre")
    (problem,) = table_problems(table(tmp_path, TABLE + "a,,y,3\n"), "recurrence", predict=True)
    assert problem.found == "'3'"


# --- the files ---


@pytest.mark.parametrize(
    ("column", "file", "expected", "found"),
    [
        ("pre", "nowhere.nii.gz", "a readable NIfTI", "no file at"),
        ("pre", "folder.nii.gz", "a readable NIfTI", "a folder at"),
        ("pre", "bad\0name.nii", "a readable NIfTI", "bad"),
        ("early", "text.nii.gz", "a readable NIfTI", "text.nii.gz"),
        ("early", "cut.nii", "a readable NIfTI", "cut.nii"),
        ("late", "cut.nii.gz", "a readable NIfTI", "cut.nii.gz"),
        ("pre", "series.nii.gz", "3D", f"({SIDE}, {SIDE}, {SIDE}, 2)"),
        ("late", "cropped.nii.gz", "the space of early", f"({SIDE - 1}, {SIDE}, {SIDE})"),
        ("pre", "scaled.nii.gz", "the space of early", "1.90 mm"),
        ("mask", "mask_cropped.nii.gz", "the space of early", f"({SIDE}, {SIDE - 1}, {SIDE})"),
        ("mask", "three.nii.gz", "a binary mask", "3 values: 0, 1, 2"),
        ("mask", "minus.nii.gz", "a binary mask", "2 values: -1, 0"),
        ("mask", "holes.nii.gz", "finite voxels", "3 NaN and 1 infinite"),
        ("pre", "holes.nii.gz", "finite voxels", f"3 NaN and 1 infinite of {SIDE**3} voxels"),
        ("late", "constant.nii.gz", "voxels that differ", "7 in every voxel"),
        ("late", "dark.nii.gz", "voxels above 0", "to -1"),
    ],
)
def test_a_bad_file_is_an_error(files: Path, column: str, file: str, expected: str, found: str) -> None:
    (problem,) = file_problems(files, **{column: file})
    assert (problem.row, problem.subject, problem.column, problem.severity) == (7, "s1", column, "error")
    assert expected in problem.expected and found in problem.found


@pytest.mark.parametrize(
    ("column", "file", "where", "found"),
    [
        ("mask", "empty.nii.gz", "mask", "an empty mask"),
        ("mask", "full.nii.gz", "mask", "1 in every voxel"),
        ("pre", "early.nii.gz", "pre", "early.nii.gz"),
        ("pre", "shifted.nii.gz", "early", "motion"),
    ],
)
def test_a_doubtful_file_is_a_warning(files: Path, column: str, file: str, where: str, found: str) -> None:
    (problem,) = file_problems(files, **{column: file})
    assert (problem.row, problem.column, problem.severity) == (7, where, "warning") and found in problem.found


@pytest.mark.parametrize(
    ("column", "file"), [("pre", "digits.nii.gz"), ("mask", "mask255.nii.gz"), ("mask", "mask.nii.gz")]
)
def test_what_is_no_problem(files: Path, column: str, file: str) -> None:
    assert file_problems(files, **{column: file}) == []


def test_the_axis_order_of_a_file_does_not_matter(files: Path, tmp_path: Path) -> None:
    image = nib.load(files / "pre.nii.gz")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "R")))
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert file_problems(files, pre=str(tmp_path / "turned.nii.gz")) == []


@pytest.mark.parametrize("seed", range(30))
def test_no_damaged_header_stops_the_pass(files: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray((files / "whole.nii").read_bytes())
    for place in rng.integers(0, 348, size=20):
        content[place] = rng.integers(256)
    (tmp_path / "damaged.nii").write_bytes(content)
    for problem in file_problems(files, pre=str(tmp_path / "damaged.nii")):
        assert problem.row == 7 and problem.expected and problem.found


def test_a_class_smaller_than_the_folds(files: Path) -> None:
    cohort = read_cohort(table(files, TABLE + good_rows(5)))
    assert check_cohort(cohort, folds=2) == []
    assert check_cohort(cohort, folds=3) == [
        Problem(1, "", "recurrence", "3 or more subjects of class 1, one a fold", "2")
    ]


# --- motion ---


def enhanced(data: np.ndarray, seed: int) -> np.ndarray:
    """A tenth of the tissue four times as bright, and a smooth enhancement of half of the rest."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=data.shape), sigma) for sigma in (2, 5)]
    spots = smooth[0] > np.quantile(smooth[0], 0.9)
    return data * (1 + 0.5 * np.clip(smooth[1] / smooth[1].std(), 0, 2) + 3 * spots)


@pytest.mark.parametrize("shift", [(0, 0, 0), (0.4, 0, 0), (2, 0, 0), (1, -2, 0), (0, 0, 3.5)])
def test_shift_of_a_phantom(shift: tuple[float, float, float]) -> None:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    pre = breast(32)
    early = ndimage.shift(enhanced(pre, 3), shift, order=1, mode="nearest")
    pre, early = Volume(noisy(pre, 1), affine), Volume(noisy(early, 2), affine)
    truth = np.array(shift) * pre.zooms
    voxels = 0.35 if shift[2] == 3.5 else 0.1  # interpolated by half a voxel, early has lost its fine edges
    np.testing.assert_allclose(estimate_shift(pre, early) / pre.zooms, shift, atol=voxels)
    findings = check_motion(pre, early)
    assert bool(findings) == (np.abs(truth) > 1).any()
    if findings:
        told = float(findings[0].found.split(" mm")[0].split()[-1])
        assert findings[0].severity == "warning" and abs(told - np.linalg.norm(truth)) < 2 * voxels + 0.05


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 1, 0), (1, 3, -4)])
def test_shift_of_a_real_breast(shift: tuple[int, int, int]) -> None:
    path = SHARED / "ispy1_1001" / "pre.nii.gz"
    if not path.exists():
        pytest.skip(f"no {path}: set MGKERAS_SHARED_DATA")
    real = load_volume(path)  # (60, 256, 256), 2 x 0.7 x 0.7 mm
    moved = ndimage.shift(enhanced(real.data, 1), shift, order=1, mode="nearest")
    scale = real.data.max() / 100
    pre, early = (Volume(noisy(d / scale, i), real.affine) for i, d in enumerate((real.data, moved)))
    truth = np.array(shift) * real.zooms
    np.testing.assert_allclose(estimate_shift(pre, early), truth, atol=0.5)
    assert bool(check_motion(pre, early)) == (np.abs(truth) > 1).any()


def test_half_a_voxel_of_a_thick_slice_is_no_warning() -> None:
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    pre = breast(32)
    early = ndimage.shift(pre, (0, 0, 0.4), order=1, mode="nearest")  # 2.4 mm
    assert check_motion(Volume(noisy(pre, 1), affine), Volume(noisy(early, 2), affine)) == []


def test_noise_and_tiny_volumes_have_no_shift() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 16, 40):
        pair = [Volume(rng.normal(size=(n, n, n)).astype("f4"), np.eye(4)) for _ in range(2)]
        assert estimate_shift(*pair) is None


# --- exchanged phases ---


@pytest.mark.parametrize("side", [16, 32])
def test_exchanged_phases_are_told_and_another_gain_is_not_taken_for_them(side: int) -> None:
    pre = breast(side)
    early = 1.05 * enhanced(pre, 3)  # nothing enhances not at all
    for gain in (0.8, 0.9, 1.0, 2.0):
        assert check_order(Volume(noisy(pre, 1), np.eye(4)), Volume(noisy(gain * early, 2), np.eye(4))) == []
    for gain in (0.8, 0.9, 1.0):
        (finding,) = check_order(Volume(noisy(early, 1), np.eye(4)), Volume(noisy(gain * pre, 2), np.eye(4)))
        assert (finding.column, finding.severity) == ("early", "warning") and "exchanged phases?" in finding.found


def test_what_says_nothing_of_the_order_is_no_warning() -> None:
    pre = breast()
    same = [Volume(noisy(pre, seed), np.eye(4)) for seed in range(6)]
    assert not any(check_order(volume, other) for volume in same for other in same)
    drift = Volume(0.985 * pre, np.eye(4))  # a scanner that is 1.5 % weaker two minutes later
    hole = Volume(np.where(pre > 100, np.inf, pre), np.eye(4))
    assert check_order(same[0], drift) == check_order(same[0], hole) == check_order(hole, hole) == []


@pytest.mark.parametrize("kind", ["phantom", "real anatomy"])
def test_exchanged_phases_of_whole_cohorts(kind: str, phantom: Path, tmp_path: Path) -> None:
    if kind != "phantom" and missing():
        pytest.skip(missing())
    path = phantom if kind == "phantom" else make_anatomy(tmp_path / "anatomy", subjects=3)
    for subject in read_cohort(path, "recurrence").subjects:
        assert checked_exam({"pre": subject.pre, "early": subject.early}).findings == []
        (told,) = checked_exam({"pre": subject.early, "early": subject.pre}).findings
        assert "exchanged phases?" in told.found, subject.name


def test_mask_values_are_listed_up_to_five() -> None:
    (finding,) = check_mask(np.arange(27.0).reshape(3, 3, 3))
    assert finding.found == "27 values: 0, 1, 2, 3, 4, ..."


# --- all at once, and leaving out ---

MIXED = TABLE.replace("early", "early,mask") + "".join(
    [
        "a,pre.nii.gz,early.nii.gz,mask.nii.gz,0\n",
        "b,nowhere.nii.gz,cut.nii,three.nii.gz,1\n",
        "c,pre.nii.gz,early1.nii.gz,empty.nii.gz,2\n",
        "a,pre.nii.gz,holes.nii.gz,,1\n",
        "e,shifted.nii.gz,early2.nii.gz,,0\n",
        "f,pre.nii.gz,early3.nii.gz,,1\n",
        "g,pre.nii.gz,early4.nii.gz,,\n",
    ]
)


def test_all_problems_in_one_pass(files: Path) -> None:
    path = table(files, MIXED, "mixed.csv")
    with pytest.raises(CohortError) as caught:
        open_cohort(path, "recurrence", folds=4)
    told = [(p.row, p.subject, p.column, p.severity) for p in caught.value.problems]
    assert told == [
        (1, "", "recurrence", "error"),
        (1, "", "recurrence", "error"),
        (3, "b", "early", "error"),
        (3, "b", "pre", "error"),
        (3, "b", "mask", "error"),
        (4, "c", "recurrence", "error"),
        (4, "c", "mask", "warning"),
        (5, "a", "subject", "error"),
        (5, "a", "early", "error"),
        (6, "e", "early", "warning"),
    ]
    text = str(caught.value)
    assert "8 errors" in text and len(text.splitlines()) == 11 and "line 5, subject a, column subject" in text


def test_skip_invalid_leaves_out_the_bad_by_name(files: Path) -> None:
    path = table(files, MIXED, "mixed.csv")
    cohort, problems = open_cohort(path, "recurrence", folds=1, skip_invalid=True)
    assert [s.name for s in cohort.subjects] == ["e", "f"] and cohort.unlabelled == ("g",)
    assert {p.subject for p in problems} == {"a", "b", "c", "e"}
    with pytest.raises(CohortError, match="2 or more subjects of class 0.*Received: 1"):
        open_cohort(path, "recurrence", folds=2, skip_invalid=True)
    with pytest.raises(CohortError, match="could be the outcome"):
        open_cohort(path, "her2", skip_invalid=True)
    with pytest.raises(CohortError, match="--skip-invalid"):
        open_cohort(path, "recurrence")
    nobody = table(files, TABLE + "a,x,y,0\nb,x,y,1\n", "nobody.csv")
    with pytest.raises(CohortError, match="one subject or more"):
        open_cohort(nobody, skip_invalid=True)


def test_without(files: Path) -> None:
    cohort = read_cohort(table(files, TABLE + good_rows()))
    assert [s.name for s in without(cohort, {"s1", "s9"}).subjects] == ["s0", "s2", "s3"]
    assert open_cohort(cohort.path, folds=2) == (cohort, [])


# --- one exam under several names ---


def repeated(files: Path, rows: str, **options: object) -> list[tuple[int, str, str]]:
    """(line, severity, what was received) of the problems of a table with columns patient and site."""
    path = table(files, "subject,pre,early,patient,site,recurrence\n" + rows, "repeated.csv")
    try:
        _, problems = open_cohort(path, "recurrence", **options)
    except CohortError as error:
        problems = error.problems
    return [(problem.row, problem.severity, f"{problem.expected}: {problem.found}") for problem in problems]


def test_one_exam_under_two_names_with_two_labels_is_an_error_of_both(files: Path, tmp_path: Path) -> None:
    image = nib.load(files / "early0.nii.gz")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "R")))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine), tmp_path / "again.nii")
    rows = f"a,pre.nii.gz,early0.nii.gz,p,n,0\nb,pre.nii.gz,{tmp_path / 'again.nii'},p,n,1\n"
    first, second = repeated(files, rows)
    assert first[:2] == (2, "error") and "one label for one exam" in first[2] and "subject b in line 3" in first[2]
    assert second[:2] == (3, "error") and "whose recurrence is 0 and not 1" in second[2]
    assert [finding[1] for finding in repeated(files, rows, predict=True)] == ["warning", "warning"]


def test_one_exam_under_two_names_that_folds_would_part_is_an_error(files: Path) -> None:
    rows = "a,pre.nii.gz,early0.nii.gz,{},n,0\nb,pre.nii.gz,early0.nii.gz,{},n,0\nc,pre.nii.gz,early1.nii.gz,,n,1\n"
    ((row, severity, text),) = repeated(files, rows.format("", ""))
    assert (row, severity) == (3, "error") and "column patient" in text and "subject a in line 2" in text
    assert repeated(files, rows.format("p", "q"))[0][1] == "error"
    assert [finding[:2] for finding in repeated(files, rows.format("p", "p"))] == [(3, "warning")]
    cohort, _ = open_cohort(files / "repeated.csv", "recurrence", skip_invalid=True)
    assert [subject.name for subject in cohort.subjects] == ["a", "b", "c"]
    repeated(files, rows.format("", ""))
    cohort, _ = open_cohort(files / "repeated.csv", "recurrence", skip_invalid=True)
    assert [subject.name for subject in cohort.subjects] == ["a", "c"]


# --- slabs ---


def slab(folder: Path, slices: int, name: str) -> Path:
    data = noisy(breast(), slices)[:, :, :slices]
    return save(folder / f"{name}.nii.gz", data)


def test_slabs_of_less_than_four_slices_are_refused_and_of_less_than_eight_told(tmp_path: Path) -> None:
    for name, slices in (("a", 3), ("b", 1), ("c", 6), ("d", 4), ("e", 8)):
        slab(tmp_path, slices, name)
    rows = "".join(f"{name},{name}.nii.gz,m,{n % 2}\n" for n, name in enumerate("abcde"))
    path = table(tmp_path, "subject,early,mask,recurrence\n" + rows.replace(",m,", ",,"))
    options = {"need": ("early",)}
    with pytest.raises(CohortError) as caught:
        open_cohort(path, "recurrence", **options)
    told = [(p.row, p.severity) for p in caught.value.problems]
    assert told == [(1, "warning"), (2, "error"), (3, "error")]
    assert "20 x 20 x 3 voxels" in str(caught.value) and "--allow-thin" in str(caught.value)
    assert "4 to 6 in 2 of 5 subjects: c, d" in caught.value.problems[0].found
    _, problems = open_cohort(path, "recurrence", allow_thin=True, **options)
    assert [p.severity for p in problems] == ["warning"] * 3
    _, problems = open_cohort(path, "recurrence", predict=True)
    assert [p.severity for p in problems] == ["warning"] * 3


# --- nothing that enhances ---


@pytest.mark.parametrize("side", [16, 32, 80])
def test_two_phases_before_contrast_are_told(side: int) -> None:
    pre = breast(side)
    spot = pre.copy()
    middle = slice(side // 2 - 2, side // 2 + 3)
    spot[middle, middle, middle] *= 1.8
    for gain in (0.95, 1.0, 1.1):
        (told,) = check_enhancement(Volume(noisy(pre, 1), np.eye(4)), Volume(noisy(gain * pre, 2), np.eye(4)))
        assert (told.column, told.severity) == ("early", "warning") and "before contrast" in told.found
        if side < 80:
            assert check_enhancement(Volume(noisy(pre, 1), np.eye(4)), Volume(noisy(gain * spot, 2), np.eye(4))) == []
        vivid = gain * enhanced(pre, 3)
        assert check_enhancement(Volume(noisy(pre, 1), np.eye(4)), Volume(noisy(vivid, 2), np.eye(4))) == []


def test_written_and_read_again(tmp_path: Path) -> None:
    elsewhere = tmp_path / "images"
    subjects = [
        Subject(
            "a",
            elsewhere / "a1.nii.gz",
            elsewhere / "a0.nii.gz",
            mask=tmp_path / "m, 1.nii.gz",
            label=1,
            covariates={"age": "54", "her2": ""},
        ),
        Subject(
            "b",
            elsewhere / "b1.nii.gz",
            elsewhere / "b0.nii.gz",
            site="north",
            label=0,
            covariates={"age": "", "her2": "1"},
        ),
    ]
    (tmp_path / "tables").mkdir()
    path = write_cohort(tmp_path / "tables" / "cohort.csv", subjects, "recurrence")
    assert path.read_text().splitlines()[0] == "subject,pre,early,mask,site,age,her2,recurrence"
    again = read_cohort(path, "recurrence").subjects
    assert [(s.name, s.label, s.site, s.covariates) for s in again] == [
        (s.name, s.label, s.site, s.covariates) for s in subjects
    ]
    assert [s.early.resolve() for s in again] == [s.early.resolve() for s in subjects]
    assert again[0].mask.resolve() == subjects[0].mask.resolve() and list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="label"):
        write_cohort(path, subjects)
    with pytest.raises(ValueError, match="her2"):
        write_cohort(path, subjects, "her2")


def test_a_decimal_comma_is_a_number_where_semicolons_part_the_cells(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("\ufeffsubject;early;pre;age;note;y\nA;a;b;39,5;x,5;1\nB;c;d;-41,25;1,2,3;0\n", "utf-8")
    first, second = read_cohort(table, "y").subjects
    assert (first.covariates, second.covariates) == ({"age": "39.5", "note": "x,5"}, {"age": "-41.25", "note": "1,2,3"})
    table.write_text('subject,early,pre,age,y\nA,a,b,"39,5",1\nB,c,d,40,0\n', "utf-8")
    assert read_cohort(table, "y").subjects[0].covariates == {"age": "39,5"}
