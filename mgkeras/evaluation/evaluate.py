"""Runs in, evaluation.json out: every score of every network and baseline, with intervals, and the tests between them.

Glossary:
    pooled: one score over all subjects' out-of-fold probabilities; folds' models differ in calibration, so pooling can
        cost a few points of AUC against the folds' mean, which stands beside it.
    undefined: None, never NaN: one class only, no positive call, an interval whose draws are mostly undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.errors import InputError, few
from mgkeras.evaluation.kept import kept, made_from, seal
from mgkeras.probes import shape
from mgkeras.probes.causal import causal_scores
from mgkeras.probes.robustness import repeats, split_repeats
from mgkeras.probes.rows import no_ledger, probed, probes_of
from mgkeras.runs.checked import read_object, read_table, read_value
from mgkeras.runs.digests import check_run
from mgkeras.runs.forms import MASKS, check_form
from mgkeras.scores import baselines, radiomics
from mgkeras.scores.comparison import ComparedRun, comparable, pair, read_run
from mgkeras.scores.held_out import THRESHOLD_RULE, HeldOut, held_out_of, with_training
from mgkeras.scores.patients import patients_in
from mgkeras.scores.summary import DECISIONS, by_group, decision, excess, summarise, with_interval

Maps = Callable[[Path], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Evaluated:
    """What `mgkeras evaluate` writes and draws.

    Attributes:
        results: the content of evaluation.json, see :func:`evaluate`.
        models: networks, then baselines, in the order of ``results["models"]``.
        attention: {network: rows of its attention.csv}, [] where it has none.
    """

    results: dict[str, Any]
    models: tuple[HeldOut, ...]
    attention: dict[str, list[dict[str, str]]]


def evaluate(
    folders: Sequence[str | Path],
    *,
    clinical: Sequence[str] = (),
    samples: int = 2000,
    seed: int = 0,
    maps_of: Maps | None = None,
    trust: bool = False,
    earlier: Sequence[Path] = (),
) -> Evaluated:
    """Scores runs on the same folds, and the baselines on those folds.

    Args:
        folders: of finished runs of `mgkeras fit` that predict one outcome for the same subjects in the same folds. A
            run that differs from an earlier run in its seed alone is no model of its own but that run's repeat.
        clinical: columns of the first run's cohort.csv for the clinical baseline; () for none.
        samples, seed: of the bootstrap, over patients where cohort.csv names them in its column patient.
        maps_of: folder of a run -> {subject: (g, g, g) held-out map}, to set the maps of repeats side by side; without
            it their correlation is undefined.
        trust: whether to go on with runs that were edited after they were trained; ``edited`` says what was.
        earlier: files of earlier evaluations, evaluation.json or report.html: one that was made from these runs as they
            are, in the same way, is read and nothing is scored again.

    Returns:
        ``results`` is::

            {"outcome": "recurrence", "subjects": 115, "patients": 115, "positives": 35, "folds": 5,
             "samples": 2000, "seed": 0, "threshold_rule": "...", "skipped": ["tumour volume: ..."], "edited": [],
             "models": [{"name": "guided", "kind": "network", "note": "", "folder": "runs/guided",
                         "thresholds": {"0": 0.41, ...}, "threshold_fallback": [],
                         "pooled": {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}, ...},
                         "per_fold": [{"fold": 0, "subjects": 23, "positives": 7, "auc": 0.7, ...}, ...],
                         "over_folds": {"auc": {"mean": 0.8, "sd": 0.04, "folds": 5}, ...},
                         "at_half": {"sensitivity": {"value": 0.6, "low": 0.4, "high": 0.8}, ...},
                         "causal": {"auc_outside_blurred": {"value", "low", "high", "subjects"}, ...,
                                    "outside_less_whole": {"value", "low", "high"}, ..., "kept_ml": {...} | None},
                         "attention": {"all": {"mass_in_mask": {"mean", "sd", "median", "defined", "undefined"}, ...},
                                       "class_0", "class_1", "right", "wrong"},
                         "above_chance": {"all": {"mean", "low", "high", "subjects"}, ...},
                         "probes": {...} | None, "robustness": {"mask": [...] | None, "repeats": {...} | None}}],
             "made_from": {...},  # see kept.made_from
             "pairs": [{"a": "guided", "b": "no-mask", "delong": {...} | None, "bootstrap": {...} | None}]}

        ``pooled`` and ``per_fold`` hold the scores of summary.summarise, decisions at the fold's own threshold;
        ``at_half`` the pooled decisions at 0.5; ``causal`` that of causal.causal_scores, within folds; ``above_chance``
        mass in mask less its chance, mean over subjects. ``probes`` is that of probes.summarise_probes, None where
        RUN/probes is missing; ``robustness`` that of robustness.mask_robustness and robustness.repeats. Baselines have
        no folder, causal, attention, above_chance, probes and robustness. Pairs: networks among each other and against
        the baselines that rank (not the majority class); difference = a - b, not corrected for many tests.

    Raises:
        RunError, ValueError: as comparison.read_runs and baselines.clinical; no run.
    """
    runs, repeated, edited = check_runs(folders, clinical, trust=trust)
    first = held_out_of(runs[0])
    networks = [held_out_of(run, first.subjects) for run in runs]
    simple, skipped = _baselines(with_training(first, runs[0]), runs[0], clinical)
    attention = {run.name: run.attention_rows() for run in runs}
    options = {"samples": samples, "seed": seed}
    made = made_from(folders, clinical=clinical, maps=maps_of is not None, **options)
    if (known := kept(earlier, made)) and known["edited"] == edited:
        for model, run in zip(known["models"], runs, strict=False):  # networks stand first
            model["folder"] = str(run.folder)
        return Evaluated(known, (*networks, *simple), attention)
    scored = [
        _scores(model, **options)
        | _network(run, attention[run.name], **options)
        | {"robustness": _robustness(run, repeated.get(run.folder, []), maps_of, **options)}
        for model, run in zip(networks, runs, strict=True)
    ]
    skipped += [run.older for run in (*runs, *chain(*repeated.values())) if run.older]
    skipped += list(_other_exams(runs))
    skipped += [
        f"probes of {model['name']}: none in {Path(model['folder']).resolve().name}, of other weights, or of class maps"
        for model in scored
        if not model["probes"]
    ]
    skipped += [f"ledger of {run.name}: {why}" for run in runs if (why := no_ledger(run))]
    results = {
        "outcome": runs[0].settings.get("outcome"),
        "subjects": len(first.subjects),
        "patients": len(first.subjects) if first.patients is None else len(set(first.patients.tolist())),
        "positives": int(first.labels.sum()),
        "folds": len(first.thresholds),
        **options,
        "threshold_rule": THRESHOLD_RULE,
        "skipped": skipped,
        "edited": edited,
        "models": scored + [_scores(model, **options) for model in simple],
        "pairs": _pairs(networks, simple[1:], **options),
        "made_from": made,
    }
    return Evaluated(results, (*networks, *simple), attention)


def shared(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results as they are written for others: a run's folder by its name, not its place on this machine."""
    models = [
        model | {"folder": Path(model["folder"]).resolve().name} if model.get("folder") else model
        for model in results["models"]
    ]
    found = {**results, "models": models}
    return {**found, "sha256": seal(found)}


def check_runs(
    folders: Sequence[str | Path], clinical: Sequence[str] = (), *, trust: bool = False
) -> tuple[list[ComparedRun], dict[Path, list[ComparedRun]], list[str]]:
    """Reads runs and makes sure that they can be evaluated together, which takes no time.

    Returns:
        The models' runs, {folder of a model: its repeats with other seeds}, and what check_run says of the runs.

    Raises:
        RunError, ValueError: as comparison.read_runs and baselines.clinical; no run.
    """
    if not folders:
        raise InputError("expected at least one run. Received: none")
    edited = [told for folder in folders for told in check_run(Path(folder), trust=trust)]
    models, repeated = split_repeats([read_run(folder) for folder in folders])
    models = comparable(models)
    if clinical:
        first = with_training(held_out_of(models[0]), models[0])
        baselines.clinical_design(
            first, read_table(models[0].folder / "cohort.csv"), clinical, models[0].settings.get("outcome")
        )
    return models, repeated, edited


def _baselines(first: HeldOut, run: ComparedRun, clinical: Sequence[str]) -> tuple[list[HeldOut], list[str]]:
    """Majority class first, then what the run's files allow; and a sentence for each that they do not."""
    found, skipped = [baselines.majority(first)], []
    for name, file, baseline in (
        ("tumour volume", "masks.csv", baselines.volume),
        (shape.NAME, "probes/shapes.csv", shape.baseline),
        ("radiomics", "radiomics.csv", radiomics.baseline),
    ):
        if (path := run.folder / file).is_file():
            rows = read_table(path)
            try:
                found.append(baseline(first, rows))
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        else:
            skipped.append(f"{name}: {run.shown} has no {file}")
    if clinical:
        rows = read_table(run.folder / "cohort.csv")
        found.append(baselines.clinical(first, rows, clinical, run.settings.get("outcome")))
    else:
        skipped.append("clinical: no columns were named (--clinical)")
    return found, skipped


def _scores(model: HeldOut, *, samples: int, seed: int) -> dict[str, Any]:
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": model.patients}
    found = summarise(model.labels, model.probabilities, model.folds, threshold=model.own_threshold, **options)
    arrays = model.labels, model.probabilities
    at_half = {name: with_interval(partial(decision, name), *arrays, **options) for name in DECISIONS}
    return {
        "name": model.name,
        "kind": model.kind,
        "note": model.note,
        "thresholds": {str(fold): threshold for fold, threshold in model.thresholds.items()},
        "threshold_fallback": list(model.fallback),
        **{part: found[part] for part in ("pooled", "per_fold", "over_folds")},
        "at_half": at_half,
    }


def _network(run: ComparedRun, attention: Sequence[Mapping[str, str]], *, samples: int, seed: int) -> dict[str, Any]:
    """What only a network has, from the run's own predictions.csv, summary.json and attention.csv."""
    patients = patients_in(run.folder)
    rows = read_table(run.folder / "predictions.csv")
    return {
        "folder": str(run.folder),
        "causal": causal_scores(rows, samples=samples, seed=seed, patients=patients),
        "attention": dict(run.attention),
        "above_chance": above_chance(run, attention, samples=samples, seed=seed),
        "probes": probes_of(run, samples=samples, seed=seed),
    }


def _other_exams(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """A sentence for each run that was trained on other files than the first: baselines are made from the first's."""
    seen = [read_object(path).get("subjects") if (path := run.folder / "data.json").is_file() else None for run in runs]
    for run, theirs in zip(runs[1:], seen[1:], strict=True):
        if not seen[0] or not theirs:
            continue
        if other := [name for name in theirs if not _same_exam(theirs[name], seen[0].get(name, {}))]:
            yield (
                f"the same exams: {run.name} was trained on other early or pre files or masks than {runs[0].name}, of "
                f"{len(other)} subjects ({few(other)}); the baselines are made from those of {runs[0].name}"
            )


def _same_exam(digests: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether digests of data.json are of the same exam: the pre phase and the late phase are there only where a run
    read them."""
    read = [name for name in ("pre", "late") if digests.get(name) and other.get(name)]
    return all(digests.get(name) == other.get(name) for name in ("early", "mask", "label", *read))


def _robustness(
    run: ComparedRun, others: Sequence[ComparedRun], maps_of: Maps | None, *, samples: int, seed: int
) -> dict[str, Any]:
    """How scores move under another mask (from RUN/probes) and other seeds."""
    folder = probed(run)
    if mask := read_value(path := folder / "masks.json") if folder else None:
        check_form(path, mask, MASKS)
    every = [run, *others]
    maps = [maps_of(run.folder) for run in every] if maps_of and others else None
    return {"mask": mask, "repeats": repeats(every, maps, samples=samples, seed=seed)}


def above_chance(
    run: ComparedRun, attention: Sequence[Mapping[str, str]], *, samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Mass in mask less what a map without knowledge expects, mean over subjects with a bootstrap interval.

    Args:
        run: for the labels and for which subjects it gets right at 0.5.
        attention: rows of attention.csv.

    Returns:
        {group of summary.by_group: {mean, low, high, subjects}}, subjects with a defined value; None under two (low,
        high) and under one (mean). {} without rows.
    """
    if not attention:
        return {}
    groups = by_group(attention, {name: (label, p) for name, (_, label, p) in run.held_out.items()})
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients_in(run.folder)}
    return {name: excess(rows, **options) for name, rows in groups.items()}


def _pairs(networks: Sequence[HeldOut], simple: Sequence[HeldOut], *, samples: int, seed: int) -> list[dict[str, Any]]:
    compared = [*combinations(networks, 2), *((network, other) for network in networks for other in simple)]
    options = {"samples": samples, "seed": seed}
    return [
        pair(a.labels, (a.name, a.probabilities), (b.name, b.probabilities), patients=a.patients, **options)
        for a, b in compared
    ]
