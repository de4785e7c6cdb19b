"""Several runs side by side: a table in the form of the paper's Table 3, a row a run, and tests between the runs.

A run is a folder with settings.json, summary.json (summary.run_summary) and predictions.csv. Runs are set side by side
only where they predict the same outcome for the same subjects in the same folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.errors import InputError, few
from mgkeras.runs.checked import read_attention, read_object, read_predictions
from mgkeras.runs.digests import check_run
from mgkeras.runs.forms import SUMMARY, check_form
from mgkeras.runs.store import RunError
from mgkeras.scores import metrics
from mgkeras.scores.attention import MAP
from mgkeras.scores.format import cell, span, text, with_sd
from mgkeras.scores.patients import numbers_of, patients_in
from mgkeras.scores.summary import CAUSAL
from mgkeras.scores.within import complete

COLUMNS = (
    "Run",
    "ACC train",
    "ACC held out",
    "AUC train",
    "AUC held out",
    "AUC pooled (95 %)",
    "mass in tumour (chance)",
    "AUC tumour only",
    "AUC outside only",
)
TABLE_NOTE = (
    "ACC and AUC: mean (SD) over folds. AUC pooled: all out-of-fold probabilities, bootstrap interval over subjects. "
    "Mass in tumour: share of the evidence, for a class or against it (the decision map's absolute value), in cells of "
    "the map's own grid that the tumour touches, mean over subjects; in brackets what a map without knowledge would "
    "get. "
    "AUC tumour only: everything outside the dilated mask blurred; outside only: everything inside it blurred; both "
    "within folds, as in the report. A dash: undefined or not scored."
)
OLDER = (
    "where it lies was scored on the class map, a part of which softmax does not fix; repeat the fit command, "
    "which scores the stored maps again and trains nothing"
)

Scored = tuple[str, np.ndarray]


@dataclass(frozen=True)
class ComparedRun:
    """One run's results.

    Attributes:
        name: how tables call it: the model, made unique by the folder's name.
        settings, summary: the content of the two JSON files.
        held_out: {subject: (fold, label, probability of class 1)} in the order of predictions.csv.
        altered: {name in summary.CAUSAL: the AUC within folds of exams that were blurred so}.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    held_out: dict[str, tuple[int, int, float]]
    altered: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The folder's name, for what is shared with others."""
        return self.folder.resolve().name

    @property
    def older(self) -> str:
        """What is to be said of a run whose maps were scored on the class map, as runs once were; '' of another."""
        return "" if self.summary.get("map") == MAP else f"map of {self.name}: {OLDER}"

    @property
    def attention(self) -> Mapping[str, Any]:
        """summary.json's attention scores, of the decision map; {} where there are none."""
        return {} if self.older else self.summary.get("attention", {})

    def attention_rows(self) -> list[dict[str, str]]:
        """The rows of attention.csv, of the decision map, values are text; [] where there are none."""
        if self.older or not (self.folder / "attention.csv").is_file():
            return []
        return read_attention(self.folder, self.held_out)


def read_run(folder: str | Path) -> ComparedRun:
    """Reads one run's folder.

    Raises:
        RunError: a file is missing (the run has not ended: the same fit command goes on with it).
        ValueError: a file is damaged or holds what cannot be; the message names it and the row.
    """
    folder = Path(folder)
    missing = [name for name in ("settings.json", "summary.json", "predictions.csv") if not (folder / name).is_file()]
    if missing:
        raise RunError(
            f"expected a finished run in {folder}. Received: no {', '.join(missing)}. Run the same "
            "fit command again to finish it"
        )
    settings, summary = read_object(folder / "settings.json"), read_object(folder / "summary.json")
    check_form(folder / "summary.json", summary, SUMMARY)
    if not isinstance(model := settings.get("model"), str):
        raise InputError(f"expected the name of a model in {folder / 'settings.json'}. Received: {model!r}")
    training = settings.get("training")
    folds = training.get("folds") if isinstance(training, dict) else None
    held = [
        row for row in read_predictions(folder, folds if type(folds) is int else None) if row["split"] == "held-out"
    ]
    held_out = {row["subject"]: (int(row["fold"]), int(row["label"]), float(row["probability"])) for row in held}
    if not held_out:
        raise InputError(f"expected held-out subjects in {folder / 'predictions.csv'}. Received: none")
    columns = {name: complete(held, [column]) for name, column in CAUSAL.items()}
    altered = {
        name: metrics.auc_within(found["label"], found[CAUSAL[name]], found["fold"]) if found["label"].size else None
        for name, found in columns.items()
    }
    return ComparedRun(model, folder, settings, summary, held_out, altered)


def read_runs(folders: Sequence[str | Path], *, trust: bool = False) -> list[ComparedRun]:
    """Reads runs and makes sure that they can be compared.

    Raises:
        RunError: a run that has not ended. EditedRun: without ``trust``, one that was edited since.
        ValueError: a damaged file, or runs that differ (:func:`check_comparable`).
    """
    for folder in folders:
        check_run(Path(folder), trust=trust)
    return comparable([read_run(folder) for folder in folders])


def comparable(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Runs checked by :func:`check_comparable`; of a model that occurs twice each is named with its folder."""
    models = [run.name for run in runs]
    runs = [replace(run, name=f"{run.name} ({run.folder.name})") if models.count(run.name) > 1 else run for run in runs]
    check_comparable(runs)
    return runs


def check_comparable(runs: Sequence[ComparedRun]) -> None:
    """Raises ValueError where a run differs from the first in outcome, subjects, labels or folds; says in what."""
    for run in runs[1:]:
        problem = _difference(runs[0], run)
        if problem:
            raise InputError(
                f"expected the same outcome, subjects and folds in {runs[0].folder} and {run.folder}. "
                f"Received: {problem}. Fit both with the same cohort, outcome and seed"
            )


def _difference(first: ComparedRun, other: ComparedRun) -> str | None:
    outcomes = first.settings.get("outcome"), other.settings.get("outcome")
    if outcomes[0] != outcomes[1]:
        return f"outcome {outcomes[0]!r} against {outcomes[1]!r}"
    ours, theirs = first.held_out, other.held_out
    for here, there, where in ((ours, theirs, first.folder), (theirs, ours, other.folder)):
        only = [name for name in here if name not in there]
        if only:
            return f"{len(only)} subjects only in {where}: {few(only)}"
    for position, what in ((1, "label"), (0, "fold")):
        moved = [name for name in ours if ours[name][position] != theirs[name][position]]
        if moved:
            name = moved[0]
            return (
                f"another {what} for {len(moved)} subjects: {few(moved)} ({name}: {what} "
                f"{ours[name][position]} against {theirs[name][position]})"
            )
    return None


def table_rows(runs: Sequence[ComparedRun]) -> list[dict[str, str]]:
    """The table's cells, {column of COLUMNS: text}, a row a run."""
    rows = []
    for run in runs:
        over, pooled = run.summary["over_folds"], run.summary["pooled"]
        attention = run.attention.get("all", {})
        mass, chance = (attention.get(name, {}).get("mean") for name in ("mass_in_mask", "mass_chance"))
        cells = [run.name]
        cells += [with_sd(over[f"{score}_{part}"]) for score in ("accuracy", "auc") for part in ("train", "held_out")]
        cells.append(cell(pooled["auc"], 3))
        cells.append(text(mass) + (f" ({text(chance)})" if mass is not None else ""))
        cells += [text(run.altered.get(name)) for name in CAUSAL]
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def compare_pairs(runs: Sequence[ComparedRun], *, samples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """DeLong's test and the paired bootstrap of the pooled out-of-fold AUCs, for every two runs; both by patient.

    Returns:
        [{a, b, delong, bootstrap}]: the runs' names, what metrics.delong_test and metrics.paired_bootstrap_difference
        give (difference = a - b); None with one class only. Nothing is corrected for many tests.
    """
    check_comparable(runs)
    names = list(runs[0].held_out) if runs else []
    labels = np.array([runs[0].held_out[name][1] for name in names])
    scored = [(run.name, np.array([run.held_out[name][2] for name in names])) for run in runs]
    numbers = numbers_of(patients_in(runs[0].folder), names) if runs else None
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": numbers}
    return [pair(labels, a, b, **options) for a, b in combinations(scored, 2)]


def pair(labels: np.ndarray, a: Scored, b: Scored, *, samples: int, seed: int, patients: Any = None) -> dict[str, Any]:
    """{a, b, delong, bootstrap} of two models, each a name and (n,) probabilities, as :func:`compare_pairs`."""
    (name_a, p_a), (name_b, p_b) = a, b
    bootstrap = metrics.paired_bootstrap_difference(labels, p_a, p_b, samples=samples, seed=seed, patients=patients)
    delong = metrics.delong_test(labels, p_a, p_b, patients=patients)
    return {"a": name_a, "b": name_b, "delong": delong, "bootstrap": bootstrap}


def pair_rows(pairs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """compare_pairs as cells, {column: text}, a row a pair."""
    return [
        {
            "Runs": f"{pair['a']} - {pair['b']}",
            "AUC a": text(delong.get("auc_a"), 3),
            "AUC b": text(delong.get("auc_b"), 3),
            "a - b": text(delong.get("difference"), 3, "+"),
            "95 % DeLong": span(delong, 3, "+"),
            "p": text(delong.get("p"), 3),
            "95 % bootstrap": span(bootstrap, 3, "+"),
            "p bootstrap": text(bootstrap.get("p"), 3),
        }
        for pair in pairs
        for delong, bootstrap in [(pair["delong"] or {}, pair["bootstrap"] or {})]
    ]


def comparison(
    folders: Sequence[str | Path], *, samples: int = 2000, seed: int = 0, trust: bool = False
) -> dict[str, Any]:
    """Everything between runs at once: {runs, rows, pairs, pair_rows, note}; runs are ComparedRun, the rest JSON.

    ``note`` says, with ``trust``, which files were edited after the runs were trained.

    Raises:
        RunError, ValueError: as :func:`read_runs`.
    """
    edited = [f"{told}." for folder in folders for told in check_run(Path(folder), trust=trust)]
    runs = comparable([read_run(folder) for folder in folders])
    pairs = compare_pairs(runs, samples=samples, seed=seed)
    note = " ".join([TABLE_NOTE, *edited, *(f"Left out: {run.older}." for run in runs if run.older)])
    return {"runs": runs, "rows": table_rows(runs), "pairs": pairs, "pair_rows": pair_rows(pairs), "note": note}
