"""`import dicom`: patients to subjects under pseudonyms, of whom nothing but voxels, scanner and labels travels."""

from __future__ import annotations

import csv
import gzip
import stat
from pathlib import Path

import numpy as np
import pytest
from miniatures import dicom as made

from mgkeras.data.cohort import check_cohort, read_cohort
from mgkeras.data.volume import load_volume
from mgkeras.importers import conversion
from mgkeras.importers.dicom import VISITS, read
from mgkeras.importers.found import SourceError
from mgkeras.importers.sheet import write_found


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return made.make_dicom(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def volumes():
    return made.phantom_phases(1)[1:]


def bytes_of(folder: Path) -> bytes:
    """Names and contents of all files below a folder, gzip unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            raw = path.read_bytes()
            parts += [raw, gzip.decompress(raw)] if path.suffix == ".gz" else [raw]
    return b"\n".join(parts)


def test_an_archive_becomes_a_cohort_that_has_no_errors(archive, tmp_path):
    out = tmp_path / "out"
    steps = []
    found = read(
        archive,
        nifti=out / "nifti",
        labels=archive.parent / "labels.csv",
        keep_map=tmp_path / "map.csv",
        progress=lambda done, total: steps.append((done, total)),
    )
    table, sheet = write_found(found, out)
    assert [exam.name for exam in found.exams] == [f"S{n:04d}" for n in range(3, 11)]
    assert {exam.name: exam.reason for exam in found.left_out if exam.of == "subject"} == {
        "S0001": "slices are missing: phases of different numbers of slices",
        "S0002": "no dynamic series",
    }
    assert steps[-1] == (10, 10)
    cohort = read_cohort(table, "recurrence")
    assert [problem for problem in check_cohort(cohort) if problem.severity == "error"] == []
    who = {row["pseudonym"]: row["patient_id"] for row in csv.DictReader((tmp_path / "map.csv").open())}
    for subject in cohort.subjects:
        index = (9000 - int(who[subject.name][1:])) // 7
        case = made.phantom_phases(index)[0]
        assert (subject.label, subject.covariates["age"]) == (case.recurrence, str(case.age))
        assert subject.covariates["scanner"] == "SIEMENS Avanto 1.5 T" and subject.site is None
    assert "exam_date" not in cohort.subjects[0].covariates and "exam_date" in sheet.read_text()
    assert not any(patient.encode() in bytes_of(out) for patient in who.values())
    assert b"2019" not in (out / "cohort.csv").read_bytes() + sheet.read_bytes()
    assert "localizers and derived images" in sheet.read_text()
    assert "only their order: 1." in sheet.read_text()  # the layout of temporal positions alone


def test_a_second_call_keeps_names_and_files_when_patients_come_between(volumes, tmp_path):
    def patient(name):
        made.save(made.exam(name, *volumes), tmp_path / "in" / name)

    def names():
        found = read(tmp_path / "in", nifti=tmp_path / "nifti", keep_map=tmp_path / "map.csv")
        assert {exam.files["pre"].name for exam in found.exams} == {f"{exam.name}_pre.nii.gz" for exam in found.exams}
        return {row["patient_id"]: row["pseudonym"] for row in csv.DictReader((tmp_path / "map.csv").open())}

    patient("A2"), patient("A4")
    assert names() == {"A2": "S0001", "A4": "S0002"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").iterdir()}
    assert len(times) == 6
    patient("A1"), patient("A3")
    (tmp_path / "map.csv").write_text("Patient_ID;note;Pseudonym\nA2;=1+1;S0001\nA4;;S0002\n")
    assert len(read(tmp_path / "in", nifti=tmp_path / "nifti", keep_map=tmp_path / "map.csv").exams) == 4
    rows = list(csv.reader((tmp_path / "map.csv").open()))
    assert rows == [
        ["Patient_ID", "note", "Pseudonym"],
        ["A2", "=1+1", "S0001"],
        ["A4", "", "S0002"],
        ["A1", "", "S0003"],
        ["A3", "", "S0004"],
    ]
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert stat.S_IMODE((tmp_path / "map.csv").stat().st_mode) == 0o600
    without = read(tmp_path / "in", nifti=tmp_path / "nifti")
    assert [exam.name for exam in without.exams] == ["S0001", "S0002", "S0003", "S0004"]
    assert any("--keep-map" in note for note in without.notes)


def test_nothing_in_the_headers_travels(volumes, tmp_path):
    files = made.exam("MRN4711", *volumes)
    for image in files:
        made.identifying(image)
    made.save(files, tmp_path / "Doe Jane 4711")
    out = tmp_path / "out"
    found = read(tmp_path / "Doe Jane 4711", nifti=out / "nifti", series="ND", keep_map=tmp_path / "map.csv")
    write_found(found, out)
    assert len(found.exams) == 1 and found.exams[0].scanner == ""
    everything = bytes_of(out).lower() + repr((found.left_out, found.notes, found.phases)).lower().encode()
    for text in ("doe", "jane", "4711", "19610203", "mercy", made.DAY, made.clock(0)[:6], "t1_fl3d"):
        assert text.lower().encode() not in everything, text
    assert b"MRN4711" in (tmp_path / "map.csv").read_bytes()


def test_what_is_left_out_is_told_without_the_patient(volumes, tmp_path):
    for n, cut in enumerate((-1, None)):
        files = made.exam(f"MRN471{n}", *volumes, "several-series")[:cut]
        for image in files:
            image.SeriesDescription = "dyn Doe MRN4711"
        made.save(files, tmp_path / "in" / f"Doe{n}")
    for path in (tmp_path / "in" / "Doe1").iterdir():
        path.write_bytes(path.read_bytes()[:1400])
    found = read(tmp_path / "in", nifti=tmp_path / "out" / "nifti")
    assert [exam.name for exam in found.left_out] == ["S0001", "S0002"]
    assert "slices are missing" in found.left_out[0].reason and "dcm2niix" in found.left_out[1].reason
    assert not any(text in exam.reason for exam in found.left_out for text in ("Doe", "471", "/"))
    assert list((tmp_path / "out").rglob("*.*")) == []


def test_the_earliest_study_is_the_exam_and_others_are_counted(volumes, tmp_path):
    (pre, early, late), affine = volumes
    days = {"1": "20200101", "2": "20190304", "3": "20210101"}
    for study, day in days.items():
        phases = (pre, early + int(study), late) if study != "3" else (pre,)
        files = made.exam("A1", phases, affine, study=study, day=day)
        made.save(files, tmp_path / "in" / study)
    first, second = (read(tmp_path / "in", nifti=tmp_path / str(visit), visit=visit) for visit in (1, 2))
    for found, study in ((first, "2"), (second, "1")):
        assert [(exam.name, exam.of) for exam in found.left_out] == [("S0001", VISITS)]
        assert load_volume(found.exams[0].files["early"]).data.max() == (early + int(study)).max()
    third = read(tmp_path / "in", nifti=tmp_path / "3", visit=3)
    assert third.exams == () and third.left_out[-1].reason == "fewer than 3 studies with a dynamic series"


def test_the_site_is_told_only_when_asked_for(volumes, tmp_path):
    made.save(made.exam("A1", *volumes, InstitutionName="Mercy"), tmp_path / "in")
    assert read(tmp_path / "in", nifti=tmp_path / "out").exams[0].site == ""
    found = read(tmp_path / "in", nifti=tmp_path / "out", site_tag="InstitutionName")
    assert found.exams[0].site == "Mercy" and any("InstitutionName" in note for note in found.notes)
    with pytest.raises(SourceError, match="keywords of DICOM"):
        read(tmp_path / "in", nifti=tmp_path / "out", site_tag="InstitutionNam")


def test_patients_without_an_identifier_are_told_apart_by_their_studies(volumes, tmp_path):
    for study in "12":
        made.save(made.exam("", *volumes, study=study), tmp_path / "in" / study)
    assert len(read(tmp_path / "in", nifti=tmp_path / "out").exams) == 2


def labelled(tmp_path, volumes, text):
    for name in ("H0815", "H0816"):
        made.save(made.exam(name, *volumes), tmp_path / "in" / name)
    (tmp_path / "labels.csv").write_text(text)
    return read(tmp_path / "in", nifti=tmp_path / "out", labels=tmp_path / "labels.csv")


def test_labels_are_joined_by_identifier_and_carry_none(volumes, tmp_path):
    found = labelled(
        tmp_path,
        volumes,
        "patient_id,pcr,grade,birthDate,note,seen,Surname\n"
        "h0815,1,3,1961,is H0815,04.03.2019,Doe\nH0817,0,2,1950,,,Roe\n",
    )
    assert [exam.outcomes for exam in found.exams] == [{"pcr": "1"}, {"pcr": ""}]
    assert found.exams[0].covariates == {"grade": "3"}
    assert [(exam.name, exam.of, exam.reason) for exam in found.left_out] == [("S0002", "pcr", "no row in labels.csv")]
    told = " ".join(found.notes)
    assert "birthDate, note, seen, Surname" in told and "no DICOM files here: 1" in told
    assert not any(text in told for text in ("H08", "h08", "Doe", "Roe"))


def test_labels_may_name_pseudonyms_beside_identifiers_that_do_not_travel(volumes, tmp_path):
    text = "subject,pcr,hospital_no,site,scanner\nS0002,1,H0816,H0816,h0816\nS0001,0,H0815,north,\n"
    found = labelled(tmp_path, volumes, text)
    assert [exam.outcomes["pcr"] for exam in found.exams] == ["0", "1"]
    assert [exam.covariates for exam in found.exams] == [{}, {}] and not any(exam.site for exam in found.exams)
    assert all(exam.scanner == "SIEMENS Avanto 1.5 T" for exam in found.exams)
    assert "hospital_no, site, scanner" in " ".join(found.notes)


def test_short_identifiers_do_not_travel_either_and_an_age_that_is_one_does(volumes, tmp_path):
    for name in ("51", "60", "7"):
        made.save(made.exam(name, *volumes), tmp_path / "in" / name)
    (tmp_path / "labels.csv").write_text("patient_id,pcr,number,age\n51,1,51,51\n60,0,60,44\n7,1,7.0,60\n")
    found = read(tmp_path / "in", nifti=tmp_path / "out", labels=tmp_path / "labels.csv")
    assert [exam.covariates for exam in found.exams] == [{"age": "51"}, {"age": "44"}, {"age": "60"}]


def test_a_cell_that_is_no_label_is_not_quoted(volumes, tmp_path):
    for name in ("H0815", "H0816"):
        made.save(made.exam(name, *volumes), tmp_path / "in" / name)
    (tmp_path / "labels.csv").write_text("patient_id,recurred,split\nH0815,2019-03-04,Mrs O'Doe\nH0816,1,train\n")
    found = read(tmp_path / "in", nifti=tmp_path / "out", labels=tmp_path / "labels.csv", outcomes=["recurred"])
    told = {exam.of: exam.reason for exam in found.left_out}
    assert told == {"recurred": "recurred has the code ...", "split": "split is ..., none of train, val, test"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("patient_id,pcr\nX1,1\nX2,0\n", "none of the patients"),
        ("patient_id,pcr\nH0815,1\nH0815,0\n", "each patient once"),
        ("pcr\n1\n", "expected a column"),
    ],
)
def test_labels_of_nobody_here_are_an_error(volumes, tmp_path, text, words):
    with pytest.raises(SourceError, match=words) as told:
        labelled(tmp_path, volumes, text)
    assert "H0815" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "name,number\na,b\n",
        "pseudonym,patient_id\nS0001,A1\nS0001,A2\n",
        "pseudonym,patient_id\nS0001,A1\nS0002,A1\n",
        "pseudonym,patient_id\n../x,A1\n",
        "pseudonym,patient_id\nS0001,\n",
        "A1\n",
    ],
)
def test_a_table_of_pseudonyms_that_contradicts_itself_is_refused_and_kept(volumes, tmp_path, text):
    made.save(made.exam("A1", *volumes), tmp_path / "in")
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(SourceError, match="map.csv") as told:
        read(tmp_path / "in", nifti=tmp_path / "out", keep_map=tmp_path / "map.csv")
    assert "A1" not in str(told.value) and (tmp_path / "map.csv").read_text() == text


def test_a_table_of_pseudonyms_is_text(volumes, tmp_path):
    made.save(made.exam("A1", *volumes), tmp_path / "in")
    with pytest.raises(SourceError, match="expected a csv file"):
        read(tmp_path / "in", nifti=tmp_path / "out", keep_map=tmp_path / "map.xlsx")
    assert not (tmp_path / "map.xlsx").exists()


def test_calls_that_cannot_work_say_why(volumes, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.txt").write_text("x")
    with pytest.raises(SourceError, match="Received: 1 files of other kinds"):
        read(tmp_path / "in", nifti=tmp_path / "out")
    with pytest.raises(SourceError, match="regular expression"):
        read(tmp_path / "in", nifti=tmp_path / "out", series="(")
    with pytest.raises(SourceError, match="outside"):
        read(tmp_path / "in", nifti=tmp_path / "out", keep_map=tmp_path / "out" / "map.csv")
    monkeypatch.setattr(conversion.shutil, "which", lambda _: None)
    with pytest.raises(SourceError, match=r"mgkeras\[import\]"):
        read(tmp_path / "in", nifti=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_phases_are_chosen_by_their_times(volumes, tmp_path, monkeypatch):
    (pre, early, late), affine = volumes
    monkeypatch.setattr(made, "TIMES", (0.0, 60.0, 120.0, 400.0))
    made.save(made.exam("A1", (pre, early, early + 1, late), affine), tmp_path / "in")
    for seconds, volume in ((150, early + 1), (50, early)):  # the second call replaces what the first has written
        found = read(tmp_path / "in", nifti=tmp_path / "out", early_seconds=seconds, late_seconds=410)
        files = found.exams[0].files
        shown = [load_volume(files[column]).data.sum() for column in ("pre", "early", "late")]
        assert shown == [float(phase.sum(dtype=np.float64)) for phase in (pre, volume, late)]


def dynamic(volumes, count, **tags):
    """An exam of ``count`` phases of the same time, of which numbers tell the order; contrast arrives at the sixth."""
    (pre, early, late), affine = volumes
    files = []
    for n in range(count):
        volume = pre if n < 5 else early if n == 6 else late
        base = made.header("A1", AcquisitionTime=made.clock(0), ContentTime=made.clock(0), AcquisitionNumber=n + 1)
        for name, value in tags.items():
            setattr(base, name, value)
        files += made.slices(volume, affine, base, 1 + n * volume.shape[2])
    return files


def test_ten_phases_without_times_are_refused_until_one_is_named(volumes, tmp_path):
    made.save(dynamic(volumes, 10), tmp_path / "in")
    gone = read(tmp_path / "in", nifti=tmp_path / "out").left_out[0].reason
    assert "phases 1 to 10 of series 1" in gone and "--early-phase" in gone and not (tmp_path / "out").exists()
    for options, when in (
        ({"early_phase": 7}, "phase 7 of 10, as told"),
        ({"by_enhancement": True}, "phase 7 of 10, by enhancement"),
    ):
        exam = read(tmp_path / "in", nifti=tmp_path / "out", **options).exams[0]
        assert exam.when == {"early_seconds": when, "late_seconds": "phase 10 of 10, by order"}
        assert load_volume(exam.files["early"]).data.sum() == float(volumes[0][1].sum(dtype=np.float64))


@pytest.mark.parametrize(
    "tags", [{"TemporalResolution": 30000}, {"RepetitionTime": 30000, "ScanningSequence": "EP", "EchoTime": 30}]
)
def test_the_headers_spacing_of_phases_is_their_time(volumes, tmp_path, tags):
    made.save(dynamic(volumes, 10, **tags), tmp_path / "in")
    found = read(tmp_path / "in", nifti=tmp_path / "out", series=".", early_seconds=180, late_seconds=260)
    assert found.exams[0].when == {"early_seconds": "180", "late_seconds": "270"}
