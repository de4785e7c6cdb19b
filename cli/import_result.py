"""What `mgkeras import` writes of a cohort that it found, and what it says of it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from mgkeras.cli.terminal import Terminal, answer, echo

from mgkeras.errors import few

if TYPE_CHECKING:
    from mgkeras.importers.found import Found

REASONS_SHOWN = 5  # of those why subjects are left out; the data-sheet has them all


def write(found: Found, out: Path, labels_only: bool | None, console: Terminal) -> None:
    """Writes what was found and says what came of it; ``labels_only`` is None where the kind has no such option."""
    from mgkeras.importers.found import SUBJECT
    from mgkeras.importers.sheet import kept, write_found

    table, sheet = write_found(found, out, labels_only=bool(labels_only))
    found = kept(found, bool(labels_only))
    gone = {exam.name for exam in found.left_out if exam.of == SUBJECT}
    counts = {}
    for name in found.outcomes:
        values = [exam.outcomes.get(name, "") for exam in found.exams]
        positive, negative, unknown = (values.count(value) for value in ("1", "0", ""))
        counts[name] = {"positive": positive, "negative": negative, "unknown": unknown}
        console.line(f"{name}: {positive} positive, {negative} negative, {unknown} not known")
    for note in found.notes:
        console.line(f"note: {note}")
    console.line(f"{len(found.exams)} subjects; {len(gone)} left out" + (f", {sheet} says why" if gone else ""))
    _say_reasons(found, console)
    if table is None:
        advice = " --labels-only writes the labels without files, to plan with." if labels_only is False else ""
        raise click.ClickException(
            f"no subject has what a cohort needs, so no cohort.csv was written; {sheet} says why.{advice}"
        )
    echo(table)
    echo(sheet)
    answer(
        cohort=table,
        data_sheet=sheet,
        subjects=len(found.exams),
        outcomes=counts,
        left_out=[{"subject": exam.name, "reason": exam.reason} for exam in found.left_out if exam.of == SUBJECT],
        notes=found.notes,
    )
    if labels_only:
        console.line(f"Next: mgkeras cohort check {quote(str(table))} --labels-only --outcome NAME --folds 5")
        return
    masks = all("mask" in exam.files for exam in found.exams)
    fitted = quote(str(table if masks else out / "masks" / "cohort.csv"))
    written = quote(str(table))
    outcome = quote(next(iter(found.outcomes), "NAME"))
    console.line(
        f"Next: mgkeras cohort check {written}, then "
        + ("" if masks else f"mgkeras mask {written}, then ")
        + f"mgkeras fit --model guided {fitted} --outcome {outcome}"
    )


def _say_reasons(found: Found, console: Terminal) -> None:
    """The most frequent reasons why subjects are left out, with a few of their names."""
    from mgkeras.data.groups import grouped
    from mgkeras.importers.found import SUBJECT

    names = grouped((exam.reason, exam.name) for exam in found.left_out if exam.of == SUBJECT)
    ranked = sorted(names.items(), key=lambda item: -len(item[1]))
    for reason, who in ranked[:REASONS_SHOWN]:
        console.line(f"left out, {len(who)} subject{'s' * (len(who) != 1)}: {reason} ({few(who, 3)})")
    if len(ranked) > REASONS_SHOWN:
        console.line(f"left out for {len(ranked) - REASONS_SHOWN} other reasons, see there")
