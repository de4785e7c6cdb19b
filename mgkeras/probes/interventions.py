"""Probes that put the tumour somewhere else or take it away: their summaries, every AUC within folds.

A perfect reader of tumours keeps its AUC for the owner when a tumour is transplanted and has 0.5 for the breast; a
perfect reader of everything else the other way round. Filling a hole elsewhere shows what a hole alone does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mgkeras.probes.causal import change_of
from mgkeras.scores import metrics
from mgkeras.scores.patients import Patients, numbers_of
from mgkeras.scores.summary import column_mean, mean_interval
from mgkeras.scores.within import Rows, aucs_of, aucs_within, complete

CONTROLS = {"hole": "p_hole", "filled": "p_inside_filled"}
MEANS = ("mass_chance_body", "mass_of_t1")


def transplant(
    rows: Rows, swap_trained: bool, *, samples: int = 2000, seed: int = 0, patients: Patients | None = None
) -> dict[str, Any] | None:
    """Whose label the prediction follows when each tumour stands in another patient's breast.

    Args:
        rows: of RUN/probes/subjects.csv: ``fold``, ``label``, ``probability``, ``partner_label``, ``p_transplant``,
            ``p_transplant_soft``.
        swap_trained: whether the network was trained with the hard operator.
        samples, seed: of the bootstrap within folds.
        patients: see patients.py.

    Returns:
        ``subjects``, ``swap_trained``; ``owner``, ``breast``, ``soft_owner``, ``soft_breast`` AUCs {value, low, high,
        subjects}; ``owner_less_breast`` {value, low, high}, paired; ``same_decision`` the share of subjects whose
        predicted class stays under the hard one {mean, low, high, subjects}. None where nobody was transplanted.
    """
    known = complete(rows, ("probability", "partner_label", "p_transplant", "p_transplant_soft"))
    if not known["fold"].size:
        return None
    options: dict[str, Any] = {
        "samples": samples,
        "seed": seed,
        "patients": numbers_of(patients, known["subject"].tolist()),
    }
    owner, breast = known["label"], known["partner_label"].astype(np.int64)
    hard, soft = known["p_transplant"], known["p_transplant_soft"]
    scores = {
        "owner": (owner, hard),
        "breast": (breast, hard),
        "soft_owner": (owner, soft),
        "soft_breast": (breast, soft),
    }
    found = aucs_within(known["fold"], scores, **options)
    same = (hard >= metrics.THRESHOLD) == (known["probability"] >= metrics.THRESHOLD)
    return {
        "subjects": found.subjects,
        "swap_trained": swap_trained,
        **{name: found.auc(name) for name in scores},
        "owner_less_breast": found.less("owner", "breast"),
        "same_decision": mean_interval(same, **options),
    }


def controls(
    rows: Rows, *, samples: int = 2000, seed: int = 0, patients: Patients | None = None
) -> dict[str, Any] | None:
    """The tumour filled, a hole elsewhere filled, and what maps that know nothing of the label score.

    Args:
        rows: of RUN/probes/subjects.csv: ``p_inside_filled``, ``p_hole``, ``mass_chance_body``, ``mass_of_t1``.
        samples, seed: of the bootstrap.
        patients: see patients.py.

    Returns:
        ``hole`` and ``filled``: {auc, less_whole: that less the AUC of the same subjects' whole exams, paired, change:
        the mean absolute change of the probability}; the means of MEANS {mean, low, high, subjects}. None where the run
        was probed before there were these.
    """
    if not any(name in row for row in rows for name in (*CONTROLS.values(), *MEANS)):
        return None
    found: dict[str, Any] = {}
    options: dict[str, Any] = {"samples": samples, "seed": seed, "patients": patients}
    for name, column in CONTROLS.items():
        aucs = aucs_of(rows, {"whole": "probability", "altered": column}, **options)
        found[name] = {
            "auc": aucs.auc("altered"),
            "less_whole": aucs.less("altered", "whole"),
            "change": change_of(rows, column, **options),
        }
    return found | {name: column_mean(rows, name, **options) for name in MEANS}
