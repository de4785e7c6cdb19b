"""The rows of benchmarks/guidance.py as the Markdown tables of docs/models.md and README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SCORES = (  # heading, the key of its numbers
    ("AUC fair", "fair_auc"),
    ("AUC leak", "leak_auc"),
    ("AUC leak, tumour blurred", "leak_auc_rest_only"),
    ("CE", "ce"),
)
EVIDENCE = (
    ("AUC by owner", "leak_transplant_owner"),
    ("AUC by breast", "leak_transplant_breast"),
    ("evidence in the tumour", "fair_mass"),
    ("of it, for the class", "fair_mass_for_class"),
    ("variance in the tumour", "fair_ledger"),
)
SHORT = (
    ("AUC, trap tells nothing", "fair_auc"),
    ("AUC, tumour blurred", "leak_auc_rest_only"),
    ("evidence in the tumour", "fair_mass"),
)
TRAPS = ("spot", "marker", "near", "bias", "enhancement", "noise", "site", "none")
MODELS = ("no-mask", "mask-only", "guided", "guided-context")


def table(rows: Iterable[Row], columns: Sequence[tuple[str, str]]) -> str:
    """A row for each trap, model and kind of masks; several numbers in a cell are those of the seeds, in order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault((row["trap"], row["model"], row["masks"]), []).append(row)
    found = ["| trap | model | seeds | " + " | ".join(name for name, _ in columns) + " |"]
    found.append("|---" * (len(columns) + 3) + "|")
    for (trap, model, masks), own in groups.items():
        name = model if masks == "true" else f"{model}, masks {masks}"
        seeds = ", ".join(str(row["seed"]) for row in own)
        cells = [_cell(own, key) for _, key in columns]
        found.append(f"| {trap} | {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(found)


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands; a model with settings of its own follows its kind."""
    kind = row["model"].partition("/")[0]
    return TRAPS.index(row["trap"]), MODELS.index(kind), row["model"], row["masks"] != "true", row["masks"], row["seed"]


def _cell(rows: Sequence[Row], key: str) -> str:
    if rows[0]["trap"] == "none" and key.startswith("leak"):
        return "-"  # without a trap nothing leaks: these patients are only others
    return "-" if any(row.get(key) is None for row in rows) else ", ".join(f"{row[key]:.2f}" for row in rows)
