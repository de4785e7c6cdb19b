"""A user's own table, a row a subject, joined to the subjects that were found on the disk.

A column of 0, 1 and nothing else is an outcome, ``site``, ``scanner`` and ``split`` are what they say, every other
column is a covariate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mgkeras.data.cohort import OWN_COLUMNS, TIME_COLUMNS
from mgkeras.data.groups import grouped
from mgkeras.importers.found import SUBJECT, Exam, Found, LeftOut, SourceError, told_if
from mgkeras.importers.labels import coded, known, outcomes_of, split_of, whole
from mgkeras.importers.tables import read_table, unique
from mgkeras.importers.workbook import plain

SUBJECT_COLUMNS = (
    "subject",
    "subject_id",
    "patient_id",
    "patient",
    "participant_id",
    "participant",
    "case_id",
    "case",
    "pid",
    "id",
    "uid",
)
PLACES = {"site": "site", "center": "site", "centre": "site", "scanner": "scanner", "split": "split"}
YES, NO = ("1", "yes", "true", "positive", "pos"), ("0", "no", "false", "negative", "neg")


def read_participants(
    path: Path,
    *,
    subject_column: str | None = None,
    outcomes: Sequence[str] = (),
    covariates: Sequence[str] | None = None,
) -> Found:
    """Reads a csv, tsv or xlsx table of subjects.

    Args:
        path: of the table; of a workbook the first sheet is read.
        subject_column: whose text names the subjects. None takes the first of SUBJECT_COLUMNS that the table has.
        outcomes: columns; yes/no, true/false and positive/negative count as 1/0 in them. None given: every column in
            which both 0 and 1 occur and nothing else but empty cells and what says 'missing'.
        covariates: columns to carry over; None for all that are not something else.

    Returns:
        Found: ``kind`` is the table's name, the exams are its rows without files; what is left out tells wherever an
        outcome, or the split, is not known.

    Raises:
        SourceError: no table, a column that is wanted and missing or that occurs twice, a subject in two rows.
    """
    table = read_table(path)
    columns = [name for name in table.columns if name]
    doubled = sorted({name for name in columns if sum(plain(name) == plain(other) for other in columns) > 1})
    if doubled:
        raise SourceError(f"{path}: expected columns of different names. Received: {', '.join(doubled)}")
    who = _column(columns, [subject_column] if subject_column else SUBJECT_COLUMNS, path, "subject")
    rows = [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]
    nameless = sum(not row[who] for row in rows)
    rows = unique(rows, who, path)
    places = {PLACES[plain(name)]: name for name in columns if name != who and plain(name) in PLACES}
    free = [name for name in columns if name != who and name not in places.values()]
    taken = [name for name in free if name.casefold() in (*OWN_COLUMNS, *TIME_COLUMNS)]
    free = [name for name in free if name not in taken]
    asked = [_column(free, [name], path, "outcome") for name in outcomes]
    labelled = asked or [name for name in free if _is_binary(known(row[name]) for row in rows)]
    others = [name for name in free if name not in labelled]
    if covariates is not None:
        others = [_column(others, [name], path, "covariate") for name in covariates]
    exams, reasons = [], []
    for row in rows:
        values, unknown = outcomes_of(
            row[who], {name: coded(row[name], name, positive=YES, negative=NO) for name in labelled}
        )
        reasons += unknown
        place = {kind: known(row[name]) for kind, name in places.items()}
        said, split = place.get("split"), split_of(place.get("split"))
        if said and not split:
            reasons.append(LeftOut(row[who], f"split is {said!r}, none of train, val, test", "split"))
        own = {name: known(row[name]) for name in others}
        exams.append(Exam(row[who], {}, values, own, place.get("site", ""), place.get("scanner", ""), split))
    meaning = {
        name: f"Column {name} of {path.name} as it stands: 1, 0, or empty where it is not known" for name in labelled
    }
    notes = _notes(path, who, nameless, labelled, others, taken)
    return Found(path.name, tuple(exams), tuple(reasons), meaning, notes=tuple(notes))


def join(found: Found, table: Found | None) -> Found:
    """What was found, its exams with what the table knows of them.

    A name is looked for as it is, upper and lower case alike; then without ``sub-``; then, if it is a number, without
    leading zeros, which spreadsheets drop. A looser match counts only where it is the only one.

    Args:
        found: exams with files, and subjects that are left out, whose rows do not lack a folder.
        table: of :func:`read_participants`; None for no table.

    Returns:
        Found: all exams; what is left out also tells of outcomes that are not known and of rows without exams.
    """
    if table is None:
        note = "No table of labels was given: the cohort has no outcomes."
        return replace(found, notes=(*found.notes, note))
    names = [exam.name for exam in found.exams] + [exam.name for exam in found.left_out if exam.of == SUBJECT]
    row_of, numbers = _matches(names, {row.name: row for row in table.exams})
    joined, left_out, renamed = [], [], {}
    for exam in found.exams:
        row = row_of.get(exam.name)
        if row is None:
            joined.append(replace(exam, outcomes=dict.fromkeys(table.outcomes, "")))
            left_out += [LeftOut(exam.name, f"no row in {table.kind}", outcome) for outcome in table.outcomes]
            continue
        renamed[row.name] = exam.name
        joined.append(
            replace(row, name=exam.name, files=exam.files, scanner=row.scanner or exam.scanner, when=exam.when)
        )
    left_out += [replace(exam, name=renamed[exam.name]) for exam in table.left_out if exam.name in renamed]
    matched = {row.name for row in row_of.values()}
    left_out += [
        LeftOut(row.name, f"a row in {table.kind}, but no images") for row in table.exams if row.name not in matched
    ]
    without = sum(exam.name not in row_of for exam in found.exams)
    notes = told_if(
        (without, f"Subjects without a row in {table.kind}: {without}; their outcomes are empty."),
        (numbers, f"Subjects joined by number, leading zeros apart: {numbers}."),
    )
    return replace(
        found,
        exams=tuple(joined),
        left_out=(*found.left_out, *left_out),
        outcomes=table.outcomes,
        notes=(*table.notes, *found.notes, *notes),
    )


def _matches(names: Sequence[str], rows: dict[str, Exam]) -> tuple[dict[str, Exam], int]:
    """{name: row}, and how many of them matched by number only."""
    found: dict[str, Exam] = {}
    numbers = 0
    for key in (str.casefold, _bare, number_of):
        used = {row.name for row in found.values()}
        ours = grouped((key(name), name) for name in names if name not in found)
        theirs = grouped((key(name), name) for name in rows if name not in used)
        hits = {
            ours[key][0]: rows[theirs[key][0]] for key in ours if len(ours[key]) == 1 and len(theirs.get(key, ())) == 1
        }
        numbers += len(hits) if key is number_of else 0
        found |= hits
    return found, numbers


def _bare(name: str) -> str:
    return name.casefold().removeprefix("sub-")


def number_of(name: str) -> str:
    """A subject's name without leading zeros and '.0' if it is a number, else as it is but for case and ``sub-``."""
    bare = whole(_bare(name))
    return bare.lstrip("0") or "0" if bare.isascii() and bare.isdigit() else bare


def _column(columns: Sequence[str], wanted: Sequence[str], path: Path, what: str) -> str:
    """The first of the wanted columns that there is, as the table spells it."""
    place = {plain(name): name for name in columns}
    for name in wanted:
        if plain(name) in place:
            return place[plain(name)]
    raise SourceError(f"{path}: expected a column {' or '.join(wanted)} ({what}). Received: {', '.join(columns)}")


def _is_binary(values: Iterable[str]) -> bool:
    return {whole(value) for value in values if value} == {"0", "1"}


def _notes(
    path: Path, who: str, nameless: int, outcomes: Sequence[str], covariates: Sequence[str], taken: Sequence[str]
) -> list[str]:
    return told_if(
        (True, f"Table: {path.name}, subjects by its column {who}."),
        (nameless, f"Rows without a subject in it, left out: {nameless}."),
        (
            not outcomes,
            f"{path.name} has no column in which both 0 and 1 occur and nothing else: no outcome. Name a column of "
            "yes and no, or of positive and negative, by --outcomes.",
        ),
        (
            covariates,
            f"Covariates carried over as they stand: {', '.join(covariates)}. Do not give the clinical "
            "baseline one that is known only after the exam.",
        ),
        (taken, f"Not carried over, for cohort.csv has columns of these names: {', '.join(taken)}."),
    )
