"""`mgkeras import`: a cohort as it was downloaded, to a table, a data-sheet and, where needed, NIfTI files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.options import Names, Terminal

from mgkeras.settings import ImportSettings

if TYPE_CHECKING:
    from mgkeras.importers.found import Found

DEFAULT = ImportSettings()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(name="import")
def command() -> None:
    """Make a cohort.csv from a cohort as it was downloaded: mgkeras import KIND SOURCE OUT.

    \b
    OUT/cohort.csv      a row a subject: files, site, outcomes, covariates
    OUT/data-sheet.md   what each outcome means; counts by outcome, site, scanner; all that was left out, and why
    OUT/nifti/          only where the source is DICOM, or its NIfTI headers are wrong

    SOURCE is only read. Files stay where they are and the table names them. Excel tables and DICOM need
    pip install 'mgkeras[import]'.

    \b
    Next: mgkeras cohort check OUT/cohort.csv
          mgkeras mask OUT/cohort.csv          (where the source has no masks)
          mgkeras fit --model guided --cohort OUT/cohort.csv --outcome NAME
    """


def source_command(kind: str, *options: Callable) -> Callable:
    """Makes a command of a function whose docstring is its help: (source, keywords of the options) -> Found.

    SOURCE, OUT and what each kind has are added; ``nifti`` and ``progress`` are handed to kinds that take them.
    """

    def add(function: Callable[..., Found]) -> Callable:
        def run(source: Path, out: Path, **values: Any) -> None:
            _write(function(source, out=out, **values), out, values.get("labels_only", False))

        run.__doc__ = function.__doc__
        made = click.command(name=kind)(run)
        for option in (click.argument("out", type=click.Path(file_okay=False, path_type=Path)),
                       click.argument("source", type=FOLDER), *reversed(options)):  # fmt: skip
            made = option(made)
        command.add_command(made)
        return function

    return add


def _write(found: Found, out: Path, labels_only: bool) -> None:
    """Writes what was found and says what came of it."""
    from mgkeras.importers.found import SUBJECT
    from mgkeras.importers.sheet import kept, write_found

    kept_ones = kept(found, labels_only)
    table, sheet = write_found(found, out, labels_only=labels_only)
    console, gone = Terminal(), {one.name for one in kept_ones.left_out if one.of == SUBJECT}
    for name in found.outcomes:
        values = [exam.outcomes.get(name, "") for exam in kept_ones.exams]
        positive, negative, unknown = (values.count(value) for value in ("1", "0", ""))
        console.line(f"{name}: {positive} positive, {negative} negative, {unknown} not known")
    for note in found.notes:
        console.line(f"note: {note}")
    console.line(f"{len(kept_ones.exams)} subjects; {len(gone)} left out, {sheet} says why")
    if table is None:
        raise click.ClickException(f"no subject has what a cohort needs, so no cohort.csv was written; {sheet} says "
                                   "why. --labels-only writes the labels without files, to plan with.")  # fmt: skip
    click.echo(table)
    click.echo(sheet)
    outcome = next(iter(found.outcomes), "NAME")
    masks = all("mask" in exam.files for exam in kept_ones.exams)
    if not labels_only:
        console.line(f"Next: mgkeras cohort check {table}, then "
                     + ("" if masks else f"mgkeras mask {table}, then ")
                     + f"mgkeras fit --model guided --cohort {table if masks else out / 'masks' / 'cohort.csv'} "
                     f"--outcome {outcome}")  # fmt: skip


HORIZON = click.option("--horizon-days", type=click.FloatRange(0, min_open=True), default=DEFAULT.horizon_days,
                       show_default=True, help="Recurrence counts within so many days.")
LABELS_ONLY = click.option("--labels-only", is_flag=True, help="Write every subject's labels and no files.")
EARLY = click.option("--early-seconds", type=click.FloatRange(0), default=DEFAULT.early_seconds, show_default=True,
                     help="T1 is the phase nearest to so many seconds after the first, where times are known.")
LATE = click.option("--late-seconds", type=click.FloatRange(0), default=DEFAULT.late_seconds, show_default=True,
                    help="T2 is the phase after T1 nearest to so many seconds after the first.")
OUTCOMES = click.option("--outcomes", type=Names(), default=(),
                        help="Columns of the labels that are outcomes.  [default: those of 0, 1 and empty]")
