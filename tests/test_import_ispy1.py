"""I-SPY1 from its workbook and DICOM files: labels by hand, phases against the volumes they were written from."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import openpyxl
import pytest
from miniatures import reasons
from miniatures.ispy1 import CLINICAL, NAME, OUTCOMES, ROWS, WHOLE, exam, make_ispy1, write_workbook

from mgkeras.data.cohort import check_cohort, read_cohort
from mgkeras.data.volume import load_volume
from mgkeras.importers.found import SourceError
from mgkeras.importers.ispy1 import read
from mgkeras.importers.sheet import write_found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_ispy1(tmp_path_factory.mktemp("ispy1"))


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "nifti"


@pytest.fixture(scope="module")
def found(source, nifti):
    return read(source, nifti=nifti)


@pytest.fixture(scope="module")
def labels(source, nifti):
    return read(source, nifti=nifti / "nothing", labels_only=True)


def outcomes_of(found, name):
    return {exam.name: exam.outcomes[name] for exam in found.exams}


def test_labels_are_those_computed_by_hand(labels):
    expected = {  # recurrence, her2, pcr, hr, triple_negative
        1001: ("1", "0", "0", "1", "0"),
        1002: ("1", "0", "1", "0", "1"),  # an event on day 1826
        1003: ("0", "1", "0", "0", "0"),  # event-free on day 1827
        1004: ("0", "1", "1", "", "0"),
        1005: ("0", "", "0", "1", "0"),  # an event on day 1827; HER2 unknown, but HR positive
        1006: ("1", "0", "", "1", "0"),
        1007: ("0", "0", "1", "0", "1"),
        1008: ("", "1", "0", "1", "0"),  # censored on day 1826
        1009: ("", "0", "0", "", ""),
    }
    found = {exam.name: tuple(exam.outcomes.values()) for exam in labels.exams}
    assert {name: found[f"ISPY1_{name}"] for name in expected} == expected
    assert list(labels.exams[0].outcomes) == ["recurrence", "her2", "pcr", "hr", "triple_negative"]
    assert len(labels.exams) == len(ROWS) and not any(exam.files for exam in labels.exams)


def test_what_is_not_known_has_a_reason(labels):
    assert reasons(labels, "recurrence") == {
        "ISPY1_1008": "recurrence: follow-up ended within 1826 days without it",
        "ISPY1_1009": "recurrence: time or event is missing",
    }
    assert reasons(labels, "hr") == dict.fromkeys(("ISPY1_1004", "ISPY1_1009"), "HR is equivocal or indeterminate")
    assert set(reasons(labels, "triple_negative")) == {"ISPY1_1009"}
    assert reasons(labels, "her2") == {"ISPY1_1005": "HER2 is missing"}
    assert reasons(labels) == {"'../../1020'": "its ID is no number", "'=1000+21'": "its ID is no number"}


def test_the_horizon_moves_the_boundary(source, nifti):
    later = outcomes_of(read(source, nifti=nifti, labels_only=True, horizon_days=1827), "recurrence")
    assert (later["ISPY1_1003"], later["ISPY1_1005"], later["ISPY1_1008"]) == ("", "1", "")
    sooner = outcomes_of(read(source, nifti=nifti, labels_only=True, horizon_days=750), "recurrence")
    assert (sooner["ISPY1_1001"], sooner["ISPY1_1006"], sooner["ISPY1_1008"]) == ("0", "1", "0")


def test_covariates(labels):
    by_name = {exam.name: exam.covariates for exam in labels.exams}
    assert by_name["ISPY1_1001"] == {"age": "38.73", "size": "88", "er": "1", "pr": "0"}
    assert by_name["ISPY1_1004"] == {"age": "38.73", "size": "", "er": "", "pr": ""}


@pytest.mark.parametrize("index", range(len(WHOLE)))
def test_phases_are_the_volumes_that_the_files_were_made_from(found, index):
    """Four layouts: by trigger time, by series number in hundreds, two phases in one series, without maps."""
    files = {exam.name: exam.files for exam in found.exams}[f"ISPY1_{WHOLE[index]}"]
    volumes, affine = exam(index)
    tolerance = 1 if index % 4 == 1 else 0  # values that were written halved
    for column, volume in zip(("pre", "early", "late"), volumes, strict=True):
        expected = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
        loaded = load_volume(files[column])
        assert np.abs(loaded.data - expected.get_fdata()).max() <= tolerance
        np.testing.assert_allclose(loaded.affine, expected.affine, atol=1e-3)


def test_every_patient_is_accounted_for(found):
    assert [exam.name for exam in found.exams] == [f"ISPY1_{subject}" for subject in WHOLE]
    assert reasons(found) == {
        "ISPY1_1009": "no folder of this patient",
        "ISPY1_1010": "no exam of visit T0",
        "ISPY1_1011": "its folder holds no MR images of this patient",
        "ISPY1_1012": "its folder holds no MR images of this patient",
        "ISPY1_1013": "no dynamic series",
        "ISPY1_1014": "its maps name several dynamic series",
        "ISPY1_1015": f"it has a folder but no row in {NAME}",
        "'../../1020'": "its ID is no number",
        "'=1000+21'": "its ID is no number",
    }
    assert {exam.site for exam in found.exams} == {"5"}
    assert {exam.scanner for exam in found.exams} == {"SIEMENS Avanto 1.5 T"}
    assert "no visit" in found.notes[-1] and " 4 " in found.notes[-1]


def test_the_cohort_passes_its_own_check(found, nifti):
    table, sheet = write_found(found, nifti.parent)
    cohort = read_cohort(table, "recurrence")
    assert sum(subject.label for subject in cohort.subjects) == 3 and len(cohort.subjects) == 7
    assert check_cohort(cohort) == []
    assert "(RFS, rfs_ind)" in sheet.read_text(encoding="utf-8")


def test_a_second_call_converts_nothing(source, found, nifti, monkeypatch):
    def fail(*_):
        raise AssertionError("dcm2niix was called")

    monkeypatch.setattr("mgkeras.importers.conversion.program", fail)
    calls = []
    assert read(source, nifti=nifti, progress=lambda *call: calls.append(call)) == found
    assert calls == [(done, len(ROWS)) for done in range(1, len(ROWS) + 1)]


def test_other_seconds_choose_other_phases(tmp_path):
    source = make_ispy1(tmp_path / "source", whole=[1001], broken=False)
    for early, last in ((150, 1), (500, 2)):  # the same file names: what an earlier call wrote does not stay
        (found,) = read(source, nifti=tmp_path / "nifti", early_seconds=early).exams
        assert ("late" in found.files) == (last == 1)
        assert load_volume(found.files["early"]).data.sum() == exam(0)[0][last].sum()


def test_a_truncated_file_leaves_one_patient_out(tmp_path):
    source = make_ispy1(tmp_path / "source", whole=[1001, 1002], broken=False)
    path = next(source.rglob("301.*/1-001.dcm"))
    path.write_bytes(path.read_bytes()[:-500])
    found = read(source, nifti=tmp_path / "nifti")
    assert [exam.name for exam in found.exams] == ["ISPY1_1001"]
    assert "dcm2niix" in reasons(found)["ISPY1_1002"] and str(tmp_path) not in reasons(found)["ISPY1_1002"]
    assert not [path for path in (tmp_path / "nifti").iterdir() if not path.name.startswith("ISPY1_1001_")]


def test_a_missing_program_is_told_once_not_for_every_patient(source, tmp_path, monkeypatch):
    monkeypatch.setattr("mgkeras.importers.conversion.shutil.which", lambda *_: None)
    with pytest.raises(SourceError, match=r"mgkeras\[import\]"):
        read(source, nifti=tmp_path)


def test_hyphens_in_the_name_of_the_workbook(tmp_path):
    write_workbook(tmp_path / "I-SPY-1-All-Patient-Clinical-and-Outcome-Data.xlsx")
    assert len(read(tmp_path, nifti=tmp_path, labels_only=True).exams) == len(ROWS)


def test_another_schema_names_what_is_wanted_and_what_is_there(tmp_path):
    older = tuple("Her2CommPos" if name == "Her2MostPos" else name for name in CLINICAL)
    write_workbook(tmp_path / NAME, clinical=older)
    with pytest.raises(SourceError, match=r"(?s)expected the columns Her2MostPos.*Received.*Her2CommPos"):
        read(tmp_path, nifti=tmp_path, labels_only=True)


def test_names_of_columns_may_differ_in_case_and_space(tmp_path):
    write_workbook(
        tmp_path / NAME,
        clinical=tuple(f" {name.upper()} " for name in CLINICAL),
        outcomes=tuple(name.lower() for name in OUTCOMES),
    )
    assert len(read(tmp_path, nifti=tmp_path, labels_only=True).exams) == len(ROWS)


def test_a_workbook_without_a_sheet_and_a_folder_without_a_workbook(tmp_path):
    with pytest.raises(SourceError, match="Received: no files"):
        read(tmp_path, nifti=tmp_path, labels_only=True)
    book = openpyxl.Workbook()
    book.save(tmp_path / NAME)
    with pytest.raises(SourceError, match="no sheet 'TCIA Patient Clinical Subset' among Sheet"):
        read(tmp_path, nifti=tmp_path, labels_only=True)


def test_merged_cells_and_a_subject_twice_are_errors(tmp_path):
    path = write_workbook(tmp_path / NAME)
    book = openpyxl.load_workbook(path)
    book["TCIA Outcomes Subset"].merge_cells("F3:F4")
    book.save(path)
    with pytest.raises(SourceError, match="merged cells F3:F4"):
        read(tmp_path, nifti=tmp_path, labels_only=True)
    book = openpyxl.load_workbook(write_workbook(path))
    book["TCIA Outcomes Subset"].append(["ISPY1_1003", None, 7, 1264, 900, 1, 0, 2])
    book.save(path)
    with pytest.raises(SourceError, match="ISPY1_1003 twice"):
        read(tmp_path, nifti=tmp_path, labels_only=True)
