"""Importing BIDS: phases by time, by run and from 4D files, sessions, masks of derivatives, participants.tsv."""

from __future__ import annotations

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from miniatures import reasons
from miniatures.bids import SECONDS, make_bids

from mgkeras.data.cohort import check_cohort, read_cohort
from mgkeras.importers.bids import read
from mgkeras.importers.bids_series import _clock, _loaded
from mgkeras.importers.found import SUBJECT, SourceError
from mgkeras.importers.sheet import write_found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_bids(tmp_path_factory.mktemp("bids"))


@pytest.fixture(scope="module")
def found(source):
    return read(source, nifti=source.parent / "nifti")


def runs(exam):
    return [exam.files[column].name.partition("run-")[2][0] for column in ("pre", "early", "late")]


def test_phases_come_by_time_where_it_is_known_past_midnight_and_against_the_names(found):
    exams = {exam.name: exam for exam in found.exams}
    assert runs(exams["sub-01"]) == runs(exams["sub-02"]) == ["1", "3", "5"]  # 0, 140 and 450 s
    assert runs(exams["sub-03"]) == ["5", "3", "1"]
    assert exams["sub-01"].scanner == "SIEMENS Avanto 1.5 T"


def test_a_plain_t1w_on_the_same_grid_is_before_contrast(found, source, tmp_path):
    exam = next(exam for exam in found.exams if exam.name == "sub-04")
    assert exam.files["pre"].name == "sub-04_T1w.nii.gz"
    assert "run-1" in exam.files["early"].name and "run-2" in exam.files["late"].name
    shutil.copytree(source / "sub-04", tmp_path / "sub-04")
    plain = tmp_path / "sub-04" / "anat" / "sub-04_T1w.nii.gz"
    image = nib.load(plain)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1].copy(), image.affine), plain)  # an anatomical scan
    exam = read(tmp_path, nifti=tmp_path / "nifti").exams[0]
    assert "run-1" in exam.files["pre"].name and "run-2" in exam.files["early"].name and "late" not in exam.files


def test_volumes_of_4d_files_are_written_once_with_their_own_voxels_and_affine(found, source):
    exams = {exam.name: exam for exam in found.exams}
    for name, places in (("sub-06", (0, 2, 4)), ("sub-07", (0, 2, 4)), ("sub-09", (0, 1, 4))):  # 09 tells no times
        original = nib.load(source / name / "perf" / f"{name}_dce.nii.gz")
        for column, place in zip(("pre", "early", "late"), places, strict=True):
            written = exams[name].files[column]
            assert written == source.parent / "nifti" / f"{name}_dce_volume-{place:03d}.nii.gz"
            image = nib.load(written)
            assert (image.get_fdata() == np.asarray(original.dataobj)[..., place]).all()
            assert np.allclose(image.affine, original.affine, atol=1e-4) and image.shape == original.shape[:3]
    assert not list((source.parent / "nifti").glob(".*")), "a temporary file is left"
    before = written.stat().st_mtime_ns
    assert read(source, nifti=source.parent / "nifti") == found
    assert written.stat().st_mtime_ns == before
    os.utime(source / "sub-09" / "perf" / "sub-09_dce.nii.gz")
    read(source, nifti=source.parent / "nifti")
    assert written.stat().st_mtime_ns > before


def test_other_times_take_other_phases_and_other_files(source):
    found = read(source, nifti=source.parent / "nifti", early_seconds=60, late_seconds=300)
    exams = {exam.name: exam for exam in found.exams}
    assert runs(exams["sub-01"]) == ["1", "2", "4"]
    assert exams["sub-06"].files["early"].name == "sub-06_dce_volume-001.nii.gz"
    assert "nearest to 60 s" in found.phases


def test_doubt_leaves_a_subject_out_and_says_which_file(found):
    gone = reasons(found, SUBJECT)
    assert gone["sub-10"].startswith("no dynamic series") and "sub-11_dce.nii.gz" in gone["sub-11"]
    assert gone["sub-12"].startswith("several dynamic series: ") and "import folder" in gone["sub-12"]
    assert gone["sub-77"] == "a row in participants.tsv, but no images"
    assert set(gone) == {"sub-10", "sub-11", "sub-12", "sub-77"}


def test_the_table_gives_outcomes_and_the_result_is_a_cohort(found, tmp_path):
    exams = {exam.name: exam for exam in found.exams}
    assert exams["sub-04"].outcomes == {"recurrence": "0", "her2": "1"} and exams["sub-04"].site == "south"
    assert exams["sub-03"].covariates == {"age": "60", "grade": ""}
    assert reasons(found, "recurrence") == {"sub-09": "recurrence is missing"}
    table, _ = write_found(found, tmp_path)
    problems = check_cohort(read_cohort(table, "recurrence"))
    assert [problem for problem in problems if problem.severity == "error"] == []
    assert all("mask" in exam.files for exam in found.exams)


def test_sessions(found, source):
    exam = next(exam for exam in found.exams if exam.name == "sub-08")
    assert "ses-1" in exam.files["pre"].name and any("several sessions: 1; the first" in note for note in found.notes)
    other = read(source, nifti=source.parent / "nifti", session="ses-2")
    assert [exam.name for exam in other.exams] == ["sub-08"] and "ses-2" in other.exams[0].files["early"].name
    assert reasons(other, SUBJECT)["sub-01"] == "no session ses-2"


def test_labels_alone_and_a_folder_that_is_no_bids(source, tmp_path):
    found = read(source, nifti=tmp_path, labels_only=True)
    assert len(found.exams) == 12 and not any(exam.files for exam in found.exams) and not list(tmp_path.iterdir())
    with pytest.raises(SourceError, match="sub-"):
        read(tmp_path, nifti=tmp_path)
    with pytest.raises(SourceError, match="participants"):
        read(tmp_path, nifti=tmp_path, labels_only=True)


def copied(source, folder, name):
    shutil.copytree(source / name, folder / name)
    return folder / name / "anat"


def test_times_of_scans_tsv_a_broken_sidecar_and_no_order_at_all(source, tmp_path):
    anat = copied(source, tmp_path, "sub-01")
    for path in anat.glob("*.json"):
        path.unlink()
    lines = [f"anat/sub-01_ce-Gad_run-{run}_T1w.nii.gz\t2009-01-01T10:{9 - run:02d}:00" for run in range(1, 6)]
    (tmp_path / "sub-01" / "sub-01_scans.tsv").write_text("\n".join(["filename\tacq_time", *lines]) + "\n")
    assert runs(read(tmp_path, nifti=tmp_path / "n").exams[0])[0] == "5"
    (anat / "sub-01_ce-Gad_run-1_T1w.json").write_text('{"AcquisitionTime": ')
    (tmp_path / "sub-01" / "sub-01_scans.tsv").unlink()
    found = read(tmp_path, nifti=tmp_path / "n")
    assert runs(found.exams[0]) == ["1", "2", "5"]
    assert reasons(found, "times of the phases") == {"sub-01": "sub-01_ce-Gad_run-1_T1w.json is no JSON object"}
    (anat / "sub-01_ce-Gad_run-2_T1w.nii.gz").rename(anat / "sub-01_ce-Gadavist_run-1_T1w.nii.gz")
    assert "tells the order" in reasons(read(tmp_path, nifti=tmp_path / "n"), SUBJECT)["sub-01"]


def test_several_masks_are_told_and_the_one_of_the_run_is_taken(source, tmp_path):
    anat = copied(source, tmp_path, "sub-02")
    for run in (2, 3):
        image = anat / f"sub-02_ce-Gad_run-{run}_T1w.nii.gz"
        shutil.copyfile(image, anat / f"sub-02_run-{run}_label-tumor_mask.nii.gz")
    exam = read(tmp_path, nifti=tmp_path / "n").exams[0]
    assert exam.files["mask"].name == "sub-02_run-3_label-tumor_mask.nii.gz"  # the early phase is run 3
    (anat / "sub-02_run-3_label-tumor_mask.nii.gz").rename(anat / "sub-02_run-4_label-tumor_mask.nii.gz")
    found = read(tmp_path, nifti=tmp_path / "n")
    assert "mask" not in found.exams[0].files and "run-4_label-tumor" in reasons(found, "mask")["sub-02"]


def test_a_header_that_claims_more_than_its_file_can_hold_is_no_phase(source, tmp_path):
    anat = copied(source, tmp_path, "sub-01")
    path = anat / "sub-01_ce-Gad_run-2_T1w.nii.gz"
    header = nib.load(path).header.copy()
    header.set_data_shape((1000, 1000, 1000))
    (anat / "sub-01_ce-Gad_run-2_T1w.nii").write_bytes(header.binaryblock + bytes(1000))
    path.unlink()
    gone = reasons(read(tmp_path, nifti=tmp_path / "n"), SUBJECT)
    assert "run-2_T1w.nii claims the shape (1000, 1000, 1000)" in gone["sub-01"]


def dynamic(folder, count, arrival, sidecar=None, step=None):
    """A 4D file of noise, in the middle of which a cube enhances from ``arrival`` on and peaks two phases later."""
    rng = np.random.default_rng(1)
    data = np.full((24, 24, 12, count), 100.0) + rng.normal(0, 4, (24, 24, 12, count))
    rise = np.zeros(count + 3)
    rise[arrival : arrival + 3] = 60, 110, 150
    rise[arrival + 3 :] = 120
    data[8:14, 8:14, 4:8] += rise[:count]
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([2, 2, 3, 1]))
    if step:
        image.header.set_xyzt_units("mm", "msec")
        image.header["pixdim"][4] = 1000 * step
    path = folder / "sub-1" / "perf" / "sub-1_dce.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(image, path)
    if sidecar:
        path.with_name("sub-1_dce.json").write_text(json.dumps(sidecar))
    return folder


def places(found):
    return {column: int(path.name[-10:-7]) for column, path in found.exams[0].files.items() if column != "mask"}


def test_forty_phases_without_times_are_refused_with_the_phases_listed(tmp_path):
    folder = dynamic(tmp_path / "in", 40, 8)
    gone = reasons(read(folder, nifti=tmp_path / "n"), SUBJECT)["sub-1"]
    assert "phases 1 to 40 of sub-1_dce.nii.gz" in gone and "--early-phase" in gone
    found = read(folder, nifti=tmp_path / "n", early_phase=11, late_phase=21)
    assert places(found) == {"pre": 0, "early": 10, "late": 20}
    found = read(folder, nifti=tmp_path / "n", by_enhancement=True)
    assert places(found) == {"pre": 0, "early": 10, "late": 39}
    table, sheet = write_found(found, tmp_path / "out")
    row = read_cohort(table, predict=True).subjects[0].covariates
    assert (
        row["early_seconds"] == "phase 11 of 40, by enhancement" and row["late_seconds"] == "phase 40 of 40, by order"
    )
    assert "phase 11 of 40, by enhancement" in sheet.read_text() and "the peak of the curve" in sheet.read_text()


@pytest.mark.parametrize(
    ("sidecar", "step"), [({"RepetitionTime": 20}, None), (None, 20), ({"RepetitionTime": 0.005}, 20)]
)
def test_the_headers_spacing_of_phases_gives_their_times(tmp_path, sidecar, step):
    found = read(dynamic(tmp_path / "in", 40, 8, sidecar, step), nifti=tmp_path / "n", late_seconds=400)
    assert places(found) == {"pre": 0, "early": 7, "late": 20}  # 140 is as near to 150 as 160, and the earlier
    assert found.exams[0].when == {"early_seconds": "140", "late_seconds": "400"}
    _, sheet = write_found(found, tmp_path / "out")
    assert "| early | 140 | 140 | 140 | 1 |" in sheet.read_text()


@pytest.mark.parametrize("sidecar", [{"RepetitionTime": 0.005}, {"RepetitionTime": True}, {"RepetitionTime": "20"}])
def test_a_pulses_repetition_time_is_no_spacing_of_phases(tmp_path, sidecar):
    found = read(dynamic(tmp_path / "in", 40, 8, sidecar), nifti=tmp_path / "n")
    assert "--early-phase" in reasons(found, SUBJECT)["sub-1"]


def test_nothing_that_enhances_is_no_peak(tmp_path):
    folder = dynamic(tmp_path / "in", 12, 12)
    gone = reasons(read(folder, nifti=tmp_path / "n", by_enhancement=True), SUBJECT)["sub-1"]
    assert "enhance" in gone and "Received" in gone


def test_seconds_that_choose_nothing_are_told(source, tmp_path):
    found = read(source, nifti=tmp_path / "n", early_seconds=90)
    assert any("only their order" in note and "--early-seconds" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:10.5", 10.5),
        ("093015.25", 34215.25),
        ("2009-06-15T09:30:15Z", 34215.0),
        ("n/a", None),
        (None, None),
        (34215.5, None),
    ],
)
def test_clock(text, seconds):
    assert _clock(text) == seconds


def test_the_miniature_is_what_the_tests_think(source):
    shape = nib.load(source / "sub-06" / "perf" / "sub-06_dce.nii.gz").shape
    assert shape[3] == len(SECONDS) and json.loads((source / "dataset_description.json").read_text())["BIDSVersion"]


def test_a_series_is_read_and_not_mapped(tmp_path):
    """What is cut off under a map ends the process."""
    path, voxels = tmp_path / "a.nii", np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    found = np.asanyarray(_loaded(path).dataobj)
    assert np.array_equal(found, voxels) and not isinstance(found, np.memmap)
