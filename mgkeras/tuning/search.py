"""Nested search of settings: an outer fold's settings are chosen inside its training subjects, then it is trained.

In each outer fold a trial (one set of values) is trained and scored in every inner fold of the outer fold's training
subjects. The outer fold's held-out subjects take no part: their labels are hidden from the search, and no row of theirs
is read. Afterwards every outer fold is trained on all its training subjects with the values of its best trial, and
scored, by training.crossval, so that the folder is a run like any other. Needs the extra ``tune`` (keras-tuner).

Files: RUN/tune/search.json (what was asked), RUN/tune/fold_K/ (Keras Tuner's oracle.json and trial_N/trial.json, and
what tuning.trials writes beside them), RUN/tune/trials.csv, RUN/tune.json (what was chosen), RUN/fold_K/tuned.json
(the fold's own values). RUN/settings.json holds, of each searched setting, the lower median of the folds' values: none
of them plays a part once a model is trained, so every fold's model is rebuilt from it.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner

from mgkeras.data.cohort import Cohort
from mgkeras.data.io import leftovers
from mgkeras.runs import store
from mgkeras.runs.digests import TUNE, check_run, with_digests
from mgkeras.scores.attention import MAP
from mgkeras.settings import Settings, as_dict, flatten, with_values
from mgkeras.training.crossval import cross_validate, prepare
from mgkeras.training.devices import Device
from mgkeras.training.fit import TrainingError
from mgkeras.training.progress import Console
from mgkeras.tuning.choice import choose, trial_rows
from mgkeras.tuning.oracles import FoldOracles, make_oracle
from mgkeras.tuning.trials import Job, Search, inner_folds, results_of, run_trial

PARALLEL = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> str:
    """'alone', 'chief' or 'worker', by Keras Tuner's three environment variables.

    Raises:
        RunError: some of them are set, some not.
    """
    there = [name for name in PARALLEL if os.environ.get(name)]
    if "KERASTUNER_ORACLE_IP" not in there:
        return "alone"
    if len(there) < len(PARALLEL):
        raise store.RunError(f"a parallel search needs {', '.join(PARALLEL)}. Received: {', '.join(there)} only")
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def tune(
    cohort: Cohort,
    settings: Settings,
    search: Search,
    run: Path,
    *,
    cache_folder: Path,
    device: Device,
    console: Console,
) -> Path | None:
    """Chooses each outer fold's values by a search inside its training subjects, then trains and scores the run.

    The same call goes on where an earlier one stopped: an epoch at most is lost. With Keras Tuner's environment
    variables set (:func:`role`) the chief hands trials to workers, which run the same call with the same folder; the
    chief then trains the outer folds.

    Args:
        cohort: checked; every subject has a label.
        settings: of the run, from settings.for_model; of the searched ones any value.
        search: what is searched.
        run: the run's folder; shared by chief and workers.
        cache_folder, device, console: as for crossval.cross_validate.

    Returns:
        The path of summary.json; None for a worker, whose work ends with the search.

    Raises:
        RunError: the folder holds something else, too few subjects for the inner folds, or an outer fold in which
            every trial failed.
    """
    worker = role() == "worker"
    with nullcontext() if worker else store.locked(run):
        claim_search(run, settings, search)
        if not (run / "tune.json").exists():
            cache, labels, fold = prepare(cohort, settings, run, cache_folder, console)
            inner = inner_folds(cohort.subjects, fold, search.inner_folds, settings.seed, settings.training.stratify)
            job = Job(run / "tune", cache, labels, inner, settings, search, device, console)
            run_search(job)
            if not worker:
                _conclude(run, job)
    if worker:
        console.line("the search is over; the chief trains the outer folds")
        return None
    check_run(run, resuming=True)
    chosen = {trial["outer_fold"]: trial["values"] for trial in store.read_json(run / "tune.json")["chosen"]}
    for number, values in chosen.items():
        store.write_json(run / f"fold_{number}" / "tuned.json", values)
    middle = {
        span.name: statistics.median_low(values[span.name] for values in chosen.values()) for span in search.spans
    }
    return cross_validate(
        cohort,
        with_values(settings, middle),
        run,
        cache_folder=cache_folder,
        device=device,
        console=console,
        by_fold=lambda number: with_values(settings, chosen[number]),
    )


def claim_search(run: Path, settings: Settings, search: Search) -> None:
    """Writes tune/search.json, or checks that the search in this folder was begun alike.

    Raises:
        RunError: another search, with the differences, or a run that no search made.
    """
    path = run / "tune" / "search.json"
    searched = {span.name: {"low": span.low, "high": span.high, "log": span.log} for span in search.spans}
    plain = {name: value for name, value in flatten(as_dict(settings)).items() if name not in searched}
    asked = {"search": {**asdict(search), "spans": searched}, "settings": plain, "map": MAP}
    if path.exists():
        before, now = flatten(store.read_json(path)), flatten(asked)
        listed = [
            f"  {name}: {before.get(name)} in the folder, {now.get(name)} asked for"
            for name in {**before, **now}
            if before.get(name) != now.get(name) and not (name == "map" and (run / "tune.json").exists())
        ]  # no trial is to come
        if listed:
            raise store.RunError(
                "\n".join([f"{run} holds another search:", *listed, "Name another --out, or repeat that command."])
            )
    elif (run / "settings.json").exists():
        raise store.RunError(f"{run} holds a run of `mgkeras fit`. Name another --out.")
    else:
        store.write_json(path, asked)


class _Stop(keras_tuner.errors.FatalError):
    """Carries an error that is no trial's fault through Keras Tuner, which would count it as a failed trial."""


class _Tuner(BaseTuner):
    """Keras Tuner's loop: asks for a trial, runs it, tells its score; as the chief it serves the oracles instead."""

    def __init__(self, job: Job) -> None:
        self.job, count = job, len(job.inner)
        # Keras Tuner counts its seed up by one a draw, so neighbouring seeds would give the folds the same values
        seeds = [
            int(np.random.SeedSequence((job.settings.seed, outer)).generate_state(1)[0] >> 1) for outer in range(count)
        ]
        oracles = [
            make_oracle(job.search.method, job.search.spans, job.search.trials, job.settings.training.epochs, seed)
            for seed in seeds
        ]
        super().__init__(
            FoldOracles(oracles, None if role() == "worker" else job.folder, self.ended),
            directory=str(job.folder.parent),
            project_name=job.folder.name,
        )

    def ended(self, trial_id: str, status: str) -> None:
        """What the chief shows; a process that runs its trials itself has said more already."""
        if role() == "chief":
            self.job.console.line(f"trial {trial_id} (outer fold from 0, number): {status.lower()}")

    def pre_create_trial(self) -> None:
        time.sleep(0.1)  # a worker that must wait for others would ask the chief without a pause

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> float:
        try:
            return run_trial(self.job, trial.trial_id, trial.hyperparameters.values)
        except TrainingError as error:
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        except Exception as error:
            raise _Stop from error

    def save(self) -> None:
        """The oracles keep themselves."""


def run_search(job: Job) -> None:
    """Runs trials until every outer fold has had its share, or, as the chief, hands them out."""
    outer, inner, who = len(job.inner), job.search.inner_folds, role()
    trials = f"up to {job.search.trials}" if job.search.trials else "a whole sweep of"
    where = "" if who == "alone" else f" at {os.environ[PARALLEL[1]]}:{os.environ[PARALLEL[2]]}"
    job.console.line(
        f"search ({who}{where}): {outer} outer folds, {trials} trials each, {inner} inner "
        f"fold{'s' * (inner > 1)} a trial, epochs at most {job.settings.training.epochs}; raised is the "
        f"{objective(job.search)}"
    )
    try:
        _Tuner(job).search()
    except _Stop as stop:
        raise stop.__cause__ from None
    except grpc.RpcError as error:
        raise store.RunError(
            "expected the chief to answer at KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT. "
            f"Received: {error.code().name}; start it again, then this worker"
        ) from None


def objective(search: Search) -> str:
    """What the search raises, in words."""
    floor = (
        ""
        if search.attention_floor is None
        else (f"; trials whose mass in the tumour is under {search.attention_floor:g} rank below all others")
    )
    return f"pooled AUC of the inner held-out subjects{floor}"


def _conclude(run: Path, job: Job) -> None:
    """Chooses, writes tune/trials.csv, keeps of the trials only their tables, and writes, last, tune.json."""
    trials, chosen = results_of(run), []
    for outer in range(len(job.inner)):
        own = [trial for trial in trials if trial["outer_fold"] == outer]
        if not (best := choose(own)):
            raise store.RunError(
                f"expected a trial that can be scored in outer fold {outer + 1}. Received: {len(own)} "
                f"failed ones, the last: {own[-1]['failed'] if own else 'none ran'}"
            )
        chosen.append(best)
        if not best["reached"]:
            job.console.line(
                f"warning: no trial of outer fold {outer + 1} reaches the attention floor of "
                f"{job.search.attention_floor:g}; the nearest one is taken"
            )
    taken = {trial["outer_fold"]: trial["trial"] for trial in chosen}
    store.write_rows(run / "tune" / "trials.csv", trial_rows(trials, taken))
    for left in [*(run / "tune").rglob("*.h5"), *leftovers(run / "tune", "**/.*")]:
        left.unlink(missing_ok=True)
    about = {
        **asdict(job.search),
        "objective": objective(job.search),
        "chosen": chosen,
        "settings.json": "lower median of the chosen values",
    }
    store.write_json(run / TUNE, with_digests(run, TUNE, about))
