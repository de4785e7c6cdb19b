"""`mgkeras predict`: a finished run, here or served (see served.py), applied to new exams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN, SKIP_INVALID, TABLE, THERE, checked_cohort, trust_option
from mgkeras.cli.pool import Cluster, cluster_options
from mgkeras.cli.served import scored_by_server, server_options
from mgkeras.cli.terminal import Terminal, answer, echo, import_tensorflow

from mgkeras.errors import few

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort


@click.command(name="predict", cls=Command)
@click.argument("run", required=False, type=click.Path(exists=True, path_type=Path))
@click.argument("table", required=False, type=TABLE, metavar="COHORT")
@click.option("--out", required=True, type=NOT_RUN, help="Write to this folder.")
@SKIP_INVALID
@click.option(
    "--map",
    "kind",
    type=click.Choice(("decision", "class")),
    default="decision",
    show_default=True,
    help="Write this to OUT/maps: the decision map, or the class activation map as it is, a part of which no "
    "probability depends on. A server gives what its export holds.",
)
@trust_option
@click.option(
    "--tta",
    is_flag=True,
    help="Average over the exam's 24 exact rotations (test-time augmentation), which takes 24 times as long.",
)
@click.option(
    "--dicom",
    type=THERE,
    default=None,
    help="Write OUT/dicom too, beside the DICOM series in this folder that the early phase was made from. "
    "A subject's series are those in a folder of its name, or else those whose PatientID is its name or is that "
    "of --keep-map.",
)
@click.option(
    "--keep-map",
    type=TABLE,
    default=None,
    help="Read who is who for --dicom in this table of pseudonyms, which `mgkeras import dicom --keep-map` wrote.",
)
@click.option(
    "--server",
    metavar="URL",
    default=None,
    help="Ask this served export instead of RUN: http[s]://HOST:8501/v1/models/NAME or grpc[s]://HOST:8500/NAME, "
    "and /versions/N behind it for a version other than the latest.",
)
@server_options
@cluster_options
@click.pass_context
def command(
    context: click.Context,
    run: Path | None,
    table: Path | None,
    out: Path,
    skip_invalid: bool,
    kind: str,
    trust: bool,
    tta: bool,
    dicom: Path | None,
    keep_map: Path | None,
    server: str | None,
    of_server: dict[str, Any],
    cluster: Cluster,
) -> None:
    """Score new exams with RUN, a folder of `mgkeras fit`.

    COHORT is a cohort.csv: subject and early are enough; mask-only needs mask or pre as well. It may also be one early
    phase as NIfTI.

    \b
    OUT/predictions.csv      probability of the outcome: the folds' mean, each
                             fold's, and how far they spread (SD)
    OUT/maps/SUBJECT.nii.gz  evidence for (above 0) and against the predicted
                             class, on the grid of the exam's early phase
    OUT/scores.json          AUC and other scores with intervals, if the outcome
                             is in the table
    OUT/dicom/               with --dicom: SUBJECT-map.dcm, the map as a
                             Parametric Map, and SUBJECT-mask.dcm, the table's
                             mask as a Segmentation, on the planes of the source
                             series and referring to it

    A map is in log-odds: its mean over the network's cells plus a constant is half of the folds' mean log-odds of the
    predicted class.

    A subject that the run was trained on is named: its scores are no external validation. A server does not tell whom
    it was trained on.

    The DICOM files of --dicom (pip install 'mgkeras[dicom]') name the patient as the source series does, with
    identifiers and dates: they are for the archive that it came from. The series must be one image a file.

    With --server, TensorFlow Serving or what speaks its V1 protocol does the work. Over gRPC (pip install
    'mgkeras[serving]') an exam is sent whole, and the numbers are RUN's. Over REST give --preprocessing: as JSON, a
    whole exam is tens of MB. A server that is busy or gone is asked again, four times within 15 s.

    \b
    Examples:  mgkeras predict runs/NAME new.csv --out predictions
               mgkeras predict new.csv --out predictions \\
                   --server grpc://localhost:8500/NAME
               mgkeras predict new.csv --out predictions \\
                   --server http://localhost:8501/v1/models/NAME \\
                   --preprocessing served/NAME/1/preprocessing.json
    """
    if table is None and run is not None and run.is_file():  # without RUN, COHORT is the first
        run, table = None, run
    if run is not None and not run.is_dir():
        raise click.BadParameter(f"expected a folder of `mgkeras fit`. Received: {run}", param_hint="RUN")
    if (run is None) == (server is None):
        raise click.UsageError(
            "expected RUN, a folder of `mgkeras fit`, or --server URL. Received: "
            f"{'neither' if run is None else 'both'}"
        )
    if table is None:
        raise click.UsageError("expected COHORT, a cohort.csv. Received: none")
    given = [f"--{name}" for name in of_server if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    for refused, expected, received in (
        (run and given, f"--server URL beside {', '.join(given)}", "RUN, which needs none of them"),
        (server and cluster, "RUN beside --scheduler and --cluster", "--server"),
        (server and tta, "RUN beside --tta: a server is sent an exam once", "--server"),
        (server and kind == "class", "RUN beside --map class: a server gives the map of its export", "--server"),
        (keep_map and not dicom, "--dicom beside --keep-map", "--keep-map alone"),
    ):
        if refused:
            raise click.UsageError(f"expected {expected}. Received: {received}")
    if dicom:
        from mgkeras.importers.dicom_results import highdicom_or_error

        highdicom_or_error()  # its absence is told before anything is scored
    console = Terminal()
    if run:
        cohort, found = _by_run(run, table, out, skip_invalid, kind, tta, trust, cluster, console)
    else:
        cohort, found = scored_by_server(server or "", table, out, skip_invalid, console, **of_server)
    _tell(cohort, found, out, console)
    left = _as_dicom(cohort, found, out, dicom, keep_map, console) if dicom else []
    if found["failed"] or left:
        raise SystemExit(1)


def _by_run(
    run: Path,
    table: Path,
    out: Path,
    skip_invalid: bool,
    kind: str,
    tta: bool,
    trust: bool,
    cluster: Cluster,
    console: Terminal,
) -> tuple[Cohort, dict[str, Any]]:
    from mgkeras.data.phases import files_of
    from mgkeras.runs.store import check_run, done_folds, load_settings

    for told in check_run(run, trust=trust):
        console.line(f"warning: {told}")
    settings = load_settings(run)
    if (done := len(done_folds(run))) < settings.training.folds:
        console.line(
            f"warning: {done} of {settings.training.folds} folds of {run} are finished, and only they have a "
            "say; the same fit command finishes the others"
        )
    need = files_of(settings.volume)
    table = table.absolute() if cluster else table  # workers stand in other folders
    cohort = checked_cohort(table, settings.outcome, console, need=need, predict=True, skip_invalid=skip_invalid)
    import_tensorflow()  # which takes seconds and half a GB, so after all that may be wrong with the table
    from mgkeras.inference.predict import predict_cohort
    from mgkeras.training.cluster import scored_there

    with cluster.client(console.line) as client:
        score = scored_there(client, run.absolute(), cohort, kind, tta) if client else None
        count = console.counter("exams")
        return cohort, predict_cohort(run, cohort, out, count, kind=kind, check=False, tta=tta, score=score)


def _tell(cohort: Cohort, found: dict[str, Any], out: Path, console: Terminal) -> None:
    """Prints what was found and what was not.

    Raises:
        ClickException: not one subject was scored.
    """
    for message in found["failed"]:
        console.line(f"error: {message}")
    if found["seen"]:
        console.line(
            f"warning: {len(found['seen'])} subjects are those the run was trained on: {few(found['seen'], 10)}. Their "
            "scores are no external validation."
        )
    if others := found["unlike"]:
        from mgkeras.runs.exams import range_text

        named = few([f"{name} ({mm:.0f} mm)" for name, mm in others.items()], 10)
        console.line(
            f"warning: the field of view of {len(others)} exam{'' if len(others) == 1 else 's'} is not like that of "
            f"the exams the run was trained on, {range_text(found['trained_on_mm'])}: {named}. The run has not seen "
            "tissue of this scale."
        )
    if scores := found["scores"]:
        auc = scores["pooled"]["auc"]
        text = "undefined (one class only)" if auc["value"] is None else f"{auc['value']:.3f}"
        interval = f" (95 % interval {auc['low']:.3f} to {auc['high']:.3f})" if auc["low"] is not None else ""
        console.line(f"{cohort.outcome}: AUC {text}{interval} in {scores['subjects']} subjects with a label")
        if found["seen"] is None:
            console.line(
                "note: whom the served model was trained on is not known here; only others make these scores "
                "an external validation"
            )
    if not found["subjects"]:
        raise click.ClickException("no subject could be scored")
    echo(out / "predictions.csv")
    answer(folder=out, **found)
    console.line(f"maps on each exam's own grid: {out / 'maps'} ({found['map']})")


def _as_dicom(
    cohort: Cohort, found: dict[str, Any], out: Path, source: Path, keep_map: Path | None, console: Terminal
) -> list[str]:
    """Writes OUT/dicom; returns a message for each subject that could not be written, which it prints."""
    from mgkeras.importers.dicom_results import write_results

    subjects = [subject for subject in cohort.subjects if subject.name in found["scored"]]
    left = write_results(subjects, out / "maps", source, out / "dicom", about=found["map"], keep_map=keep_map)
    for message in left:
        console.line(f"error: no DICOM of {message}")
    if len(left) < len(subjects):
        console.line(f"DICOM beside the source series, which name the patients as it does: {out / 'dicom'}")
    return left
