"""Models over several seeds: what a method does, where one run tells what its weights do.

A seed draws folds, weights, order and dropout anew. A model's AUC is the mean over its seeds' pooled out-of-fold AUCs.
Its interval draws patients, and seeds too: patients with replacement as everywhere, and of S seeds S - 1 with
replacement, whose means vary as much as a mean of S seeds does (Rao and Wu 1988).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mgkeras.data.markdown import escaped
from mgkeras.errors import InputError
from mgkeras.scores import metrics
from mgkeras.scores.comparison import ComparedRun, check_comparable
from mgkeras.scores.format import as_markdown, cell, span, text, with_sd
from mgkeras.scores.patients import numbers_of, patients_in
from mgkeras.scores.summary import CAUSAL, mean_and_sd
from mgkeras.scores.within import interval

PAPER_TABLES = {"her2": "the paper's Table 2", "recurrence": "the paper's Table 3"}  # by the name of the outcome
NOTES = (
    "ACC and AUC: mean (SD) over the folds of all seeds, as the paper's tables have them over its folds. AUC pooled: "
    "all out-of-fold probabilities of a seed, then the mean over seeds; its intervals draw patients, or seeds and "
    "patients. SD seeds: of the seeds' pooled AUCs. Mass in tumour, tumour only, outside only: means over seeds, as in "
    "the tables of a run. A dash: undefined.",
    "Differences are a - b of pooled AUCs, seed by seed on the same folds and patients, and their mean. With one seed "
    "a difference is one of these weights and not of the methods: trained again, equal methods differ too. With "
    "several it is one of the methods, on patients like these; two or three seeds tell only roughly how far training "
    "varies. p values are not corrected for the number of tests.",
)
BySeed = Mapping[str, Mapping[int, ComparedRun]]  # {model: {seed: run}}, the same seeds for each model
Draws = dict[str, np.ndarray]  # {model: (seeds, samples) AUC of each draw of patients}


def over_seeds(runs: BySeed, *, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A group's runs as numbers, JSON-able.

    Args:
        runs: of one cohort and outcome.
        samples, seed: of the bootstrap.

    Returns:
        ``subjects``, ``positives``, ``seeds``, ``models`` {model: {over_folds, auc {value, low, high}, patients {value,
        low, high}, sd_seeds, by_seed, mass_in_mask, mass_chance, auc_outside_blurred, auc_inside_blurred}} and
        ``pairs`` [{a, b, of, difference, low, high, p}], ``of`` 'the methods' or 'these weights'.

    Raises:
        ValueError: models without the same seeds, or runs of a seed that differ in subjects, labels or folds.
    """
    seeds = list(next(iter(runs.values())))
    for name, own in runs.items():
        if list(own) != seeds:
            raise InputError(f"expected the seeds {seeds} of {name}. Received: {list(own)}")
    for number in seeds:
        check_comparable([own[number] for own in runs.values()])
    first = next(iter(runs.values()))[seeds[0]]
    names = sorted(first.held_out)
    labels = np.array([first.held_out[name][1] for name in names])
    options: dict[str, Any] = {"samples": samples, "seed": seed}
    options["patients"] = numbers_of(patients_in(first.folder), names)
    scored = {model: [_probabilities(own[number], names, labels) for number in seeds] for model, own in runs.items()}
    values = {model: [metrics.auc_score(labels, p) for p in each] for model, each in scored.items()}
    draws: Draws = {
        model: np.stack([metrics.bootstrap_scores(metrics.auc_score, labels, p, **options) for p in each])
        for model, each in scored.items()
    }
    drawn = _drawn_seeds(len(seeds), samples, seed)
    return {
        "subjects": len(names),
        "positives": int(labels.sum()),
        "seeds": seeds,
        "models": {model: _model(own, values[model], draws[model], drawn) for model, own in runs.items()},
        "pairs": [_pair(a, b, values, draws, drawn) for a, b in combinations(runs, 2)],
    }


def _probabilities(run: ComparedRun, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """(n,) of class 1, in the order of the names."""
    own = run.held_out
    if sorted(own) != list(names) or [own[name][1] for name in names] != labels.tolist():
        raise InputError(f"expected the subjects and labels of the other seeds in {run.folder}. Received: others")
    return np.array([own[name][2] for name in names])


def _drawn_seeds(seeds: int, samples: int, seed: int) -> np.ndarray:
    """(samples, seeds - 1) int: which seeds each draw has; (samples, 1) of 0 for one seed."""
    if seeds == 1:
        return np.zeros((samples, 1), int)
    return np.random.default_rng([seed, 1]).integers(seeds, size=(samples, seeds - 1))


def _mean_of(draws: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(samples,) the mean of (seeds, samples) draws of patients over the seeds that were drawn with each."""
    return draws[drawn[: draws.shape[1]], np.arange(draws.shape[1])[:, None]].mean(axis=1)


def _model(
    own: Mapping[int, ComparedRun], values: Sequence[float | None], draws: np.ndarray, drawn: np.ndarray
) -> dict:
    moments = mean_and_sd(values)
    folds = [fold for run in own.values() for fold in run.summary["per_fold"]]
    places = [(score, part) for score in ("accuracy", "auc") for part in ("train", "held_out")]
    looks = [run.attention.get("all", {}) for run in own.values()]
    return {
        "over_folds": {f"{score}_{part}": mean_and_sd(fold[part][score] for fold in folds) for score, part in places},
        "auc": interval(moments["mean"], _mean_of(draws, drawn)),
        "patients": interval(moments["mean"], draws.mean(axis=0)),
        "sd_seeds": moments["sd"],
        "by_seed": dict(zip(map(str, own), values, strict=True)),
        **{
            name: mean_and_sd(look.get(name, {}).get("mean") for look in looks)["mean"]
            for name in ("mass_in_mask", "mass_chance")
        },
        **{name: mean_and_sd(run.altered.get(name) for run in own.values())["mean"] for name in CAUSAL},
    }


def _pair(
    a: str, b: str, values: Mapping[str, Sequence[float | None]], draws: Draws, drawn: np.ndarray
) -> dict[str, Any]:
    apart = [
        None if value is None or other is None else value - other
        for value, other in zip(values[a], values[b], strict=True)
    ]
    differences = _mean_of(draws[a] - draws[b], drawn)
    found = interval(mean_and_sd(apart)["mean"], differences)
    return {
        "a": a,
        "b": b,
        "of": "the methods" if len(apart) > 1 else "these weights",
        **found,
        "p": metrics.two_sided(differences) if found["low"] is not None else None,
    }


def seeds_table(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a model of over_seeds, in the form of the paper's Tables 2 and 3."""
    rows = []
    for model, scores in found["models"].items():
        over, mass = scores["over_folds"], scores["mass_in_mask"]
        rows.append(
            {
                "Model": model,
                "ACC train": with_sd(over["accuracy_train"]),
                "ACC held out": with_sd(over["accuracy_held_out"]),
                "AUC train": with_sd(over["auc_train"]),
                "AUC held out": with_sd(over["auc_held_out"]),
                "AUC pooled (95 %, seeds and patients)": cell(scores["auc"], 3),
                "95 %, patients": span(scores["patients"], 3),
                "SD seeds": text(scores["sd_seeds"], 3),
                "mass in tumour (chance)": text(mass)
                + (f" ({text(scores['mass_chance'])})" if mass is not None else ""),
                "AUC tumour only": text(scores["auc_outside_blurred"]),
                "AUC outside only": text(scores["auc_inside_blurred"]),
            }
        )
    return rows


def seed_pairs(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a pair of models of over_seeds."""
    return [
        {
            "Models": f"{pair['a']} - {pair['b']}",
            "a - b": text(pair["value"], 3, "+"),
            "95 %": span(pair, 3, "+"),
            "p": text(pair["p"], 3),
            "says of": pair["of"],
        }
        for pair in found["pairs"]
    ]


def study_tables(groups: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[list[dict[str, str]]]]]:
    """(title, line below it, tables) of each group.

    Args:
        groups: {name: over_seeds and ``outcome``}.
    """
    found = []
    for name, group in groups.items():
        table, seeds = PAPER_TABLES.get(group["outcome"]), group["seeds"]
        below = (
            f"{group['subjects']} subjects, {group['positives']} positive; {len(seeds)} seed{'s' * (len(seeds) > 1)}: "
        )
        below += f"{', '.join(map(str, seeds))}{'' if len(seeds) > 1 else ' (what follows is of these weights)'}"
        found.append((f"{name} ({table})" if table else name, below, [seeds_table(group), seed_pairs(group)]))
    return found


def study_page(title: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of study.md."""
    parts = [f"# {escaped(title)}\n"]
    for name, below, tables in study_tables(groups):
        parts += [f"## {escaped(name)}\n", f"{escaped(below)}\n", *(as_markdown(rows) for rows in tables if rows)]
    return "\n".join([*parts, "## Notes\n", "".join(f"- {note}\n" for note in NOTES)])
