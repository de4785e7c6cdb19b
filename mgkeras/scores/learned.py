"""Whether a fit has learned what it was trained on. A model that has not says nothing of the exams when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgkeras.settings import LEARNED_AUC


def not_learned(per_fold: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{fold: training AUC} of the folds whose training AUC is below LEARNED_AUC, in order; keys are text, as in JSON.

    Args:
        per_fold: of summary.json; ``train.auc`` is that of the final weights on the fold's own training exams as they
            are, None where it is not known.
    """
    known = {str(fold["fold"]): fold["train"]["auc"] for fold in per_fold if fold["train"]["auc"] is not None}
    return {fold: auc for fold, auc in known.items() if auc < LEARNED_AUC}


def advice(found: Mapping[str, float], folds: int, augment: str, preset: str) -> str:
    """A warning and what to try, for :func:`not_learned`'s folds; '' where there are none.

    Args:
        found: from not_learned.
        folds: of the run.
        augment, preset: of its settings; what is used already is not advised.
    """
    if not found:
        return ""
    which = ", ".join(f"{int(fold) + 1} (training AUC {auc:.2f})" for fold, auc in found.items())
    ways = [
        *(["--preset workstation"] if preset == "demo" else []),
        *(["--augment anatomical"] if augment == "paper" else []),
        "more --epochs",
        "a higher --learning-rate",
        *(["--augment none"] if augment != "none" else []),
        "a larger --side, where the tumours are small",
    ]
    return (
        f"warning: {len(found)} of {folds} folds have not learned their own training exams, with an AUC below "
        f"{LEARNED_AUC:g}: {which}. Their held-out scores tell of the training, not of the exams. Try, with another "
        f"--out: {'; '.join(ways)}"
    )
