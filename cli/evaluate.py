"""`mgkeras evaluate`: scores with intervals, simple baselines, tests between runs, and the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN, THERE, Scoring, evaluation_options
from mgkeras.cli.pool import Cluster, cluster_options
from mgkeras.cli.terminal import Terminal, answer, echo, import_tensorflow

if TYPE_CHECKING:
    from mgkeras.training.progress import Console

FILES = (
    "table.md",
    "evaluation.json",
    "evaluation.csv",
    "roc.png",
    "calibration.png",
    "decision.png",
    "attention.png",
    "probes.png",
)


@click.command(name="evaluate", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=THERE)
@click.option(
    "--out",
    type=NOT_RUN,
    default=Path("evaluation"),
    show_default=True,
    help="Write to this folder.",
)
@evaluation_options
@cluster_options
def command(
    runs: Sequence[Path],
    out: Path,
    scoring: Scoring,
    cluster: Cluster,
) -> None:
    """Score RUNS of `mgkeras fit` on the same folds and probe them.

    Every score is of subjects that the model had not seen, pooled and by fold, with intervals from a bootstrap over
    subjects. Thresholds are chosen on a fold's training subjects (Youden's index); 0.5 stands beside them. The
    majority class, the tumour's volume alone, the mask's shape alone, radiomics of the tumour (pip install
    'mgkeras[radiomics]') and, with --clinical, columns of the cohort table are scored in the same folds, so that
    one sees what a network adds. Runs are set against each other by DeLong's test and a paired bootstrap. A run
    that differs from an earlier one in its seed alone is taken as that one's repeat; name the runs that share their
    folds first.

    A map in the right place does not prove that the decision came from there, so the models are probed: everything
    outside, or inside, the dilated tumour blurred; each tumour put into another patient's breast, or filled from around
    it; the log-odds added up by place; the site predicted from the features; parts of the exam occluded, layers
    randomised, the mask changed and, on the phantom, its traps added and removed. AUCs of altered exams count pairs
    of subjects within folds. Each run keeps its probes in RUN/probes.

    \b
    OUT/table.md         the tables to read, with their notes
    OUT/evaluation.json  every number
    OUT/evaluation.csv   every number, a row each
    OUT/roc.png          ROC curves with a bootstrap band
    OUT/calibration.png  observed share against predicted probability, with counts
    OUT/decision.png     net benefit by threshold, beside treating all and none
    OUT/attention.png    where the maps look, by model and class, against chance
    OUT/probes.png       what the decisions rest on

    \b
    Example: mgkeras evaluate runs/no-mask runs/guided --clinical age,er
    """
    console = Terminal()
    if scoring.probe:
        with cluster.client(console.line) as client:
            ask_runs(runs, scoring, console, client)
    found = evaluate_runs(runs, out, scoring, console)
    answer(folder=out, **found)


def ask_runs(runs: Sequence[Path], scoring: Scoring, console: Terminal, client: Any = None) -> None:
    """What takes long, once it is clear that the runs can be set beside each other: probes, then radiomics."""
    from mgkeras.evaluation.evaluate import check_runs

    check_runs(runs, scoring.clinical, trust=scoring.trust)
    probe_runs(runs, scoring, console, client)
    radiomics_table(runs[0], console)


def probe_runs(runs: Sequence[Path], scoring: Scoring, console: Terminal, client: Any = None) -> None:
    """Probes each run that was not probed so before; one whose exams are gone is named and left out."""
    import_tensorflow()
    from mgkeras.training.cluster import Workers

    if client:
        jobs = [ProbeJob(run.absolute(), scoring.cache.absolute(), scoring.occlusions) for run in dict.fromkeys(runs)]
        told = {"line": console.line, "tick": console.tick}
        Workers(client, {}).run(probe_job, jobs, False, lambda message: told[message.kind](message.text))
        return
    for run in runs:
        probe_job(ProbeJob(run, scoring.cache, scoring.occlusions), None, console.console())


@dataclass(frozen=True)
class ProbeJob:
    """A run to probe, as a task of a cluster."""

    run: Path
    cache: Path
    occlusions: int

    def __str__(self) -> str:
        return f"probing {self.run}"


def probe_job(job: ProbeJob, device: Any, console: Console) -> None:
    """As probe_runs for one run, here or as what a worker does."""
    from mgkeras.data.volume import ExamError
    from mgkeras.probes.run import probe_run
    from mgkeras.runs.store import RunError

    try:
        probe_run(job.run, job.cache, console, occlusions=job.occlusions)
    except (RunError, ExamError, OSError) as error:
        console.line(f"{job.run} is not probed: {error}")


def radiomics_table(run: Path, console: Terminal) -> None:
    """The features of the radiomics baseline, which belong to the exams: those of the first run do for all."""
    from mgkeras.data.volume import ExamError
    from mgkeras.runs.store import RunError
    from mgkeras.scores.radiomics import RadiomicsError
    from mgkeras.scores.radiomics_table import write_radiomics

    try:
        write_radiomics(run, console.counter("radiomics of exams"))
    except (RadiomicsError, RunError, ExamError, OSError) as error:
        console.line(f"left out, the radiomics baseline: {error}")


def evaluate_runs(runs: Sequence[Path], out: Path, scoring: Scoring, console: Terminal) -> dict[str, Any]:
    """Writes the evaluation's files, prints its main table and their paths; returns the content of evaluation.json."""
    console.line(f"scoring {len(runs)} run{'s' * (len(runs) != 1)} with {scoring.samples} bootstrap draws")
    from mgkeras.evaluation import tables
    from mgkeras.evaluation.evaluate import evaluate, shared
    from mgkeras.figures.pictures import held_out_maps
    from mgkeras.report.figures import draw_evaluation
    from mgkeras.runs.store import write_json, write_rows, write_text
    from mgkeras.scores.format import as_text

    found = evaluate(runs, maps_of=held_out_maps, **scoring.scores)
    write_json(out / "evaluation.json", shared(found.results))
    write_rows(out / "evaluation.csv", tables.csv_rows(found.results))
    write_text(out / "table.md", tables.as_page(found.results))
    (out / "probes.png").unlink(missing_ok=True)  # of an earlier call
    draw_evaluation(found, {Path(name).stem: out / name for name in FILES if name.endswith(".png")})
    echo(as_text(tables.score_table(found.results)))
    for path in (out / name for name in FILES):
        if path.exists():
            echo(path)
    for told in found.results["edited"]:
        console.line(f"warning: {told}")
    for reason in found.results["skipped"]:
        console.line(f"not scored: {reason}")
    return shared(found.results)
