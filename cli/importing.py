"""`mgkeras import`: a cohort as it was downloaded, to a table, a data-sheet and, where needed, NIfTI files."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.options import Names, Terminal, echo, together

from mgkeras.settings import ImportSettings

if TYPE_CHECKING:
    from mgkeras.importers.found import Found

DEFAULT = ImportSettings()
REASONS_SHOWN = 5  # of those why subjects are left out; the data-sheet has them all
TABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
HORIZON = click.option(
    "--horizon-days",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT.horizon_days,
    show_default=True,
    help="Recurrence counts within so many days.",
)
EARLY = click.option(
    "--early-seconds",
    type=click.FloatRange(0),
    default=DEFAULT.early_seconds,
    show_default=True,
    help="T1 is the phase nearest to so many seconds after the first, where times are known.",
)
LATE = click.option(
    "--late-seconds",
    type=click.FloatRange(0),
    default=DEFAULT.late_seconds,
    show_default=True,
    help="T2 is the phase after T1 nearest to so many seconds after the first.",
)
EARLY_PHASE = click.option(
    "--early-phase",
    type=click.IntRange(2),
    metavar="N",
    help="T1 is phase N, the one before contrast being 1.  [default: by time; of at most 8 without times, 2]",
)
LATE_PHASE = click.option(
    "--late-phase", type=click.IntRange(3), metavar="N", help="T2 is phase N.  [default: by time, else the last]"
)
BY_ENHANCEMENT = click.option(
    "--by-enhancement", is_flag=True, help="T1 is the phase of the peak of the curve in what enhances."
)
LABELS_ONLY = click.option("--labels-only", is_flag=True, help="Write every subject's labels and no files.")
OUTCOMES = click.option(
    "--outcomes",
    type=Names(),
    default=(),
    help="Columns of the labels that are outcomes.  [default: those of 0, 1 and empty]",
)
COVARIATES = click.option(
    "--covariates", type=Names(), default=None, help="Columns of the labels to carry over.  [default: all others]"
)


@click.group(name="import")
def command() -> None:
    """Make a cohort.csv from a cohort as it was downloaded: mgkeras import KIND SOURCE OUT.

    \b
    OUT/cohort.csv      a row a subject: files, site, split, outcomes, covariates
    OUT/data-sheet.md   what each outcome means; counts by outcome, site, scanner; all that was left out, and why
    OUT/nifti/          only where the source is DICOM or 4D, or its NIfTI headers are wrong

    SOURCE is only read. Files stay where they are and the table names them. Run it again to go on after an
    interruption. Excel tables and DICOM need pip install 'mgkeras[import]'.

    \b
    Next: mgkeras cohort check OUT/cohort.csv
          mgkeras mask OUT/cohort.csv          (where the source has no masks)
          mgkeras fit --model guided --cohort OUT/cohort.csv --outcome NAME
    """


def kind(name: str, text: str, *options: Any) -> None:
    """Adds the command of a source: SOURCE, OUT and its own options, handed to mgkeras.importers.NAME.read."""

    def run(source: Path, out: Path, **values: Any) -> None:
        console = Terminal()
        if source.resolve() == out.resolve():
            raise click.UsageError(f"SOURCE is only read: name another OUT. Received: {out}")
        if (out / "cohort.csv").exists() and not (out / "data-sheet.md").exists():
            raise click.UsageError(f"{out / 'cohort.csv'} was not made by `mgkeras import`: name another OUT")
        read = importlib.import_module(f"mgkeras.importers.{name.replace('-', '_')}").read
        given = {"nifti": out / "nifti", "progress": console.counter("subjects"), "scanned": partial(_seen, console)}
        keep_map = values.get("keep_map")
        if keep_map and out.resolve() in keep_map.resolve().parents:
            raise click.UsageError(
                f"the table of pseudonyms tells who is who: keep it outside {out}. Received: --keep-map {keep_map}"
            )
        wanted = inspect.signature(read).parameters
        found = read(source, **{key: value for key, value in given.items() if key in wanted}, **values)
        _write(found, out, values.get("labels_only"), console)

    source = click.argument("source", type=FOLDER)
    out = click.argument("out", type=click.Path(file_okay=False, path_type=Path))
    command.add_command(together(source, out, *options)(click.command(name=name, help=text)(run)))


def _seen(console: Terminal, files: int) -> None:
    if files % 1000 == 0:
        console.tick(f"  {files} files seen")


def _write(found: Found, out: Path, labels_only: bool | None, console: Terminal) -> None:
    """Writes what was found and says what came of it; ``labels_only`` is None where the kind has no such option."""
    from mgkeras.importers.found import SUBJECT
    from mgkeras.importers.sheet import kept, write_found

    table, sheet = write_found(found, out, labels_only=bool(labels_only))
    found = kept(found, bool(labels_only))
    gone = {one.name for one in found.left_out if one.of == SUBJECT}
    for name in found.outcomes:
        values = [exam.outcomes.get(name, "") for exam in found.exams]
        positive, negative, unknown = (values.count(value) for value in ("1", "0", ""))
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
        + f"mgkeras fit --model guided --cohort {fitted} --outcome {outcome}"
    )


def _say_reasons(found: Found, console: Terminal) -> None:
    """The most frequent reasons why subjects are left out, with a few of their names."""
    from mgkeras.importers.found import SUBJECT

    names: dict[str, list[str]] = {}
    for one in found.left_out:
        if one.of == SUBJECT:
            names.setdefault(one.reason, []).append(one.name)
    ranked = sorted(names.items(), key=lambda item: -len(item[1]))
    for reason, who in ranked[:REASONS_SHOWN]:
        shown = ", ".join(who[:3]) + (" ..." if len(who) > 3 else "")
        console.line(f"left out, {len(who)} subject{'s' * (len(who) != 1)}: {reason} ({shown})")
    if len(ranked) > REASONS_SHOWN:
        console.line(f"left out for {len(ranked) - REASONS_SHOWN} other reasons, see there")


kind(
    "mama-mia",
    """MAMA-MIA (Synapse syn60868042): 1506 patients of Duke, I-SPY1, I-SPY2 and NACT.

    Outcomes recurrence, pcr, her2, hr, triple_negative; the expert's mask, else the automatic one; the official split.
    """,
    click.option(
        "--zero-days",
        type=click.Choice(("missing", "no-event")),
        default="no-event",
        show_default=True,
        help="What 0 days to an event means; the workbook's sheet legend says that there was none.",
    ),
    click.option(
        "--death",
        type=click.Choice(("event", "censor")),
        default="event",
        show_default=True,
        help="Whether death counts as recurrence does, or ends follow-up.",
    ),
    click.option(
        "--times",
        type=click.Choice(("seconds", "ignore")),
        default="seconds",
        show_default=True,
        help="What acquisition_times are; ignore: T1 is the first phase after contrast, T2 the last.",
    ),
    click.option(
        "--automatic-masks/--no-automatic-masks",
        default=True,
        show_default=True,
        help="Take the automatic mask where there is no expert's.",
    ),
    HORIZON,
    EARLY,
    LATE,
    LABELS_ONLY,
)
kind(
    "ispy1",
    """I-SPY1 / ACRIN 6657 (TCIA): the workbook and, below it, the DICOM files.

    The baseline visit. Outcomes recurrence, her2, pcr, hr, triple_negative. It has no masks: `mgkeras mask` makes them.
    """,
    HORIZON,
    EARLY,
    LATE,
    LABELS_ONLY,
)
kind(
    "breastdcedl",
    """BreastDCEDL (Zenodo 15627233): I-SPY1, I-SPY2 and Duke as NIfTI, with masks.

    Outcomes pcr, her2, hr, triple_negative. Its headers say 1 mm a voxel; where a table tells the true spacing, files
    that have it are written to OUT/nifti.
    """,
    click.option(
        "--which",
        type=click.Choice(("all", "ispy1", "ispy2", "duke")),
        default="all",
        show_default=True,
        help="Of its cohorts.",
    ),
    click.option(
        "--axes",
        metavar="LETTERS",
        help="Toward what the arrays' axes grow, such as SPL, for who knows.  [default: as the headers say]",
    ),
    click.option(
        "--unit-spacing",
        type=click.Choice(("left-out", "kept")),
        default="left-out",
        show_default=True,
        help="What becomes of subjects whose true spacing no table tells.",
    ),
    LABELS_ONLY,
)
kind(
    "duke",
    """Duke-Breast-Cancer-MRI (TCIA): 922 patients; the workbook and, below it, the DICOM files.

    Outcomes recurrence, her2, pcr, hr, triple_negative. TCIA has boxes and no masks: name MAMA-MIA's for 291 of them,
    or let `mgkeras mask` make them.
    """,
    click.option(
        "--in-situ",
        type=click.Choice(("left-out", "complete", "not-complete")),
        default="left-out",
        show_default=True,
        help="What the pCR is where DCIS or LCIS alone remained.",
    ),
    click.option("--masks", type=FOLDER, help="MAMA-MIA's folder segmentations, for 291 of the patients."),
    HORIZON,
    EARLY,
    LATE,
    LABELS_ONLY,
)
kind(
    "odelia",
    """ODELIA's challenge of 2025 (unilateral): breasts of six institutions.

    Outcome malignant; the official split. It has no masks: `mgkeras mask` makes them.
    """,
    click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Of the official splits."),
    LABELS_ONLY,
)
kind(
    "dicom",
    """Your hospital's DICOM, in whatever folders, under pseudonyms.

    Of each patient's study the dynamic series is found, its phases are put in the order of time, and T0, T1 and T2 are
    converted by dcm2niix. No name, date or number of a patient travels into OUT; text burnt into pixels does.
    """,
    click.option(
        "--keep-map",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Keep the table of pseudonyms and patients in FILE, for you alone: later calls give the same names.",
    ),
    click.option(
        "--labels", type=TABLE, help="A table, a row a patient: PatientID or pseudonym, and columns of 0 and 1."
    ),
    OUTCOMES,
    COVARIATES,
    click.option(
        "--series",
        metavar="REGEX",
        help="Found in the dynamic series' description, protocol or image type.  "
        "[default: 3D T1-weighted series on one grid]",
    ),
    click.option(
        "--visit",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Which study with a dynamic series, by date; 1 is before treatment.",
    ),
    click.option(
        "--site-tag",
        metavar="KEYWORD",
        help="The header's keyword that is the site, such as InstitutionName; it may help to tell who a patient is.",
    ),
    EARLY,
    LATE,
    EARLY_PHASE,
    LATE_PHASE,
    BY_ENHANCEMENT,
)
kind(
    "bids",
    """A BIDS data set: phases of ce- T1w runs or 4D files, participants.tsv, masks of derivatives.""",
    click.option("--session", help="Of each subject.  [default: the first]"),
    click.option("--labels", type=TABLE, help="A table in place of participants.tsv."),
    OUTCOMES,
    COVARIATES,
    EARLY,
    LATE,
    EARLY_PHASE,
    LATE_PHASE,
    BY_ENHANCEMENT,
    LABELS_ONLY,
)
kind(
    "folder",
    """A folder a subject, or patterns with {subject}: whatever else you have as NIfTI.

    \b
    Example: mgkeras import folder exams OUT --pre '*_0000.nii.gz' --early '*_0001.nii.gz' --labels labels.csv
    """,
    click.option(
        "--pre",
        metavar="PATTERN",
        help="T0 in a subject's folder: '*_0000.nii.gz'; or below SOURCE: 'images/{subject}_0000.nii.gz'. Not needed "
        "where --mask is given.",
    ),
    click.option("--early", metavar="PATTERN", help="T1, likewise."),
    click.option("--late", metavar="PATTERN", help="T2, likewise."),
    click.option("--mask", metavar="PATTERN", help="The tumour's mask, likewise."),
    click.option("--labels", type=TABLE, help="A csv, tsv or xlsx table, a row a subject."),
    click.option(
        "--subject-column",
        help="Column of the labels that names the subjects.  [default: subject, patient_id, id, ...]",
    ),
    OUTCOMES,
    COVARIATES,
    LABELS_ONLY,
)
