"""BreastDCEDL: the true spacing put under arrays that lack it, tables that complete or contradict, phases."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import exams_of, reasons
from miniatures.breastdcedl import DUKE, SPY1, SPY2, WITHOUT, make_breastdcedl, save

from mgkeras.data.cohort import open_cohort
from mgkeras.data.nifti import read_grid, read_nifti
from mgkeras.importers.breastdcedl import read
from mgkeras.importers.found import SourceError
from mgkeras.importers.sheet import kept, write_found
from mgkeras.importers.spacing import Spacing, affine_with, agrees, directions, slice_axis, write_copy

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = SHARED / "ispy2"
COLUMNS = "pid,pCR,HR,HER2,pre,post_early,post_late,n_z,slice_space,xy_spacing"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}: the folder with real data is absent")


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return make_breastdcedl(tmp_path_factory.mktemp("breastdcedl"))


@pytest.fixture(scope="module")
def found(download, tmp_path_factory):
    return read(download, nifti=tmp_path_factory.mktemp("out") / "nifti")


def table(folder, *lines, header=COLUMNS, name="metadata.csv"):
    (folder / name).write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return folder


def volumes(folder, pid, indices=(0, 1, 2), shape=(4, 6, 6), infix="_spy2_vis1_dce_aqc_"):
    rng = np.random.default_rng(0)
    return [save(folder / f"{pid}{infix}{index}.nii.gz", rng.random(shape)) for index in indices]


def rows_of(download, name):
    with (download / name).open(encoding="utf-8") as file:
        return {row["pid"]: row for row in csv.DictReader(file)}


@real
def test_all_982_real_patients_are_accounted_for(tmp_path):
    found = read(REAL)
    assert len(found.exams) == 982 and found.left_out == ()
    cohort, sheet = write_found(found, tmp_path)
    assert cohort is None and "| no volumes found | 982 |" in sheet.read_text("utf-8")
    assert "Subjects: 0 in cohort.csv, 982 left out." in sheet.read_text("utf-8")


@real
def test_the_labels_of_all_982_are_those_of_their_table(tmp_path):
    found = read(REAL, labels_only=True)
    rows = rows_of(REAL, "metadata.csv")
    for exam in found.exams:
        row = rows[exam.name]
        assert exam.outcomes == {
            "pcr": row["pCR"],
            "her2": row["HER2pos"],
            "hr": row["HR"],
            "triple_negative": row["TripleNeg"],
        }
    assert Counter(exam.split for exam in found.exams) == {"train": 781, "test": 98, "val": 98, "": 5}
    assert sum(not exam.covariates["age"] for exam in found.exams) == 3
    counts = {name: Counter(exam.outcomes[name] for exam in found.exams) for name in found.outcomes}
    assert [counts[name]["1"] for name in ("pcr", "her2", "hr", "triple_negative")] == [316, 242, 536, 359]
    cohort, _ = write_found(found, tmp_path, labels_only=True)
    assert len(cohort.read_text("utf-8").splitlines()) == 983


@real
@pytest.mark.parametrize("pid", ["ACRIN-6698-102212", "ISPY2-550421"])
def test_slices_are_the_first_axis_of_the_real_masks(tmp_path, pid):
    row, path = rows_of(REAL, "metadata.csv")[pid], REAL / f"{pid}_spy2_vis1_mask.nii.gz"
    data, grid = read_nifti(path)
    axis = slice_axis(grid.shape, float(row["n_z"]))
    inside = np.flatnonzero(data.any(axis=tuple({0, 1, 2} - {axis})))
    assert (axis, inside[0], inside[-1]) == (0, float(row["mask_start"]), float(row["mask_end"]))
    spacing = Spacing(float(row["xy_spacing"]), float(row["slice_space"]), None)
    copy = write_copy(path, affine_with(grid, spacing, float(row["n_z"])), tmp_path)
    same, true = read_nifti(copy)
    assert (same == data).all() and data.sum() == float(row["mask_count"])
    assert np.allclose(np.diag(true.affine)[:3], [spacing.gap, spacing.in_plane, spacing.in_plane])


def test_every_subject_gets_its_true_spacing_and_keeps_its_voxels(download, found):
    originals = {path.name: path for path in download.rglob("*.nii.gz")}
    true = rows_of(download, "metadata_spy2_vis1_for_modeling.csv")
    for name, exam in exams_of(found).items():
        for column, path in exam.files.items():
            data, grid = read_nifti(path)
            if name in true:
                spacing = [float(true[name][key]) for key in ("slice_space", "xy_spacing", "xy_spacing")]
                assert np.allclose(grid.affine, np.diag([*spacing, 1]), atol=1e-4)
            before, unit = read_nifti(originals[path.name])
            assert (data == before).all() and np.allclose(unit.affine, np.eye(4)), column
    assert "Subjects whose headers had no true spacing, now in OUT/nifti with that of the tables: 12." in found.notes


def test_the_table_is_a_cohort_without_errors(found, tmp_path):
    path, _ = write_found(found, tmp_path)
    cohort, problems = open_cohort(path, "pcr")
    assert len(cohort.subjects) == 12 and problems == []
    assert reasons(kept(found)) == {
        WITHOUT["volumes"]: "no volumes found",
        WITHOUT["spacing"]: "no table tells its spacing, and its header says 1 x 1 x 1 mm",
    }
    assert set(reasons(found, "mask")) == {WITHOUT["mask"], *DUKE}


def test_outcomes_where_a_zero_means_unknown(download, found):
    exams = exams_of(found)
    unknown = exams[WITHOUT["receptors"]]
    assert (unknown.outcomes["hr"], unknown.outcomes["her2"], unknown.outcomes["triple_negative"]) == ("", "", "")
    assert unknown.outcomes["pcr"] in ("0", "1")
    for name, row in rows_of(download, "BreastDCEDL_metadata.csv").items():
        if name in exams and name != WITHOUT["receptors"]:
            told = exams[name].outcomes
            assert (told["triple_negative"] == "1") == (row["HR_HER2_STATUS"] == "TripleNeg"), name
            assert told["her2"] == row["HER2pos"] and told["pcr"] == row["pCR"]


def test_cohorts_go_by_name_for_a_table_lies(download, found):
    assert {name: exam.covariates["cohort"] for name, exam in exams_of(found).items() if name in SPY1} == dict.fromkeys(
        SPY1, "ispy1"
    )
    own = read(download, which="ispy1", labels_only=True)
    assert {exam.name for exam in own.exams} == set(SPY1)
    assert "Subjects of other cohorts than ispy1: 10." in own.notes
    assert {exam.name for exam in read(download, which="duke", labels_only=True).exams} == set(DUKE)
    assert exams_of(found)["ISPY1_1001"].site == "Site AAI"
    assert exams_of(found)["ISPY1_1001"].scanner == "GE MEDICAL SYSTEMS"
    assert exams_of(found)["ISPY1_1001"].covariates["longest_diameter_mm"] == "88"
    assert "rcb_class" not in exams_of(found)["ISPY1_1001"].covariates


@pytest.mark.parametrize(
    ("pid", "said", "cohort"),
    [
        ("ISPY1_1001", "duke", "ispy1"),
        ("ispy2-1", "duke", "ispy2"),
        ("ACRIN-6698-1", "", "ispy2"),
        ("Breast_MRI_001", "spy2", "duke"),
        ("X1", "duke", "duke"),
        ("X1", "spy1", "ispy1"),
        ("X1", "other", ""),
    ],
)
def test_which_cohort(tmp_path, pid, said, cohort):
    found = read(table(tmp_path, f"{pid},1,1,0,{said}", header="pid,pCR,HR,HER2,dataset"), labels_only=True)
    assert found.exams[0].covariates["cohort"] == cohort
    assert ("Subjects whose cohort is not known: 1." in found.notes) == (not cohort)


def test_the_split_is_0_train_1_test_2_val(found):
    splits = [exam.split for exam in (exams_of(found)[name] for name in SPY2[:3])]
    assert splits == ["train", "test", "train"] and exams_of(found)["ISPY1_1144"].split == "train"
    assert exams_of(found)["ISPY1_1001"].split == "val"


def test_slices_lie_apart_by_their_distance_not_their_thickness(download, found, tmp_path):
    row = rows_of(download, "BreastDCEDL_duke_metadata.csv")["Breast_MRI_003"]
    grid = read_grid(exams_of(found)["Breast_MRI_003"].files["early"])
    assert grid.affine[0, 0] == pytest.approx(float(row["voxel_z"]), rel=1e-5)
    assert float(row["slice_thick"]) == pytest.approx(2 * float(row["voxel_z"]))
    alone = tmp_path / "alone"
    shutil.copytree(download, alone, ignore=lambda _, names: {"BreastDCEDL_duke_metadata.csv"} & set(names))
    without = read(alone, nifti=tmp_path / "nifti", which="duke")
    grid = read_grid(exams_of(without)["Breast_MRI_003"].files["early"])
    assert grid.affine[0, 0] == pytest.approx(float(row["slice_thick"]), rel=1e-5)
    assert any("taken from their thickness: 2" in note for note in without.notes)


def test_phases_by_table_as_usual_and_by_order(found, tmp_path):
    assert exams_of(found)[WITHOUT["phases"]].files["early"].name.endswith("_2.nii.gz")
    row = ",1,1,0,{},6,2,0.5"
    lines = [
        "A1" + row.format("0.0,2.0,4.0"),
        "A2" + row.format("0,2,6"),
        "A3" + row.format(",,"),
        "A4" + row.format("0,1,2"),
        "A5" + row.format("0,2,5"),
        "A6" + row.format("0,2,6"),
        "A7" + row.format("2,0,5"),
    ]
    table(tmp_path, *lines)
    for pid, indices in {
        "A1": range(6),
        "A2": (0, 1, 2),
        "A3": range(5),
        "A4": (1, 2),
        "A5": (0,),
        "A7": range(6),
    }.items():
        volumes(tmp_path, pid, indices, shape=(6, 8, 8))
    found = read(tmp_path, nifti=tmp_path / "out")
    chosen = {exam.name: {column: int(path.name[-8]) for column, path in exam.files.items()} for exam in found.exams}
    assert chosen == {
        "A1": {"pre": 0, "early": 2, "late": 4},
        "A2": {"pre": 0, "early": 1, "late": 2},
        "A3": {"pre": 0, "early": 2, "late": 4},
        "A4": {"early": 1},
        "A5": {"pre": 0},
        "A6": {},
        "A7": {"pre": 0, "early": 2, "late": 5},
    }
    assert reasons(kept(found)) == {"A4": "no pre phase found", "A5": "no early phase found", "A6": "no volumes found"}


def test_a_second_call_keeps_what_is_finished_and_mends_what_is_not(download, tmp_path):
    out = tmp_path / "nifti"
    read(download, nifti=out, which="ispy1")
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(times) == 16 and not any(name.startswith(".") for name in times)
    broken, other = sorted(out.iterdir())[:2]
    broken.write_bytes(broken.read_bytes()[:300])
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), "u1"), np.eye(4)), other)
    read(download, nifti=out, which="ispy1")
    again = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in times if times[name] != again[name]} >= {broken.name, other.name}
    assert sum(times[name] == again[name] for name in times) >= 14
    turned = read(download, nifti=out, which="ispy1", axes="rsp")
    assert all(
        nib.aff2axcodes(read_grid(path).affine) == ("R", "S", "P")
        for exam in turned.exams
        for path in exam.files.values()
    )
    assert "The axes grow toward RSP, as told." in turned.notes


@pytest.mark.parametrize("spacing", ["2,0.5", ","])
def test_a_right_header_is_left_alone_and_a_masks_unit_header_is_not(tmp_path, spacing):
    source = tmp_path / "in"
    source.mkdir()
    table(source, f"ISPY2-1,1,1,0,0,1,2,6,{spacing}")
    affine = np.array([[0, 0, -0.5, 9], [0, -0.5, 0, 9], [2.0, 0, 0, 9], [0, 0, 0, 1]])
    for path in volumes(source, "ISPY2-1", shape=(6, 8, 8)):
        nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), affine), path)
    mask = save(source / "ispy2-1_spy2_vis1_mask.nii.gz", np.ones((6, 8, 8), np.int32))
    found = read(source, nifti=tmp_path / "out")
    files = found.exams[0].files
    assert [files[column].parent for column in ("pre", "early", "late", "mask")] == [source] * 3 + [tmp_path / "out"]
    assert files["mask"].name == mask.name and np.allclose(read_grid(files["mask"]).affine, affine)


def test_a_file_of_another_shape_is_left_out(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,0,1,2,6,2,0.5")
    volumes(tmp_path, "ISPY2-1", shape=(6, 8, 8))
    save(tmp_path / "ISPY2-1_spy2_vis1_mask.nii.gz", np.ones((7, 8, 8), np.int32))
    found = read(tmp_path, nifti=tmp_path / "out")
    assert reasons(found, "mask") == {"ISPY2-1": "its shape is not that of the volumes"}
    assert set(found.exams[0].files) == {"pre", "early", "late"}


def test_what_no_table_tells_of_the_spacing(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,0,1,2,6,,", "ISPY2-2,1,1,0,0,1,2,6,0,nan", "ISPY2-3,1,1,0,0,1,2,6,x,-1")
    for pid in ("ISPY2-1", "ISPY2-2", "ISPY2-3"):
        volumes(tmp_path, pid)
    assert set(reasons(read(tmp_path)).values()) == {"no table tells its spacing, and its header says 1 x 1 x 1 mm"}
    found = read(tmp_path, unit_spacing="kept")
    assert len(found.exams) == 3 and "their headers are believed: 3." in found.notes[-1]
    with pytest.raises(SourceError, match="expected a folder for files of the right spacing"):
        read(table(tmp_path, "ISPY2-1,1,1,0,0,1,2,6,2,0.5"))


def test_a_broken_file_names_itself_and_no_folder(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,0,1,2,6,2,0.5", "ISPY2-2,1,1,0,0,1,2,6,2,0.5")
    volumes(tmp_path, "ISPY2-1")
    path = volumes(tmp_path, "ISPY2-2")[1]
    path.write_bytes(path.read_bytes()[:200])
    found = read(tmp_path, nifti=tmp_path / "out")
    (reason,) = reasons(found).values()
    assert reason.startswith("a file cannot be used: ") and path.name in reason and str(tmp_path) not in reason
    assert [exam.name for exam in found.exams] == ["ISPY2-1"]
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())


def test_the_full_and_the_cropped_release_in_one_folder(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,0,1,2,6,2,0.5")
    volumes(tmp_path / "full", "ISPY2-1")
    volumes(tmp_path / "min_crop", "ispy2-1")
    apart = "several files of one phase or several masks: import the full and the cropped release apart"
    assert reasons(read(tmp_path, nifti=tmp_path / "out")) == {"ISPY2-1": apart}
    shutil.rmtree(tmp_path / "min_crop")
    for name in ("a", "b"):
        save(tmp_path / name / "ISPY2-1_spy2_vis1_mask.nii.gz", np.ones((4, 6, 6), np.int32))
    assert reasons(read(tmp_path, nifti=tmp_path / "out")) == {"ISPY2-1": apart}
    (tmp_path / "b").rename(tmp_path / ".b")
    assert set(read(tmp_path, nifti=tmp_path / "out").exams[0].files) == {"pre", "early", "late", "mask"}


def test_what_an_earlier_call_wrote_below_the_source_is_no_part_of_it(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,0,1,2,4,2,0.5")
    volumes(tmp_path, "ISPY2-1")
    first, second = (read(tmp_path, nifti=tmp_path / "out" / "nifti") for _ in range(2))
    assert first == second and len(second.exams) == 1


@pytest.mark.parametrize(("text", "split"), [("train", "train"), ("Validation", "val"), ("TEST", "test"), ("x", "")])
def test_a_split_may_be_words(tmp_path, text, split):
    header = "pid,pCR,HR,HER2,split"
    assert read(table(tmp_path, f"X1,1,1,0,{text}", header=header), labels_only=True).exams[0].split == split


def test_names_that_lead_elsewhere(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    names = ("../secret", str(tmp_path / "secret"), "=cmd|calc", "..", "ISPY2-é", "NUL")
    table(source, *(f"{name},1,1,0,0,1,2,4,2,0.5" for name in names), "ISPY2-1,1,1,0,0,1,2,4,2,0.5")
    for name in ("ISPY2-1", "=cmd|calc", "ISPY2-é", "NUL"):
        volumes(source, name)
    volumes(tmp_path, "secret")
    found = kept(read(source, nifti=tmp_path / "out"))
    assert [exam.name for exam in found.exams] == ["ISPY2-1"] and len(list((tmp_path / "out").iterdir())) == 3
    assert set(reasons(found).values()) == {"its name cannot name files"} and len(reasons(found)) == len(names)


def test_tables_that_disagree(tmp_path):
    table(tmp_path, "ISPY2-1,1,1,0,,,,,,", "ISPY2-2,1.0,1,0,,,,,,", "ISPY2-3,1,0,NaN,,,,,,")
    table(tmp_path, "ispy2-1,0,0,0", "ISPY2-2,1,1.0,0", "ISPY2-3,1,0,0", header="pid,pCR,HR,HER2", name="second.csv")
    found = read(tmp_path, labels_only=True)
    assert reasons(found, "pcr") == {"ISPY2-1": "pcr: the tables disagree"}
    assert set(reasons(found, "hr")) == set(reasons(found, "triple_negative")) == {"ISPY2-1"}
    assert [exam.outcomes["her2"] for exam in found.exams] == ["0", "0", "0"]
    assert exams_of(found)["ISPY2-3"].outcomes["triple_negative"] == "1"


def test_another_schema_names_the_columns_found_and_wanted(tmp_path):
    with pytest.raises(SourceError, match="columns pid, pCR, HR, HER2 or HER2pos.* Received: no csv, tsv or xlsx file"):
        read(tmp_path)
    table(tmp_path, "ISPY2-1,1,0", header="patient,pCR,HR")
    with pytest.raises(SourceError, match="expected the columns pid, HER2 or HER2pos. Received: patient, pCR, HR"):
        read(tmp_path)
    table(tmp_path, "ISPY2-1,1", header="pid,pCR", name="second.csv")
    with pytest.raises(SourceError, match=r"(?s)metadata.csv.*pid, HER2 or HER2pos.*second.csv.*columns HR, HER2"):
        read(tmp_path)
    table(tmp_path, "ISPY2-1,1,0,1", "ispy2-1,1,0,1", header="pid,pCR,HR,HER2")
    with pytest.raises(SourceError, match="each subject once. Received: ispy2-1 twice"):
        read(tmp_path)


def test_a_csv_as_a_german_excel_saves_it_and_a_workbook(tmp_path):
    import openpyxl

    text = "pid;pCR;HR;HER2pos;TripleNeg\r\nISPY2-1;1.0;0;0;1\r\n"
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    book = openpyxl.Workbook()
    for row in (("pid", "pCR", "HR", "HER2"), ("ISPY2-2", 0, 1, None), ("ISPY2-3", 1, 0, 2)):
        book.active.append(row)
    book.save(tmp_path / "b.xlsx")
    exams = exams_of(read(tmp_path, labels_only=True))
    assert exams["ISPY2-1"].outcomes == {"pcr": "1", "her2": "0", "hr": "0", "triple_negative": "1"}
    assert exams["ISPY2-2"].outcomes == {"pcr": "0", "her2": "", "hr": "1", "triple_negative": "0"}
    assert exams["ISPY2-3"].outcomes["her2"] == exams["ISPY2-3"].outcomes["triple_negative"] == ""
    book.active.merge_cells("A2:A3")
    book.save(tmp_path / "b.xlsx")
    found = read(tmp_path, labels_only=True)
    assert len(found.exams) == 1 and "Tables not used, of other columns or unreadable: b.xlsx." in found.notes


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (3, 65535), (0, 65536), (-1, 4), (0.25, 7), (np.nan, 1)])
def test_a_copy_has_the_originals_voxels(tmp_path, values):
    data = np.resize(np.array(values, np.float32), (2, 3, 4))
    copy = write_copy(save(tmp_path / "a.nii", data), np.diag([2.0, 1, 1, 1]), tmp_path / "out")
    assert np.array_equal(read_nifti(copy)[0], data, equal_nan=True) and copy.name == "a.nii.gz"
    save(tmp_path / "a.nii", data + 1)
    os.utime(copy, (1, 1))
    assert np.array_equal(
        read_nifti(write_copy(tmp_path / "a.nii", np.diag([2.0, 1, 1, 1]), tmp_path / "out"))[0],
        data + 1,
        equal_nan=True,
    )


@pytest.mark.parametrize(
    ("shape", "slices", "axis"),
    [
        ((80, 256, 256), 80, 0),
        ((256, 256, 80), 80, 2),
        ((256, 256, 256), 256, 0),
        ((38, 256, 256), 80, 0),
        ((60, 256, 256), None, 0),
        ((256, 60, 256), None, 1),
        ((3, 4, 5), None, 0),
        ((3, 4, 5), 4, 1),
        ((4, 4, 5), 4, 2),
    ],
)
def test_which_axis_counts_slices(shape, slices, axis):
    assert slice_axis(shape, slices) == axis


@pytest.mark.parametrize("axes", ["", "S", "SPLR", "SSL", "RL", "XYZ", "S P"])
def test_axes_that_are_none(axes, tmp_path):
    with pytest.raises(SourceError, match="three letters"):
        read(tmp_path, axes=axes)


@given(st.permutations(("LR", "PA", "IS")), st.lists(st.integers(0, 1), min_size=3, max_size=3))
def test_directions_are_what_nibabel_calls_them(pairs, sides):
    axes = "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = directions(axes.lower())
    assert "".join(nib.aff2axcodes(affine)) == axes


@given(st.floats(0.1, 5), st.floats(0.1, 9), st.booleans(), st.sampled_from(((5, 9, 9), (9, 9, 5), (7, 7, 7))))
def test_a_header_agrees_after_it_was_corrected(in_plane, slices, known, shape):
    grid = unit_grid(shape)
    spacing = Spacing(in_plane, slices if known else None, slices)
    affine = affine_with(grid, spacing)
    corrected = type(grid)(shape, affine, grid.dtype, 1, 0, 352, (0, 2))
    assert agrees(corrected, spacing) and np.allclose(affine_with(corrected, spacing), affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    if not agrees(grid, spacing):
        assert sorted(zooms) == pytest.approx(sorted((in_plane, in_plane, slices)))


def test_a_header_right_in_plane_is_believed_against_a_thickness():
    grid = unit_grid((5, 9, 9))
    true = type(grid)(grid.shape, np.diag([1.0, 0.7, 0.7, 1]), grid.dtype, 1, 0, 352, (0, 2))
    assert agrees(true, Spacing(0.7, None, 2.0)) and not agrees(true, Spacing(0.7, 2.0, 2.0))
    assert not agrees(true, Spacing(0.6, None, 2.0)) and not agrees(grid, Spacing(1.0, None, 2.0))


def unit_grid(shape):
    from mgkeras.data.nifti import Grid

    return Grid(shape, np.eye(4), np.dtype("f4"), 1, 0, 352, (0, 2))
