"""All folds of a run, one after the other or side by side, going on from wherever the last attempt stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from mgkeras.data.cache import Cache, Elsewhere, cached, file_digests
from mgkeras.data.cohort import Cohort, Subject, write_cohort
from mgkeras.data.tumour import check_some_mask
from mgkeras.runs import store
from mgkeras.runs.checked import check_predictions
from mgkeras.runs.digests import check_run, run_digests
from mgkeras.runs.folds import folds_digest, left_out, plan_folds
from mgkeras.scores.learned import not_learned
from mgkeras.scores.patients import patients_in
from mgkeras.scores.summary import run_summary
from mgkeras.settings import NEVER, Settings
from mgkeras.training.devices import Device
from mgkeras.training.fold import FoldJob, fold_job, run_fold, score_again
from mgkeras.training.progress import Clock, Console, too_long
from mgkeras.training.workers import Engine, Told, processes

ByFold = Callable[[int], Settings]  # the settings that a fold is trained with, by its number


def cross_validate(
    cohort: Cohort,
    settings: Settings,
    run: Path,
    *,
    cache_folder: Path,
    device: Device,
    console: Console,
    by_fold: ByFold | None = None,
    only: int | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
    trust: bool = False,
    later: float = 0,
) -> Path:
    """Trains and scores every fold of one model and writes the run's files.

    The same call goes on where an earlier one stopped: finished folds are kept, a fold that was begun goes on from its
    last epoch. docs/exams.md lists the files.

    Args:
        cohort: checked; every subject has a label.
        settings: of the run, from settings.for_model.
        run: the run's folder.
        cache_folder: where caches of volumes are kept, shared between runs.
        device: from choose_device.
        console: gets the progress.
        by_fold: the settings that a fold is trained with, by its number, where a search chose them; each differs from
            ``settings`` only in what plays no part once a model is trained.
        only: the number of the one fold to train, from 0, for a job array; whoever ends last writes the summary.
        jobs: how many folds are trained at a time, each in a process of its own; see workers.processes.
        engine: what trains folds side by side instead, see training.cluster.
        trust: whether to go on with folds that were edited after they were trained.
        later: how many folds of other runs are trained afterwards, for the time that is told.

    Returns:
        The path of summary.json, which is not there yet where ``only`` is given and other folds are not finished.

    Raises:
        RunError: the folder holds another run, or another process is working in it; there is no fold ``only``.
        EditedRun: without ``trust``, a finished fold was edited.
    """
    if only is None:
        return cross_validate_kinds(
            cohort,
            [(settings, run)],
            engine or processes(jobs, device),
            cache_folder=cache_folder,
            device=device,
            console=console,
            by_fold=by_fold,
            trust=trust,
            later=later,
        )[0]
    if not 0 <= only < settings.training.folds:
        raise store.RunError(f"expected --fold from 1 to {settings.training.folds}. Received: {only + 1}")
    with store.locked(run, wait=True):
        folds = _begin(cohort, settings, run, cache_folder, device, console, by_fold, trust)
    _train(settings, [folds[only]], device, console, later)
    with store.locked(run, wait=True):
        done = len(store.done_folds(run)) == settings.training.folds
        return _summarise(run, settings) if done else run / "summary.json"


def cross_validate_kinds(
    cohort: Cohort,
    runs: Sequence[tuple[Settings, Path]],
    engine: Engine | None,
    *,
    cache_folder: Path,
    device: Device,
    console: Console,
    by_fold: ByFold | None = None,
    trust: bool = False,
    later: float = 0,
) -> list[Path]:
    """As cross_validate, for several runs on one cohort, whose folds share an engine: one is done, the next begins."""
    tasks: list[FoldJob] = []
    with ExitStack() as held:
        for settings, run in runs:
            held.enter_context(store.locked(run))
            exams = engine.exams if engine else None
            folds = _begin(cohort, settings, run, cache_folder, device, console, by_fold, trust, exams)
            left = [job for job in folds if engine and not job.done]
            _train(settings, [job for job in folds if job not in left], device, console, later)
            tasks += left
        if engine and tasks:
            _side_by_side(tasks, engine, console, later)
        return [_summarise(run, settings) for settings, run in runs]


def _begin(
    cohort: Cohort,
    settings: Settings,
    run: Path,
    cache_folder: Path,
    device: Device,
    console: Console,
    by_fold: ByFold | None,
    trust: bool,
    exams: Elsewhere | None = None,
) -> list[FoldJob]:
    """Claims a run's folder and writes what all folds share. Returns the folds, finished or not."""
    if by_fold is None and (run / "tune").exists():
        raise store.RunError(
            f"{run} is a run of `mgkeras tune`, whose folds have settings of their own. Name "
            "another --out, or repeat that command."
        )
    store.sweep(run)
    store.claim_settings(run, settings)
    for told in check_run(run, trust=trust, resuming=True):
        console.line(f"warning: {told}")
    cache, labels, fold = prepare(cohort, settings, run, cache_folder, console, exams)
    write_cohort(run / "cohort.csv", cohort.subjects, settings.outcome)
    store.write_json(run / "environment.json", store.environment(device.why))
    _report_masks(run, cache, settings, console)
    return [
        FoldJob(run.absolute(), number, by_fold(number) if by_fold else settings, cache, labels, fold)
        for number in range(settings.training.folds)
    ]


def _train(settings: Settings, folds: Sequence[FoldJob], device: Device, console: Console, later: float) -> None:
    """Trains folds of a run one after the other, or keeps those that are finished."""
    clock = Clock(settings, console, sum(not job.done for job in folds) + later)
    for job in folds:
        with store.locked(job.folder):
            store.sweep(job.folder)
            if not job.done:
                run_fold(job, device, clock)
                continue
            scored = score_again(job)
            console.line(
                f"{job} was finished before and is kept"
                f"{'; its maps are scored again, by what they say of the decision' if scored else ''}"
            )


def _side_by_side(tasks: Sequence[FoldJob], engine: Engine, console: Console, later: float) -> None:
    """Trains folds side by side and joins what they say on one line."""
    ticks: dict[str, str] = {}
    asked: list[str] = []

    def told(message: Told) -> None:
        if message.kind == "line":
            return console.line(message.text)
        if message.kind == "long":
            if not asked and not console.agree(message.text):
                raise too_long(message.text)
            return asked.append(message.task)
        ticks[message.task] = message.text.strip()
        return console.tick(
            "  " + " | ".join(ticks[name] for name in map(str, tasks) if name in ticks)
            if len(ticks) > 1
            else message.text
        )

    width = min(engine.width(), len(tasks))
    console.line(f"{width} folds at a time, each in a process of its own")
    rounds = -(-len(tasks) // width) + later / width
    tasks = [replace(task, rounds=rounds - place // width, wait=engine.waits) for place, task in enumerate(tasks)]
    engine.run(fold_job, tasks, tasks[0].settings.deterministic, told)


def prepare(
    cohort: Cohort,
    settings: Settings,
    run: Path,
    cache_folder: Path,
    console: Console,
    exams: Elsewhere | None = None,
) -> tuple[Cache, np.ndarray, np.ndarray]:
    """Claims a run's folder for the cohort's data and folds, and opens their cache; ``exams`` may make what is missing.

    Returns:
        The cache, (n,) int labels, and (n,) int the fold that holds a row out (settings.NEVER where none does); in the
        cache's order.

    Raises:
        RunError: the folder was begun on other data, or holds folds of other subjects.
    """
    subjects = cohort.subjects
    store.claim_data(
        run,
        {
            "subjects": {
                subject.name: {**file_digests(subject, settings.volume), "label": subject.label} for subject in subjects
            },
            "unlabelled": list(cohort.unlabelled),
            "invalid": list(cohort.invalid),
        },
    )
    fold_of = _folds(run / "folds.json", subjects, settings)
    cache = cached(subjects, settings, cache_folder, console.counter("volumes"), console.line, exams)
    check_some_mask(cache.reports, settings)
    return cache, np.array([subject.label for subject in subjects]), np.array(list(fold_of.values()))


def _folds(path: Path, subjects: Sequence[Subject], settings: Settings) -> dict[str, int]:
    """The folds in folds.json, which is obeyed where it exists and written where it does not; in subjects' order."""
    if not path.exists():
        training = settings.training
        fold_of = plan_folds(subjects, training, settings.seed)
        store.write_json(
            path,
            {
                "outcome": settings.outcome,
                "seed": settings.seed,
                "folds": training.folds,
                "stratify": training.stratify,
                "split": training.split,
                "leave_out": training.leave_out,
                "left_out": left_out(subjects, training.leave_out) if training.leave_out else [],
                "digest": folds_digest(fold_of),
                "held_out_in": fold_of,
            },
        )
    fold_of = store.read_json(path)["held_out_in"]
    numbers = set(range(settings.training.folds)) | ({NEVER} if settings.training.split else set())
    if set(fold_of) != {subject.name for subject in subjects} or set(fold_of.values()) != numbers:
        raise store.RunError(
            f"expected {path} to hold every subject of the cohort once, in folds 0 to "
            f"{max(numbers)}. Received: {len(fold_of)} subjects in folds "
            f"{sorted(set(fold_of.values()))}"
        )
    return {subject.name: fold_of[subject.name] for subject in subjects}


def _report_masks(run: Path, cache: Cache, settings: Settings, console: Console) -> None:
    """masks.csv, a row a subject, and a line for each doubtful mask."""
    rows = [{"subject": name, **report} for name, report in zip(cache.subjects, cache.reports, strict=True)]
    store.write_rows(run / "masks.csv", rows)
    doubtful = [row for row in rows if row["warning"]]
    empty = sum(not row["volume_mm3"] for row in rows)
    if doubtful:
        what = "gets the whole field of view as its box" if settings.uses_box else "has no Dice term"
        console.line(
            f"masks: {len(doubtful)} of {len(rows)} carry a warning, see {run / 'masks.csv'}; {empty} are "
            f"empty{f' (an empty one {what})' if empty else ''}"
        )


def _summarise(run: Path, settings: Settings) -> Path:
    """Writes the run's tables, summary.json and done.json."""
    folders = store.done_folds(run)  # their tables are read, since other processes or earlier calls wrote some of them
    rows = [row for folder in folders for row in store.read_rows(folder / "predictions.csv")]
    attention = [row for folder in folders for row in store.read_rows(folder / "attention.csv")]
    (run / "done.json").unlink(missing_ok=True)
    store.write_rows(run / "predictions.csv", rows)
    check_predictions(run, rows, settings.training.folds)
    store.write_rows(run / "attention.csv", attention)
    summary = {
        "model": settings.model,
        "outcome": settings.outcome,
        **run_summary(rows, attention, seed=settings.seed, patients=patients_in(run)),
    }
    summary["not_learned"] = not_learned(summary["per_fold"])
    store.write_json(run / "summary.json", summary)
    store.write_json(run / "done.json", {"sha256": run_digests(run)})
    return run / "summary.json"
