"""`mgkeras study`: cohorts x outcomes x models x seeds from one file, as ordinary runs, and what they say together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import DETERMINISTIC, TABLE, Scoring, cohort_of_run, device_options, evaluation_options
from mgkeras.cli.pool import Cluster, cluster_options
from mgkeras.cli.setting_options import SETTINGS, checked_value
from mgkeras.cli.terminal import Terminal, answer, echo

from mgkeras.errors import InputError
from mgkeras.settings import Settings, flatten, for_model, preset, with_values

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort
    from mgkeras.runs.study import Study


class Planned(NamedTuple):
    """A seed's runs on a cohort and outcome: their name in messages, exams, and each model's settings and folder."""

    name: str
    exams: Cohort
    runs: list[tuple[Settings, Path]]


@click.command(name="study", cls=Command)
@click.argument("file", type=TABLE)
@click.option("--yes", is_flag=True, help="Train even where it takes more than a day on a CPU, without being asked.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Train this many folds at a time.")
@cluster_options
@DETERMINISTIC
@click.option("--report/--no-report", "reported", default=True, show_default=True, help="Write a report of each group.")
@device_options
@evaluation_options
def command(
    file: Path,
    yes: bool,
    jobs: int,
    cluster: Cluster,
    deterministic: bool,
    reported: bool,
    how: dict[str, Any],
    scoring: Scoring,
) -> None:
    """Train and compare models over cohorts, outcomes and seeds.

    FILE names the cohorts, outcomes, models and seeds. All exams are checked first. Each run is a folder as `mgkeras
    fit` makes it; stopped at any moment, the same command keeps what is finished and goes on. FILE is TOML; paths in it
    are relative to its folder:

    \b
    cohorts = ["masks/cohort.csv"]
    outcomes = ["recurrence", "her2"]
    models = ["no-mask", "mask-only", "guided"]
    seeds = [0, 1, 2]
    preset = "paper"

    It may also have ``out``, the folder to write to (FILE's name without .toml where it has none), and a table
    ``settings`` of options of `mgkeras fit` without their dashes, as epochs = 100, or of names in settings.json.

    \b
    OUT/study.md, study.html        a table for each cohort and outcome as the
                                    paper's Tables 2 and 3, and tests between
                                    models, over seeds
    OUT/study.json                  the same as numbers
    OUT/COHORT-OUTCOME/seed-S/MODEL the runs
    OUT/COHORT-OUTCOME/report.html  `mgkeras report` of the first seed's runs
    """
    from mgkeras.cli.fit import fit_runs, folds_left

    from mgkeras.runs.study import read_study

    console, study = Terminal(), read_study(file)
    parts = {"trust": scoring.trust, "yes": yes, "jobs": jobs, "only": None, "cluster": cluster}
    planned = plan(study, chosen(study), deterministic, console)
    for place, (name, exams, runs) in enumerate(planned, 1):
        console.line(f"{place} of {len(planned)}: {name}, {', '.join(study.models)}")
        rest = sum(folds_left(later.runs) * len(later.exams.subjects) for later in planned[place:])
        fit_runs(exams, runs, scoring.cache, how, {**parts, "later": rest / len(exams.subjects)}, console)
    paths, found = summarise(study, scoring)
    for path in paths:
        echo(path)
    answer(folder=study.out, groups=found)
    if reported:
        _report(study, scoring, console)


def chosen(study: Study) -> dict[str, Any]:
    """The settings of a study's file as {dotted setting: value}, checked as the options of fit are.

    Raises:
        ValueError: an unknown option or a bad value, with the file and the key.
    """
    options = {option.removeprefix("--"): dotted for option, dotted, *_ in SETTINGS}
    found = {}
    for name, value in flatten(dict(study.settings)).items():
        where = f"{study.path}: settings.{name}"
        if name not in options and "." not in name:
            raise InputError(f"{where} must be one of {', '.join(options)}, or as training.epochs. Received: {name}")
        dotted = options.get(name, name)
        try:
            found[dotted] = checked_value(dotted, value)
        except click.BadParameter as error:
            raise InputError(f"{where}: {error.message}") from None
    return found


def plan(study: Study, values: dict[str, Any], deterministic: bool, console: Terminal) -> list[Planned]:
    """A study's runs, once every exam was checked and folds are known to be possible."""
    from mgkeras.runs.folds import planned

    try:
        base = preset(study.preset or "paper")
    except InputError as error:
        raise InputError(f"{study.path}: {error}") from None
    base = with_values(replace(base, deterministic=deterministic), values)
    found: list[Planned] = []
    for cohort, outcome in study.groups:
        exams = cohort_of_run(study.cohorts[cohort], outcome, base, console)
        for seed in study.seeds:
            own, settings = planned(exams, replace(base, seed=seed), console.line)
            kinds = [
                (for_model(settings, model, values), study.run(cohort, outcome, seed, model)) for model in study.models
            ]
            found.append(Planned(f"{cohort}, {outcome}, seed {seed}", own, kinds))
    return found


def summarise(study: Study, scoring: Scoring) -> tuple[list[Path], dict[str, Any]]:
    """Writes study.md, study.html and study.json from the finished runs; gives their paths and the numbers by group."""
    from mgkeras.evaluation.seeds import over_seeds, study_page
    from mgkeras.report.study import study_html
    from mgkeras.runs.store import write_json, write_text
    from mgkeras.scores.comparison import read_runs

    groups = {}
    bootstrap = {"samples": scoring.samples, "seed": scoring.seed}
    for cohort, outcome in study.groups:
        runs = {
            model: {
                seed: read_runs([study.run(cohort, outcome, seed, model)], trust=scoring.trust)[0]
                for seed in study.seeds
            }
            for model in study.models
        }
        groups[f"{cohort}, {outcome}"] = {"cohort": cohort, "outcome": outcome, **over_seeds(runs, **bootstrap)}
    write_json(study.out / "study.json", {**bootstrap, "groups": groups})
    write_text(study.out / "study.md", study_page(study.path.stem, groups))
    write_text(study.out / "study.html", study_html(study.path.stem, groups))
    return [study.out / f"study.{ending}" for ending in ("md", "html", "json")], groups


def _report(study: Study, scoring: Scoring, console: Terminal) -> None:
    from mgkeras.cli.evaluate import ask_runs
    from mgkeras.cli.report import report_runs

    for cohort, outcome in study.groups:
        runs = [study.run(cohort, outcome, study.seeds[0], model) for model in study.models]
        if scoring.probe:
            ask_runs(runs, scoring, console)
        report_runs(runs, study.folder(cohort, outcome) / "report.html", scoring, console)
