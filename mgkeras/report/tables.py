"""The report's tables of what the runs' files hold: folds, columns, masks, settings, versions, subgroups.

Each function gives rows of text of one set of columns, as evaluation.tables does for scores; [] where nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mgkeras.report.facts import RunFacts
from mgkeras.scores.baselines import MISSING
from mgkeras.scores.format import cell
from mgkeras.scores.subgroups import LEVELS, columns_of
from mgkeras.scores.summary import number
from mgkeras.settings import NEVER, flatten

Table = list[dict[str, str]]
SOURCES = {"fcm": "made from the pre and early phases", "given": "given with the cohort"}


def fold_table(run: RunFacts, labels: Mapping[str, int]) -> Table:
    """A row a fold: how many subjects of each class are held out, and how many are trained on."""
    held_out_in, left_out = run.folds.get("held_out_in", {}), run.folds.get("left_out") or []
    rows = []
    for fold in sorted(set(held_out_in.values()) - {NEVER}):
        held, rest = (
            [labels[name] for name, place in held_out_in.items() if name in labels and (place == fold) == own]
            for own in (True, False)
        )
        rows.append(
            {
                "fold": f"{fold}, {run.folds['leave_out']} {left_out[fold]}" if left_out else str(fold),
                "held out": str(len(held)),
                "class 1 held out": _share(sum(held), len(held)),
                "trained on": str(len(rest)),
                "class 1 trained on": _share(sum(rest), len(rest)),
            }
        )
    return rows


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)" if whole else "0"


def column_table(run: RunFacts, labels: Mapping[str, int], outcome: str | None) -> Table:
    """A row a column of the cohort table (a row a level of a category), by class of the outcome."""
    rows: Table = []
    for column in columns_of(run.cohort, outcome):
        values = {row["subject"]: (row.get(column) or "").strip() for row in run.cohort}
        known = {name: value for name, value in values.items() if value.lower() not in MISSING}
        groups = [
            [value for name, value in known.items() if label is None or labels.get(name) == label]
            for label in (None, 0, 1)
        ]
        lost = str(len(values) - len(known))
        numbers = [_floats(group) for group in groups]
        if len(set(known.values())) > LEVELS:
            words = [f"{len(set(group))} values" for group in groups]
            cells = [_spread(group) for group in numbers] if numbers[0] else words
            rows.append(_by_class(column, cells, lost))
            continue
        for level in sorted(set(known.values())):
            cells = [_share(group.count(level), len(group)) for group in groups]
            rows.append(_by_class(f"{column}: {level}", cells, lost))
    return rows


def _by_class(name: str, cells: Sequence[str], lost: str) -> dict[str, str]:
    return dict(zip(("column", "all", "class 0", "class 1", "missing"), (name, *cells, lost), strict=True))


def _floats(values: Sequence[str]) -> list[float]:
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


def _spread(values: Sequence[float]) -> str:
    if not len(values):
        return "-"
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:g} ({low:g} to {high:g})"


def mask_table(run: RunFacts) -> Table:
    """A row a source of masks: how many, how large, how many are empty or carry a warning."""
    rows = []
    for source, count in Counter(row.get("source", "") for row in run.masks).items():
        own = [row for row in run.masks if row.get("source", "") == source]
        volumes = [number(row.get("volume_mm3")) or 0.0 for row in own]
        filled = [volume / 1000 for volume in volumes if volume]
        rows.append(
            {
                "source": SOURCES.get(source, source or "not said"),
                "masks": str(count),
                "empty": str(volumes.count(0.0)),
                "with a warning": str(sum(bool(row.get("warning")) for row in own)),
                "volume in ml, median (quartiles)": _spread([round(volume, 2) for volume in filled]),
                "smallest to largest": f"{min(filled):.2f} to {max(filled):.2f}" if filled else "-",
            }
        )
    return rows


def warning_table(run: RunFacts) -> Table:
    """A row a mask that carries a warning."""
    return [
        {
            "subject": row["subject"],
            "volume (ml)": f"{(number(row.get('volume_mm3')) or 0) / 1000:.2f}",
            "warning": row["warning"],
        }
        for row in run.masks
        if row.get("warning")
    ]


def settings_table(runs: Sequence[RunFacts], part: str = "") -> Table:
    """A row a setting (of the part whose dotted names begin so), a column a run."""
    flat = {run.name: flatten(dict(run.settings)) for run in runs}
    names = list(dict.fromkeys(name for values in flat.values() for name in values if name.startswith(part)))
    return [{"setting": name, **{run: _plain(values.get(name)) for run, values in flat.items()}} for name in names]


def differing(rows: Table) -> Table:
    """The rows whose runs do not all agree."""
    return [row for row in rows if len(set(list(row.values())[1:])) > 1]


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"


def environment_table(runs: Sequence[RunFacts]) -> Table:
    """A row a package or device, a column a run."""
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    return [{"what": name, **{run.name: run.environment.get(name, "-") for run in runs}} for name in names]


def cost_table(runs: Sequence[RunFacts]) -> Table:
    """A row a run: how large the network is and how long its training took."""
    return [
        {
            "Model": run.name,
            "numbers in a fold's weights": "-" if run.weights is None else f"{run.weights:,}",
            "training, all folds": "-" if run.seconds is None else f"{run.seconds / 60:.1f} min",
        }
        for run in runs
    ]


def gap_table(gaps: Sequence[Mapping[str, Any]]) -> Table:
    """A row a column and model: the largest difference of sensitivity and of specificity between its groups."""
    return [
        {
            "column": gap["column"],
            "groups": str(gap["groups"]),
            "model": gap["model"],
            "sensitivity (95 %)": cell(gap["sensitivity"]),
            "specificity (95 %)": cell(gap["specificity"]),
        }
        for gap in gaps
    ]


def subgroup_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    """A row a group, a column a model: its AUC with interval."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for score in scores:
        row = rows.setdefault(
            (score["column"], score["group"]),
            {
                "column": score["column"],
                "group": score["group"],
                "subjects": str(score["subjects"]),
                "class 1": str(score["positives"]),
            },
        )
        row[f"AUC {score['model']} (95 %)"] = cell(score["auc"])
    return list(rows.values())
