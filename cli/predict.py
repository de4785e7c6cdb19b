"""`mgkeras predict`: a finished run applied to new exams."""

from __future__ import annotations

from pathlib import Path

import click
from mgkeras.cli.options import Terminal, checked_cohort, import_tensorflow


@click.command(name="predict")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cohort", "table", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="cohort.csv; subject and early (T1) are enough, for mask-only also mask or pre.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--skip-invalid", is_flag=True, help="Leave subjects with errors out, by name, instead of stopping.")
def command(run: Path, table: Path, out: Path, skip_invalid: bool) -> None:
    """Score new exams with RUN, a folder of `mgkeras fit`.

    \b
    OUT/predictions.csv      probability of the outcome: the folds' mean, and each fold's
    OUT/maps/SUBJECT.nii.gz  where the model looked, 0 to 1, on the exam's own T1 grid
    OUT/scores.json          AUC and the like with intervals, if the outcome is in the table

    A subject that the run was trained on is named: its scores are no external validation.
    """
    import_tensorflow()
    from mgkeras.training.apply import predict_cohort
    from mgkeras.training.run import done_folds, load_settings

    console = Terminal()
    settings = load_settings(run)
    if (done := len(done_folds(run))) < settings.training.folds:
        console.line(f"warning: {done} of {settings.training.folds} folds of {run} are finished, and only they have a "
                     "say; the same fit command finishes the others")  # fmt: skip
    cohort = checked_cohort(table, settings.outcome, console, predict=True, skip_invalid=skip_invalid)
    found = predict_cohort(run, cohort, out, console.counter("exams"))
    for message in found["failed"]:
        console.line(f"error: {message}")
    if found["seen"]:
        some = ", ".join(found["seen"][:10]) + " ..." * (len(found["seen"]) > 10)
        console.line(f"warning: {len(found['seen'])} subjects are those the run was trained on: {some}. Their scores "
                     "are no external validation.")  # fmt: skip
    if scores := found["scores"]:
        auc = scores["pooled"]["auc"]
        text = "undefined (one class only)" if auc["value"] is None else f"{auc['value']:.3f}"
        interval = f" (95 % interval {auc['low']:.3f} to {auc['high']:.3f})" if auc["low"] is not None else ""
        console.line(f"{settings.outcome}: AUC {text}{interval} in {scores['subjects']} subjects with a label")
    if not found["subjects"]:
        raise click.ClickException("no subject could be scored")
    click.echo(out / "predictions.csv")
    console.line(f"maps on each exam's own grid: {out / 'maps'}")
    if found["failed"]:
        raise SystemExit(1)
