"""The rows of benchmarks/guidance.py as the Markdown tables of docs/models.md and README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

COLUMNS = (  # heading, the keys of its numbers, the key of what chance has
    ("AUC fair", ("fair_auc",), ""),
    ("AUC leak", ("leak_auc",), ""),
    ("tumour blurred (leak)", ("leak_auc_rest_only",), ""),
    ("transplant: owner / breast (leak)", ("leak_transplant_owner", "leak_transplant_breast"), ""),
    ("mass of E (chance)", ("fair_mass",), "fair_mass_chance"),
    ("of E for the class", ("fair_mass_for_class",), ""),
    ("variance of E in the tumour", ("fair_ledger",), ""),
    ("CE", ("ce",), ""),
)
SHORT = (
    ("AUC where the trap tells nothing", ("fair_auc",), ""),
    ("AUC with the tumour blurred, where the trap tells", ("leak_auc_rest_only",), ""),
    ("evidence in the tumour's cells (chance)", ("fair_mass",), "fair_mass_chance"),
)
TRAPS = ("spot", "marker", "near", "bias", "enhancement", "noise", "site", "none")
MODELS = ("no-mask", "mask-only", "guided", "guided-context")


def table(rows: Iterable[Row], columns: Sequence[tuple[str, Sequence[str], str]] = COLUMNS) -> str:
    """A row for each trap, model and kind of masks; several numbers in a cell are those of the seeds, in order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault((row["trap"], row["model"], row["masks"]), []).append(row)
    found = ["| trap | model | seeds | " + " | ".join(name for name, *_ in columns) + " |"]
    found.append("|---" * (len(columns) + 3) + "|")
    for (trap, model, masks), own in groups.items():
        name = model if masks == "true" else f"{model}, masks {masks}"
        seeds = ", ".join(str(row["seed"]) for row in own)
        cells = [_cell(own, keys, chance) for _, keys, chance in columns]
        found.append(f"| {trap} | {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(found)


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands; a model with settings of its own follows its kind."""
    kind = row["model"].partition("/")[0]
    return TRAPS.index(row["trap"]), MODELS.index(kind), row["model"], row["masks"] != "true", row["masks"], row["seed"]


def _cell(rows: Sequence[Row], keys: Sequence[str], chance: str) -> str:
    if rows[0]["trap"] == "none" and all(key.startswith("leak") for key in keys):
        return "-"  # without a trap nothing leaks: these patients are only others
    if any(row.get(key) is None for row in rows for key in keys):
        return "-"
    told = " / ".join(", ".join(f"{row[key]:.2f}" for row in rows) for key in keys)
    return f"{told} ({rows[0][chance]:.2f})" if chance else told
