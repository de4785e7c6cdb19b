"""Does the network know where an exam was made? The site predicted from its features, and the outcome within each site.

Where the outcome goes with the site, a network that tells sites apart can score without looking at a tumour. Its AUC
within each site cannot come from that.

How the site is predicted: each fold's model has features of its own, so nothing is fitted across folds. Within a
fold's held-out subjects, for each group against the rest, a ridge logistic regression on the standardised pooled
features (balanced class weights) is fitted on INNER - 1 parts of INNER, stratified and with no patient in two of them,
and scores the part left out; the scores are centred by fold, and the AUC counts pairs within folds. With more than two
groups it is the mean of their AUCs. A fold in which a group or its rest has fewer than two patients says nothing of
that group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mgkeras.scores import metrics
from mgkeras.scores.patients import Patients, clusters, numbers_of
from mgkeras.scores.subgroups import columns_of, groups_of
from mgkeras.scores.within import auc_draws, aucs_within, interval

NAMES = frozenset(
    ("site", "center", "centre", "hospital", "institution", "scanner", "manufacturer", "vendor", "tesla", "field")
)
UNKNOWN = "not known"  # groups_of calls so those whose cell is empty; they are no site
INNER = 5  # ours, because a fold holds out some twenty subjects: parts that the site is cross-fitted in
STRENGTH = 0.1  # ours, because there are more features than subjects: C of the ridge penalty
HeldOut = Mapping[str, tuple[int, int, float]]


def site_columns(cohort: Sequence[Mapping[str, str]], outcome: str | None) -> list[str]:
    """The columns of a cohort table that say where an exam was made: one of their names' words is in NAMES."""
    return [name for name in columns_of(cohort, outcome) if NAMES & set(re.split("[^a-z]+", name.lower()))]


def site_probe(
    features: Mapping[str, np.ndarray],
    held_out: HeldOut,
    cohort: Sequence[Mapping[str, str]],
    outcome: str | None,
    *,
    samples: int = 2000,
    seed: int = 0,
    patients: Patients | None = None,
) -> dict[str, Any] | None:
    """The site in the features, and the outcome within each site.

    Args:
        features: {subject: (k,) its pooled features by the model that held it out}.
        held_out: {subject: (fold, label, probability)}.
        cohort: rows of RUN/cohort.csv.
        outcome: the label's own column.
        samples, seed: of the bootstrap within folds.
        patients: see patients.py.

    Returns:
        ``columns`` [{column, groups: how many, predicted_auc: {value, low, high, subjects}, within: [{group, subjects,
        auc: {value, low, high, subjects}}]}]; None where no column groups the subjects.
    """
    found: list[dict[str, Any]] = []
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients}
    for column in site_columns(cohort, outcome):
        values = {row["subject"]: row.get(column) or "" for row in cohort if row["subject"] in held_out}
        groups = {name: members for name, members in groups_of(values).items() if name != UNKNOWN}
        if len(groups) > 1:
            found.append(
                {
                    "column": column,
                    "groups": len(groups),
                    "predicted_auc": _predicted(features, held_out, groups, **options),
                    "within": [
                        {"group": group, **_within(held_out, members, **options)} for group, members in groups.items()
                    ],
                }
            )
    return {"columns": found} if found else None


def _within(held_out: HeldOut, members: Sequence[str], *, patients: Patients | None, **options: int) -> dict[str, Any]:
    folds, labels, p = (np.array(part) for part in zip(*(held_out[name] for name in members), strict=True))
    found = aucs_within(folds, {"auc": (labels, p)}, patients=numbers_of(patients, members), **options)
    return {"subjects": len(members), "auc": found.auc("auc")}


def _predicted(
    features: Mapping[str, np.ndarray],
    held_out: HeldOut,
    groups: Mapping[str, Sequence[str]],
    *,
    samples: int,
    seed: int,
    patients: Patients | None,
) -> dict[str, Any]:
    """{value, low, high, subjects} of the groups told from the features, one against the rest, mean over groups."""
    group_of = {name: group for group, members in groups.items() for name in members if name in features}
    folds = np.array([held_out[name][0] for name in group_of])
    design = np.array([features[name] for name in group_of], np.float64)
    numbers = clusters(numbers_of(patients, list(group_of)), len(folds))
    values, scored, scores = [], np.zeros(len(folds), bool), {}
    for group in list(groups)[:1] if len(groups) == 2 else groups:  # of two, each is the other's rest
        target = np.array([int(value == group) for value in group_of.values()])
        found = cross_fitted_scores(design, target, folds, seed, numbers)
        known = np.isfinite(found)
        if known.any():
            values.append(metrics.auc_within(target[known], found[known], folds[known]))
            scores[group] = target, found
            scored |= known
    if not values:
        return interval(None, np.empty(0)) | {"subjects": 0}
    drawn = auc_draws(folds, scores, samples=samples, seed=seed, patients=numbers)
    return interval(float(np.mean(np.array(values, np.float64))), np.mean(list(drawn.values()), axis=0)) | {
        "subjects": int(scored.sum())
    }


def cross_fitted_scores(
    design: np.ndarray, target: np.ndarray, folds: np.ndarray, seed: int = 0, patients: np.ndarray | None = None
) -> np.ndarray:
    """How much each subject looks like the target, by regressions of its own fold that did not see it.

    Args:
        design: (n, k) features. target: (n,) 0/1. folds: (n,).
        seed: of the inner parts.
        patients: (n,) as patients.clusters gives them; no patient is in two parts.

    Returns:
        (n,) float64 log-odds centred by fold; NaN in folds with fewer than two subjects, or patients, of either kind.
    """
    found = np.full(len(folds), np.nan)
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        who = own if patients is None else patients[own]
        fewest = min(np.unique(who[target[own] == kind]).size for kind in (0, 1))
        if fewest < 2:
            continue
        splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
        parts = splitter(min(INNER, int(fewest)), shuffle=True, random_state=seed)
        groups = () if patients is None else (who,)  # StratifiedKFold warns of groups
        for fit, left in parts.split(own, target[own], *groups):
            if np.unique(target[own[fit]]).size < 2:
                continue
            ridge = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
            model = make_pipeline(StandardScaler(), ridge)
            found[own[left]] = model.fit(design[own[fit]], target[own[fit]]).decision_function(design[own[left]])
        known = own[np.isfinite(found[own])]
        found[known] -= found[known].mean()
    return found
