"""`mgkeras report`: one HTML file that a radiologist opens: findings, the exams with their maps, and 15 items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from mgkeras.cli.command import Command
from mgkeras.cli.evaluate import ask_runs
from mgkeras.cli.export import EVALUATION
from mgkeras.cli.options import TABLE, THERE, Scoring, evaluation_options
from mgkeras.cli.terminal import Terminal, answer, echo


@click.command(name="report", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=THERE)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Write this file.",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(1),
    default=15,
    show_default=True,
    help="Let the file grow to this many MB by exams; those that do not fit are counted in it.",
)
@click.option(
    "--evaluation",
    type=TABLE,
    help=f"Read the scores from this evaluation.json, if it is of these runs.  [default: {EVALUATION}, and --out]",
)
@click.option("--overwrite", is_flag=True, help="Write over a report of other runs.")
@evaluation_options
def command(
    runs: Sequence[Path],
    out: Path,
    max_mb: float,
    evaluation: Path | None,
    overwrite: bool,
    scoring: Scoring,
) -> None:
    """Write one HTML file about RUNS of `mgkeras fit`.

    The runs must have the same folds. The page opens with findings in words: what each model's map shows, and what its
    decision rests on. Then a viewer: the best, the median and the worst map of the last guided model and the last
    model's errors, the early phase with mask and maps to leaf through. Then 15 items of CLAIM, TRIPOD+AI and METRICS,
    with tables and pictures, and what the runs' files do not tell.

    What is not yet evaluated is evaluated, as by `mgkeras evaluate`; an evaluation of these runs as they are is read.
    A report of other runs is not written over without --overwrite.

    The file needs no network and no other file; it holds exams, so treat it like them.

    \b
    Example: mgkeras report runs/no-mask runs/guided --clinical age,er
    """
    console = Terminal()
    if not overwrite:
        from mgkeras.evaluation.kept import check_same_runs

        check_same_runs(out, runs)
    if scoring.probe:
        ask_runs(runs, scoring, console)
    report_runs(runs, out, scoring, console, max_mb=max_mb, earlier=(evaluation or EVALUATION, out))


def report_runs(
    runs: Sequence[Path],
    out: Path,
    scoring: Scoring,
    console: Terminal,
    *,
    max_mb: float = 15,
    earlier: Sequence[Path] = (),
) -> None:
    """Scores the runs, or reads their scores, draws the pictures, collects the exams and writes the file.

    ``earlier`` is that of evaluation.evaluate.
    """
    console.line(f"scores of {len(runs)} run{'s' * (len(runs) != 1)}")
    from mgkeras.evaluation.evaluate import evaluate, shared
    from mgkeras.figures.pictures import held_out_maps
    from mgkeras.report.collect import report_facts, viewer
    from mgkeras.report.page import draw, page, room
    from mgkeras.runs.store import write_text

    found = evaluate(runs, maps_of=held_out_maps, earlier=earlier, **scoring.scores)
    for told in found.results["edited"]:
        console.line(f"warning: {told}")
    folders = {model["name"]: Path(model["folder"]) for model in found.results["models"] if model.get("folder")}
    facts = report_facts(folders)
    console.line("drawing the pictures")
    drawn = draw(found, facts)
    exams = viewer(folders, facts, room(found, facts, drawn, max_mb * 1e6), console.counter("exams"))
    write_text(out, page(found, facts, drawn, exams))
    echo(out)
    answer(report=out, exams=len(exams.cases), left_out=len(exams.left_out), evaluation=shared(found.results))
    shown = f"{len(exams.cases)} exams in it" + (f", {len(exams.left_out)} left out" if exams.left_out else "")
    console.line(f"{out.stat().st_size / 1e6:.1f} MB, {shown}; open it in a browser, no network is needed")
    for name, why in (exams.unread or {}).items():
        console.line(f"not shown: {name}: {why}")
