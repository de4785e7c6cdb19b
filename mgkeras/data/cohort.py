"""cohort.csv <-> :class:`Subject`, and everything that can be wrong with it, told at once.

The table: a line a subject. ``subject, early`` are required, and ``pre`` in rows without a ``mask``, which is made from
it; ``late, mask, site`` are optional; every other column is a covariate or an outcome. Paths are relative to the table.
``pre`` is the phase before contrast, ``early`` the one at its peak and ``late`` one after that: T0, T1 and T2 of Liu et
al. 2021. A row is the line in the file, the header being 1. :func:`read_cohort` reads the table only,
:func:`check_cohort` opens the files, :func:`open_cohort` does both and tells all problems together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mgkeras.data.checks import ERROR, Problem, as_name, check_name, checked_exam
from mgkeras.data.repeats import across_exams
from mgkeras.data.table import TableError, read_lines, write_lines
from mgkeras.errors import InputError, MgkerasError

FILE_COLUMNS = ("pre", "early", "late", "mask")
OWN_COLUMNS = ("subject", *FILE_COLUMNS, "site")
TIME_COLUMNS = ("early_seconds", "late_seconds")  # when they were acquired after pre; covariates that importers write
PRE_OR_MASK = "pre or mask"  # a need: pre is read to make the mask of a subject without one, and for nothing else
LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}


@dataclass(frozen=True)
class Subject:
    """A line of the table. ``label`` is None where it is not known; ``covariates`` holds every other column's text."""

    name: str
    early: Path | None  # None only in a table of labels, see read_cohort
    pre: Path | None = None
    late: Path | None = None
    mask: Path | None = None
    site: str | None = None
    label: int | None = None
    covariates: dict[str, str] = field(default_factory=dict)
    row: int = field(default=0, compare=False)  # the line in the file; 0 if it comes from none

    @property
    def early_file(self) -> Path:
        """``early`` of a table that names files; not to be asked of a table of labels."""
        assert self.early is not None
        return self.early


@dataclass(frozen=True)
class Cohort:
    """The subjects of one outcome, in the file's order; the names left out: their outcome is empty, or for errors."""

    path: Path
    outcome: str | None
    subjects: tuple[Subject, ...]
    unlabelled: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()


class CohortError(MgkerasError, ValueError):
    """A table that cannot be used: ``problems``, all of them, and ``cohort``, the rows that could be read."""

    def __init__(self, problems: Iterable[Problem], cohort: Cohort) -> None:
        self.problems = tuple(problems)
        self.cohort = cohort
        count = sum(problem.severity == ERROR for problem in self.problems)
        lines = [f"{cohort.path} must hold a cohort without errors. Received: {count} error{'s' * (count != 1)}:"]
        lines += [f"  {problem}" for problem in self.problems]
        if all(problem.row > 1 for problem in self.problems if problem.severity == ERROR):
            lines.append("Correct them, or leave these subjects out with --skip-invalid.")
        super().__init__("\n".join(lines))


def read_cohort(
    path: str | Path,
    outcome: str | None = None,
    *,
    need: Iterable[str] | None = None,
    predict: bool = False,
    files: bool = True,
) -> Cohort:
    """Read the table; its files are not opened.

    Args:
        path: a csv file in UTF-8, separated by comma, semicolon or tab; where one predicts, also a NIfTI file, which
            is ``early`` of a cohort of one subject, named as the file is.
        outcome: the column of 0 and 1 that is predicted. None takes the only column that could be one: its values
            are 0, 1 or empty, and both occur.
        need: the columns of files that no subject may lack beside early, or PRE_OR_MASK, which is the default unless
            one predicts.
        predict: True where labels are not needed: subjects without one stay, and the outcome may be absent or None.
        files: False for a table of labels to plan with: it need not name any file, and ``early`` may be None.

    Raises:
        CohortError: with every problem of the table.
    """
    cohort, problems = _read(Path(path), outcome, need, predict, files)
    if problems:
        raise CohortError(problems, cohort)
    return cohort


def check_cohort(
    cohort: Cohort, folds: int | None = None, *, trained: bool = True, allow_thin: bool = False
) -> list[Problem]:
    """Open every file once, a subject at a time: all errors and warnings (see checks.py and repeats.py).

    Args:
        folds: where given, each class must have as many subjects.
        trained: whether a model is to be trained on the exams; where not, one exam under two names is a warning, and
            so are too few slices.
        allow_thin: whether exams of fewer than checks.FEWEST_SLICES slices may be used.
    """
    problems, checked = _class_problems(cohort, folds), []
    for subject in cohort.subjects:
        files = {column: getattr(subject, column) for column in FILE_COLUMNS if getattr(subject, column)}
        checked.append(checked_exam(files, allow_thin=allow_thin or not trained))
        problems += [Problem(subject.row, subject.name, *finding) for finding in checked[-1].findings]
    labels = [
        {cohort.outcome or "": "" if subject.label is None else str(subject.label)} for subject in cohort.subjects
    ]
    return problems + across_exams(cohort.subjects, checked, labels, trained=trained)


def open_cohort(
    path: str | Path,
    outcome: str | None = None,
    *,
    need: Iterable[str] | None = None,
    predict: bool = False,
    files: bool = True,
    folds: int | None = None,
    skip_invalid: bool = False,
    allow_thin: bool = False,
) -> tuple[Cohort, list[Problem]]:
    """Read the table and check its files, in one pass: the cohort to use, and the problems to be shown.

    Args are those of :func:`read_cohort` and :func:`check_cohort`. With ``skip_invalid`` the subjects that have an
    error are left out (both of two of the same name); what is then wrong with the rest is still an error.

    Raises:
        CohortError: with every problem of the table and of the files, the warnings too.
    """
    cohort, problems = _read(Path(path), outcome, need, predict, files)
    problems += check_cohort(cohort, None if skip_invalid else folds, trained=not predict, allow_thin=allow_thin)
    problems.sort(key=lambda problem: problem.row)
    bad = {problem.subject for problem in problems if problem.severity == ERROR and problem.row > 1}
    fatal = [problem for problem in problems if problem.severity == ERROR and problem.row <= 1]
    if skip_invalid and not fatal:
        cohort = replace(without(cohort, bad), invalid=tuple(sorted(bad - {""})))
        fatal = _class_problems(cohort, folds) if cohort.subjects else [_none_left("every subject has an error")]
        problems = fatal + problems
    if fatal or (bad and not skip_invalid):
        raise CohortError(problems, cohort)
    return cohort, problems


def without(cohort: Cohort, names: Collection[str]) -> Cohort:
    """The cohort less the subjects of these names; a name that it does not have changes nothing."""
    return replace(cohort, subjects=tuple(subject for subject in cohort.subjects if subject.name not in names))


def write_cohort(path: str | Path, subjects: Iterable[Subject], outcome: str | None = None) -> Path:
    """Write a table that :func:`read_cohort` reads back, whole or not at all; its path is returned.

    ``outcome`` names the column of the labels; further outcomes are written as covariates. Paths are written relative
    to the table. An optional column that no subject has is left out.

    Raises:
        ValueError: for labels without a name, a covariate with the name of another column, or text that no table holds.
    """
    path, subjects = Path(path), list(subjects)
    optional = [name for name in ("late", "mask", "site") if any(getattr(s, name) is not None for s in subjects)]
    covariates = list(dict.fromkeys(name for subject in subjects for name in subject.covariates))
    if clash := sorted({*OWN_COLUMNS, *([outcome] if outcome else [])}.intersection(covariates)):
        raise InputError(f"covariates must not be named as another column is. Received: {', '.join(clash)}")
    if outcome is None and any(subject.label is not None for subject in subjects):
        raise InputError("labels must have a column: name it by outcome=. Received: outcome=None")
    header = ["subject", "pre", "early", *optional, *covariates, *([outcome] if outcome else [])]
    rows = []
    for subject in subjects:
        own = {name: _cell(getattr(subject, name), path.parent) for name in ("pre", "early", *optional)}
        label = {outcome: _cell(subject.label, path.parent)} if outcome else {}
        cells = {"subject": subject.name, **own, **subject.covariates, **label}
        rows.append([cells.get(name, "") for name in header])
    write_lines(path, [header, *rows])
    return path


def _cell(value: Path | str | int | None, folder: Path) -> str:
    if not isinstance(value, Path):
        return "" if value is None else str(value)
    if value.drive != folder.absolute().drive and value.is_absolute():  # Windows knows no way between drives
        return str(value)
    where = os.path.join(os.path.realpath(value.parent), value.name)  # resolve raises for links in circles
    return Path(os.path.relpath(where, os.path.realpath(folder))).as_posix()


def _read(
    path: Path, outcome: str | None, need: Iterable[str] | None, predict: bool, files: bool
) -> tuple[Cohort, list[Problem]]:
    """The rows that can be read, also those with a problem, and the table's problems."""
    if predict and path.name.lower().endswith((".nii", ".nii.gz")):
        return Cohort(
            path, None, (Subject(as_name(path.name[: path.name.lower().rindex(".nii")]) or "exam", path, row=1),)
        ), []
    need = dict.fromkeys(("early", *(need or (() if predict else (PRE_OR_MASK,)))) if files else ())
    header, rows, problems = _read_rows(path)
    if not header:
        return Cohort(path, outcome, ()), problems
    problems += _missing_columns(header, rows, need)
    outcome, wrong_outcome = _find_outcome(header, rows, outcome, predict)
    problems += wrong_outcome
    subjects, unlabelled = [], []
    seen: dict[str, int] = {}
    for row, cells in rows:
        problems += _row_problems(row, cells, outcome, need, seen)
        if outcome and not cells[outcome] and not predict:
            unlabelled.append(cells.get("subject", ""))
        elif cells.get("early") or not files:
            subjects.append(_subject(row, cells, outcome, path.parent))
    if not subjects and not problems:
        problems.append(_none_left(f"{len(unlabelled)} subjects, all with an empty outcome" if rows else "no subjects"))
    return Cohort(path, outcome, tuple(subjects), tuple(unlabelled)), problems


def _missing_columns(header: list[str], rows: list[tuple[int, dict[str, str]]], need: Iterable[str]) -> list[Problem]:
    found = f"columns {', '.join(header)}"
    missing = [name for name in ("subject", *need) if name not in (*header, PRE_OR_MASK)]
    problems = [Problem(1, "", name, "a column of this name", found) for name in missing]
    if PRE_OR_MASK in need and "pre" not in header and not all(cells.get("mask") for _, cells in rows):
        problems.append(Problem(1, "", "pre", "a column of this name, or a mask in every row", found))
    return problems


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[Problem]]:
    """The header, the rows that are not blank as (line, cells), and what is wrong with the file as a csv file."""
    try:
        lines = read_lines(path)
    except TableError as error:
        return [], [], [Problem(1, "", "", "a csv file in UTF-8 with a header", str(error))]
    header, rows = lines[0][1], []
    doubled = [(name, count) for name, count in Counter(filter(None, header)).items() if count > 1]
    problems = [Problem(1, "", name, "one column of this name", f"{count} columns") for name, count in doubled]
    for line, cells in lines[1:]:
        row = dict(zip(header, cells + [""] * len(header), strict=False))
        if len(cells) < len(header) or any(cells[len(header) :]):
            problems.append(Problem(line, row.get("subject", ""), "", f"{len(header)} cells", f"{len(cells)} cells"))
        rows.append((line, row))
    return list(dict.fromkeys(filter(None, header))), rows, problems


def _find_outcome(
    header: list[str], rows: list[tuple[int, dict[str, str]]], outcome: str | None, predict: bool
) -> tuple[str | None, list[Problem]]:
    others = [name for name in header if name not in OWN_COLUMNS]
    values = {name: {cells[name] for _, cells in rows} - {""} for name in others}
    could = [name for name in others if {LABELS.get(value) for value in values[name]} == {0, 1}]
    listed = ", ".join(could) or "none"
    if outcome in others:
        if predict or not values[outcome] or values[outcome] & LABELS.keys():
            return outcome, []
        return None, [
            Problem(
                1,
                "",
                outcome,
                "0 and 1, or empty where it is not known",
                f"neither, but {', '.join(sorted(values[outcome])[:3])} ...",
            )
        ]
    if predict and outcome not in header:
        return None, []
    if outcome is not None:
        expected = f"a column that could be the outcome: {listed}"
        found = "a column with a meaning of its own" if outcome in header else f"columns {', '.join(header)}"
        return None, [Problem(1, "", outcome, expected, found)]
    if len(could) == 1:
        return could[0], []
    if could:
        return None, [Problem(1, "", "", f"one of these outcomes, named by --outcome: {listed}", "no name")]
    expected = "a column of outcomes: 0 and 1, both of them, or empty"
    return None, [Problem(1, "", "", expected, f"none of the columns {', '.join(header)} is one")]


def _row_problems(
    row: int, cells: dict[str, str], outcome: str | None, need: Iterable[str], seen: dict[str, int]
) -> list[Problem]:
    """What is wrong with the text of a row; ``seen`` holds the names up to here and is added to."""
    name = cells.get("subject", "")
    problems = [Problem(row, name, *finding) for finding in (check_name(name) if "subject" in cells else [])]
    first = seen.setdefault(name.casefold(), row)  # some file systems take A1 and a1 for the same file
    if name and first != row:
        problems.append(Problem(row, name, "subject", "a name that occurs once", f"{name}, as in line {first}"))
    if PRE_OR_MASK in need and not cells.get("pre", "absent column, told once") and not cells.get("mask"):
        problems.append(Problem(row, name, "pre", "the path of a file, since there is no mask", "an empty cell"))
    problems += [
        Problem(row, name, column, "the path of a file", "an empty cell")
        for column in need
        if not cells.get(column, "absent column, told once")
    ]
    if outcome and cells[outcome] and cells[outcome] not in LABELS:
        problems.append(Problem(row, name, outcome, "0 or 1, or empty where it is not known", repr(cells[outcome])))
    return problems


def _subject(row: int, cells: dict[str, str], outcome: str | None, folder: Path) -> Subject:
    files = {"early": None} | {column: folder / cells[column] for column in FILE_COLUMNS if cells.get(column)}
    covariates = {key: text for key, text in cells.items() if key and key not in (*OWN_COLUMNS, outcome)}
    label = LABELS.get(cells[outcome]) if outcome else None
    site = cells.get("site") or None
    return Subject(cells.get("subject", ""), **files, site=site, label=label, covariates=covariates, row=row)


def _class_problems(cohort: Cohort, folds: int | None) -> list[Problem]:
    if folds is None or cohort.outcome is None:
        return []
    counts = Counter(subject.label for subject in cohort.subjects)
    expected = {label: f"{folds} or more subjects of class {label}, one a fold" for label in (0, 1)}
    return [Problem(1, "", cohort.outcome, expected[c], str(counts[c])) for c in expected if counts[c] < folds]


def _none_left(found: str) -> Problem:
    return Problem(1, "", "", "one subject or more", found)
