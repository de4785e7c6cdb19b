"""All folds of a run, one after the other, going on from wherever the last attempt stopped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np

from mgkeras.data.arrays import check_finite
from mgkeras.data.cache import Cache, cached, file_digests, fingerprint, open_cache
from mgkeras.data.cohort import Cohort, Subject, write_cohort
from mgkeras.data.stream import steps_per_epoch
from mgkeras.data.tumour import check_some_mask
from mgkeras.inference.forward import Scored, attention_rows, score_rows
from mgkeras.models.weights import save_weights, write_arrays
from mgkeras.runs import store
from mgkeras.runs.checked import check_run, fold_digests, read_predictions, run_digests
from mgkeras.runs.folds import folds_digest, left_out, plan_folds
from mgkeras.scores.attention import MAP
from mgkeras.scores.patients import patients_in
from mgkeras.scores.summary import run_summary
from mgkeras.settings import NEVER, Settings
from mgkeras.training.devices import Device
from mgkeras.training.fit import fold_seed, train_fold
from mgkeras.training.progress import Clock, Console, too_long
from mgkeras.training.workers import Told, in_processes

ByFold = Callable[[int], Settings]  # the settings that a fold is trained with, by its number
Prepared = tuple[Cache, np.ndarray, np.ndarray]  # the cache, the labels, and the fold that holds each row out


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
    trust: bool = False,
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
        jobs: how many folds are trained at a time, each in a process of its own; see training.workers.
        trust: whether to go on with folds that were edited after they were trained.

    Returns:
        The path of summary.json, which is not there yet where ``only`` is given and other folds are not finished.

    Raises:
        RunError: the folder holds another run, or another process is working in it; there is no fold ``only``.
        EditedRun: without ``trust``, a finished fold was edited.
    """
    if only is not None and not 0 <= only < settings.training.folds:
        raise store.RunError(f"expected --fold from 1 to {settings.training.folds}. Received: {only + 1}")
    if only is not None:
        with store.locked(run, wait=True):
            prepared = _begin(cohort, settings, run, cache_folder, device, console, by_fold, trust)
        _train(run, [only], prepared, settings, by_fold, device, console)
        with store.locked(run, wait=True):
            done = len(store.done_folds(run)) == settings.training.folds
            return _summarise(run, settings) if done else run / "summary.json"
    with store.locked(run):
        prepared = _begin(cohort, settings, run, cache_folder, device, console, by_fold, trust)
        numbers = range(settings.training.folds)
        left = [number for number in numbers if not (run / f"fold_{number}" / "done.json").exists()]
        if jobs > 1 and len(left) > 1:
            _train(
                run, [number for number in numbers if number not in left], prepared, settings, by_fold, device, console
            )
            own = [by_fold(number) if by_fold else settings for number in numbers]
            _in_processes(run, left, jobs, prepared, own, cohort, device, console)
        else:
            _train(run, numbers, prepared, settings, by_fold, device, console)
        return _summarise(run, settings)


def _begin(
    cohort: Cohort,
    settings: Settings,
    run: Path,
    cache_folder: Path,
    device: Device,
    console: Console,
    by_fold: ByFold | None,
    trust: bool,
) -> Prepared:
    """Claims a run's folder and writes what all folds share."""
    if by_fold is None and (run / "tune").exists():
        raise store.RunError(
            f"{run} is a run of `mgkeras tune`, whose folds have settings of their own. Name "
            "another --out, or repeat that command."
        )
    store.sweep(run)
    store.claim_settings(run, settings)
    for told in check_run(run, trust=trust, resuming=True):
        console.line(f"warning: {told}")
    prepared = prepare(cohort, settings, run, cache_folder, console)
    write_cohort(run / "cohort.csv", cohort.subjects, settings.outcome)
    store.write_json(run / "environment.json", store.environment(device.why))
    _report_masks(run, prepared[0], settings, console)
    return prepared


def _train(
    run: Path,
    numbers: Iterable[int],
    prepared: Prepared,
    settings: Settings,
    by_fold: ByFold | None,
    device: Device,
    console: Console,
) -> None:
    """Trains folds one after the other, or keeps those that are finished."""
    cache, labels, fold = prepared
    numbers = list(numbers)
    clock = Clock(settings, console, sum(not (run / f"fold_{number}" / "done.json").exists() for number in numbers))
    for number in numbers:
        folder = run / f"fold_{number}"
        with store.locked(folder):
            store.sweep(folder)
            if (folder / "done.json").exists():
                scored = _score_again(folder, number, cache, settings)
                console.line(
                    f"{settings.model}: fold {number + 1} was finished before and is kept"
                    f"{'; its maps are scored again, by what they say of the decision' if scored else ''}"
                )
            else:
                own = by_fold(number) if by_fold else settings
                _run_fold(folder, number, cache, labels, fold, own, device, clock)


def _in_processes(
    run: Path,
    numbers: Sequence[int],
    jobs: int,
    prepared: Prepared,
    own: Sequence[Settings],
    cohort: Cohort,
    device: Device,
    console: Console,
) -> None:
    """Trains folds side by side and joins what they say on one line."""
    ticks: dict[int, str] = {}
    asked: list[int] = []

    def told(message: Told) -> None:
        if message.kind == "line":
            return console.line(message.text)
        if message.kind == "long":
            if not asked and not console.agree(message.text):
                raise too_long(message.text)
            return asked.append(message.fold)
        ticks[message.fold] = message.text.strip()
        return console.tick(
            "  " + " | ".join(ticks[fold] for fold in sorted(ticks)) if len(ticks) > 1 else message.text
        )

    console.line(f"{jobs} folds at a time, each in a process of its own")
    opened = (prepared[0].path, fingerprint(cohort.subjects, own[0]))
    arguments = (run, own, opened, prepared[1], prepared[2], -(-len(numbers) // jobs))
    in_processes(_fold_job, numbers, jobs, arguments, device, own[0].deterministic, told)


def _fold_job(
    number: int,
    device: Device,
    say: Callable[[str, str], None],
    run: Path,
    own: Sequence[Settings],
    opened: tuple[Path, str],
    labels: np.ndarray,
    fold: np.ndarray,
    rounds: int,
) -> None:
    """What a worker does: one fold, from the cache that is there."""

    def long(text: str) -> bool:
        say("long", text)  # whether to go on is asked by the process that started this one
        return True

    console = Console(
        lambda text: say("line", text), lambda text: say("tick", text), lambda what: lambda done, of: None, long
    )
    cache = open_cache(*opened)
    if cache is None:
        raise store.RunError(f"expected the cache {opened[0]} to stay as it is while it is used. Received: another one")
    folder = run / f"fold_{number}"
    with store.locked(folder):
        store.sweep(folder)
        if not (folder / "done.json").exists():
            _run_fold(folder, number, cache, labels, fold, own[number], device, Clock(own[number], console, rounds))


def prepare(
    cohort: Cohort, settings: Settings, run: Path, cache_folder: Path, console: Console
) -> tuple[Cache, np.ndarray, np.ndarray]:
    """Claims a run's folder for the cohort's data and folds, and opens their cache.

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
            "subjects": {subject.name: {**file_digests(subject), "label": subject.label} for subject in subjects},
            "unlabelled": list(cohort.unlabelled),
            "invalid": list(cohort.invalid),
        },
    )
    fold_of = _folds(run / "folds.json", subjects, settings)
    cache = cached(subjects, settings, cache_folder, console.counter("volumes"), console.line)
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


def _run_fold(
    folder: Path,
    number: int,
    cache: Cache,
    labels: np.ndarray,
    fold: np.ndarray,
    settings: Settings,
    device: Device,
    clock: Clock,
) -> None:
    folder.mkdir(exist_ok=True)
    train, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
    clock.begin(number, len(held_out), len(train))
    began = time.time()
    state = folder / "state.h5"
    if state.exists():
        clock.console.line("  going on from the last finished epoch")
    steps = steps_per_epoch(len(train), settings)
    model, history = train_fold(
        cache,
        labels,
        train,
        settings,
        device,
        seed=fold_seed(settings, number),
        state=state,
        pace=lambda seconds: clock.pace(seconds, steps, device),
        report=clock.epoch,
    )
    scored = score_rows(model, cache, held_out, causal=True)
    rows = _prediction_rows(cache, labels, held_out, number, "held-out", scored)
    rows += _prediction_rows(cache, labels, train, number, "train", score_rows(model, cache, train, causal=False))
    attention = attention_rows(cache, held_out, number, scored, box=settings.uses_box)
    dead = sum(row["mass_in_mask"] is None and row["mass_chance"] is not None for row in attention)
    if dead and settings.guidance.lambda_dice:
        clock.console.line(f"  warning: {dead} of {len(held_out)} held-out maps are 0 everywhere")
    save_weights(model, folder / "weights.h5")
    store.write_rows(folder / "history.csv", history)
    store.write_rows(folder / "predictions.csv", rows)
    store.write_rows(folder / "attention.csv", attention)
    names = np.array([cache.subjects[row] for row in held_out], dtype="S")
    write_arrays(
        folder / "cams.h5",
        {"subject": names, "cam": scored.maps, "attention": scored.attention},
        {
            "cam": "(n, g, g, g, 2) folded class activation maps, literally; less their mean over the last axis "
            "they are the decision maps, which are scored and shown",
            "attention": "(n, g, g, g) in [0, 1], the map that the Dice term sees",
        },
    )
    store.write_json(
        folder / "done.json",
        {
            "fold": number,
            "finished": time.time(),
            "seconds": time.time() - began,
            "device": asdict(device),
            "map": MAP,
            "sha256": fold_digests(folder),
        },
    )
    state.unlink(missing_ok=True)
    del model
    keras.backend.clear_session()
    gc.collect()


def _score_again(folder: Path, number: int, cache: Cache, settings: Settings) -> bool:
    """Scores a finished fold's stored maps by the decision map, where it was scored by class maps, as folds once were.

    Nothing is trained or predicted. Returns whether there was anything to do.
    """
    done = store.read_json(folder / "done.json")
    if done.get("map") == MAP:
        return False
    held = {
        row["subject"]: float(row["probability"])
        for row in store.read_rows(folder / "predictions.csv")
        if row["split"] == "held-out"
    }
    arrays = store.read_maps(folder, held)
    names = [name.decode() for name in arrays["subject"]]
    scored = Scored(np.array([held[name] for name in names]), arrays["cam"], arrays["attention"])
    rows = [cache.subjects.index(name) for name in names]
    store.write_rows(folder / "attention.csv", attention_rows(cache, rows, number, scored, box=settings.uses_box))
    if "sha256" in done:
        done["sha256"]["attention.csv"] = fold_digests(folder)["attention.csv"]
    store.write_json(folder / "done.json", done | {"map": MAP})
    return True


def _prediction_rows(
    cache: Cache, labels: np.ndarray, rows: np.ndarray, fold: int, split: str, scored: Scored
) -> list[dict]:
    check_finite(f"probabilities of fold {fold}, {split}", scored.probability)

    def text(values: np.ndarray | None, place: int) -> float | None:
        return None if values is None or np.isnan(values[place]) else round(float(values[place]), 7)

    return [
        {
            "subject": cache.subjects[row],
            "fold": fold,
            "split": split,
            "label": int(labels[row]),
            "probability": text(scored.probability, place),
            "p_outside_blurred": text(scored.outside_blurred, place),
            "p_inside_blurred": text(scored.inside_blurred, place),
            "kept_ml": text(scored.kept_ml, place),
        }
        for place, row in enumerate(rows)
    ]


def _summarise(run: Path, settings: Settings) -> Path:
    folders = store.done_folds(run)
    rows = [row for folder in folders for row in store.read_rows(folder / "predictions.csv")]
    attention = [row for folder in folders for row in store.read_rows(folder / "attention.csv")]
    (run / "done.json").unlink(missing_ok=True)
    store.write_rows(run / "predictions.csv", rows)
    read_predictions(run, settings.training.folds)
    store.write_rows(run / "attention.csv", attention)
    summary = {
        "model": settings.model,
        "outcome": settings.outcome,
        **run_summary(rows, attention, seed=settings.seed, patients=patients_in(run)),
    }
    store.write_json(run / "summary.json", summary)
    store.write_json(run / "done.json", {"sha256": run_digests(run)})
    return run / "summary.json"
