"""ODELIA: a subject a breast, hidden labels, five folds of splits, T2-weighted files, the other configuration."""

from __future__ import annotations

import shutil

import pytest
from miniatures import exams_of, reasons
from miniatures.odelia import make_odelia

from mgkeras.data.cohort import open_cohort
from mgkeras.importers.found import SourceError
from mgkeras.importers.odelia import read
from mgkeras.importers.sheet import kept, write_found

TABLES = "metadata_unilateral"


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return make_odelia(tmp_path_factory.mktemp("odelia"))


@pytest.fixture(scope="module")
def found(download):
    return read(download)


def institution(folder, name, *lines, split=(), header="UID,PatientID,Age,Lesion"):
    tables = folder / name / TABLES
    tables.mkdir(parents=True, exist_ok=True)
    (tables / "annotation.csv").write_text("\n".join((header, *lines)) + "\n")
    if split:
        (tables / "split.csv").write_text("\n".join(("UID,Fold,Split", *split)) + "\n")
    return folder


def test_malignant_is_2_and_benign_is_not(download, found):
    lines = (download / "CAM" / TABLES / "annotation.csv").read_text().splitlines()[1:]
    lines += (download / "RUMC" / TABLES / "annotation.csv").read_text().splitlines()[1:]
    lesions = {line.split(",")[0]: line.split(",")[3] for line in lines}
    assert set(lesions.values()) == {"0", "1", "2"}
    for name, exam in exams_of(found).items():
        assert exam.outcomes["malignant"] == ("" if name not in lesions else str(int(lesions[name] == "2")))
    assert set(reasons(found, "malignant")) == {name for name, exam in exams_of(found).items() if exam.site == "RSH"}
    assert any("hidden: RSH" in note for note in found.notes)


def test_phases_are_pre_and_posts_whatever_their_case_and_never_t2(found):
    names = {name: {column: path.name for column, path in exam.files.items()} for name, exam in exams_of(found).items()}
    assert names["ODELIA_BRAID1_0158_1_left"] == {
        "pre": "Pre.nii.gz",
        "early": "Post_1.nii.gz",
        "late": "Post_2.nii.gz",
    }
    assert names["ODELIA_BRAID1_0158_1_right"]["late"] == "Post_3.nii.gz"
    assert names["ODELIA_BRAID1_0177_1_left"]["early"] == "POST_1.nii.gz"
    assert names["ODELIA_BRAID1_0177_1_right"] == {"pre": "Pre.nii.gz"}
    assert reasons(kept(found)) == {"ODELIA_BRAID1_0177_1_right": "no early phase found"}


def test_site_split_and_covariates(download, found):
    exams = exams_of(found)
    left, right = exams["ODELIA_BRAID1_0158_1_left"], exams["ODELIA_BRAID1_0158_1_right"]
    assert left.covariates == {"patient": "ODELIA_BRAID1_0158_1", "side": "left", "age": "66.8"}
    assert right.covariates["patient"] == left.covariates["patient"] and right.covariates["side"] == "right"
    assert exams["ODELIA_BRAID1_0177_1_left"].covariates["age"] == "58.0"
    assert exams["ODELIA_BRAID1_0201_1_left"].covariates["age"] == ""
    patients = ("0158_1", "0177_1", "0201_1")
    assert [exams[f"ODELIA_BRAID1_{patient}_left"].split for patient in patients] == ["train", "val", "test"]
    assert exams["ODELIA_BRAID1_0401_1_left"].split == "test" and left.site == "CAM"
    other = exams_of(read(download, fold=1))
    assert [other[f"ODELIA_BRAID1_{patient}_left"].split for patient in patients] == ["val", "test", "train"]
    assert any("6 patients are in it with both" in note for note in found.notes)


def test_the_table_is_a_cohort_without_errors(found, tmp_path):
    path, sheet = write_found(found, tmp_path)
    cohort, problems = open_cohort(path, "malignant")
    assert len(cohort.subjects) == 9 and len(cohort.unlabelled) == 2 and problems == []
    assert "0 (none) and 1 (benign)" in sheet.read_text("utf-8")


def test_an_institution_alone_and_institutions_in_data(download, tmp_path):
    assert {exam.site for exam in read(download / "RUMC").exams} == {"RUMC"}
    shutil.copytree(download, tmp_path / "data")
    assert len(read(tmp_path).exams) == 12
    renamed = (tmp_path / "data" / "CAM" / "data_unilateral").rename(tmp_path / "data" / "CAM" / "Data_Unilateral")
    assert len(kept(read(tmp_path)).exams) == 11 and renamed.is_dir()


def test_a_split_of_all_institutions_in_one_file(download, tmp_path):
    copy = shutil.copytree(download, tmp_path / "copy")
    lines = ["UID,Fold,Split,Institution"]
    for place in ("CAM", "RUMC", "RSH"):
        rows = (copy / place / TABLES / "split.csv").read_text().splitlines()[1:]
        lines += [f"{row},{place.lower()}" for row in rows]
        (copy / place / TABLES / "split.csv").unlink()
    (copy / "split_unilateral.csv").write_text("\n".join(lines) + "\n")
    splits = [{exam.name: exam.split for exam in read(folder).exams} for folder in (copy, download)]
    assert splits[0] == splits[1] and set(splits[0].values()) == {"train", "val", "test"}


def test_labels_only_and_breasts_without_volumes(download, tmp_path):
    only = read(download, labels_only=True)
    assert len(only.exams) == 12 and not any(exam.files for exam in only.exams)
    institution(tmp_path, "CAM", "0007_left,0007,61,2", "0007_right,0007,61,0")
    found = read(tmp_path)
    assert [exam.name for exam in found.exams] == ["0007_left", "0007_right"]
    assert set(reasons(kept(found)).values()) == {"no volumes found"}
    assert "Breasts without a split: 2." in found.notes


def test_the_same_uid_in_two_institutions(tmp_path):
    institution(tmp_path, "CAM", "0007_left,0007,61,2", split=("0007_left,0,train",))
    institution(tmp_path, "UKA", "0007_LEFT,0007,48,1", split=("0007_left,0,test",))
    found = read(tmp_path, labels_only=True)
    assert {exam.name: (exam.outcomes["malignant"], exam.split) for exam in found.exams} == {
        "CAM_0007_left": ("1", "train"),
        "UKA_0007_LEFT": ("0", "test"),
    }
    assert {exam.covariates["side"] for exam in found.exams} == {"left"}
    assert "Some UIDs occur in several institutions: subjects are named INST_UID." in found.notes


@pytest.mark.parametrize(
    ("lesion", "value", "reason"),
    [
        ("2", "1", None),
        ("1.0", "0", None),
        ("0", "0", None),
        ("", "", "Lesion is missing"),
        ("NaN", "", "Lesion is missing"),
        ("3", "", "Lesion has the code '3'"),
        ("malignant", "", "Lesion has the code 'malignant'"),
    ],
)
def test_codes_of_lesions(tmp_path, lesion, value, reason):
    found = read(institution(tmp_path, "CAM", f"1_left,1,50,{lesion}"), labels_only=True)
    assert found.exams[0].outcomes["malignant"] == value and reasons(found, "malignant").get("1_left") == reason


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("50", "50.0"),
        ("18262.5", "50.0"),
        ("0", ""),
        ("", ""),
        ("-4", ""),
        ("old", ""),
        ("1e9", ""),
        ("inf", ""),
        ("nan", ""),
    ],
)
def test_ages_in_years_or_days(tmp_path, age, years):
    (exam,) = read(institution(tmp_path, "CAM", f"1_left,1,{age},2"), labels_only=True).exams
    assert exam.covariates["age"] == years


def test_names_that_lead_elsewhere(download, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(download / "CAM" / "data_unilateral" / "ODELIA_BRAID1_0158_1_left", tmp_path / "secret")
    uids = ("../../../secret", str(tmp_path / "secret"), "=cmd|calc", "..", "Ü_left", "NUL")
    institution(source, "CAM", *(f"{uid},1,50,2" for uid in uids))
    (source / "CAM" / "data_unilateral").mkdir()
    found = kept(read(source))
    assert found.exams == () and set(reasons(found).values()) == {"its name cannot name files"}
    assert not any(exam.files for exam in read(source).exams)


def test_the_bilateral_configuration_and_no_odelia_at_all(tmp_path):
    with pytest.raises(SourceError, match="configuration 'unilateral', INST/data_unilateral.* Received: no folders"):
        read(tmp_path)
    (tmp_path / "CAM" / "metadata").mkdir(parents=True)
    (tmp_path / "CAM" / "data").mkdir()
    with pytest.raises(SourceError, match="Received: the configuration 'default'.*Lesion_Left"):
        read(tmp_path)


def test_another_schema_names_the_columns_found_and_wanted(tmp_path):
    institution(tmp_path, "CAM", "1_left,0,1", header="UID,Lesion_Left,Lesion_Right")
    with pytest.raises(SourceError, match="expected the columns Lesion. Received: UID, Lesion_Left, Lesion_Right"):
        read(tmp_path)
    institution(tmp_path, "CAM", "1_left,1,50,2", "1_LEFT,1,50,2")
    with pytest.raises(SourceError, match="each subject once. Received: 1_LEFT twice"):
        read(tmp_path)
    institution(tmp_path, "CAM", "1_left,1,50,2", split=("1_left,0,train", "1_left,1.0,val"))
    assert read(tmp_path, fold=1, labels_only=True).exams[0].split == "val"
    with pytest.raises(SourceError, match="expected fold 5. Received: 0, 1"):
        read(tmp_path, fold=5)


def test_a_csv_as_a_german_excel_saves_it(tmp_path):
    institution(tmp_path, "CAM")
    (tmp_path / "CAM" / TABLES / "annotation.csv").write_bytes(
        b"\xef\xbb\xbf" + b"UID;Lesion\r\n007_left;2\r\n007_right;0\r\n"
    )
    assert {exam.name: exam.outcomes["malignant"] for exam in read(tmp_path).exams} == {
        "007_left": "1",
        "007_right": "0",
    }
