"""`mgkeras cohort`: look at a cohort before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from mgkeras.cli.cohort_tables import failed_of, label_of, plan_table, summarise, text_of
from mgkeras.cli.command import Group
from mgkeras.cli.options import ALLOW_THIN, TABLE, Names
from mgkeras.cli.pool import work_on
from mgkeras.cli.terminal import Terminal, answer, echo

if TYPE_CHECKING:
    from mgkeras.check.sheet import Card
    from mgkeras.data.cohort import Cohort, Problem


@click.group(name="cohort", cls=Group)
def command() -> None:
    """Check a cohort before you train on it."""


@command.command(name="check")
@click.argument("cohort", type=TABLE)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the sheet to this .html file.  [default: NAME-check.html beside NAME.csv]",
)
@click.option("--outcome", help="Check this column to predict: its cells must be 0, 1 or empty.")
@click.option("--folds", type=click.IntRange(2), help="Plan this many folds and print the counts of each class.")
@click.option("--stratify", type=Names(), default=(), help="Balance these folds by these columns and the outcome.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed the folds with this, as fit does.",
)
@click.option("--labels-only", is_flag=True, help="Check and plan by the table alone, which names no files.")
@click.option("--predict", is_flag=True, help="Check a table for `mgkeras predict`, which needs no pre phase.")
@ALLOW_THIN
@click.option("--sheet/--no-sheet", default=True, show_default=True, help="Draw the sheet, or only check.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Work in this many processes, each with two or three exams' volumes in memory.  [default: one a core]",
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
    """Check every file of COHORT, a cohort.csv, and draw all subjects.

    Printed are all problems with line, subject, what was expected and what was found, then counts by outcome, site
    and split. The exit code is 1 if there are errors.

    The sheet is one HTML file that opens without a network. For each subject it shows the pre phase, the early phase,
    their difference and the projection of that with the mask's outline; it can be searched, and filtered by problems.
    It shows what no table tells: exchanged phases, motion, a mask beside the tumour or of another patient.

    \b
    Next: mgkeras mask COHORT       (where masks are missing)
          mgkeras fit --model guided COHORT --outcome NAME
    """
    from mgkeras.training.devices import cores

    for refused, expected, received in (
        (stratify and not folds, "--stratify balances planned folds: add --folds", "--stratify alone"),
        (labels_only and (out or predict), "--labels-only opens no exam and draws no sheet", "--out or --predict too"),
        (out and out.suffix.lower() not in (".html", ".htm"), "--out must end in .html", out),
    ):
        if refused:
            raise click.UsageError(f"{expected}. Received: {received}")
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
    planned, plan = plan_table(table, problems, folds, seed, stratify) if folds else ("", [])
    problems.sort(key=lambda problem: problem.row)
    for problem in problems:
        echo(problem)
    summarise(cohort, table, known, problems)
    if planned:
        echo(f"\n{planned}\n{text_of(plan)}", nl=False)
    if not table.subjects and any(problem.column == "early" for problem in problems):
        echo("No row has an early phase. A table of labels alone is checked with --labels-only.")
    if sheet and not labels_only:
        echo(out)
    answer(
        cohort=cohort,
        subjects=len(table.subjects),
        errors=len(failed_of(problems)),
        problems=[asdict(problem) for problem in problems],
        sheet=out if sheet and not labels_only else None,
        folds=plan,
    )
    context.exit(1 if failed_of(problems) else 0)


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
            ", ".join(f"{subject.name}: {subject.covariates['split'] or 'empty'}" for subject in group),
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
    from mgkeras.check.exams import checked_subject, uncheckable
    from mgkeras.check.sheet import Card, room_for
    from mgkeras.data.cohort import Problem
    from mgkeras.data.groups import grouped
    from mgkeras.data.repeats import across_exams

    console = Terminal()
    count = console.counter("subjects checked")
    told = grouped((problem.row, problem) for problem in problems)
    room = room_for(len(table.subjects)) if draws else 0
    tasks = [(subject, room, thin or not trained) for subject in table.subjects]
    results, known = work_on(tasks, checked_subject, jobs, lambda task, why: uncheckable(why)), []
    for done, (subject, (found, strip)) in enumerate(zip(table.subjects, results, strict=True), 1):
        known.append(found)
        new = [Problem(subject.row, subject.name, *finding) for finding in found.findings]
        problems += new
        groups = (("site", subject.site), ("split", subject.covariates.get("split")))
        facts = [(name, text) for name, text in groups if text] + [(name, label_of(subject, name)) for name in outcomes]
        texts = [
            (problem.severity, f"{problem.column}: expected {problem.expected}. Received: {problem.found}")
            for problem in (*told.get(subject.row, ()), *new)
        ]
        yield Card(subject.name, tuple(facts), tuple(texts), strip)
        count(done, len(tasks))
    labels = [{name: label_of(subject, name) for name in outcomes} for subject in table.subjects]
    problems += across_exams(table.subjects, known, labels, trained=trained)


def _draw(out: Path, path: Path, table: Cohort, cards: Iterator[Card], problems: Sequence[Problem]) -> None:
    from mgkeras.check.sheet import write_sheet

    rows = {subject.row for subject in table.subjects}
    whole = [(problem.severity, str(problem).partition(": ")[2]) for problem in problems if problem.row not in rows]
    write_sheet(out, path.name, cards, problems=whole)
