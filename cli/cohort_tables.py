"""The tables that `mgkeras cohort check` prints: counts by outcome, site and split, and planned folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgkeras.cli.terminal import echo

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort, Problem, Subject


def label_of(subject: Subject, outcome: str) -> str:
    """'0', '1' or '' of an outcome, or whatever else its cell holds."""
    from mgkeras.data.cohort import LABELS

    text = subject.covariates.get(outcome)
    label = subject.label if text is None else LABELS.get(text, text)
    return "" if label is None else str(label)


def plan_table(
    table: Cohort, problems: list[Problem], folds: int, seed: int, stratify: Sequence[str]
) -> tuple[str, list[dict[str, str]]]:
    """A sentence and a row a fold: subjects, classes, values of the columns, sites; too few of a class is a problem."""
    from mgkeras.data.cohort import check_cohort
    from mgkeras.runs.folds import assign_folds

    bad = {problem.subject for problem in failed_of(problems)}
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
        f"{name} {value or '-'}": {s.name for s in subjects if label_of(s, name) == value}
        for name in (*filter(None, [table.outcome]), *stratify)
        for value in sorted({label_of(s, name) for s in subjects}, reverse=True)
    }
    columns |= {
        f"site {site or '-'}": {s.name for s in subjects if (s.site or "") == site}
        for site in sorted({s.site or "" for s in subjects})
        if any(s.site for s in subjects)
    }
    counts = {"subjects": Counter(fold_of.values())}
    counts |= {title: Counter(fold_of[name] for name in names) for title, names in columns.items()}
    rows = [
        {"fold": str(fold), **{title: str(count[fold]) for title, count in counts.items()}} for fold in range(folds)
    ]
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


def summarise(path: Path, table: Cohort, outcomes: Sequence[str], problems: Sequence[Problem]) -> None:
    from mgkeras.data.cohort import FILE_COLUMNS

    subjects = table.subjects
    failed, warned = failed_of(problems), [problem for problem in problems if problem.severity == "warning"]
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
        labels = {name: Counter(label_of(subject, name) for subject in group) for name in outcomes}
        counts = {f"{name} 1 / 0 / -": f"{count['1']} / {count['0']} / {count['']}" for name, count in labels.items()}
        rows.append({"": title, "subjects": str(len(group)), **counts})
    echo(text_of(rows), nl=False)
    if not outcomes:
        echo("no column could be an outcome: 0 and 1, both of them, or empty")


def failed_of(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def text_of(rows: Sequence[dict[str, Any]]) -> str:
    from mgkeras.scores.format import as_text

    return as_text(rows)
