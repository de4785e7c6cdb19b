"""The rows of benchmarks/guidance.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = (  # heading, key, whether the worst seed is the lowest (min) or the highest (max)
    ("AUC fair", "fair_auc", min),
    ("AUC leak", "leak_auc", min),
    ("tumour only (leak)", "leak_auc_tumour_only", min),
    ("tumour blurred (leak)", "leak_auc_rest_only", max),
    ("transplant: owner (leak)", "leak_transplant_owner", min),
    ("transplant: breast (leak)", "leak_transplant_breast", max),
    ("mass of E in the tumour (fair)", "fair_mass", min),
    ("of E for the predicted class", "fair_mass_for_class", min),
    ("class map's mass (fair)", "fair_class_mass", min),
    ("variance of E in the tumour (fair)", "fair_ledger", min),
    ("CE", "ce", max),
    ("Dice", "dice", min),
)


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of one set of masks after the other: a row a trap and model, mean over seeds, the worst in brackets."""
    found = []
    for masks in dict.fromkeys(row["masks"] for row in rows):
        own = [row for row in rows if row["masks"] == masks]
        found += [
            f"Masks: {masks}",
            "",
            "| trap | model | seeds | " + " | ".join(name for name, *_ in COLUMNS) + " |",
            "|---" * (len(COLUMNS) + 3) + "|",
        ]
        for trap, model in dict.fromkeys((row["trap"], row["model"]) for row in own):
            these = [row for row in own if (row["trap"], row["model"]) == (trap, model)]
            cells = [_cell(these, key, worst) for _, key, worst in COLUMNS]
            seeds = " ".join(str(row["seed"]) for row in these)
            found.append(f"| {trap} | {model} | {seeds} | " + " | ".join(cells) + " |")
        found.append("")
    return "\n".join([*found, "Mean over seeds, in brackets the worst seed; - not defined for this model."])


def _cell(rows: Sequence[Mapping[str, Any]], key: str, worst: Any) -> str:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return f"{np.mean(values):.2f} ({worst(values):.2f})" if values else "-"
