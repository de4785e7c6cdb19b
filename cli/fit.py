"""`mgkeras fit`: exams in, cross-validated scores and attention maps out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import (
    ALLOW_THIN,
    DETERMINISTIC,
    SKIP_INVALID,
    cohort_of_run,
    device_options,
    run_options,
    trust_option,
)
from mgkeras.cli.pool import Cluster, cluster_options
from mgkeras.cli.setting_options import chosen_settings, settings_options
from mgkeras.cli.terminal import Terminal, answer, echo, import_tensorflow

from mgkeras.settings import MODELS, PRESET_CHANGES, Settings, for_model, preset, with_values

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort


@click.command(name="fit", cls=Command)
@click.option(
    "--model",
    type=click.Choice((*MODELS, "all")),
    default="guided",
    show_default=True,
    help="Fit this model; 'all' fits the four on the same folds and compares them.",
)
@run_options("runs/OUTCOME-MODEL")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed folds, weights, order and dropout with this.",
)
@click.option("--yes", is_flag=True, help="Train even where it takes more than a day on a CPU, without being asked.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Train this many folds at a time, each in a process of its own: one a GPU, or with a share of the cores. "
    "With --model all, folds of all four.",
)
@cluster_options
@click.option(
    "--fold",
    "only",
    type=click.IntRange(1),
    default=None,
    help="Train only this fold, from 1, in a job array; the last job to end writes the summary.  [default: all]",
)
@click.option(
    "--gpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Divide each batch between this many GPUs, where one has no room for it; for folds use --jobs.",
)
@DETERMINISTIC
@device_options
@ALLOW_THIN
@SKIP_INVALID
@trust_option
@settings_options()
def command(
    model: str,
    table: Path | None,
    outcome: str | None,
    preset_name: str,
    out: Path | None,
    cache: Path,
    seed: int,
    deterministic: bool,
    how: dict[str, Any],
    yes: bool,
    jobs: int,
    gpus: int,
    only: int | None,
    cluster: Cluster,
    skip_invalid: bool,
    allow_thin: bool,
    trust: bool,
    **values: Any,
) -> None:
    """Train and score a model by cross-validation.

    COHORT is a cohort.csv. Every exam is checked first; nothing is trained on a cohort with errors. Stopped at any
    moment, the same command goes on where it was: at most one epoch is lost.

    \b
    OUT/summary.json         accuracy and AUC by fold and pooled, with intervals;
                             scores of the maps and of blurred exams
    OUT/predictions.csv      each subject's probability, held out and in training
    OUT/attention.csv        where the map of each held-out subject lies
    OUT/masks.csv            the tumour mask of each subject and its warnings
    OUT/fold_K/              weights, history, class activation maps

    \b
    Next: mgkeras report RUN RUN --out report.html
          mgkeras predict RUN new.csv --out predictions
    """
    console = Terminal()
    chosen = chosen_settings(values, model)
    for refused, expected, received in (
        (
            model == "all" and out and (out / "settings.json").exists(),
            "--out must be a folder for four runs",
            f"{out}, which is one run itself",
        ),
        (
            gpus > 1 and (jobs > 1 or cluster),
            "--gpus is for one fold at a time",
            f"--gpus {gpus} and --jobs, or a cluster",
        ),
        (only and cluster, "--fold is for jobs of your own", "--scheduler or --cluster too"),
    ):
        if refused:
            raise click.UsageError(f"{expected}. Received: {received}")
    how = {**how, "gpus": gpus}
    parts = {"trust": trust, "yes": yes, "jobs": jobs, "only": None if only is None else only - 1, "cluster": cluster}
    skip = {"skip_invalid": skip_invalid, "allow_thin": allow_thin}
    cohort, settings = opened(table, outcome, preset_name, seed, deterministic, skip, chosen, console)
    if model == "all":
        folder = out or Path("runs") / f"{cohort.outcome}-all"
        runs = [folder / name for name in MODELS]
        kinds = [(for_model(settings, run.name, chosen), run) for run in runs]
        fit_runs(cohort, kinds, cache, how, parts, console)
        from mgkeras.cli.compare import compare

        whole = all((run / "summary.json").exists() for run in runs)
        found = compare(runs, runs[0].parent / "comparison", console, trust=trust) if whole else None
        answer(runs=runs, comparison=found)
        return
    run = out or Path("runs") / f"{cohort.outcome}-{model}"
    fit_runs(cohort, [(for_model(settings, model, chosen), run)], cache, how, parts, console)
    from mgkeras.runs.store import read_json

    path = run / "summary.json"
    answer(run=run, summary=read_json(path) if path.exists() else None)
    if not path.exists():
        return
    echo(path)
    console.next(
        f"mgkeras report {quote(str(run))}, also beside runs of other models on the same folds; "
        f"mgkeras predict {quote(str(run))} NEW.csv --out predictions"
    )


def opened(
    table: Path | None,
    outcome: str | None,
    preset_name: str,
    seed: int,
    deterministic: bool,
    checks: dict[str, bool],
    values: dict[str, Any],
    console: Terminal,
) -> tuple[Cohort, Settings]:
    """The checked cohort and the settings that the options ask for.

    ``checks`` is skip_invalid and allow_thin of data.cohort.open_cohort.
    """
    from mgkeras.runs.folds import planned

    if table is None:
        raise click.UsageError(
            "expected COHORT, a cohort.csv. Received: none. To see it work on a synthetic cohort: mgkeras demo"
        )
    settings = with_values(replace(preset(preset_name), seed=seed, deterministic=deterministic), values)
    if changes := PRESET_CHANGES[settings.preset]:
        console.line(f"preset {settings.preset} changes the paper's settings:")
        for name, value, why in changes:
            if name not in values:
                console.line(f"  {name} = {value}: {why}")
    return planned(cohort_of_run(table, outcome, settings, console, **checks), settings, console.line)


def fit_runs(
    cohort: Cohort,
    runs: Sequence[tuple[Settings, Path]],
    cache: Path,
    how: dict[str, Any],
    parts: dict[str, Any],
    console: Terminal,
) -> None:
    """Fits runs, or what is left of them, one after the other, or with all their folds side by side.

    ``how`` is of training.devices.choose_device; ``parts`` has the options trust, yes, jobs, only and
    cluster of fit, and ``later``, how many folds are trained after these runs.
    """
    import os
    import sys

    def agree(text: str) -> bool:
        return parts["yes"] or (sys.stdin.isatty() and click.confirm(f"{text}. Go on?"))

    if parts["jobs"] > 1:
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # this process must leave the GPUs to its workers
    with parts["cluster"].client(console.line) as client:
        import_tensorflow()
        from mgkeras.training.cluster import Workers
        from mgkeras.training.crossval import cross_validate, cross_validate_kinds
        from mgkeras.training.devices import choose_device
        from mgkeras.training.workers import Engine, processes

        deterministic = runs[0][0].deterministic
        if client:
            device = replace(choose_device(deterministic), why="each worker's own, see fold_K/done.json")
        else:
            device = choose_device(deterministic, **how)
        console.line(f"device: {device.why}")
        engine: Engine | None = Workers(client, how) if client else processes(parts["jobs"], device)
        shared: dict[str, Any] = {
            "cache_folder": cache,
            "device": device,
            "console": console.console(agree=agree),
            "trust": parts["trust"],
        }
        later = parts.get("later", 0)
        if engine and parts["only"] is None:
            for summary in cross_validate_kinds(cohort, runs, engine, later=later, **shared):
                console.line(headline(summary))
            return
        for place, (settings, run) in enumerate(runs):
            after = later + folds_left(runs[place + 1 :], parts["only"])
            summary = cross_validate(cohort, settings, run, only=parts["only"], later=after, **shared)
            if summary.exists():
                console.line(headline(summary))
            else:
                console.line(
                    f"fold {parts['only'] + 1} of {settings.training.folds} is finished; summary.json needs all"
                )


def folds_left(runs: Sequence[tuple[Settings, Path]], only: int | None = None) -> int:
    """How many folds of runs are not finished, of all or of the number ``only``, from 0."""
    from mgkeras.runs.store import unfinished

    return sum(
        len(unfinished(run, range(settings.training.folds) if only is None else [only])) for settings, run in runs
    )


def headline(summary: Path) -> str:
    """A run's main numbers in a few lines."""
    import json

    found = json.loads(summary.read_text(encoding="utf-8"))
    over, pooled, attention = found["over_folds"], found["pooled"], found["attention"].get("all", {})
    lines = [f"{found['model']}: {found['subjects']} subjects, {found['positives']} with {found['outcome']}"]
    for name, key in (("held out", "held_out"), ("training", "train")):
        accuracy, auc = over[f"accuracy_{key}"], over[f"auc_{key}"]
        of = " (mean, SD over folds)" if found["folds"] > 1 else ""
        lines.append(f"  {name}: accuracy {_mean(accuracy)}, AUC {_mean(auc)}{of}")
    auc = pooled["auc"]
    interval = f" (95 % interval {auc['low']:.3f} to {auc['high']:.3f})" if auc["low"] is not None else ""
    name = "pooled out-of-fold" if found["folds"] > 1 else "held-out"
    lines.append(f"  {name} AUC {_number(auc['value'])}{interval}")
    if mass := attention.get("mass_in_mask"):
        chance = attention["mass_chance"]["mean"]
        lines.append(
            f"  the map's mass in the tumour: {_number(mass['mean'])} (by chance {_number(chance)}; undefined "
            f"in {mass['undefined']})"
        )
    only, without = (_mean(over[f"auc_{part}_blurred"]) for part in ("outside", "inside"))
    of = ", means over folds" if found["folds"] > 1 else ""
    lines.append(
        f"  with all but the tumour blurred: AUC {only}; with the tumour blurred: {without}{of}. What these "
        "weights decide from is told by `mgkeras report`, in numbers by `mgkeras evaluate`"
    )
    if found.get("not_learned"):
        from mgkeras.runs.store import load_settings
        from mgkeras.scores.learned import advice

        settings = load_settings(summary.parent)
        lines.append(advice(found["not_learned"], found["folds"], settings.training.augment, settings.preset))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _mean(moments: dict[str, Any]) -> str:
    return _number(moments["mean"]) + (f" ({moments['sd']:.3f})" if moments["sd"] is not None else "")
