"""Duke from its workbook and DICOM files: labels by hand, phases against the volumes they were written from."""

from __future__ import annotations

from collections import Counter

import nibabel as nib
import numpy as np
import openpyxl
import pytest
from miniatures import reasons
from miniatures.duke import HEADER, NAME, ROWS, WHOLE, exam, make_duke, write_workbook
from miniatures.tcia import write_series

from mgkeras.data.cohort import check_cohort, read_cohort
from mgkeras.data.volume import load_volume
from mgkeras.importers.duke import _rank, read
from mgkeras.importers.found import SourceError
from mgkeras.importers.series import scan
from mgkeras.importers.sheet import write_found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_duke(tmp_path_factory.mktemp("duke"))


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "nifti"


@pytest.fixture(scope="module")
def found(source, nifti):
    return read(source, nifti=nifti)


@pytest.fixture(scope="module")
def labels(source, nifti):
    return read(source, nifti=nifti / "nothing", labels_only=True)


def name_of(patient):
    return f"Breast_MRI_{patient:03d}"


def test_labels_are_those_computed_by_hand(labels):
    expected = {  # recurrence, her2, pcr, hr, triple_negative
        1: ("1", "0", "1", "1", "0"),
        2: ("1", "0", "0", "0", "1"),  # local on day 1826, distant later
        3: ("0", "1", "", "0", "0"),  # free of distant recurrence on day 1827; DCIS only
        4: ("0", "1", "", "1", "0"),  # one of two assessments is missing; LCIS only
        5: ("0", "", "", "1", "0"),  # distant on day 1827; HER2 borderline; response not available
        6: ("1", "0", "", "1", "0"),
        7: ("0", "0", "1", "0", "1"),
        8: ("", "1", "0", "1", "0"),  # free, and dead, on day 1826
        9: ("", "0", "0", "1", "0"),  # no word of an event
        10: ("", "0", "0", "1", "0"),  # a day of recurrence without an event
        11: ("", "0", "0", "1", "0"),  # no assessment
        12: ("", "0", "0", "1", "0"),  # an event without a day
    }
    found = {exam.name: tuple(exam.outcomes.values()) for exam in labels.exams}
    assert {patient: found[name_of(patient)] for patient in expected} == expected
    assert list(labels.exams[0].outcomes) == ["recurrence", "her2", "pcr", "hr", "triple_negative"]
    assert len(labels.exams) == len(ROWS) and not any(exam.files for exam in labels.exams)


def test_what_is_not_known_has_a_reason(labels):
    assert reasons(labels, "recurrence") == {
        name_of(8): "recurrence: follow-up ended within 1826 days without it",
        name_of(9): "recurrence: time or event is missing",
        name_of(10): "recurrence: no event, but a day of one",
        name_of(11): "recurrence: time or event is missing",
        name_of(12): "recurrence: time or event is missing",
    }
    assert reasons(labels, "pcr") == {
        name_of(3): "pCR: in situ carcinoma alone remained",
        name_of(4): "pCR: in situ carcinoma alone remained",
        name_of(5): "pCR: the response is not available",
        name_of(6): "pCR is missing",
    }
    assert reasons(labels, "her2") == {name_of(5): "HER2 is equivocal or indeterminate"}
    assert reasons(labels) == {"'../Breast_MRI_021'": "its ID is not of the form Breast_MRI_001"}


@pytest.mark.parametrize(("in_situ", "value"), [("left-out", ""), ("complete", "1"), ("not-complete", "0")])
def test_in_situ_carcinoma_alone_is_a_choice(source, nifti, in_situ, value):
    found = read(source, nifti=nifti, labels_only=True, in_situ=in_situ)
    pcr = {exam.name: exam.outcomes["pcr"] for exam in found.exams}
    assert [pcr[name_of(patient)] for patient in (1, 2, 3, 4, 5, 6)] == ["1", "0", value, value, "", ""]
    assert f"{value or 'empty'} where DCIS or LCIS alone remained" in found.outcomes["pcr"]
    with pytest.raises(ValueError, match="left-out, complete, not-complete. Received: 'no'"):
        read(source, nifti=nifti, labels_only=True, in_situ="no")


def test_covariates_and_scanner(labels):
    by_name = {exam.name: exam for exam in labels.exams}
    assert by_name[name_of(1)].covariates == {"age": "41.64", "er": "1", "pr": "1", "grade": "2", "metastatic": "0"}
    assert by_name[name_of(4)].covariates["grade"] == ""
    assert by_name[name_of(1)].scanner == "SIEMENS Avanto 1.5 T"
    assert by_name[name_of(2)].scanner == "GE MEDICAL SYSTEMS SIGNA HDx 1.5 T"
    assert any("metastatic" in note and " 1 of " in note for note in labels.notes)


@pytest.mark.parametrize("index", range(len(WHOLE)))
def test_phases_are_the_volumes_that_the_files_were_made_from(found, index):
    """Four layouts: passes, Ph1/ with content times, the providers' folders, one series."""
    files = {exam.name: exam.files for exam in found.exams}[name_of(WHOLE[index])]
    volumes, affine = exam(index)
    for column, volume in zip(("pre", "early", "late"), volumes, strict=True):
        expected = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
        loaded = load_volume(files[column])
        np.testing.assert_array_equal(loaded.data, expected.get_fdata())
        np.testing.assert_allclose(loaded.affine, expected.affine, atol=1e-3)


def test_every_patient_is_accounted_for(found):
    assert [exam.name for exam in found.exams] == [name_of(patient) for patient in WHOLE]
    assert reasons(found) == {
        name_of(9): "no folder of this patient",
        name_of(10): "the phases' times contradict their descriptions",
        name_of(11): "no first series after contrast",
        name_of(12): "several series of the same phase",
        name_of(13): "no dynamic series",
        name_of(14): "no series before contrast",
        name_of(15): f"it has a folder but no row in {NAME}",
        "'../Breast_MRI_021'": "its ID is not of the form Breast_MRI_001",
    }
    assert Counter(exam.scanner for exam in found.exams).most_common() == [
        ("SIEMENS Avanto 1.5 T", 4),
        ("GE MEDICAL SYSTEMS SIGNA HDx 1.5 T", 4),
    ]
    assert "a box is not a tumour's outline" in found.notes[0]


def test_the_cohort_passes_its_own_check(found, nifti):
    table, sheet = write_found(found, nifti.parent)
    cohort = read_cohort(table, "recurrence")
    assert sum(subject.label for subject in cohort.subjects) == 3 and len(cohort.subjects) == 7
    assert check_cohort(cohort) == []
    assert "Local or distant recurrence" in sheet.read_text(encoding="utf-8")


def test_a_second_call_converts_nothing(source, found, nifti, monkeypatch):
    def fail(*_):
        raise AssertionError("dcm2niix was called")

    monkeypatch.setattr("mgkeras.importers.conversion.program", fail)
    calls = []
    assert read(source, nifti=nifti, progress=lambda *call: calls.append(call)) == found
    assert calls == [(done, len(ROWS)) for done in range(1, len(ROWS) + 1)]


def test_masks_of_mama_mia_expert_before_automatic(tmp_path):
    source = make_duke(tmp_path / "source", whole=[3, 4], broken=False)
    masks = tmp_path / "segmentations"
    for kind, name in (
        ("automatic", "duke_003"),
        ("automatic", "DUKE_004"),
        ("expert", "DUKE_003"),
        ("expert", "ispy1_004"),
    ):
        (masks / kind).mkdir(parents=True, exist_ok=True)
        (masks / kind / f"{name}.nii.gz").touch()
    found = read(source, nifti=tmp_path / "nifti", masks=masks)
    assert [exam.files["mask"] for exam in found.exams] == [
        masks / "expert" / "DUKE_003.nii.gz",
        masks / "automatic" / "DUKE_004.nii.gz",
    ]
    found = read(source, nifti=tmp_path / "nifti", masks=masks / "expert")
    assert ["mask" in exam.files for exam in found.exams] == [True, False]
    with pytest.raises(SourceError, match="expected the folder `segmentations` of MAMA-MIA"):
        read(source, nifti=tmp_path / "nifti", masks=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("description", "rank"),
    [
        ("ax dyn pre", 0),
        ("ax 3d dyn pre", 0),
        ("ax 3d pre", 0),
        ("t1fl3dtradynVIEWSspair pre", 0),
        ("ax 3d dyn", 0),
        ("ax dynamic", 0),
        ("Ax Vibrant MultiPhase", 0),
        ("ax 3d dyn MP", 0),
        ("ax dyn 1st pass", 1),
        ("ax dyn 1st pas", 1),
        ("t1fl3dtradynVIEWSspair2nd pass", 2),
        ("3rd ax dyn", 3),
        ("ax 3d dyn 4th pass", 4),
        ("Ph1/ax 3d dyn", 1),
        ("Ph4ax 3d dyn MP", 4),
        ("Ph2/Ax Vibrant MultiPhase", 2),
        ("ax t1", None),
        ("ax t1 pre", None),
        ("Ax 3D T1 NON FS", None),
        ("ax t1 tse +c", None),
        ("ax 3d t1 bilateral", None),
        ("AX IDEAL Breast", None),
    ],
)
def test_ranks_of_the_descriptions_that_occur(tmp_path, description, rank):
    folder = write_series(tmp_path / "s", [np.ones((8, 8, 1))], np.eye(4), "x", 1, description, seconds=[0])
    found = _rank(scan(folder)[0])
    assert (found and found[0]) == rank


def test_a_workbook_without_a_legend_loses_no_patient(tmp_path):
    write_workbook(tmp_path / NAME, legend=False)
    found = read(tmp_path, nifti=tmp_path, labels_only=True)
    assert len(found.exams) == len(ROWS) and found.exams[0].scanner == "SIEMENS"


def test_a_corrected_spelling_is_read(tmp_path):
    header = tuple(
        (group, name and name.replace("assemssment", "assessment").strip(), legend) for group, name, legend in HEADER
    )
    assert header != HEADER
    write_workbook(tmp_path / NAME, header=header)
    found = read(tmp_path, nifti=tmp_path, labels_only=True)
    assert found.exams[2].outcomes["recurrence"] == "0"


def test_another_schema_names_what_is_wanted_and_what_is_there(tmp_path):
    header = tuple((group, "Tumour type" if name == "Mol Subtype" else name, legend) for group, name, legend in HEADER)
    write_workbook(tmp_path / NAME, header=header)
    with pytest.raises(SourceError, match=r"(?s)expected the columns Mol Subtype\. Received.*, Tumour type,"):
        read(tmp_path, nifti=tmp_path, labels_only=True)


def test_merged_cells_and_a_patient_twice_are_errors(tmp_path):
    path = write_workbook(tmp_path / NAME)
    book = openpyxl.load_workbook(path)
    book["Data"].merge_cells("H5:H6")
    book.save(path)
    with pytest.raises(SourceError, match="merged cells H5:H6"):
        read(tmp_path, nifti=tmp_path, labels_only=True)
    book = openpyxl.load_workbook(write_workbook(path))
    book["Data"].append(["BREAST_MRI_3", 6])
    book.save(path)
    with pytest.raises(SourceError, match="BREAST_MRI_3 twice"):
        read(tmp_path, nifti=tmp_path, labels_only=True)
