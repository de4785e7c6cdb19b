"""What a decision rests on, by blurring: the AUC on whole exams, on the tumour only and on the rest only.

Counted within folds and set against each other on the same draws, see within.py. Made from a run's predictions.csv.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mgkeras.scores.patients import Patients, numbers_of
from mgkeras.scores.summary import CAUSAL, column_mean, mean_interval
from mgkeras.scores.within import Rows, aucs_of, complete

WHOLE = "auc_whole"
DIFFERENCES = {
    "outside_less_whole": ("auc_outside_blurred", WHOLE),
    "inside_less_whole": ("auc_inside_blurred", WHOLE),
    "outside_less_inside": ("auc_outside_blurred", "auc_inside_blurred"),
}


def causal_scores(
    rows: Rows, *, samples: int = 2000, seed: int = 0, patients: Patients | None = None
) -> dict[str, Any]:
    """The causal scores of one run.

    Args:
        rows: of predictions.csv; of the held-out ones ``fold``, ``label``, ``probability``, ``p_outside_blurred``,
            ``p_inside_blurred`` ('' where the mask is empty) and, but in runs of before, ``kept_ml``.
        samples, seed: of the bootstrap.
        patients: see patients.py.

    Returns:
        ``auc_whole``, ``auc_outside_blurred`` (tumour only), ``auc_inside_blurred`` (rest only) {value, low, high,
        subjects}, of the subjects that have all three; the DIFFERENCES {value, low, high}, paired; ``kept_ml`` what
        'tumour only' keeps, ml of the dilated mask {mean, low, high, subjects}, None where the run has no such column.
        {} where the run has no blurred exams.
    """
    held = [row for row in rows if row["split"] == "held-out"]
    names = {WHOLE: "probability", **CAUSAL}
    if not any(column in row for row in held for column in CAUSAL.values()):
        return {}
    found = aucs_of(held, names, samples=samples, seed=seed, patients=patients)
    return {
        **{name: found.auc(name) for name in names},
        **{name: found.less(*pair) for name, pair in DIFFERENCES.items()},
        "kept_ml": kept_ml(held, "kept_ml", samples=samples, seed=seed, patients=patients),
    }


def kept_ml(
    rows: Rows, column: str, *, samples: int = 2000, seed: int = 0, patients: Patients | None = None
) -> dict[str, Any] | None:
    """{mean, low, high, subjects} of a column of ml; None where no row has it."""
    found = column_mean(rows, column, samples=samples, seed=seed, patients=patients)
    return found if found["subjects"] else None


def change_of(rows: Rows, column: str, *, patients: Patients | None, **options: int) -> dict[str, Any]:
    """{mean, low, high, subjects} of how far a column of probabilities lies from ``probability``, in absolute value."""
    known = complete(rows, ("probability", column))
    own = numbers_of(patients, known["subject"].tolist())
    return mean_interval(np.abs(known[column] - known["probability"]), patients=own, **options)
