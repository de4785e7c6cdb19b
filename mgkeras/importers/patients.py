"""Patients' pseudonyms, the table that keeps them, and what a table of labels tells without telling who it is.

The table of pseudonyms stays with the user. A pseudonym is a number, not a hash: hospital numbers are so few that a
hash of one is found by trying them all.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgkeras.data.checks import check_name
from mgkeras.importers.found import Exam, LeftOut, SourceError
from mgkeras.importers.participants import Participants, join, read_participants
from mgkeras.importers.tables import read_table

PSEUDONYM, PATIENT = "pseudonym", "patient_id"
DATE = re.compile(r"(19|20)\d\d(-\d\d?-\d\d?([ T].*)?|\d{4})|\d{1,2}[./-]\d{1,2}[./-](\d\d|(19|20)\d\d)")
IDENTIFYING = re.compile(r"\b((patient |first |last |sur|family |given )?name|id|birth|dob|date|address|phone|mrn|"
                         r"accession|insurance|ssn|e ?mail|zip|postal|pseudonym)\b")  # fmt: skip


def pseudonyms(patients: Iterable[str], keep_map: Path | None = None) -> dict[str, str]:
    """{patient: pseudonym}: S0001, S0002, ... in the order of the sorted identifiers.

    Args:
        patients: identifiers.
        keep_map: a table of the columns pseudonym and patient_id. Where it exists its pseudonyms hold, and patients
            that it lacks get the next numbers; it is written anew with them, readable by its owner only, all its other
            columns as they were.

    Raises:
        SourceError: a table of other columns, an empty cell in these two, or one of them twice.
    """
    kept, columns, rows = _read_map(keep_map) if keep_map and keep_map.exists() else ({}, [PSEUDONYM, PATIENT], [])
    last = max((int(name[1:]) for name in kept.values() if re.fullmatch(r"S\d{1,9}", name)), default=0)
    fresh = sorted(set(patients) - kept.keys())
    named = {patient: f"S{number:04d}" for number, patient in enumerate(fresh, last + 1)}
    if keep_map:
        cells = {column: _field(column) for column in columns}
        rows = rows + [[{PSEUDONYM: name, PATIENT: patient}.get(cells[column], "") for column in columns]
                       for patient, name in named.items()]  # fmt: skip
        _write_map(keep_map, columns, rows)
    return kept | named


def _read_map(path: Path) -> tuple[dict[str, str], list[str], list[list[str]]]:
    try:
        table = read_table(path)
        pairs = table.fields({PSEUDONYM: (), PATIENT: ()})
    except SourceError:  # whose words may be cells of the table
        raise SourceError(f"{path}: expected a table of the columns {PSEUDONYM} and {PATIENT}, such as an earlier call "
                          "writes. Received: another file") from None  # fmt: skip
    kept: dict[str, str] = {}
    taken: set[str] = set()
    for number, pair in enumerate(pairs, 1):
        name, patient = pair[PSEUDONYM], pair[PATIENT]
        if not patient or check_name(name) or patient in kept or name.casefold() in taken:
            raise SourceError(f"{path}: expected each patient_id and each pseudonym once, and pseudonyms that can name "
                              f"files. Received: something else in subject {number}")  # fmt: skip
        kept[patient] = name
        taken.add(name.casefold())
    return kept, list(table.columns), [list(row) for row in table.rows]


def _field(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.casefold()).strip("_")


def _write_map(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="",
                       encoding="utf-8") as file:  # fmt: skip
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def join_labels(exams: Sequence[Exam], left_out: Sequence[LeftOut], names: Mapping[str, str], path: Path, *,
                outcomes: Sequence[str] = (), covariates: Sequence[str] | None = None,
                ) -> tuple[list[Exam], list[LeftOut], dict[str, str], list[str]]:  # fmt: skip
    """What a table of labels knows of exams under pseudonyms; no cell that tells who a patient is is carried over.

    Args:
        exams, left_out: under pseudonyms.
        names: pseudonyms by patient.
        path: a row a patient, named by the identifier in the DICOM files or by the pseudonym.
        outcomes, covariates: columns, see participants.read_participants. Columns of dates, names and identifiers are
            not carried over, named here or not.

    Returns:
        The exams, what is left out, what the outcomes mean, notes.

    Raises:
        SourceError: no table, a column that it lacks, a patient twice, or not one of the patients that were found.
    """
    table, dropped = _harmless(path, outcomes, covariates)
    rows = {row.name.casefold() for row in table.exams}
    by_pseudonym = sum(name.casefold() in rows for name in names.values())
    by_patient = sum(patient.casefold() in rows for patient in names)
    back = {name: name if by_pseudonym > by_patient else patient for patient, name in names.items()}
    forth = {own: name for name, own in back.items()}
    joined, told, notes = join([replace(exam, name=back[exam.name]) for exam in exams],
                               [back[one.name] for one in left_out if one.of == "subject"], table)  # fmt: skip
    unknown = sum(one.name not in forth for one in told)
    if exams and unknown == len(table.exams):
        raise SourceError(f"{path}: expected a row a patient, by the identifier in the DICOM files or by the "
                          "pseudonym. Received: none of the patients that were found")  # fmt: skip
    notes = [*table.notes, *notes]
    notes += [f"Rows of {path.name} whose patients have no DICOM files here: {unknown}."] if unknown else []
    notes += [f"Columns of {path.name} not carried over, since they look like dates, names or identifiers: "
              f"{', '.join(dropped)}."] if dropped else []  # fmt: skip
    return ([replace(exam, name=forth[exam.name]) for exam in joined],
            [*left_out, *(replace(one, name=forth[one.name]) for one in told if one.name in forth)],
            table.outcomes, notes)  # fmt: skip


def _harmless(path: Path, outcomes: Sequence[str], covariates: Sequence[str] | None) -> tuple[Participants, list[str]]:
    """The table with those covariates that do not tell who a patient is, and the names of the others."""
    try:
        table = read_participants(path, outcomes=outcomes, covariates=covariates)
        columns = list(dict.fromkeys(name for row in table.exams for name in row.covariates))
        dropped = [name for name in columns if _tells(name, table.exams)]
        safe = [name for name in columns if name not in dropped]
        return read_participants(path, outcomes=outcomes, covariates=safe), dropped
    except SourceError as error:
        if "each subject once" in str(error):
            raise SourceError(f"{path}: expected each patient once. Received: one in several rows") from None
        raise


def _tells(column: str, rows: Sequence[Exam]) -> bool:
    """Whether a column's name or cells look like dates, names or identifiers."""
    if IDENTIFYING.search(re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).casefold())):
        return True
    return any(DATE.fullmatch(text) or (len(row.name) > 4 and row.name.casefold() in text.casefold())
               for row in rows if (text := row.covariates[column]))  # fmt: skip
