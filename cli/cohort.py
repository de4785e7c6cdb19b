"""`mgkeras cohort`: look at a cohort before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.options import ALLOW_THIN, Names, Terminal, echo
from mgkeras.cli.pool import work_on

if TYPE_CHECKING:
    from mgkeras.check.sheet import Card
    from mgkeras.check.strip import Strip
    from mgkeras.data.checks import Checked, Finding
    from mgkeras.data.cohort import Cohort, Problem, Subject


@click.group(name="cohort")
def command() -> None:
    """Look at a cohort before anything is trained on it: mgkeras cohort check cohort.csv."""


@command.command(name="check")
@click.argument("cohort", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The sheet to leaf through, .html.  [default: NAME-check.html beside NAME.csv]",
)
@click.option("--outcome", help="The column to predict: its cells must be 0, 1 or empty.")
@click.option("--folds", type=click.IntRange(2), help="Plan so many folds and print the counts of each class.")
@click.option("--stratify", type=Names(), default=(), help="Columns that these folds balance jointly with the outcome.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the folds, as of `mgkeras fit`.")
@click.option("--labels-only", is_flag=True, help="The table names no files: check and plan by the table alone.")
@click.option("--predict", is_flag=True, help="The table is for `mgkeras predict`, which needs no T0.")
@ALLOW_THIN
@click.option("--sheet/--no-sheet", default=True, show_default=True, help="Draw the sheet, or only check.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Processes that work at once, each with two or three exams' volumes in memory.  [default: one a core]",
)
@click.pass_context
def check(
    context: click.Context,
    cohort: Path,
    out: Path | None,
    outcome: str | None,
    folds: int | None,
    stratify: tuple[str, ...],
    seed: int,
    labels_only: bool,
    predict: bool,
    allow_thin: bool,
    sheet: bool,
    jobs: int | None,
) -> None:
    """Check every file of COHORT, a cohort.csv, and draw a sheet of all subjects to leaf through.

    Printed are all problems with line, subject, what was expected and what was found, then counts by outcome, site
    and split. The exit code is 1 if there are errors.

    The sheet is one HTML file for any browser, without network: of each subject T0, T1, their difference and its
    projection with the mask's outline; to search, and to filter by problems. Exchanged phases, motion, a mask beside
    the tumour or of another patient are seen here, and in no table.

    \b
    Next: mgkeras mask COHORT       (where masks are missing)
          mgkeras fit --model guided --cohort COHORT --outcome NAME
    """
    from mgkeras.training.devices import cores

    if stratify and not folds:
        raise click.UsageError("--stratify balances planned folds: add --folds. Received: --stratify alone")
    if labels_only and (out or predict):
        raise click.UsageError("--labels-only opens no exam and draws no sheet. Received: --out or --predict too")
    if out and out.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"--out must end in .html. Received: {out}")
    table, problems = _read(cohort, outcome, labels_only, predict)
    known = _outcomes(table)
    if not table.subjects:
        folds, sheet = None, False
    if folds and not table.outcome and not stratify:
        if len(known) != 1:
            raise click.ClickException(
                f"--folds needs an outcome, by --outcome: {len(known)} columns could be one: "
                f"{', '.join(known) or 'none'}. Received: {outcome or 'none'}"
            )
        table, problems = _read(cohort, known[0], labels_only, predict)
    if table.subjects:
        _check_columns(table, stratify)
        problems += _parted(table)
    out = out or cohort.with_name(f"{cohort.stem}-check.html")
    if not labels_only:
        checked = _check_files(
            table, known, problems, jobs or cores(), draws=sheet, trained=not predict, thin=allow_thin
        )
        if sheet:
            _draw(out, cohort, table, checked, problems)
        else:
            for _ in checked:
                pass
    planned, plan = _plan(table, problems, folds, seed, stratify) if folds else ("", [])
    problems.sort(key=lambda problem: problem.row)
    for problem in problems:
        echo(problem)
    _summarise(cohort, table, known, problems)
    if planned:
        echo(f"\n{planned}\n{_text(plan)}", nl=False)
    if not table.subjects and any(problem.column == "early" for problem in problems):
        echo("No row has a T1 (early). A table of labels alone is checked with --labels-only.")
    if sheet and not labels_only:
        echo(out)
    context.exit(1 if _failed(problems) else 0)


def _read(path: Path, outcome: str | None, labels_only: bool, predict: bool) -> tuple[Cohort, list[Problem]]:
    """All rows that can be read, without a label too, and the table's problems."""
    from mgkeras.data.cohort import PRE_OR_MASK, CohortError, Problem, read_cohort

    need = None if predict or labels_only else (PRE_OR_MASK,)
    try:
        table, problems = read_cohort(path, outcome, need=need, predict=True, files=not labels_only), []
    except CohortError as error:
        table, problems = error.cohort, list(error.problems)
    if outcome and not table.outcome and table.subjects:
        columns = ", ".join(table.subjects[0].covariates)
        problems.append(Problem(1, "", outcome, "a column of this name", f"columns {columns}"))
    return table, problems


def _outcomes(table: Cohort) -> list[str]:
    """The outcome if one is named, and the other columns that could be one: 0 and 1 occur, and nothing else."""
    from mgkeras.data.cohort import LABELS

    columns = table.subjects[0].covariates if table.subjects else {}
    values = {name: {subject.covariates[name] for subject in table.subjects} - {""} for name in columns}
    could = [name for name, texts in values.items() if {LABELS.get(text) for text in texts} == {0, 1}]
    return [*filter(None, [table.outcome]), *could]


def _check_columns(table: Cohort, names: Sequence[str]) -> None:
    columns = table.subjects[0].covariates
    if missing := [name for name in names if name not in (*columns, "site")]:
        raise click.ClickException(
            f"--stratify takes columns of {table.path} other than the outcome and files: "
            f"{', '.join(columns) or 'it has none'}. Received: {', '.join(missing)}"
        )


def _parted(table: Cohort) -> list[Problem]:
    """A warning for each patient of whom the column split holds one exam out and trains on another."""
    from mgkeras.data.cohort import Problem
    from mgkeras.runs.folds import parted_patients

    if "split" not in table.subjects[0].covariates:
        return []
    expected = "all exams of a patient on one side, or `fit --split` refuses"
    return [
        Problem(
            group[0].row,
            group[0].name,
            "split",
            expected,
            ", ".join(f"{one.name}: {one.covariates['split'] or 'empty'}" for one in group),
            "warning",
        )
        for group in parted_patients(table.subjects)
    ]


def _check_files(
    table: Cohort,
    outcomes: Sequence[str],
    problems: list[Problem],
    jobs: int,
    *,
    draws: bool,
    trained: bool,
    thin: bool,
) -> Iterator[Card]:
    """A card a subject, in the cohort's order; what is wrong is added to ``problems``, progress goes to stderr.

    That one exam stands under several names is known after the last card.
    """
    from mgkeras.check.sheet import Card, room_for
    from mgkeras.data.cohort import Problem
    from mgkeras.data.repeats import across_exams

    console = Terminal()
    count = console.counter("subjects checked")
    told: dict[int, list[Problem]] = {}
    for problem in problems:
        told.setdefault(problem.row, []).append(problem)
    room = room_for(len(table.subjects)) if draws else 0
    tasks = [(subject, room, thin or not trained) for subject in table.subjects]
    results, known = work_on(tasks, _check_one, jobs, _lost), []
    for done, (subject, (found, strip)) in enumerate(zip(table.subjects, results, strict=True), 1):
        known.append(found)
        new = [Problem(subject.row, subject.name, *finding) for finding in found.findings]
        problems += new
        groups = (("site", subject.site), ("split", subject.covariates.get("split")))
        facts = [(name, text) for name, text in groups if text] + [(name, _label(subject, name)) for name in outcomes]
        texts = [
            (one.severity, f"{one.column}: expected {one.expected}. Received: {one.found}")
            for one in (*told.get(subject.row, ()), *new)
        ]
        yield Card(subject.name, tuple(facts), tuple(texts), strip)
        count(done, len(tasks))
    labels = [{name: _label(subject, name) for name in outcomes} for subject in table.subjects]
    problems += across_exams(table.subjects, known, labels, trained=trained)


def _check_one(task: tuple[Subject, int, bool]) -> tuple[Checked, Strip | None]:
    """One subject: what is wrong with its files, and pictures in so many bytes, none for 0 bytes."""
    from mgkeras.data.checks import Checked, Finding, checked_exam
    from mgkeras.data.cohort import FILE_COLUMNS

    subject, room, thin = task
    files = {column: getattr(subject, column) for column in FILE_COLUMNS if getattr(subject, column)}
    try:
        found = checked_exam(files, allow_thin=thin)
        return found, _strip(files, found.findings, room) if room else None
    except Exception as error:  # one bad exam must not stop the others, whatever is wrong with it
        why = Finding("", "an exam that can be checked", f"{type(error).__name__}: {error}")
        return Checked([why], None, None), None


def _strip(files: dict[str, Path], findings: Sequence[Finding], room: int) -> Strip | None:
    """The pictures of what can be shown; T1 must be readable, T0 and mask on its grid."""
    from mgkeras.check.strip import on_grid, strip_of
    from mgkeras.data.checks import ERROR
    from mgkeras.data.volume import ExamError, load_volume

    try:
        t1 = load_volume(files["early"])
    except ExamError:
        return None
    bad = {finding.column for finding in findings if finding.severity == ERROR}
    mask = on_grid(files.get("mask"), t1)
    inside = None if mask is None else mask.data > 0
    shown = inside if inside is not None and ("mask" not in bad or inside.any()) else None
    return strip_of(on_grid(files.get("pre"), t1), t1, shown, room)


def _lost(task: tuple[Subject, int, bool], why: str) -> tuple[Checked, None]:
    from mgkeras.data.checks import Checked, Finding

    return Checked([Finding("", "an exam that can be checked", why)], None, None), None


def _draw(out: Path, path: Path, table: Cohort, cards: Iterator[Card], problems: Sequence[Problem]) -> None:
    from mgkeras.check.sheet import write_sheet

    rows = {subject.row for subject in table.subjects}
    whole = [(problem.severity, str(problem).partition(": ")[2]) for problem in problems if problem.row not in rows]
    write_sheet(out, path.name, cards, problems=whole)


def _label(subject: Subject, outcome: str) -> str:
    """'0', '1' or '' of an outcome, or whatever else its cell holds."""
    from mgkeras.data.cohort import LABELS

    text = subject.covariates.get(outcome)
    label = subject.label if text is None else LABELS.get(text, text)
    return "" if label is None else str(label)


def _plan(
    table: Cohort, problems: list[Problem], folds: int, seed: int, stratify: Sequence[str]
) -> tuple[str, list[dict[str, str]]]:
    """A sentence and a row a fold: subjects, classes, values of the columns, sites; too few of a class is a problem."""
    from mgkeras.data.cohort import check_cohort
    from mgkeras.runs.folds import assign_folds

    bad = {problem.subject for problem in _failed(problems)}
    subjects = [
        replace(subject, pre=None, early=None, late=None, mask=None)
        for subject in table.subjects
        if subject.name not in bad and (not table.outcome or subject.label is not None)
    ]
    problems += check_cohort(replace(table, subjects=tuple(subjects)), folds)
    if not subjects:
        return "", []
    fold_of = assign_folds(subjects, folds, seed, stratify)
    columns = {
        f"{name} {value or '-'}": {s.name for s in subjects if _label(s, name) == value}
        for name in (*filter(None, [table.outcome]), *stratify)
        for value in sorted({_label(s, name) for s in subjects}, reverse=True)
    }
    columns |= {
        f"site {site or '-'}": {s.name for s in subjects if (s.site or "") == site}
        for site in sorted({s.site or "" for s in subjects})
        if any(s.site for s in subjects)
    }
    rows, counts = [], {"subjects": Counter(fold_of.values())}
    counts |= {title: Counter(fold_of[name] for name in names) for title, names in columns.items()}
    for fold in range(folds):
        rows.append({"fold": str(fold), **{title: str(count[fold]) for title, count in counts.items()}})
    apart = {
        title: max(count[fold] for fold in range(folds)) - min(count[fold] for fold in range(folds))
        for title, count in counts.items()
    }
    rows.append({"fold": "apart", **{title: str(most) for title, most in apart.items()}})
    by = " and ".join(filter(None, [table.outcome, *stratify]))
    return (
        f"{folds} folds of {len(subjects)} subjects, seed {seed}, balanced by {by}: as `mgkeras fit` makes them of "
        "these subjects. 'apart' is the largest fold less the smallest."
    ), rows


def _summarise(path: Path, table: Cohort, outcomes: Sequence[str], problems: Sequence[Problem]) -> None:
    from mgkeras.data.cohort import FILE_COLUMNS

    subjects = table.subjects
    failed, warned = _failed(problems), [problem for problem in problems if problem.severity == "warning"]
    echo(
        f"{path}: {len(subjects)} subjects; {len(failed)} error{'s' * (len(failed) != 1)}, "
        f"{len(warned)} warning{'s' * (len(warned) != 1)}"
    )
    files = {column: sum(getattr(subject, column) is not None for subject in subjects) for column in FILE_COLUMNS}
    if any(files.values()):
        echo("files: " + ", ".join(f"{column} {count}" for column, count in files.items()))
    groups: dict[str, Sequence[Subject]] = {"all": subjects}
    for title, values in (
        ("site", [subject.site for subject in subjects]),
        ("split", [subject.covariates.get("split") for subject in subjects]),
    ):
        if any(values):
            groups |= {
                f"{title} {value or '-'}": [s for s, text in zip(subjects, values, strict=True) if text == value]
                for value in sorted(set(values), key=str)
            }
    rows = []
    for title, group in groups.items():
        labels = {name: Counter(_label(subject, name) for subject in group) for name in outcomes}
        counts = {f"{name} 1 / 0 / -": f"{count['1']} / {count['0']} / {count['']}" for name, count in labels.items()}
        rows.append({"": title, "subjects": str(len(group)), **counts})
    echo(_text(rows), nl=False)
    if not outcomes:
        echo("no column could be an outcome: 0 and 1, both of them, or empty")


def _failed(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def _text(rows: Sequence[dict[str, Any]]) -> str:
    from mgkeras.scores.format import as_text

    return as_text(rows)
