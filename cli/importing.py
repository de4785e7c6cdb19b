"""`mgkeras import`: a cohort as it was downloaded, to a table, a data-sheet and, where needed, NIfTI files."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from mgkeras.cli.command import Command, Group
from mgkeras.cli.import_result import write
from mgkeras.cli.options import NOT_RUN, TABLE, THERE, Names, together
from mgkeras.cli.pool import Cluster, cluster_options, work_on
from mgkeras.cli.terminal import Terminal

from mgkeras.settings import ImportSettings

DEFAULT = ImportSettings()
HORIZON = click.option(
    "--horizon-days",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT.horizon_days,
    show_default=True,
    help="Count recurrence within this many days.",
)
EARLY = click.option(
    "--early-seconds",
    type=click.FloatRange(0),
    default=DEFAULT.early_seconds,
    show_default=True,
    help="Take the phase nearest to this many seconds after the first as the early phase, where times are known.",
)
LATE = click.option(
    "--late-seconds",
    type=click.FloatRange(0),
    default=DEFAULT.late_seconds,
    show_default=True,
    help="Take the phase after the early phase nearest to this many seconds after the first as the late phase.",
)
EARLY_PHASE = click.option(
    "--early-phase",
    type=click.IntRange(2),
    metavar="N",
    help="Take phase N as the early phase, the one before contrast being 1.  "
    "[default: by time; of at most 8 without times, 2]",
)
LATE_PHASE = click.option(
    "--late-phase",
    type=click.IntRange(3),
    metavar="N",
    help="Take phase N as the late phase.  [default: by time, else the last]",
)
BY_ENHANCEMENT = click.option(
    "--by-enhancement",
    is_flag=True,
    help="Take as the early phase the phase of the peak of the curve in what enhances.",
)
LABELS_ONLY = click.option("--labels-only", is_flag=True, help="Write every subject's labels and no files.")
OUTCOMES = click.option(
    "--outcomes",
    type=Names(),
    default=(),
    help="Take these columns of the labels as outcomes.  [default: those of 0, 1 and empty]",
)
COVARIATES = click.option(
    "--covariates", type=Names(), default=None, help="Carry these columns of the labels over.  [default: all others]"
)


@click.group(name="import", cls=Group)
def command() -> None:
    """Make a cohort.csv from a cohort as it was downloaded.

    \b
    OUT/cohort.csv      a row a subject: files, site, split, outcomes, covariates
    OUT/data-sheet.md   what each outcome means; counts by outcome, site and
                        scanner; every subject that was left out, and why
    OUT/nifti/          only where the source is DICOM or 4D, or its headers are
                        wrong

    SOURCE is only read. Files stay where they are and the table names them. Run it again to go on after an
    interruption. Excel tables and DICOM need pip install 'mgkeras[import]'.

    \b
    Next: mgkeras cohort check OUT/cohort.csv
          mgkeras mask OUT/cohort.csv          (where the source has no masks)
          mgkeras fit --model guided OUT/cohort.csv --outcome NAME
    """


def kind(name: str, text: str, *options: Any) -> None:
    """Adds the command of a source: SOURCE, OUT and its own options, handed to mgkeras.importers.NAME.read."""

    def run(source: Path, out: Path, cluster: Cluster | None = None, **values: Any) -> None:
        console = Terminal()
        cluster = cluster or Cluster()
        cluster.check()
        if cluster:
            source, out = source.absolute(), out.absolute()  # workers stand in other folders
        if source.resolve() == out.resolve():
            raise click.UsageError(f"SOURCE is only read: name another OUT. Received: {out}")
        if (out / "cohort.csv").exists() and not (out / "data-sheet.md").exists():
            raise click.UsageError(f"{out / 'cohort.csv'} was not made by `mgkeras import`: name another OUT")
        read = importlib.import_module(f"mgkeras.importers.{name.replace('-', '_')}").read
        given = {"nifti": out / "nifti", "progress": console.counter("subjects"), "scanned": partial(_seen, console)}
        given["each"] = partial(_each, console, cluster)
        keep_map = values.get("keep_map")
        if keep_map and out.resolve() in keep_map.resolve().parents:
            raise click.UsageError(
                f"the table of pseudonyms tells who is who: keep it outside {out}. Received: --keep-map {keep_map}"
            )
        wanted = inspect.signature(read).parameters
        found = read(source, **{key: value for key, value in given.items() if key in wanted}, **values)
        write(found, out, values.get("labels_only"), console)

    source = click.argument("source", type=THERE)
    out = click.argument("out", type=NOT_RUN)
    options_of = together(*reversed((source, out, *options)))
    command.add_command(click.command(name=name, help=text, cls=Command)(options_of(run)))


def _each(console: Terminal, cluster: Cluster, work: Callable[[Any], Any], patients: Sequence[Any]) -> Iterator[Any]:
    """As map, on the cluster where one was asked for."""
    from mgkeras.importers.found import SourceError

    with cluster.client(console.line) as client:
        yield from work_on(patients, work, 1, lambda patient, why: SourceError(why), client)


def _seen(console: Terminal, files: int) -> None:
    if files % 1000 == 0:
        console.tick(f"  {files} files seen")


kind(
    "mama-mia",
    """MAMA-MIA (Synapse syn60868042), 1506 patients, with masks.

    They come from Duke, I-SPY1, I-SPY2 and NACT.

    Outcomes recurrence, pcr, her2, hr, triple_negative; the expert's mask, else the automatic one; the official split.
    """,
    click.option(
        "--zero-days",
        type=click.Choice(("missing", "no-event")),
        default="no-event",
        show_default=True,
        help="Read 0 days to an event in this way; the workbook's legend says that there was no event.",
    ),
    click.option(
        "--death",
        type=click.Choice(("event", "censor")),
        default="event",
        show_default=True,
        help="Count death as recurrence, or let it end follow-up.",
    ),
    click.option(
        "--times",
        type=click.Choice(("seconds", "ignore")),
        default="seconds",
        show_default=True,
        help="Read acquisition_times in this way; ignore: the early phase is the first phase after "
        "contrast, the late phase the last.",
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
    """I-SPY1 / ACRIN 6657 (TCIA), 221 patients, DICOM.

    SOURCE has the workbook and, below it, the DICOM files. The baseline visit is taken.

    Outcomes recurrence, her2, pcr, hr, triple_negative. It has no masks: `mgkeras mask` makes them.
    """,
    HORIZON,
    EARLY,
    LATE,
    LABELS_ONLY,
)
kind(
    "breastdcedl",
    """BreastDCEDL (Zenodo 15627233): I-SPY1, I-SPY2, Duke as NIfTI.

    It has masks of the I-SPY trials.

    Outcomes pcr, her2, hr, triple_negative. Its headers say 1 mm a voxel; where a table tells the true spacing, files
    that have it are written to OUT/nifti.
    """,
    click.option(
        "--which",
        type=click.Choice(("all", "ispy1", "ispy2", "duke")),
        default="all",
        show_default=True,
        help="Take this one of its cohorts.",
    ),
    click.option(
        "--axes",
        metavar="LETTERS",
        help="Say toward what the arrays' axes grow, such as SPL, if you know it.  [default: as the headers say]",
    ),
    click.option(
        "--unit-spacing",
        type=click.Choice(("left-out", "kept")),
        default="left-out",
        show_default=True,
        help="Keep subjects or leave them out whose true spacing no table tells.",
    ),
    LABELS_ONLY,
)
kind(
    "duke",
    """Duke-Breast-Cancer-MRI (TCIA), 922 patients, DICOM.

    SOURCE has the workbook and, below it, the DICOM files.

    Outcomes recurrence, her2, pcr, hr, triple_negative. TCIA has boxes and no masks: name MAMA-MIA's for 291 of them,
    or let `mgkeras mask` make them.
    """,
    click.option(
        "--in-situ",
        type=click.Choice(("left-out", "complete", "not-complete")),
        default="left-out",
        show_default=True,
        help="Let the pCR be this where DCIS or LCIS alone remained.",
    ),
    click.option("--masks", type=THERE, help="Take the masks of 291 patients from MAMA-MIA's folder segmentations."),
    HORIZON,
    EARLY,
    LATE,
    LABELS_ONLY,
)
kind(
    "odelia",
    """ODELIA's challenge of 2025 (unilateral), six institutions.

    A subject is a breast.

    Outcome malignant; the official split. It has no masks: `mgkeras mask` makes them.
    """,
    click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Take this official split."),
    LABELS_ONLY,
)
kind(
    "dicom",
    """Your hospital's DICOM, in whatever folders, under pseudonyms.

    Of each patient's study the dynamic series is found, its phases are put in the order of time, and the pre, early and
    late phases are converted by dcm2niix. No name, date or number of a patient travels into OUT; text burnt into pixels
    does. """,
    click.option(
        "--keep-map",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Keep the table of pseudonyms and patients in FILE, for you alone: later calls give the same names.",
    ),
    click.option(
        "--labels",
        type=TABLE,
        help="Take outcomes from a table, a row a patient: PatientID or pseudonym, columns of 0 and 1.",
    ),
    OUTCOMES,
    COVARIATES,
    click.option(
        "--series",
        metavar="REGEX",
        help="Take series where this is found in the dynamic series' description, protocol or image type.  "
        "[default: 3D T1-weighted series on one grid]",
    ),
    click.option(
        "--visit",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Take this study with a dynamic series, by date; 1 is before treatment.",
    ),
    click.option(
        "--site-tag",
        metavar="KEYWORD",
        help="Take the site from this keyword, such as InstitutionName; it may help to tell who a patient is.",
    ),
    EARLY,
    LATE,
    EARLY_PHASE,
    LATE_PHASE,
    BY_ENHANCEMENT,
    cluster_options,
)
kind(
    "bids",
    """A BIDS data set.

    Phases are taken from ce- T1w runs or 4D files, outcomes from participants.tsv, masks from derivatives.
    """,
    click.option("--session", help="Take this session of each subject.  [default: the first]"),
    click.option("--labels", type=TABLE, help="Take this table in place of participants.tsv."),
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
    """Any NIfTI files: a folder for each subject, or patterns.

    Patterns hold {subject} where the files of all subjects are in one folder.

    \b
    Example: mgkeras import folder exams OUT --labels labels.csv \\
                 --pre '*_0000.nii.gz' --early '*_0001.nii.gz'
    """,
    click.option(
        "--pre",
        metavar="PATTERN",
        help="Find the pre phase in a subject's folder: '*_0000.nii.gz'; or below SOURCE: "
        "'images/{subject}_0000.nii.gz'. Not needed where --mask is given.",
    ),
    click.option("--early", metavar="PATTERN", help="Find the early phase likewise."),
    click.option("--late", metavar="PATTERN", help="Find the late phase likewise."),
    click.option("--mask", metavar="PATTERN", help="Find the tumour's mask likewise."),
    click.option("--labels", type=TABLE, help="Take outcomes from this csv, tsv or xlsx table, a row a subject."),
    click.option(
        "--subject-column",
        help="Take subjects' names from this column of the labels.  [default: subject, patient_id, id, ...]",
    ),
    OUTCOMES,
    COVARIATES,
    LABELS_ONLY,
)
