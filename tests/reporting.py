"""Finished runs by hand on a small phantom, for the tests of the report: no training, every file that a run has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.cache import exam_cube, file_digests
from mgkeras.data.cohort import open_cohort, write_cohort
from mgkeras.data.tumour import subject_mask
from mgkeras.models.weights import write_arrays
from mgkeras.runs.folds import assign_folds, folds_digest
from mgkeras.runs.store import write_json, write_rows
from mgkeras.scores.attention import attention_scores, pool
from mgkeras.scores.summary import run_summary
from mgkeras.settings import Settings, as_dict, for_model

GRID = 6
INTERVAL = {"value": 0.7, "low": 0.6, "high": 0.8, "subjects": 12}
MEAN = {"mean": 0.3, "low": 0.2, "high": 0.4, "subjects": 12}


def make_run(folder: Path, table: Path, settings: Settings, *, wrong: tuple[int, ...] = ()) -> Path:
    """A run's files: the map is the pooled mask for guided kinds, else a far corner; ``wrong`` subjects are missed."""
    cohort, _ = open_cohort(table, "recurrence")
    subjects, rng = cohort.subjects, np.random.default_rng(len(settings.model))
    fold_of = assign_folds(subjects, settings.training.folds, settings.seed)
    rows, looks, masks, maps = [], [], [], {}
    for place, subject in enumerate(subjects):
        early, tumour = subject_mask(subject, settings.mask)
        _, mask, frame = exam_cube(early, tumour.mask, settings)
        cam = _map(mask, guided=bool(settings.guidance.lambda_dice)) + 0.01 * rng.random((GRID,) * 3)
        maps[subject.name] = cam.astype(np.float32)
        own = 0.55 + 0.03 * (place % 10)
        p = own if (subject.label == 1) != (place in wrong) else 1 - own
        rows += [_row(subject, fold_of[subject.name], "held-out", p, p, 0.5)]
        rows += [_row(subject, fold, "train", p) for fold in set(fold_of.values()) if fold != fold_of[subject.name]]
        looks.append(
            {
                "subject": subject.name,
                "fold": fold_of[subject.name],
                **attention_scores(cam, np.clip(cam, 0, 1), mask, frame.voxel_mm),
            }
        )
        masks.append({"subject": subject.name, **tumour.report})
    _write(folder, cohort, settings, fold_of, rows, looks, masks)
    for fold in sorted(set(fold_of.values())):
        called = {row["subject"]: int(row["probability"] >= 0.5) for row in rows if row["split"] == "held-out"}
        _fold(folder / f"fold_{fold}", [name for name in maps if fold_of[name] == fold], maps, called)
    return folder


def _map(mask: np.ndarray, *, guided: bool) -> np.ndarray:
    if guided and mask.any():
        pooled = pool(mask, GRID)
        return pooled / pooled.max()
    far = np.zeros((GRID,) * 3)
    far[-1, 0, -1] = 0.9
    return far


def _row(subject, fold, split, p, outside=None, inside=None) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "fold": fold,
        "split": split,
        "label": subject.label,
        "probability": round(p, 4),
        "p_outside_blurred": outside,
        "p_inside_blurred": inside,
    }


def _write(folder, cohort, settings, fold_of, rows, looks, masks) -> None:
    write_json(folder / "settings.json", as_dict(settings))
    write_json(
        folder / "data.json",
        {
            "subjects": {
                subject.name: {**file_digests(subject), "label": subject.label} for subject in cohort.subjects
            },
            "unlabelled": ["lost </script><b>"],
            "invalid": ["torn"],
        },
    )
    write_json(
        folder / "folds.json",
        {
            "outcome": "recurrence",
            "seed": 0,
            "folds": settings.training.folds,
            "digest": folds_digest(fold_of),
            "held_out_in": fold_of,
        },
    )
    write_json(folder / "environment.json", {"python": "3.11", "device": "CPU <2 cores>"})
    write_json(folder / "summary.json", run_summary(rows, looks, samples=30))
    write_cohort(folder / "cohort.csv", cohort.subjects, "recurrence")
    write_rows(folder / "predictions.csv", rows)
    write_rows(folder / "attention.csv", looks)
    write_rows(folder / "masks.csv", masks)


def _fold(folder: Path, names: list[str], maps: dict[str, np.ndarray], called: dict[str, int]) -> None:
    """The class maps differ by twice the map; what both have besides is large and says nothing."""
    write_rows(folder / "history.csv", [{"epoch": epoch, "ce": 1 / epoch, "dice": 0.1 * epoch} for epoch in (1, 2)])
    cells = np.stack([maps[name] for name in names])
    toward = cells * np.array([2 * called[name] - 1 for name in names])[:, None, None, None]
    shared = np.random.default_rng(1).normal(0, 3, cells.shape)
    write_arrays(
        folder / "cams.h5",
        {
            "subject": np.array(names, dtype="S"),
            "attention": np.clip(cells, 0, 1),
            "cam": np.stack([shared - toward, shared + toward], axis=-1).astype(np.float32),
        },
        {},
    )
    write_json(folder / "done.json", {"fold": int(folder.name[-1]), "seconds": 60.0})


def make_runs(folder: Path, table: Path, small: Settings) -> list[Path]:
    """no-mask, mask-only and guided on the same folds; guided errs for subjects 0 and 3."""
    settings = replace(small, outcome="recurrence")
    return [
        make_run(folder / model, table, for_model(settings, model), wrong=(0, 3) if model == "guided" else (1,))
        for model in ("no-mask", "mask-only", "guided")
    ]


def probed(results: dict[str, Any]) -> dict[str, Any]:
    """A copy of an evaluation's results in which every network was probed."""
    found = json.loads(json.dumps(results))
    for model in found["models"]:
        if model["kind"] == "network":
            model |= {"probes": _probes(), "robustness": _robustness()}
    return found


def _probes() -> dict[str, Any]:
    causal = [
        {
            "dilation_mm": 2.0 * n,
            **{f"auc_{part}_blurred": INTERVAL for part in ("outside", "inside")},
            **{f"change_{part}_blurred": MEAN for part in ("outside", "inside")},
        }
        for n in (0, 2)
    ]
    moments = {"mean": 0.07, "sd": 0.02, "median": 0.07, "defined": 12, "undefined": 0}
    return {
        "subjects": 12,
        "causal": causal,
        "occlusion": {"subjects": 4, "grid": 6, "rank_correlation": MEAN, "mass_in_mask": MEAN, "mass_chance": MEAN},
        "randomised": [{"layer": "logits", "rank_correlation": MEAN}, {"layer": "features", "rank_correlation": MEAN}],
        "random_network": {"auc": INTERVAL, "attention": {"mass_in_mask": moments}, "above_chance": MEAN},
        "traps": [
            {
                "trap": trap,
                "subjects": 12,
                "with_trap": 6,
                "auc_as_is": {**INTERVAL, "value": 0.97},
                "auc_removed": {**INTERVAL, "value": value, "high": high},
                "auc_added": INTERVAL,
                "change_removed": MEAN,
                "change_added": MEAN,
            }
            for trap, value, high in (("spot", 0.52, 0.61), ("site", 0.96, 0.99))
        ],
        **rests(),
        "box": [],
    }


def rests() -> dict[str, Any]:
    """The probes of what a decision rests on."""
    altered = {"auc": INTERVAL, "less_whole": {"value": -0.3, "low": -0.4, "high": -0.2}, "change": MEAN}
    shares = {"tumour": 0.4, "ring": 0.3, "body": 0.2, "outside": 0.1}
    return {
        "transplant": moved(0.9, 0.5, 12),
        "ledger": {
            "subjects": 12,
            "constant": MEAN,
            "parts": [
                {
                    "part": part,
                    "cells": {"mean": share},
                    "evidence": {"mean": share, "low": 0.0, "high": 1.0},
                    "variance": {"value": share, "low": 0.0, "high": 1.0},
                    "sd": 0.5,
                }
                for part, share in shares.items()
            ],
        },
        "controls": {
            "hole": altered,
            "filled": {**altered, "auc": {"value": 0.55, "low": 0.4, "high": 0.7}},
            "mass_chance_body": {**MEAN, "mean": 0.09, "high": 0.1},
            "mass_of_t1": MEAN,
        },
        "site": {
            "columns": [
                {
                    "column": "site",
                    "groups": 2,
                    "predicted_auc": INTERVAL,
                    "within": [
                        {"group": "north", "subjects": 7, "auc": INTERVAL},
                        {"group": "south", "subjects": 5, "auc": INTERVAL},
                    ],
                }
            ]
        },
    }


def _robustness() -> dict[str, Any]:
    scores = {
        name: MEAN
        for name in ("dice_with_mask", "mass_in_mask", "mass_chance", "mass_moved", "peak_within_10mm", "soft_dice")
    }
    return {
        "mask": [
            {"change": change, "mm": mm, "empty": 0, **scores}
            for change, mm in (("as it is", 0.0), ("dilated 4 mm", 4.0))
        ],
        "repeats": {
            "runs": ["guided", "guided (seed 1)"],
            "seeds": [0, 1],
            "auc": [0.8, 0.78],
            "mean": 0.79,
            "sd": 0.01,
            "probability_sd": MEAN,
            "flipped": 0.1,
            "map_correlation": MEAN,
            "mass_in_mask": [0.6, 0.62],
        },
    }


def score(values: tuple[float | None, float | None, float | None]) -> dict[str, float | None]:
    """(value, low, high) as evaluation.json has them."""
    return dict(zip(("value", "low", "high"), values, strict=True))


def apart(a: tuple, b: tuple) -> dict[str, float | None]:
    """A difference of two scores whose errors are independent, which is wider than a paired difference."""
    if None in (*a, *b):
        return score((None, None, None))
    below, above = np.hypot(a[0] - a[1], b[2] - b[0]), np.hypot(a[2] - a[0], b[0] - b[1])
    return score((a[0] - b[0], a[0] - b[0] - below, a[0] - b[0] + above))


def network(
    auc=(0.8, 0.7, 0.9),
    tumour=(0.8, 0.7, 0.9),
    rest=(0.5, 0.4, 0.6),
    mass=0.6,
    above=(0.5, 0.4, 0.6),
    name="guided",
    less=None,
    **more,
) -> dict[str, Any]:
    """A network's entry of evaluation.json, as far as the findings read it.

    Args:
        auc, tumour, rest: of whole exams, the tumour only, the rest only, with intervals.
        less: the tumour only less the whole and the rest only less the whole; by default see apart.
    """
    causal = {
        "auc_whole": score(auc),
        "auc_outside_blurred": score(tumour),
        "auc_inside_blurred": score(rest),
        "outside_less_whole": apart(tumour, auc),
        "inside_less_whole": apart(rest, auc),
        "outside_less_inside": apart(tumour, rest),
    }
    if less:
        causal |= {"outside_less_whole": score(less[0]), "inside_less_whole": score(less[1])}
    scores = {"mass_in_mask": {"mean": mass}, "mass_chance": {"mean": 0.05}}
    return {
        "name": name,
        "kind": "network",
        "pooled": {"auc": score(auc)},
        "attention": {"all": scores},
        "above_chance": {"all": dict(zip(("mean", "low", "high"), above, strict=True))},
        "causal": causal,
        **more,
    }


def ranked(value: float, subjects: int = 100) -> tuple[float, float, float]:
    """An AUC of two classes of one size with its interval by Hanley and McNeil 1982, clipped to [0, 1]."""
    auc, n = max(value, 1 - value), subjects / 2
    variance = (auc * (1 - auc) + (n - 1) * (auc / (2 - auc) + 2 * auc**2 / (1 + auc) - 2 * auc**2)) / n**2
    reach = 1.96 * max(variance, 0.0) ** 0.5
    return value, max(value - reach, 0.0), min(value + reach, 1.0)


def moved(owner: float, breast: float, subjects: int = 100, **more) -> dict[str, Any]:
    """A transplant probe: its AUCs by the tumour's owner and by the breast, hard and soft the same."""
    a, b = ranked(owner, subjects), ranked(breast, subjects)
    return {
        "subjects": subjects,
        "swap_trained": False,
        "owner": score(a),
        "breast": score(b),
        "owner_less_breast": apart(a, b),
        "soft_owner": score(a),
        "soft_breast": score(b),
        "same_decision": {"mean": 0.5, "low": 0.4, "high": 0.6, "subjects": subjects},
        **more,
    }
