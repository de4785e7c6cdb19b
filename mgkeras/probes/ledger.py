"""The ledger of a decision: how much of a patient's log-odds each part of the exam's grid brings, exactly.

log-odds = constant + sum over the map's cells of E / (number of cells), where E is the class 1 map less the class 0
map with batch normalisation folded in (models/cam.py) and the constant the folded biases' difference. So the cells can
be added up by where they lie. Where the backbone ends in a pool the identity does not hold and there is no ledger.

A cell's evidence was made from all that its receptive field sees: the ledger says where the network's last features
stand, not which tissue they come from. Altered exams ask for that.

Glossary:
    tumour: the cells that the mask touches. outside: those of the others without a voxel of the body. ring: those of
        the rest that tissue within RING_MM of the mask touches. body: what is left.
    share of variance: of a part, its covariance with the log-odds between patients over the log-odds' variance. Both
        are within folds, whose constants and scales differ; the shares sum to 1 and may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mgkeras.scores.attention import pool, ring
from mgkeras.scores.patients import Patients, clusters, numbers_of
from mgkeras.scores.summary import mean_and_sd, mean_interval, number
from mgkeras.scores.within import draws_within, interval

PARTS = ("tumour", "ring", "body", "outside")
NO_LEDGER = "the network ends in a pool, so the mean of its map is not the log-odds"
Rows = Sequence[Mapping[str, Any]]


def parts_of(mask: np.ndarray, body: np.ndarray | None, voxel_mm: float, grid: int) -> np.ndarray:
    """Where each cell of a map lies: (grid, grid, grid) int, an index into PARTS.

    Args:
        mask: (side, side, side) bool, not empty; grid divides side.
        body: the same shape, bool; None where the cube is a box in the body: then nothing is outside.
        voxel_mm: edge of a cube voxel, mm.
    """
    found = np.full((grid,) * 3, PARTS.index("body"))
    found[pool(ring(mask, voxel_mm), grid) > 0] = PARTS.index("ring")
    if body is not None:
        found[pool(body, grid) == 0] = PARTS.index("outside")
    found[pool(mask, grid) > 0] = PARTS.index("tumour")
    return found


def entries(evidence: np.ndarray, parts: np.ndarray) -> dict[str, float | int]:
    """One patient's entries in ledger.csv.

    Args:
        evidence: (g, g, g) E, log-odds, any sign.
        parts: (g, g, g) from :func:`parts_of`.

    Returns:
        Of each part its own name: what it brings, in log-odds; ``cells_PART`` how many cells it has; ``weight_PART``
        what it would bring if all its evidence had one sign, the sum of |E| over the number of cells.
    """
    evidence, cells = np.asarray(evidence, np.float64), parts.size
    brought, weight = (
        np.bincount(parts.ravel(), values.ravel(), len(PARTS)) / cells for values in (evidence, np.abs(evidence))
    )
    counted = np.bincount(parts.ravel(), minlength=len(PARTS))
    return {
        **{name: float(brought[at]) for at, name in enumerate(PARTS)},
        **{f"cells_{name}": int(counted[at]) for at, name in enumerate(PARTS)},
        **{f"weight_{name}": float(weight[at]) for at, name in enumerate(PARTS)},
    }


def ledger_summary(
    rows: Rows, *, samples: int = 2000, seed: int = 0, patients: Patients | None = None
) -> dict[str, Any] | None:
    """The ledger of a run's held-out patients.

    Args:
        rows: of RUN/probes/ledger.csv: ``fold``, ``constant`` and what :func:`entries` gives.
        samples, seed: of the bootstrap.
        patients: see patients.py.

    Returns:
        ``subjects``; ``parts`` [{part, cells: the share of the cells that it has {mean, low, high, subjects}, evidence:
        its share of the sum of |E| likewise, variance: {value, low, high}, sd: of what it brings, log-odds, between
        patients within folds}]; ``constant`` {mean, sd, folds}. None without rows.
    """
    if not rows:
        return None
    numbers = clusters(numbers_of(patients, [row.get("subject") or "" for row in rows]), len(rows))
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": numbers}
    folds = np.array([int(row["fold"]) for row in rows])
    brought, cells, weight = (
        np.array([[float(row[f"{what}{part}"]) for part in PARTS] for row in rows])
        for what in ("", "cells_", "weight_")
    )
    spread, sd = _variance(brought, folds, **options)
    total = weight.sum(axis=1)
    some = {**options, "patients": None if numbers is None else numbers[total > 0]}
    parts = [
        {
            "part": part,
            "cells": mean_interval(cells[:, at] / cells.sum(axis=1), **options),
            "evidence": mean_interval(weight[total > 0, at] / total[total > 0], **some),
            "variance": spread[at],
            "sd": sd[at],
        }
        for at, part in enumerate(PARTS)
    ]
    constants = {int(row["fold"]): number(row["constant"]) for row in rows}
    return {"subjects": len(rows), "parts": parts, "constant": mean_and_sd(constants.values())}


def _variance(
    brought: np.ndarray, folds: np.ndarray, *, samples: int, **options: Any
) -> tuple[list[dict[str, Any]], list[float | None]]:
    """Each part's share of the variance within folds, with its interval, and its standard deviation there.

    brought is (n, parts). Their sum is the log-odds less the fold's constant, which centring takes away anyway.
    """
    places = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    (shares,) = _shares(brought, ((slice(0, 1), own, np.ones((1, own.size))) for own in places), 1)
    drawn = _shares(brought, draws_within(folds, samples=samples, **options), samples)
    squares, freedom = sum((_centred(brought[own]) ** 2).sum(axis=0) for own in places), len(folds) - len(places)
    return (
        [interval(float(share) if np.isfinite(share) else None, drawn[:, at]) for at, share in enumerate(shares)],
        [float(square) for square in np.sqrt(squares / freedom)] if freedom > 0 else [None] * len(shares),
    )


def _shares(brought: np.ndarray, draws: Iterable[tuple[slice, np.ndarray, np.ndarray]], samples: int) -> np.ndarray:
    """(samples, parts) shares of the variance under each draw, NaN where there is none.

    draws are those of within.draws_within; each draw is centred by its own fold means.
    """
    covariance = np.zeros((samples, brought.shape[1]))
    for part, places, many in draws:
        own = _centred(brought[places])  # so that little is lost in the difference below
        total = own.sum(axis=1)
        covariance[part] += many @ (own * total[:, None]) - (many @ own) * (many @ total)[:, None] / len(own)
    variance = covariance.sum(axis=1, keepdims=True)
    return np.divide(covariance, variance, out=np.full_like(covariance, np.nan), where=variance > 1e-20)


def _centred(brought: np.ndarray) -> np.ndarray:
    return brought - brought.mean(axis=0)
