"""`mgkeras mask`: tumour masks for a cohort, a report, and a sheet of pictures to check them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN
from mgkeras.cli.pool import Cluster, cluster_options, work_on
from mgkeras.cli.terminal import Terminal, answer, echo

from mgkeras.settings import MaskSettings

if TYPE_CHECKING:
    from mgkeras.check.sheet import Card
    from mgkeras.data.cohort import Cohort, Subject

DEFAULT = MaskSettings()


@click.command(name="mask", cls=Command)
@click.argument("cohort", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=NOT_RUN,
    metavar="DIR",
    help="Write to this folder.  [default: a folder 'masks' beside the cohort]",
)
@click.option(
    "--enhancement",
    type=click.FloatRange(0),
    default=DEFAULT.enhancement,
    show_default=True,
    help="Gate at this: a voxel is a candidate where (early - pre) / pre is above it; 0.7 is 70 %.",
)
@click.option(
    "--noise-floor",
    type=click.FloatRange(0, 1),
    default=DEFAULT.noise_floor,
    show_default=True,
    help="Measure no voxel darker than this share of the early phase's bright level.",
)
@click.option(
    "--clusters",
    type=click.IntRange(1, 9),
    default=DEFAULT.clusters,
    show_default=True,
    help="Make this many clusters by fuzzy C-means and keep the strongest; 1 keeps all that is bulky.",
)
@click.option(
    "--smallest-mm3",
    type=click.FloatRange(0),
    default=DEFAULT.smallest_mm3,
    show_default=True,
    help="Drop smaller components.",
)
@click.option(
    "--thinnest-mm",
    type=click.FloatRange(0),
    default=DEFAULT.thinnest_mm,
    show_default=True,
    help="Drop what is thinner, as vessels are.",
)
@click.option("--overwrite", is_flag=True, help="Make masks again that are in DIR already and differ.")
@click.option("--jobs", type=click.IntRange(1), help="Work in this many processes.  [default: one a core]")
@cluster_options
@click.pass_context
def command(
    context: click.Context,
    cohort: Path,
    out: Path | None,
    overwrite: bool,
    jobs: int | None,
    cluster: Cluster,
    **values: Any,
) -> None:
    """Make a tumour mask for every subject of COHORT, a cohort.csv.

    The mask is made from the pre and early phases: what enhances by more than the gate, without what is small or thin,
    and of that the strongest cluster, or all of it where the clusters are not apart. A subject whose row names a mask
    keeps that one.

    \b
    DIR/SUBJECT.nii.gz     the masks, 0 and 1, each on its early phase's own grid
    DIR/report.csv         a row per subject: volume, components, warnings
    DIR/check-sheet.html   every mask's outline on the early phase and on
                           early - pre: look at it before you train
    DIR/cohort.csv         the cohort with its mask column filled

    Run it again to go on after an interruption. A mask in DIR that differs from the one made now (you corrected it,
    or changed an exam or an option) is kept and reported as such, unless --overwrite is given. A subject that cannot
    be read does not stop the others; the exit code is then 1.

    Next: mgkeras fit --model guided DIR/cohort.csv --outcome NAME
    """
    from mgkeras.check.sheet import write_sheet
    from mgkeras.training.devices import cores

    if cluster:
        cohort, out = cohort.absolute(), out and out.absolute()  # workers stand in other folders
    out = out or cohort.parent / "masks"
    table = _read(cohort, out)
    settings = MaskSettings(fuzziness=DEFAULT.fuzziness, box_margin_mm=DEFAULT.box_margin_mm, **values)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with cluster.client(Terminal().line) as client:
        cards = _mask_all(table.subjects, settings, out, overwrite, jobs or cores(), rows, client)
        write_sheet(out / "check-sheet.html", f"{cohort.name}: tumour masks", cards)
    _write_tables(table, out, rows)
    _summarise(out, rows)
    answer(folder=out, masks=rows)
    context.exit(1 if any(row["error"] for row in rows) else 0)


def _read(path: Path, out: Path) -> Cohort:
    from mgkeras.data.cohort import CohortError, read_cohort

    if (out / "cohort.csv").resolve() == path.resolve():
        raise click.ClickException(
            f"--out must be another folder than the cohort's, whose table would be overwritten. Received: {out}"
        )
    try:
        return read_cohort(path, None, predict=True)  # every column but the files' is carried over as it is
    except CohortError as error:
        told = "\n".join(f"  {problem}" for problem in error.problems)
        raise click.ClickException(f"{path} must be a cohort's table without errors. Received:\n{told}") from None


def _mask_all(
    subjects: Sequence[Subject],
    settings: MaskSettings,
    out: Path,
    overwrite: bool,
    jobs: int,
    rows: list[dict[str, Any]],
    client: Any = None,
) -> Iterator[Card]:
    """A card a subject, in the cohort's order; its row of the report is added to ``rows``, progress goes to stderr."""
    from mgkeras.check.exams import masked_subject, unmasked
    from mgkeras.check.sheet import Card, room_for

    console = Terminal()
    count = console.counter("subjects")
    tasks = [(subject, settings, out, overwrite, room_for(len(subjects))) for subject in subjects]
    results = work_on(tasks, masked_subject, jobs, lambda task, why: unmasked(task[0], why), client)
    for done, (subject, (row, strip)) in enumerate(zip(subjects, results, strict=True), 1):
        rows.append(row)
        if row["error"]:
            console.line(f"error: {row['subject']}: {row['error']}")
        problems = tuple((severity, row[severity]) for severity in ("error", "warning") if row[severity])
        facts = [("mask", row["source"]), ("site", subject.site)]
        yield Card(subject.name, tuple((name, text) for name, text in facts if text), problems, strip)
        count(done, len(tasks))


def _write_tables(table: Cohort, out: Path, rows: list[dict[str, Any]]) -> None:
    from mgkeras.check.exams import COLUMNS
    from mgkeras.data.cohort import write_cohort
    from mgkeras.runs.store import write_rows

    write_rows(out / "report.csv", [{name: row[name] for name in COLUMNS} for row in rows])
    # a subject that failed keeps what its row said, so that fit finds and tells the same problem
    subjects = [
        subject if row["error"] else replace(subject, mask=out / f"{subject.name}.nii.gz")
        for subject, row in zip(table.subjects, rows, strict=True)
    ]
    write_cohort(out / "cohort.csv", subjects)


def _summarise(out: Path, rows: list[dict[str, Any]]) -> None:
    fine = [row for row in rows if not row["error"]]
    sources = {
        "fcm": "made from the pre and early phases",
        "given": "given by the cohort",
        "kept": "kept as they were in DIR",
    }
    counts = {source: sum(row["source"] == source for row in fine) for source in sources}
    said = ", ".join(f"{counts[source]} {words}" for source, words in sources.items() if counts[source])
    volumes = sorted(row["volume_mm3"] for row in fine)
    middle = f"; median volume {volumes[len(volumes) // 2]:,.0f} mm3" if fine else ""
    echo(f"{len(fine)} masks" + (f": {said}{middle}" if fine else ""))
    clustered = [row["clusters_apart"] for row in fine if row["clusters_apart"] is not None]
    if count := clustered.count(0):
        echo(f"fuzzy C-means left nothing out in {count} of {len(clustered)}: their clusters are not apart")
    warned = [row for row in fine if row["warning"]]
    for row in warned[:20]:
        echo(f"warning: {row['subject']}: {row['warning']}")
    if len(warned) > 20:
        echo(f"... and {len(warned) - 20} more warnings in {out / 'report.csv'}")
    failed = [row["subject"] for row in rows if row["error"]]
    if failed:
        echo(f"{len(failed)} failed, and have no mask: {', '.join(failed)}")
    for name in ("report.csv", "check-sheet.html", "cohort.csv"):
        echo(out / name)
    echo(
        f"Next: look at the check sheet, then: mgkeras fit --model guided {quote(str(out / 'cohort.csv'))} "
        "--outcome NAME" + (" --skip-invalid" if failed else "")
    )
