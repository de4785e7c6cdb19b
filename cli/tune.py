"""`mgkeras tune`: the Dice term's weight chosen inside the training subjects of each fold, then the run of `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.fit import headline, opened
from mgkeras.cli.options import ALLOW_THIN, DETERMINISTIC, SKIP_INVALID, device_options, run_options
from mgkeras.cli.setting_options import SETTINGS, chosen_settings, settings_options
from mgkeras.cli.terminal import Terminal, answer, echo, import_tensorflow

from mgkeras.settings import MODELS, UNGUIDED, for_model

LAMBDA = "guidance.lambda_dice"
SEARCHED = ("--lambda", "--learning-rate", "--dropout", "--context-dropout")  # none plays a part in a trained model
METHODS = ("random", "bayesian", "hyperband")
OBJECTIVES = ("auc", "auc-floor")
TRIALS = 12  # an outer fold; ours, because 12 values over three decades lie a factor of 1.8 apart
FLOOR = 0.5  # ours, because a map with less has most of its mass outside the tumour


@click.command(name="tune", cls=Command)
@click.option("--model", type=click.Choice(MODELS), default="guided", show_default=True, help="Tune this model.")
@run_options("runs/OUTCOME-MODEL-tuned")
@click.option(
    "--search",
    "method",
    type=click.Choice(METHODS),
    default="random",
    show_default=True,
    help="Search by this oracle of Keras Tuner; hyperband ends most trials after a share of the epochs.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    help=f"Try at most this many settings an outer fold.  [default: {TRIALS}; hyperband: one whole sweep]",
)
@click.option(
    "--inner-folds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Score each trial in this many folds of an outer fold's training subjects; 1 splits off a third.",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    help="Rank trials by this. auc: pooled AUC of the inner held-out subjects. auc-floor: the same, but "
    "trials whose attention is under --attention-floor rank below all others.  "
    "[default: auc; auc-floor with --attention-floor]",
)
@click.option(
    "--attention-floor",
    type=click.FloatRange(0, 1, min_open=True),
    help="Ask for this share of the map's mass in the tumour, mean over the inner held-out subjects.  "
    f"[default: {FLOOR} for auc-floor]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed folds, weights, order, dropout and the search with this.",
)
@DETERMINISTIC
@device_options
@ALLOW_THIN
@SKIP_INVALID
@settings_options(searched=SEARCHED)
def command(
    model: str,
    table: Path | None,
    outcome: str | None,
    preset_name: str,
    out: Path | None,
    cache: Path,
    method: str,
    trials: int | None,
    inner_folds: int,
    objective: str | None,
    attention_floor: float | None,
    seed: int,
    deterministic: bool,
    how: dict[str, Any],
    skip_invalid: bool,
    allow_thin: bool,
    **values: Any,
) -> None:
    """Choose lambda and other settings by a nested search, then fit.

    Lambda is the weight of the Dice term. For each fold of the cross-validation (outer fold) the values are chosen
    among trials that are trained and scored in folds of its training subjects (inner folds); the subjects that it holds
    out take no part. Then it is trained on all its training subjects with the values chosen, and scored, as `mgkeras
    fit` does: OUT is a run like any other, for compare, evaluate, report and predict. Needs pip install
    'mgkeras[tune]'.

    --lambda, --learning-rate, --dropout and --context-dropout take a number, or LOW:HIGH or LOW:HIGH:log to search.
    Without any range, lambda is searched from 0.1 to 100 in the logarithm.

    Stopped at any moment, the same command goes on where it was. In parallel: run it once with
    KERASTUNER_TUNER_ID=chief and, in other terminals or machines, with KERASTUNER_TUNER_ID=worker0, worker1, ..., all
    with the chief's KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT and the same --out and --cache on a disk they
    share. The chief trains nothing until the search is over. A worker that died is started again under its old name.

    \b
    OUT/tune.json        what was chosen in each outer fold; fold_K/tuned.json
                         holds its values
    OUT/tune/trials.csv  every trial: outer fold, values, AUC pooled and by inner
                         fold, scores of the maps, with intervals
    OUT/lambda.png       AUC and scores of the maps against lambda, by outer fold,
                         with intervals; a picture for each searched value
    OUT/settings.json    has the lower median over the folds of searched values;
                         no fold's model depends on it
    OUT/summary.json     and the rest of a run: see mgkeras fit

    \b
    Example: mgkeras tune masks/cohort.csv --model guided \\
                 --lambda 0.1:100:log --attention-floor 0.5
    """
    console = Terminal()
    spans, fixed = _spans(chosen_settings(values, "guided"), model)
    if attention_floor and objective == "auc":
        raise click.UsageError("--attention-floor goes with --objective auc-floor. Received: --objective auc")
    if objective == "auc-floor" and not attention_floor:
        attention_floor = FLOOR
    import_tensorflow()
    try:
        from mgkeras.tuning.search import role
    except ModuleNotFoundError as error:
        if error.name not in ("keras_tuner", "grpc"):
            raise
        raise click.ClickException(
            f"mgkeras tune needs Keras Tuner: pip install 'mgkeras[tune]'. Received: {error}"
        ) from None
    if role() != "alone" and table is None:
        raise click.UsageError("a parallel search needs COHORT; make a synthetic one with `mgkeras phantom`")
    skip = {"skip_invalid": skip_invalid, "allow_thin": allow_thin}
    cohort, settings = opened(table, outcome, preset_name, seed, deterministic, skip, fixed, console)
    run = out or Path("runs") / f"{cohort.outcome}-{model}-tuned"
    found = _tune(
        cohort,
        for_model(settings, model, fixed),
        run,
        cache,
        console,
        how,
        spans=spans,
        method=method,
        inner_folds=inner_folds,
        attention_floor=attention_floor,
        trials=trials or (None if method == "hyperband" else TRIALS),
    )
    if found:
        _show(run, found, console)


def _spans(values: dict[str, Any], model: str) -> tuple[list[tuple], dict[str, Any]]:
    """The searched settings as (dotted name, low, high, log), and those with one value."""
    could = [name for option, name, *_ in SETTINGS if option in SEARCHED]
    searched = [name for name in could if isinstance(values.get(name), tuple)]
    spans = [(name, *values[name]) for name in sorted(searched, key=lambda name: name != LAMBDA)]
    fixed = {name: value for name, value in values.items() if name not in searched}
    unguided = model in UNGUIDED
    if not spans and LAMBDA not in fixed and not unguided:
        spans = [(LAMBDA, 0.1, 100.0, True)]
    if not spans:
        raise click.UsageError(
            f"expected a range to search, such as --learning-rate 1e-5:1e-3:log. Received: none for the model {model}"
        )
    if unguided and (wrong := [name for name, *_ in spans if name.startswith("guidance.")]):
        raise click.UsageError(f"{model} has no guidance to search. Received: a range of {', '.join(wrong)}")
    return spans, fixed


def _tune(
    cohort: Any,
    settings: Any,
    run: Path,
    cache: Path,
    console: Terminal,
    how: dict[str, Any],
    *,
    spans: list[tuple],
    **search: Any,
) -> Path | None:
    from mgkeras.training.devices import choose_device
    from mgkeras.tuning.search import tune
    from mgkeras.tuning.trials import Search, Span

    device = choose_device(settings.deterministic, **how)
    console.line(f"device: {device.why}")
    return tune(
        cohort,
        settings,
        Search(tuple(Span(*span) for span in spans), **search),
        run,
        cache_folder=cache,
        device=device,
        console=console.console(),
    )


def _show(run: Path, summary: Path, console: Terminal) -> None:
    """The pictures, the table of what was chosen, the run's main numbers, the files' paths."""
    from mgkeras.runs.store import read_json
    from mgkeras.scores.format import as_text
    from mgkeras.tuning.choice import SHORT, choice_table, value_figure
    from mgkeras.tuning.trials import results_of

    found, trials = read_json(run / "tune.json"), results_of(run)
    chosen = {trial["outer_fold"]: trial["trial"] for trial in found["chosen"]}
    console.line(headline(summary))
    echo(as_text(choice_table(found["chosen"], read_json(summary))))
    console.line("the inner AUC is the best of its trials and flatters; the outer one is of subjects that took no part")
    for span in found["spans"]:
        name = span["name"]
        echo(
            value_figure(
                run / f"{SHORT[name].replace(' ', '-')}.png",
                name,
                (span["low"], span["high"], span["log"]),
                trials,
                chosen,
                found["attention_floor"],
            )
        )
    answer(run=run, tune=found, summary=read_json(summary))
    for path in (run / "tune" / "trials.csv", run / "tune.json", summary):
        echo(path)
