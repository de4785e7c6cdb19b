"""MAMA-MIA: names in every case, two schemas, what follow-up tells and what it does not, masks, splits, bad tables."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import exams_of, reasons
from miniatures.mama_mia import COLUMNS, make_mama_mia, write_table

from mgkeras.data.cohort import open_cohort
from mgkeras.importers.found import SourceError
from mgkeras.importers.mama_mia import number_list, read
from mgkeras.importers.sheet import kept, write_found

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
WORKBOOK = SHARED / "mama_mia" / "clinical_and_imaging_info.xlsx"
TABLE = "clinical_and_imaging_info.xlsx"
FIRST = {"patient_id": "DUKE_001", "dataset": "DUKE", "days_to_recurrence": 100.0, "days_to_follow_up": 100.0}


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return make_mama_mia(tmp_path_factory.mktemp("mama-mia"))


@pytest.fixture(scope="module")
def found(download):
    return read(download)


def labels(folder, *rows, **options):
    """Exams by name of a table of these rows, beside an exam whose recurrence is known."""
    write_table(folder / TABLE, [FIRST, *rows])
    return exams_of(read(folder, labels_only=True, **options))


def test_files_are_found_whatever_their_case_and_phases_by_time(download, found):
    lower, upper = (exams_of(found)[name] for name in ("DUKE_001", "DUKE_002"))
    assert {column: path.relative_to(download).as_posix() for column, path in lower.files.items()} == {
        "pre": "images/DUKE_001/duke_001_0000.nii.gz",
        "early": "images/DUKE_001/duke_001_0001.nii.gz",
        "late": "images/DUKE_001/duke_001_0003.nii.gz",
        "mask": "segmentations/expert/duke_001.nii.gz",
    }
    assert upper.files["late"].name == "DUKE_002_0002.nii.gz"
    assert any("by time: 9 subjects; by order: 4" in note for note in found.notes)
    earlier = exams_of(read(download, early_seconds=300, late_seconds=320))["DUKE_001"]
    assert [earlier.files[column].name[-11:-7] for column in ("early", "late")] == ["0002", "0003"]
    ignored = exams_of(read(download, times="ignore", early_seconds=300))["DUKE_001"]
    assert ignored.files["early"].name == "duke_001_0001.nii.gz"


def test_the_table_is_a_cohort_without_errors(found, tmp_path):
    table, sheet = write_found(found, tmp_path)
    cohort, problems = open_cohort(table, "pcr")
    assert len(cohort.subjects) == 13 and problems == []
    assert "| no pre phase found | 1 | DUKE_092 |" in sheet.read_text("utf-8")


def test_an_experts_mask_comes_before_an_automatic_one(download, found):
    both, automatic = exams_of(found)["DUKE_004"], exams_of(found)["DUKE_003"]
    assert both.files["mask"].parent.name == both.covariates["mask_source"] == "expert"
    assert automatic.files["mask"].parent.name == automatic.covariates["mask_source"] == "automatic"
    assert reasons(found, "mask") == {"DUKE_091": "no mask found"}
    strict = read(download, automatic_masks=False)
    assert set(reasons(strict, "mask")) == {"DUKE_003", "DUKE_091"}
    assert "mask" not in exams_of(strict)["DUKE_003"].files


def test_what_else_the_table_tells(found):
    exam = exams_of(found)["DUKE_002"]
    assert (exam.site, exam.scanner, exam.split) == ("SITE 1", "SIEMENS Avanto 1.5 T", "train")
    assert exam.covariates == {
        "dataset": "DUKE",
        "age": "42",
        "er": "1",
        "grade": "high",
        "menopause": "pre",
        "mask_source": "expert",
    }
    assert [name for name, exam in exams_of(found).items() if exam.split == "test"] == [
        "DUKE_004",
        "DUKE_008",
        "NACT_01",
    ]


def test_the_newer_schema(tmp_path):
    write_table(tmp_path / TABLE, [FIRST | {"menopause": "post"}], newer=True)
    (exam,) = read(tmp_path, labels_only=True).exams
    assert exam.covariates == {"dataset": "DUKE", "menopause": "post", "breast_density": "c"}


@pytest.mark.parametrize(
    ("days", "options", "value"),
    [
        ((1826, None, None, 1826), {}, "1"),
        ((1827, None, None, 1827), {}, "0"),
        ((None, 900, None, 2000), {}, "1"),
        ((None, None, 900, 900), {}, "1"),
        ((None, None, 900, 900), {"death": "censor"}, ""),
        ((None, None, 1900, 1900), {"death": "censor"}, "0"),
        ((None, None, 1900, 500), {"death": "censor"}, ""),
        ((None, None, None, 1827), {}, "0"),
        ((None, None, None, 1826), {}, ""),
        ((None, None, None, None), {}, ""),
        ((0, None, None, 2940), {"zero_days": "missing"}, ""),
        ((0, None, None, 2940), {}, "0"),
        ((0, 0, 0, 100), {}, ""),
        ((0, 300, None, 2940), {}, "1"),
        ((0, 1900, None, 2940), {"zero_days": "missing"}, ""),
        ((0, 1900, None, 2940), {}, "0"),
        ((None, None, 0, 2940), {"death": "censor"}, "0"),
        ((400, None, None, None), {"horizon_days": 365}, "0"),
        ((-3, None, None, 2940), {}, ""),
        (("soon", None, None, 2940), {}, ""),
        (("inf", None, None, 2940), {}, ""),
    ],
)
def test_recurrence_from_times(tmp_path, days, options, value):
    names = ("days_to_recurrence", "days_to_metastasis", "days_to_death", "days_to_follow_up")
    row = {"patient_id": "DUKE_002", "dataset": "DUKE", **dict(zip(names, days, strict=True))}
    assert labels(tmp_path, row, **options)["DUKE_002"].outcomes["recurrence"] == value


@pytest.mark.skipif(not WORKBOOK.is_file(), reason=f"no {WORKBOOK}: set MGKERAS_SHARED_DATA")
def test_the_real_workbooks_legend_says_that_0_days_are_no_recurrence(tmp_path):
    shutil.copyfile(WORKBOOK, tmp_path / TABLE)
    for options, negative in (({}, 130), ({"zero_days": "missing"}, 3)):
        values = [exam.outcomes["recurrence"] for exam in read(tmp_path, labels_only=True, **options).exams]
        assert (values.count("1"), values.count("0")) == (121, negative)


def test_follow_up_tells_nothing_where_no_event_of_a_dataset_is_known(tmp_path):
    rows = [{"patient_id": f"ISPY1_100{n}", "dataset": "ISPY1", "days_to_follow_up": 2500} for n in range(3)]
    write_table(tmp_path / TABLE, [FIRST, *rows])
    found = read(tmp_path, labels_only=True)
    assert {exam.name: exam.outcomes["recurrence"] for exam in found.exams if exam.name != "DUKE_001"} == dict.fromkeys(
        ("ISPY1_1000", "ISPY1_1001", "ISPY1_1002"), ""
    )
    assert "knows no event" in reasons(found, "recurrence")["ISPY1_1000"]
    assert any("no recurrence, metastasis or death in ISPY1" in note for note in found.notes)


def test_zeros_are_counted(tmp_path):
    rows = [{"patient_id": f"DUKE_1{n}", "dataset": "DUKE", "days_to_recurrence": 0.0} for n in range(4)]
    write_table(tmp_path / TABLE, [FIRST, *rows])
    assert any("4 subjects (DUKE 4)" in note and "no-event" in note for note in read(tmp_path, labels_only=True).notes)


@pytest.mark.parametrize(
    ("hr", "her2", "subtype", "value"),
    [
        (0, 0, None, "1"),
        (1, None, None, "0"),
        (None, "1.0", "NaN", "0"),
        (0, None, None, ""),
        (None, None, None, ""),
        (None, None, "triple_negative", "1"),
        (None, None, "Luminal_A", "0"),
        (0, 0, "luminal", ""),
        (0, 1, "triple_negative", ""),
        (None, None, "basal", ""),
    ],
)
def test_triple_negative_from_receptors_and_subtype(tmp_path, hr, her2, subtype, value):
    row = {"patient_id": "X1", "hr": hr, "her2": her2, "tumor_subtype": subtype}
    assert labels(tmp_path, row)["X1"].outcomes["triple_negative"] == value


def test_pcr_is_never_filled(tmp_path):
    exams = labels(tmp_path, *({"patient_id": f"X{n}", "pcr": value} for n, value in enumerate((1.0, "0.0", None, 3))))
    assert [exams[f"X{n}"].outcomes["pcr"] for n in range(4)] == ["1", "0", "", ""]


def test_labels_only_looks_for_no_images(download, tmp_path):
    for name in (TABLE, "train_test_splits.csv"):
        shutil.copy(download / name, tmp_path)
    found = read(tmp_path, labels_only=True)
    assert len(found.exams) == 15 and not any(exam.files for exam in found.exams) and not reasons(found, "mask")
    without = kept(read(tmp_path))
    assert without.exams == () and set(reasons(without, "subject").values()) == {"no volumes found"}


def test_two_files_of_one_phase_are_refused_and_hidden_ones_are_none(download, tmp_path):
    copy = shutil.copytree(download, tmp_path / "copy")
    folder = copy / "images" / "DUKE_001"
    (folder / "._duke_001_0000.nii.gz").write_bytes(b"\0\5\26\7")
    shutil.copytree(folder, copy / "images" / ".trash")
    assert "DUKE_001" in exams_of(read(copy))
    (copy / "images" / "old").mkdir()
    shutil.copy(folder / "duke_001_0000.nii.gz", copy / "images" / "old" / "DUKE_001_0000.nii.gz")
    assert reasons(read(copy), "subject") == {"DUKE_001": "several files of one phase"}


@pytest.mark.parametrize("text", ["[0, 165, 411]", "(0, 165, 411)", "[0.0,165.,411]", "0, 165, 411"])
def test_times_are_read(text):
    assert number_list(text) == [0, 165, 411]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "[0, 1e999]",
        "['0', '1']",
        "[True, 1]",
        "[[0], 1]",
        "__import__('os').getcwd()",
        "[0, x]",
        "[" * 900,
        "[0" + ", 1" * 5000 + "]",
        "{0: 1}",
        "[1" + "0" * 900 + "]",
        "[0, 1",
        "\0",
    ],
)
def test_what_is_no_list_of_numbers_is_none(text):
    assert number_list(text) is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=12))
def test_lists_of_numbers_come_back(numbers):
    assert number_list(str(numbers)) == numbers


@given(st.text(max_size=60) | st.text("[](),.0123456789e-+ '\"*", max_size=60))
def test_no_text_makes_a_list_of_anything_but_numbers(text):
    result = number_list(text)
    assert result is None or all(type(value) is float for value in result)


@pytest.mark.parametrize("times", ["[0, 7000, 9000, 9900]", "[0, 300, 200, 400]", "[0, 165]", "n/a", "[0, 0, 1, 2]"])
def test_times_that_cannot_be_seconds_of_the_exam_are_not_used(download, tmp_path, times):
    copy = shutil.copytree(download, tmp_path / "copy")
    write_table(copy / TABLE, [FIRST | {"acquisition_times": times, "num_phases": 6}])
    found = read(copy, early_seconds=1000)
    assert found.exams[0].files["early"].name == "duke_001_0001.nii.gz"
    assert any("by order: 1" in note for note in found.notes)
    assert "Subjects with fewer volumes than num_phases says: 1." in found.notes


def test_names_that_lead_elsewhere(download, tmp_path):
    copy = shutil.copytree(download, tmp_path / "in" / "copy")
    secret = tmp_path / "in" / "secret"
    secret.mkdir()
    for phase in range(2):
        shutil.copy(copy / "images/DUKE_001/duke_001_0000.nii.gz", secret / f"x_000{phase}.nii.gz")
    names = ("../secret/x", str(secret / "x"), "=cmd|' /C calc'!A0", "..", "DUKÉ_001", "a/b", "CON", "DUKE_001\n")
    write_table(copy / TABLE, [{"patient_id": name, "dataset": "DUKE"} for name in names])
    found = kept(read(copy))
    assert [exam.name for exam in found.exams] == ["DUKE_001"]  # a cell's surrounding space is not its text
    assert set(reasons(found, "subject").values()) == {"its name cannot name files"}
    assert all(copy in path.parents for exam in found.exams for path in exam.files.values())


def test_another_schema_names_the_columns_found_and_wanted(tmp_path):
    columns = tuple("Patient" if name == "patient_id" else name for name in COLUMNS if name != "days_to_death")
    write_table(tmp_path / TABLE, [FIRST], columns=columns)
    with pytest.raises(SourceError, match=r"expected the columns patient_id, days_to_death. Received: Patient, data"):
        read(tmp_path)


def test_a_subject_in_two_rows_or_both_splits(tmp_path):
    write_table(tmp_path / TABLE, [FIRST, FIRST | {"patient_id": "duke_001"}])
    with pytest.raises(SourceError, match="each subject once. Received: duke_001 twice"):
        read(tmp_path)
    write_table(tmp_path / TABLE, [FIRST])
    (tmp_path / "Train_Test_Splits.csv").write_text("train_split,test_split\nDUKE_001,nan\nDUKE_002,duke_001\n")
    with pytest.raises(SourceError, match="one split. Received: duke_001 in both"):
        read(tmp_path)


def test_a_csv_as_a_german_excel_saves_it(tmp_path):
    lines = [";".join(COLUMNS), ";".join(str(FIRST.get(name, "")) for name in COLUMNS)]
    (tmp_path / "Clinical_and_imaging_info.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (exam,) = read(tmp_path, labels_only=True).exams
    assert (exam.name, exam.outcomes["recurrence"]) == ("DUKE_001", "1")


def test_workbooks_that_cannot_be_read(tmp_path):
    with pytest.raises(SourceError, match=r"expected a file clinical_and_imaging_info.* no files"):
        read(tmp_path)
    path = write_table(tmp_path / TABLE, [FIRST, FIRST | {"patient_id": "DUKE_002"}])
    book = openpyxl.load_workbook(path)
    book["dataset_info"].merge_cells("B2:B3")
    book.save(path)
    with pytest.raises(SourceError, match="merged cells B2:B3"):
        read(tmp_path)
    book["dataset_info"].title = "renamed"
    book.save(path)
    with pytest.raises(SourceError, match="no sheet 'dataset_info' among Sheet, renamed"):
        read(tmp_path)
    path.write_bytes(Path(path).read_bytes()[:900])
    with pytest.raises(SourceError, match="BadZipFile"):
        read(tmp_path)
