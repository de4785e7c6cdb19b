"""Scores of parts of a cohort: does the model do as well at each site, and in each group of patients?

Glossary:
    group: the subjects with one value of a column; of a column of numbers those up to its median and those above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mgkeras.scores import metrics
from mgkeras.scores.baselines import MISSING, NOT_CLINICAL
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.summary import with_interval

GAPS = ("sensitivity", "specificity")
LEVELS = 6  # ours, because more groups hold too few subjects each to say anything
Rows = Sequence[Mapping[str, str]]


def columns_of(cohort: Rows, outcome: str | None) -> list[str]:
    """The columns that can group patients: site first, then all others but names, files and the outcome itself."""
    names = [name for name in (cohort[0] if cohort else {}) if name not in (*NOT_CLINICAL, outcome)]
    return sorted(names, key=lambda name: name != "site")


def groups_of(values: Mapping[str, str]) -> dict[str, list[str]]:
    """{group: subjects} of one column, {subject: text}; {} where it has one group, or too many to be groups."""
    known = {name: value.strip() for name, value in values.items() if (value or "").strip().lower() not in MISSING}
    levels = sorted(set(known.values()))
    if 2 <= len(levels) <= LEVELS:
        found = {level: [name for name, value in known.items() if value == level] for level in levels}
    elif numbers := _numbers(known):
        middle = float(np.median(list(numbers.values())))
        found = {
            f"up to {middle:g}": [name for name, value in numbers.items() if value <= middle],
            f"above {middle:g}": [name for name, value in numbers.items() if value > middle],
        }
    else:
        return {}
    unknown = [name for name in values if name not in known]
    return found | ({"not known": unknown} if unknown else {})


def _numbers(known: Mapping[str, str]) -> dict[str, float]:
    try:
        found = {name: float(value) for name, value in known.items()}
    except ValueError:
        return {}
    return found if len(set(found.values())) > LEVELS and np.isfinite(list(found.values())).all() else {}


def subgroup_scores(
    models: Sequence[HeldOut], cohort: Rows, outcome: str | None, *, samples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """The pooled AUC of each model in each group of each column, with a bootstrap interval over its patients.

    Args:
        models: the networks.
        cohort: rows of RUN/cohort.csv.
        outcome: the label's own column, which makes no groups.
        samples, seed: of the bootstrap.

    Returns:
        [{column, group, model, subjects, positives, auc: {value, low, high}}]; the AUC is None with one class only.
    """
    return [
        found
        for column in columns_of(cohort, outcome)
        for group, names in groups_of({row["subject"]: row.get(column) or "" for row in cohort}).items()
        for found in _scores(models, column, group, set(names), samples=samples, seed=seed)
    ]


def group_gaps(
    models: Sequence[HeldOut], cohort: Rows, outcome: str | None, *, samples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """How far sensitivity and specificity differ between the groups of a column: the largest less the smallest.

    Decisions are at the thresholds that were chosen on training subjects. Subjects whose value is not known count in no
    group. A gap of groups drawn by chance is above 0 too, the more groups and the fewer subjects the larger, so its
    interval tells no more than its size.

    Args:
        models, cohort, outcome, samples, seed: as for subgroup_scores.

    Returns:
        [{column, groups, model, sensitivity: {value, low, high}, specificity}]; None where a group has nobody of that
        class.
    """
    found = []
    for column in columns_of(cohort, outcome):
        groups = groups_of({row["subject"]: row.get(column) or "" for row in cohort})
        known = [names for group, names in groups.items() if group != "not known"]
        place = {name: number for number, names in enumerate(known) for name in names}
        for model in models if len(known) > 1 else ():
            part = model.at(np.array([name in place for name in model.subjects]))
            if part.subjects:
                codes = np.array([place[name] for name in part.subjects])
                arrays = (part.labels, part.probabilities, part.own_threshold, codes)
                options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": part.patients}
                gaps = {name: with_interval(partial(gap, name, len(known)), *arrays, **options) for name in GAPS}
                found.append({"column": column, "groups": len(known), "model": model.name, **gaps})
    return found


def gap(
    name: str, groups: int, labels: np.ndarray, p: np.ndarray, thresholds: np.ndarray, codes: np.ndarray
) -> float | None:
    """The largest less the smallest of a decision's score over groups; None where one group has nobody to score.

    Args:
        name: of metrics.decision_scores.
        groups: how many there are.
        labels, p, thresholds, codes: (n,) 0/1, P(class 1), threshold, number of the group, from 0.
    """
    values = []
    for code in range(groups):
        inside = codes == code
        if not inside.any():
            return None
        values.append(metrics.decision_scores(labels[inside], p[inside], thresholds[inside])[name])
    return None if None in values or groups < 2 else max(values) - min(values)


def _scores(
    models: Sequence[HeldOut], column: str, group: str, names: set[str], **options: int
) -> Iterator[dict[str, Any]]:
    for model in models:
        part = model.at(np.array([name in names for name in model.subjects]))
        if part.subjects:
            yield {
                "column": column,
                "group": group,
                "model": model.name,
                "subjects": len(part.subjects),
                "positives": int(part.labels.sum()),
                "auc": with_interval(
                    metrics.auc_score, part.labels, part.probabilities, patients=part.patients, **options
                ),
            }
