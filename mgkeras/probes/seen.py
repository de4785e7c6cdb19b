"""One fold's ledgers and pooled features: what its model makes of each held-out exam as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data import context
from mgkeras.data.stream import plain_stream
from mgkeras.models.weights import write_arrays
from mgkeras.probes.fold import Fold
from mgkeras.probes.ledger import entries, parts_of
from mgkeras.runs import store
from mgkeras.scores.attention import chance_in_body, mass_of_image


@dataclass(frozen=True, eq=False)
class Seen:
    """What a fold's model makes of its n held-out exams.

    Attributes:
        subjects: their names.
        ledger: rows of ledger.csv, of the subjects with a mask; none where the network ends in a pool.
        controls: a dict a held-out subject, columns of subjects.csv: ``mass_chance_body`` and ``mass_of_t1``.
        features: (n, k) float32, pooled, as batch normalisation gets them.
    """

    subjects: list[str]
    ledger: list[dict[str, Any]]
    controls: list[dict[str, float | None]]
    features: np.ndarray


def seen(fold: Fold, labels: Sequence[int]) -> Seen:
    """One forward pass over a fold's held-out subjects, of the given labels (0/1)."""
    ledger, controls, features = [], [], []
    _, bias = fold.model.head.weights()
    constant = float(bias[1] - bias[0])
    batches = plain_stream(fold.cache, fold.held_out, fold.settings.training.batch_size)
    exams = (
        (volume, mask, answer)
        for volumes, masks in batches
        for volume, mask, answer in zip(volumes[..., 0], masks[..., 0], _each(fold.forward(volumes)), strict=True)
    )
    for row, label, (volume, mask, found) in zip(fold.held_out, labels, exams, strict=True):
        body = None if fold.settings.uses_box else context.body_of(volume)
        grid = found["maps"].shape[0]
        controls.append(
            {
                "mass_chance_body": None if body is None else chance_in_body(mask, body, grid),
                "mass_of_t1": mass_of_image(volume, mask, grid),
            }
        )
        features.append(found["pooled"])
        if mask.any() and not fold.settings.backbone.last_pool:
            evidence = found["maps"][..., 1].astype(np.float64) - found["maps"][..., 0]
            parts = parts_of(mask, body, float(fold.cache.voxel_mm[row]), grid)
            ledger.append(
                {
                    "subject": fold.cache.subjects[row],
                    "fold": fold.number,
                    "label": int(label),
                    "log_odds": float(found["evidence"]),
                    "constant": constant,
                    **entries(evidence, parts),
                }
            )
    return Seen([fold.cache.subjects[row] for row in fold.held_out], ledger, controls, np.array(features, np.float32))


def write_seen(out: Path, looks: Sequence[Seen]) -> None:
    """RUN/probes/ledger.csv, which is taken away where there is none, and features.h5, of all folds."""
    (out / "ledger.csv").unlink(missing_ok=True)
    if rows := [row for look in looks for row in look.ledger]:
        store.write_rows(out / "ledger.csv", rows)
    names = np.array([name for look in looks for name in look.subjects], dtype="S")
    write_arrays(
        out / "features.h5",
        {"subject": names, "features": np.concatenate([look.features for look in looks])},
        {
            "features": "(n, k) pooled, as batch normalisation gets them, by the fold's own model: comparable "
            "within a fold only"
        },
    )


def _each(batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """A batch's arrays, one dict an exam."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
