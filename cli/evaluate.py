"""`mgkeras evaluate`: scores with intervals, simple baselines, tests between runs, and the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from mgkeras.cli.options import Terminal

FILES = ("table.md", "evaluation.json", "evaluation.csv", "roc.png", "calibration.png", "decision.png",
         "attention.png")  # fmt: skip


def _names(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command(name="evaluate")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("evaluation"), show_default=True,
              help="Folder to write to.")
@click.option("--clinical", default="", callback=_names, metavar="NAME,NAME,...",
              help="Columns of the cohort table for a clinical baseline; no column that is known only after the exam.")
@click.option("--samples", type=click.IntRange(100), default=2000, show_default=True,
              help="Bootstrap draws of subjects behind each 95 % interval.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
def command(runs: Sequence[Path], out: Path, clinical: tuple[str, ...], samples: int, seed: int) -> None:
    """Score RUNS of `mgkeras fit` on the same folds as a careful reviewer would.

    Every score is of subjects that the model had not seen, pooled and by fold, with intervals from a bootstrap over
    subjects. Thresholds are chosen on a fold's training subjects (Youden's index); 0.5 stands beside them. The
    majority class, the tumour's volume alone and, with --clinical, columns of the cohort table are scored in the same
    folds, so that one sees what a network adds. Runs are set against each other by DeLong's test and a paired
    bootstrap.

    \b
    OUT/table.md         the tables to read, with their notes
    OUT/evaluation.json  every number
    OUT/evaluation.csv   every number, a row each
    OUT/roc.png          ROC curves with a bootstrap band
    OUT/calibration.png  observed share against predicted probability, with counts
    OUT/decision.png     net benefit by threshold, beside treating everyone and nobody
    OUT/attention.png    where the maps look, by model and class, against chance

    \b
    Example: mgkeras evaluate runs/no-mask runs/guided --clinical age,er --out evaluation
    """
    evaluate_runs(list(runs), out, clinical, Terminal(), samples=samples, seed=seed)


def evaluate_runs(runs: Sequence[Path], out: Path, clinical: Sequence[str], console: Terminal, *, samples: int = 2000,
                  seed: int = 0) -> None:
    """Writes the evaluation's files, prints its main table and their paths."""
    console.line(f"scoring {len(runs)} runs with {samples} bootstrap draws")
    from mgkeras.evaluation import curves, tables
    from mgkeras.evaluation.comparison import as_text
    from mgkeras.evaluation.evaluate import evaluate
    from mgkeras.training.run import write_json, write_rows, write_text

    found = evaluate(runs, clinical=clinical, samples=samples, seed=seed)
    write_json(out / "evaluation.json", found.results)
    write_rows(out / "evaluation.csv", tables.csv_rows(found.results))
    write_text(out / "table.md", tables.as_page(found.results))
    scored = {model["name"]: model for model in found.results["models"]}
    ranking = [model for model in found.models if model.name != "majority class"]  # a constant has no curve
    curves.roc_figure(out / "roc.png", ranking, scored, seed=seed)
    curves.calibration_figure(out / "calibration.png", ranking, scored)
    curves.decision_figure(out / "decision.png", ranking)
    networks = [model for model in found.models if model.kind == "network"]
    curves.attention_figure(out / "attention.png", networks, found.attention)
    click.echo(as_text(tables.score_table(found.results)))
    for name in FILES:
        click.echo(out / name)
    for reason in found.results["skipped"]:
        console.line(f"not scored: {reason}")
