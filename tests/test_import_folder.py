"""Importing your own folder: patterns, doubtful files, and the table of labels joined to what is there."""

from __future__ import annotations

from collections import Counter

import pytest
from miniatures import reasons
from miniatures.folder import PATTERNS, make_folder

from mgkeras.data.cohort import check_cohort, read_cohort
from mgkeras.importers.folder import read
from mgkeras.importers.found import SUBJECT, Exam, Found, SourceError
from mgkeras.importers.listing import files_below
from mgkeras.importers.participants import join, read_participants
from mgkeras.importers.sheet import write_found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def found(source):
    return read(source, **PATTERNS, labels=source / "labels.csv")


def test_files_are_found_whatever_their_case_and_doubt_names_them(found):
    exams = {exam.name: exam for exam in found.exams}
    assert list(exams) == [*(f"{number:03d}" for number in range(1, 11)), "013"]
    assert exams["003"].files["pre"].name == "003_DYN0.nii.gz"
    assert exams["004"].files["early"].name == "Pat004_T1_dyn1.nii.gz"
    assert exams["004"].files["mask"].name == "Tumor.nii.gz"
    gone = reasons(found, SUBJECT)
    assert gone["011"] == "several files match pre: 011/011_dyn0.nii.gz, 011/repeat_dyn0.nii.gz"
    assert gone["012"] == "no file matches early: *_dyn1.nii.gz"
    assert gone["99"] == "a row in labels.csv, but no images" and set(gone) == {"011", "012", "99"}
    assert reasons(found, "late") == {"013": "no file matches late: *_dyn[23].nii.gz"}
    assert "tumor_2.nii.gz" in reasons(found, "mask")["013"] and set(reasons(found, "mask")) == {"013"}
    assert exams["013"].files.keys() == {"pre", "early"}


def test_the_table_is_joined_by_number_and_its_columns_become_what_they_are(found):
    exams = {exam.name: exam for exam in found.exams}
    assert exams["001"].outcomes == {"Recurrence": "1", "HER2": "0"} and found.outcomes.keys() == {"Recurrence", "HER2"}
    assert exams["001"].covariates == {"Age at diagnosis": "51", "Menopause": "post"}
    assert (exams["001"].site, exams["004"].split, exams["007"].split) == ("north", "train", "test")
    assert exams["006"].covariates["Age at diagnosis"] == "" and exams["003"].outcomes["HER2"] == ""
    assert reasons(found, "Recurrence") == {"009": "Recurrence is missing", "010": "no row in labels.csv"}
    notes = " ".join(found.notes)
    assert "leading zeros apart: 12" in notes and "without a row in labels.csv: 1" in notes
    assert "cohort.csv has columns of these names: mask" in notes


def test_what_was_found_is_a_cohort_without_errors(found, tmp_path):
    table, sheet = write_found(found, tmp_path)
    cohort = read_cohort(table, "Recurrence")
    assert [problem for problem in check_cohort(cohort) if problem.severity == "error"] == []
    assert Counter(subject.label for subject in cohort.subjects) == {1: 5, 0: 4}
    assert "| no file matches early: *_dyn1.nii.gz | 1 | 012 |" in sheet.read_text("utf-8")


def test_files_may_carry_the_subject_in_their_names(source, tmp_path):
    for path in files_below(source):
        number = path.relative_to(source).parts[0]
        if path.name.lower().endswith("dyn0.nii.gz") and "repeat" not in path.name:
            target = tmp_path / "images" / f"duke_{number}" / f"DUKE_{number}_0000.nii.gz"
        elif path.name.lower().endswith("dyn1.nii.gz"):
            target = tmp_path / "images" / f"duke_{number}" / f"duke_{number}_0001.nii.gz"
        elif path.name == "Tumor.nii.gz":
            target = tmp_path / "masks" / f"duke_{number}.NII.GZ"
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    made = read(
        tmp_path,
        pre="images/{subject}/{subject}_0000.nii.gz",
        early="images/{subject}/{subject}_0001.nii.gz",
        mask="masks/{subject}.nii.gz",
    )
    assert [exam.name for exam in made.exams] == [f"duke_{number:03d}" for number in range(1, 14) if number != 12]
    assert all(exam.files.keys() == {"pre", "early", "mask"} for exam in made.exams)
    assert reasons(made, SUBJECT) == {"duke_012": "no file matches early: images/{subject}/{subject}_0001.nii.gz"}
    assert any("no outcomes" in note for note in made.notes)


def test_folders_with_a_space_are_renamed_by_rule_and_told(tmp_path):
    for name in ("Patient 1", "Müller (2)", "a b", "a_b"):
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        for kind in ("T0", "T1"):
            (folder / f"{kind}.nii.gz").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("subject,y\nPatient 1,1\na_b,0\nMüller (2),0\n", "utf-8")
    found = read(tmp_path / "in", pre="T0*", early="T1*", labels=tmp_path / "labels.csv")
    table, sheet = write_found(found, tmp_path / "out")
    subjects = read_cohort(table, "y").subjects
    assert {subject.name: subject.label for subject in subjects} == {"Patient_1": 1, "M_ller_2": 0, "a_b": 0}
    assert subjects[0].early.parent.name in ("Müller (2)", "Patient 1", "a_b")
    text = sheet.read_text("utf-8")
    assert "'Patient 1' is Patient_1" in text and "another subject has the name that this one would get" in text


def test_masks_stand_in_for_t0(tmp_path):
    for name in ("A", "B"):
        for kind in ("T1", "mask") if name == "A" else ("T1",):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name / f"{kind}.nii.gz").write_bytes(b"x")
    found = read(tmp_path / "in", early="T1*", mask="mask*")
    assert [exam.name for exam in found.exams] == ["A"] and reasons(found, SUBJECT) == {
        "B": "no file matches mask: mask*"
    }
    cohort = read_cohort(write_found(found, tmp_path / "out")[0], need=None, predict=True)
    assert [(subject.name, subject.pre) for subject in cohort.subjects] == [("A", None)]
    with pytest.raises(SourceError, match="one for pre or for the mask"):
        read(tmp_path / "in", early="T1*")


def test_labels_alone(source):
    found = read(source, labels=source / "labels.csv", labels_only=True, outcomes=["her2"], covariates=["menopause"])
    assert len(found.exams) == 13 and not any(exam.files for exam in found.exams)
    assert list(found.outcomes) == ["HER2"] and found.exams[0].covariates == {"Menopause": "post"}
    assert reasons(found, "HER2") == {"3": "HER2 is missing"}
    assert reasons(found, "split") == {"12": "split is 'holdout', none of train, val, test"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "none by --pre, --early"),
        ({"pre": "*_0.nii.gz", "early": "{subject}_1.nii.gz"}, "in every pattern or in none"),
        ({"pre": "*pre*", "early": "*post*"}, "the folder holds labels.csv, 001/001_dyn0.nii.gz"),
        ({"pre": "[z-a]*", "early": "*"}, "bad character range"),
        ({**PATTERNS, "labels": "none.csv"}, "none.csv"),
        ({**PATTERNS, "labels": "labels.csv", "subject_column": "MRN"}, "a column MRN (subject)"),
        (
            {**PATTERNS, "labels": "labels.csv", "outcomes": ["pCR"]},
            "a column pCR (outcome). Received: Age at diagnosis",
        ),
        ({"labels_only": True}, "--labels"),
    ],
)
def test_what_cannot_be_read_says_what_to_mend(source, options, told):
    if "labels" in options:
        options = {**options, "labels": source / options["labels"]}
    with pytest.raises(SourceError) as error:
        read(source, **options)
    assert told in str(error.value)


def test_a_pattern_does_not_leave_the_source_and_links_in_a_circle_end(source, tmp_path):
    (tmp_path / "own" / "A").mkdir(parents=True)
    (tmp_path / "own" / "A" / "x_dyn0.nii.gz").write_bytes(b"x")
    (tmp_path / "secret_dyn1.nii.gz").write_bytes(b"x")
    (tmp_path / "own" / "A" / "loop").symlink_to(tmp_path / "own")
    assert [path.name for path in files_below(tmp_path / "own")] == ["x_dyn0.nii.gz"]
    with pytest.raises(SourceError, match="no file matches early"):
        read(tmp_path / "own", pre="*_dyn0.nii.gz", early="../../*_dyn1.nii.gz")


def table(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_a_looser_match_counts_only_where_it_is_the_only_one(tmp_path):
    rows = read_participants(table(tmp_path, "id,age\n7,1\nSUB-b,2\n01,3\n1,4\n"))
    joined = join(Found("toy", (Exam("007"), Exam("B"), Exam("001"))), rows)
    assert [exam.covariates.get("age") for exam in joined.exams] == ["1", "2", None]
    assert {exam.name for exam in joined.left_out if exam.of == SUBJECT} == {"01", "1"}
    assert any("without a row in labels.csv: 1" in note for note in joined.notes)
    assert join(Found("toy", (Exam("1"), Exam("01"))), rows).exams[0].covariates == {"age": "4"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,age\na,1\nA,2\n", "A twice"),
        ("id,HER2,her-2\na,1,0\n", "HER2, her-2"),
        ("age,sex\n1,f\n", "subject or"),
        ("", "empty file"),
    ],
)
def test_a_table_that_is_not_plain_is_refused(tmp_path, text, told):
    with pytest.raises(SourceError, match=told):
        read_participants(table(tmp_path, text))


def test_named_outcomes_may_be_words_and_rows_without_a_subject_are_counted(tmp_path):
    text = "patient,pCR,nodes\na,yes,0\nb,No,1\nc,maybe,2\n,yes,1\n"
    rows = read_participants(table(tmp_path, text), outcomes=["pcr"])
    assert [exam.outcomes["pCR"] for exam in rows.exams] == ["1", "0", ""]
    assert [reason.reason for reason in rows.left_out] == ["pCR has the code 'maybe'"]
    assert any("left out: 1" in note for note in rows.notes)
    assert read_participants(table(tmp_path, text)).outcomes == {}
