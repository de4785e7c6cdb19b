"""What was found -> OUT/cohort.csv and OUT/data-sheet.md: what outcomes mean, counts, and all that was left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from mgkeras.data.checks import check_name
from mgkeras.data.cohort import FILE_COLUMNS, OWN_COLUMNS, Subject, write_cohort
from mgkeras.data.groups import grouped
from mgkeras.data.io import written_whole
from mgkeras.data.markdown import markdown_table
from mgkeras.data.table import write_lines
from mgkeras.errors import few
from mgkeras.importers.found import SUBJECT, Exam, Found, LeftOut, SourceError

UNKNOWN = "not known"
NAMED_AT_MOST = 20  # names in a cell of the data-sheet
FORMULA = re.compile(r"[=@].|[+-](?=.)(?!\s*[\d.,]+\s*%?$)")  # what spreadsheets run; a signed number is none


def write_found(found: Found, out: Path, *, labels_only: bool = False) -> tuple[Path | None, Path]:
    """Writes OUT/cohort.csv and OUT/data-sheet.md, each whole or not at all.

    Where more than NAMED_AT_MOST names share a reason, OUT/left-out.csv has all that is left out, a row a name.

    A subject whose name cannot name a file, that occurs twice, or that has no early or pre phase is left out, and the
    data-sheet says so; where the source was read without pre, a mask stands in for it.

    Args:
        found: from an importer.
        out: made where it is missing.
        labels_only: write every subject without its files, to plan with; no image is looked for.

    Returns:
        The paths of the table, None where no subject is left for it, and of the data-sheet.

    Raises:
        SourceError: a column that two things would have.
    """
    found = kept(found, labels_only)
    out.mkdir(parents=True, exist_ok=True)
    table, sheet = None, out / "data-sheet.md"
    subjects = [_subject(exam, labels_only) for exam in found.exams]
    _write_left_out(found.left_out, out / "left-out.csv")
    with written_whole(sheet) as part:  # before the table, which without it is taken for one of another origin
        part.write_text(data_sheet(found, labels_only), encoding="utf-8")
    if subjects:
        table = write_cohort(out / "cohort.csv", subjects)
    else:
        (out / "cohort.csv").unlink(missing_ok=True)  # of an earlier call
    return table, sheet


def kept(found: Found, labels_only: bool = False) -> Found:
    """What was found less the subjects that no cohort can hold, which are added to what is left out."""
    counts = Counter(exam.name.casefold() for exam in found.exams)
    exams, left_out = [], list(found.left_out)
    for exam in found.exams:
        needed = ("early", "mask" if found.without_pre else "pre")
        missing = [column for column in needed if column not in exam.files]
        if check_name(exam.name):
            left_out.append(LeftOut(repr(exam.name), "its name cannot name files"))
        elif counts[exam.name.casefold()] > 1:
            left_out.append(LeftOut(exam.name, "its name occurs more than once"))
        elif missing and not labels_only:
            reason = "no volumes found" if len(missing) == 2 else f"no {missing[0]} phase found"
            reason = "neither a pre phase nor a mask found" if missing == ["mask"] else reason
            left_out.append(LeftOut(exam.name, reason))
        else:
            exams.append(exam)
    return replace(found, exams=tuple(exams), left_out=tuple(left_out), notes=(*found.notes, *_formulas(exams)))


def _formulas(exams: Sequence[Exam]) -> Iterator[str]:
    """A warning of cells that a spreadsheet would run as formulas; cohort.csv keeps them as the source has them."""
    found = []
    for exam in exams:
        cells = {"subject": exam.name, "site": exam.site, "scanner": exam.scanner, "split": exam.split}
        cells |= exam.covariates | exam.outcomes
        found += [(exam.name, column) for column, text in cells.items() if text and FORMULA.match(text)]
    if found:
        some = few(f"{column} of {name}" for name, column in found)
        yield (
            f"{len(found)} cells begin as a formula does (=, +, -, @) and are no numbers: {some}. Open cohort.csv as "
            "text, since a spreadsheet would run them"
        )


def _subject(exam: Exam, labels_only: bool) -> Subject:
    files = dict.fromkeys(("early",)) if labels_only else {name: exam.files.get(name) for name in FILE_COLUMNS}
    extra = {"scanner": exam.scanner, "split": exam.split, **({} if labels_only else exam.when), **exam.covariates}
    extra = {name: text for name, text in extra.items() if text or name in exam.covariates}
    if clash := sorted({*OWN_COLUMNS, *extra} & exam.outcomes.keys() | {*OWN_COLUMNS} & exam.covariates.keys()):
        raise SourceError(f"expected columns of different names. Received: {', '.join(clash)} twice")
    return Subject(exam.name, **files, site=exam.site or None, covariates={**extra, **exam.outcomes})


def data_sheet(found: Found, labels_only: bool = False) -> str:
    """The data-sheet as Markdown; ``found`` holds what the table holds."""
    exams = found.exams
    parts = [f"# Data-sheet: {found.kind}", _facts(found, labels_only)]
    for name, meaning in found.outcomes.items():
        parts += [f"## Outcome {name}", f"{meaning}." if meaning else "", _label_table(exams, name)]
    for title, values in (
        ("Site", [exam.site for exam in exams]),
        ("Scanner", [exam.scanner for exam in exams]),
        ("Split", [exam.split for exam in exams]),
    ):
        if any(values):
            parts += [f"## {title}", _counts(title, values, exams, list(found.outcomes))]
    if not labels_only and any(exam.when for exam in exams):
        parts += ["## When the early and late phases were taken, after the pre phase", _times(exams)]
    for what in dict.fromkeys((SUBJECT, *(exam.of for exam in found.left_out))):
        parts += [f"## Left out: {'subjects' if what == SUBJECT else what}", _left_out(found.left_out, what)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(found: Found, labels_only: bool) -> str:
    gone = len({exam.name for exam in found.left_out if exam.of == SUBJECT})
    lines = [f"- Subjects: {len(found.exams)} in cohort.csv, {gone} left out."]
    if labels_only:
        lines.append("- Labels only, to plan with: cohort.csv names no files.")
    else:
        have = ", ".join(f"{column} {sum(column in exam.files for exam in found.exams)}" for column in FILE_COLUMNS)
        lines.append(f"- Files: {have}.")
        lines += [f"- Phases: {found.phases}."] if found.phases else []
    return "\n".join(lines + [f"- {note}" for note in found.notes])


def _times(exams: Sequence[Exam]) -> str:
    """Seconds after the pre phase, and where they are not known a row a rule."""
    rows = []
    for column, name in (("early_seconds", "early"), ("late_seconds", "late")):
        cells = [exam.when[column] for exam in exams if column in exam.when]
        seconds = sorted(float(cell) for cell in cells if _is_number(cell))
        if seconds:
            rows.append([name, *(f"{number:g}" for number in (seconds[0], median(seconds), seconds[-1])), len(seconds)])
        rules = Counter(cell for cell in cells if not _is_number(cell))
        rows += [[name, rule, "", "", count] for rule, count in rules.most_common()]
    return markdown_table(["phase", "lowest second, or the rule", "median", "highest", "subjects"], rows)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _label_table(exams: Sequence[Exam], outcome: str) -> str:
    counts = Counter(exam.outcomes.get(outcome, "") or UNKNOWN for exam in exams)
    return markdown_table(["value", "subjects"], [[value, counts[value]] for value in ("1", "0", UNKNOWN)])


def _counts(title: str, values: Sequence[str], exams: Sequence[Exam], outcomes: Sequence[str]) -> str:
    """A row a value: subjects, and of each outcome how many 1, 0 and not known."""
    groups = grouped((value or UNKNOWN, exam) for value, exam in zip(values, exams, strict=True))
    rows = []
    for value in sorted(groups, key=lambda value: (value == UNKNOWN, -len(groups[value]), value)):
        labels = [Counter(exam.outcomes.get(outcome, "") for exam in groups[value]) for outcome in outcomes]
        rows.append([value, len(groups[value]), *(f"{count['1']} / {count['0']} / {count['']}" for count in labels)])
    return markdown_table([title.lower(), "subjects", *(f"{outcome} 1 / 0 / {UNKNOWN}" for outcome in outcomes)], rows)


def _left_out(left_out: Iterable[LeftOut], what: str) -> str:
    """A row a reason: how many, and every name."""
    names = grouped((exam.reason, exam.name) for exam in left_out if exam.of == what)
    if not names:
        return "None."
    rows = [[reason, len(who), _named(who)] for reason, who in sorted(names.items(), key=lambda row: -len(row[1]))]
    return markdown_table(["reason", "subjects", "which"], rows)


def _named(names: Sequence[str]) -> str:
    return few(names, NAMED_AT_MOST) + (", see left-out.csv" if len(names) > NAMED_AT_MOST else "")


def _write_left_out(left_out: Sequence[LeftOut], path: Path) -> None:
    """A row a name and reason, where the data-sheet cannot hold them; else an earlier call's file goes."""
    counts = Counter((exam.of, exam.reason) for exam in left_out)
    if max(counts.values(), default=0) > NAMED_AT_MOST:
        write_lines(path, [["name", "of", "reason"], *([exam.name, exam.of, exam.reason] for exam in left_out)])
    else:
        path.unlink(missing_ok=True)
