"""What every importer is made of: labels, phases, tables, the data-sheet; against cases written by hand."""

from __future__ import annotations

import csv
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkeras.data.cohort import read_cohort
from mgkeras.importers.found import Exam, Found, LeftOut, SourceError
from mgkeras.importers.labels import coded, event_within, known, number
from mgkeras.importers.phases import PhaseRule, choose_phases, phases_by_column
from mgkeras.importers.sheet import write_found
from mgkeras.importers.tables import find_file, read_table, unique


@pytest.mark.parametrize(
    ("event", "days", "value"),
    [
        (True, 0, "1"),
        (True, 1826, "1"),
        (True, 1827, "0"),
        (False, 1826, ""),
        (False, 1827, "0"),
        (False, 10, ""),
        (None, 10, ""),
        (True, None, ""),
        (False, -1, ""),
    ],
)
def test_an_event_counts_within_the_horizon_and_censoring_before_it_is_not_known(event, days, value):
    label = event_within(event, days)
    assert label.value == value
    assert (label.reason is None) == bool(value)


def test_codes_are_read_as_written_by_spreadsheets():
    assert coded("1.0", "HER2") == ("1", None)
    assert coded(" 0 ", "HER2").value == "0"
    assert coded("2", "HER2", unclear=("2",)) == ("", "HER2 is equivocal or indeterminate")
    assert "code '7'" in coded("7", "HER2").reason
    assert coded("NC", "HER2").reason == "HER2 is missing"
    assert (known(" NP "), known(None), known("0")) == ("", "", "0")
    assert (number("NA"), number("3.5")) == (None, 3.5)
    assert (known("#REF!"), number("#N/A")) == ("", None)
    for text in ("three", "inf"):
        with pytest.raises(ValueError):
            number(text)


@pytest.mark.parametrize(
    ("count", "seconds", "found"),
    [
        (1, None, None),
        (2, None, (0, 1, None)),
        (5, None, (0, 1, 4)),
        (4, [0, 165, 288, 411], (0, 1, 3)),
        (4, [100, 150, 250, 560], (0, 2, 3)),  # seconds count from the first phase
        (4, [0, 60, 140, 900], (0, 2, 3)),
        (3, [0, 30, 60], (0, 2, None)),
        (3, [0, 0, 10], (0, 1, 2)),
        (3, [0, 10], (0, 1, 2)),
        (3, [0, float("nan"), 10], (0, 1, 2)),  # times of no use
    ],
)
def test_phases_are_chosen_by_time_where_it_is_known(count, seconds, found):
    assert choose_phases(count, seconds) == found


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=8).map(
        lambda steps: [sum(steps[:n]) for n in range(len(steps) + 1)]
    )
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_phases_are_in_the_order_of_time(seconds):
    pre, early, late = choose_phases(len(seconds), seconds)
    assert pre == 0 < early < (late or len(seconds))
    assert all(abs(seconds[early] - 150) <= abs(other - 150) for other in seconds[1:])


def test_more_phases_than_eight_without_times_are_refused_unless_the_phase_is_named():
    assert choose_phases(8) == (0, 1, 7)
    with pytest.raises(SourceError, match=r"40 phases.*--early-phase N.*--by-enhancement.*phases 1 to 40 of x") as told:
        choose_phases(40, listed="phases 1 to 40 of x")
    assert "Received: 40 phases" in str(told.value)
    assert choose_phases(40, rule=PhaseRule(early_phase=9)) == (0, 8, 39)
    assert choose_phases(40, rule=PhaseRule(early_phase=9, late_phase=20)) == (0, 8, 19)
    assert choose_phases(5, [0, 60, 140, 300, 450], rule=PhaseRule(early_phase=2)) == (0, 1, 4)
    with pytest.raises(SourceError, match="--early-phase 9.*Received: 5 phases"):
        choose_phases(5, rule=PhaseRule(early_phase=9))
    with pytest.raises(ValueError, match="after"):
        PhaseRule(early_phase=9, late_phase=9)
    with pytest.raises(ValueError, match="by_enhancement"):
        PhaseRule(early_phase=9, by_enhancement=True)


def test_t1_is_the_peak_of_the_curve_where_that_is_asked_for():
    peak = PhaseRule(by_enhancement=True)
    curve = [1.0, 1.0, 1.1, 2.5, 2.4, 2.2]
    assert choose_phases(6, rule=peak, curve=lambda: curve) == (0, 3, 5)
    assert choose_phases(6, [0, 5, 10, 15, 20, 470], rule=peak, curve=lambda: curve) == (0, 3, 5)


def test_what_was_taken_is_told_in_seconds_or_by_the_rule():
    taken = phases_by_column("abcde", [0, 60, 140.5, 300, 450])
    assert taken.phases == {"pre": "a", "early": "c", "late": "e"}
    assert taken.when == {"early_seconds": "140.5", "late_seconds": "450"}
    assert phases_by_column("ab").when == {"early_seconds": "phase 2 of 2, by order"}
    told = phases_by_column("abcde", rule=PhaseRule(early_phase=3))
    assert told.when == {"early_seconds": "phase 3 of 5, as told", "late_seconds": "phase 5 of 5, by order"}
    assert phases_by_column("a").phases == phases_by_column("a").when == {}


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_columns_are_found_under_any_spelling(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "Patient ID ;HR-Pos;age\nA1;1;50\n;;\nA2;0;\n", "utf-8-sig"))
    wanted = {"id": ("patient_id",), "hr": ("hr_status", "HR Pos")}
    rows = table.fields(wanted, {"age": (), "site": ("centre",)})
    assert rows == [{"id": "A1", "hr": "1", "age": "50", "site": ""}, {"id": "A2", "hr": "0", "age": "", "site": ""}]
    with pytest.raises(SourceError, match="columns outcome or label. Received: Patient ID, HR-Pos, age"):
        table.fields({"y": ("outcome", "label")})
    doubled = read_table(write(tmp_path / "d.csv", "id,ID,x\n1,2,3\n"))
    with pytest.raises(SourceError, match="one column 'id'"):
        doubled.fields({"id": ()})
    assert doubled.fields({"x": ()}) == [{"x": "3"}]


def test_a_subject_occurs_once():
    rows = [{"id": "A"}, {"id": ""}, {"id": "b"}]
    assert unique(rows, "id", "t.csv") == [{"id": "A"}, {"id": "b"}]
    with pytest.raises(SourceError, match="a twice"):
        unique([*rows, {"id": "a"}], "id", "t.csv")


def excel(path, lines, title="Data", merged=()):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = title
    for line in lines:
        book.active.append(line)
    for area in merged:
        book.active.merge_cells(area)
    book.save(path)
    return path


def test_excel_with_a_head_of_three_rows(tmp_path):
    lines = [
        ["Demographics", None, "Outcome"],
        ["Patient ID ", "Age", "ER"],
        ["B_0", "{years}", "{0 = no}"],
        ["B_1", 50.5, 1],
        [None, None, None],
        ["B_2", None, 0],
    ]
    path = excel(tmp_path / "a.xlsx", lines, merged=["A1:B1"])
    table = read_table(path, "DATA", header=2)
    assert table.rows == (("B_0", "{years}", "{0 = no}"), ("B_1", "50.5", "1"), ("B_2", "", "0"))
    with pytest.raises(SourceError, match="no sheet 'other' among Data"):
        read_table(path, "other")
    with pytest.raises(SourceError, match="merged cells A4:A6"):
        read_table(excel(tmp_path / "b.xlsx", lines, merged=["A4:A6"]), header=2)


def test_what_is_no_table_is_told(tmp_path):
    long = write(tmp_path / "long.csv", "a,b\n1,2,3\n")
    for path in (
        tmp_path / "none.csv",
        write(tmp_path / "none.xlsx", "not a zip"),
        write(tmp_path / "e.csv", " \n"),
        long,
    ):
        with pytest.raises(SourceError, match=path.name):
            read_table(path)
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("xl/workbook.xml", "w") as entry:
            for _ in range(21):
                entry.write(bytes(10_000_000))
    with pytest.raises(SourceError, match="bytes unpacked"):
        read_table(tmp_path / "bomb.xlsx")


def test_a_file_is_found_by_its_name_alone(tmp_path):
    for name in ("I-SPY-1-All.xlsx", "other.csv"):
        (tmp_path / name).write_text("x")
    assert find_file(tmp_path, r"never", r"i-spy.*\.XLSX").name == "I-SPY-1-All.xlsx"
    with pytest.raises(SourceError, match="Received: I-SPY-1-All.xlsx, other.csv"):
        find_file(tmp_path, "x")
    with pytest.raises(SourceError, match="expected one file"):
        find_file(tmp_path, ".*")
    with pytest.raises(SourceError, match="no files"):
        find_file(tmp_path / "absent", ".*")


def exam(name, outcome="1", files=("pre", "early"), **more):
    paths = {column: f"/data/{name}_{column}.nii.gz" for column in files}
    from pathlib import Path

    return Exam(name, {column: Path(path) for column, path in paths.items()}, {"recurrence": outcome}, **more)


def test_the_table_and_the_sheet_account_for_everyone(tmp_path):
    exams = (
        exam("A1", site="north", scanner="GE", split="train", covariates={"age": "50"}),
        exam("A2", "0", site="north", covariates={"age": ""}),
        exam("A3", "", files=("early", "pre", "mask")),
        exam("B1", files=()),
        exam("B2", files=("early",)),
        exam("../x"),
        exam("c"),
        exam("C"),
    )
    found = Found(
        "toy",
        exams,
        (LeftOut("D1", "consent | withdrawn <b>"), LeftOut("A3", "censored", "recurrence")),
        {"recurrence": "within 5 years"},
        phases="by name",
        notes=("A note.",),
    )
    table, sheet = write_found(found, tmp_path / "out")
    cohort = read_cohort(table, "recurrence")
    assert [subject.name for subject in cohort.subjects] == ["A1", "A2"] and cohort.unlabelled == ("A3",)
    assert cohort.subjects[0].site == "north" and cohort.subjects[0].covariates == {
        "scanner": "GE",
        "split": "train",
        "age": "50",
    }
    text = sheet.read_text("utf-8")
    for line in (
        "- Subjects: 3 in cohort.csv, 6 left out.",
        "| 1 | 1 |",
        "| not known | 1 |",
        "| north | 2 | 1 / 1 / 0 |",
        "| no volumes found | 1 | B1 |",
        "| no pre phase found | 1 | B2 |",
        "| censored | 1 | A3 |",
        "| its name cannot name files | 1 | '../x' |",
        "| its name occurs more than once | 2 | c, C |",
        "| consent &#124; withdrawn &lt;b> | 1 | D1 |",
        "- A note.",
        "- Files: pre 3, early 3, late 0, mask 1.",
        "- Phases: by name.",
    ):
        assert line in text


def test_labels_alone_make_a_table_to_plan_with(tmp_path):
    found = Found("toy", (exam("A1", files=()), exam("A2", "0", files=())), outcomes={"recurrence": ""})
    table, sheet = write_found(found, tmp_path, labels_only=True)
    rows = list(csv.DictReader(table.open()))
    assert [(row["subject"], row["early"], row["recurrence"]) for row in rows] == [("A1", "", "1"), ("A2", "", "0")]
    assert [subject.early for subject in read_cohort(table, "recurrence", files=False).subjects] == [None, None]
    again, sheet = write_found(found, tmp_path)  # now with files, of which there are none
    assert again is None and not table.exists() and "| no volumes found | 2 | A1, A2 |" in sheet.read_text()


def test_two_columns_of_one_name_are_refused(tmp_path):
    clash = Exam("A", exam("A").files, {"age": "1"}, {"age": "50"})
    with pytest.raises(SourceError, match="age twice"):
        write_found(Found("toy", (clash,)), tmp_path)


def test_import_writes_over_no_table_of_others_and_not_into_the_source(tmp_path):
    from click.testing import CliRunner
    from mgkeras.cli.main import cli

    source, out = tmp_path / "source", tmp_path / "out"
    (source / "A1").mkdir(parents=True)
    out.mkdir()
    (out / "cohort.csv").write_text("subject,pre,early\nmine,a,b\n")
    patterns = ["--pre", "*_0.nii.gz", "--early", "*_1.nii.gz"]
    done = CliRunner().invoke(cli, ["import", "folder", str(source), str(out), *patterns])
    assert done.exit_code == 2 and "was not made by `mgkeras import`" in done.output
    assert (out / "cohort.csv").read_text().endswith("mine,a,b\n")
    done = CliRunner().invoke(cli, ["import", "folder", str(source), str(source), *patterns])
    assert done.exit_code == 2 and "SOURCE is only read" in done.output and len(list(source.iterdir())) == 1


def test_no_table_is_there_without_its_sheet_wherever_an_import_ends(tmp_path, monkeypatch):
    """Else the same command again would take the table for one of another origin."""
    from mgkeras.importers import sheet

    def ends(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sheet, "data_sheet", ends)
    with pytest.raises(KeyboardInterrupt):
        write_found(Found("toy", (exam("A"),)), tmp_path)
    assert not (tmp_path / "cohort.csv").exists()


def test_reasons_stand_in_the_terminal_and_next_lines_are_quoted(tmp_path):
    from click.testing import CliRunner
    from mgkeras.cli.main import cli

    source, out = tmp_path / "in", tmp_path / "my cohort"
    for name, kinds in (("A", "01"), ("B", "0"), ("C", "0")):
        (source / name).mkdir(parents=True)
        for kind in kinds:
            (source / name / f"x_{kind}.nii.gz").write_bytes(b"x")
    patterns = ["--pre", "*_0.nii.gz", "--early", "*_1.nii.gz"]
    done = CliRunner().invoke(cli, ["import", "folder", str(source), str(out), *patterns])
    assert done.exit_code == 0 and "left out, 2 subjects: no file matches early: *_1.nii.gz (B, C)" in done.output
    assert f"mgkeras cohort check '{out / 'cohort.csv'}'" in done.output
    assert f"mgkeras mask '{out / 'cohort.csv'}'" in done.output and f"'{out / 'masks' / 'cohort.csv'}'" in done.output


def test_names_of_many_are_a_file_and_no_cell(tmp_path):
    left_out = [LeftOut(f"P{n:03d}", "no images") for n in range(982)] + [LeftOut("Q", "no consent")]
    _, sheet = write_found(Found("toy", (exam("A"),), tuple(left_out), {"recurrence": ""}), tmp_path)
    text = sheet.read_text()
    assert "| no images | 982 | P000, P001," in text and "P500" not in text and "left-out.csv" in text
    rows = list(csv.DictReader((tmp_path / "left-out.csv").open()))
    assert len(rows) == 983 and rows[500] == {"name": "P500", "of": "subject", "reason": "no images"}
    write_found(Found("toy", (exam("A"),), tuple(left_out[:3]), {"recurrence": ""}), tmp_path)
    assert not (tmp_path / "left-out.csv").exists()


def test_a_folder_that_cannot_be_written_names_the_options(monkeypatch, capsys):
    from mgkeras.cli import main

    def fail(**_):
        raise PermissionError(13, "Permission denied", ".mgkeras-cache")

    monkeypatch.setattr(main.cli, "main", fail)
    with pytest.raises(SystemExit):
        main.main()
    assert "--cache" in (told := capsys.readouterr().err) and "--out" in told and ".mgkeras-cache" in told
