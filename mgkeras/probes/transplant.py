"""One fold's model asked with each held-out tumour somewhere else, or taken away: more columns of subjects.csv.

Transplants: each held-out tumour in the exam of another held-out subject of the same fold. Whose label does the
prediction follow, the tumour's owner's or the breast's? (Xiao et al. 2020, "Noise or Signal", mixed-rand.) Partners are
drawn so that a perfect reader of tumours has AUC 0.5 for the breast. Two operators, because a network may have learned
what one of them leaves behind: that of the training by swap, and one that no training uses.

Controls: the tumour filled from the tissue around it, and the same hole filled where no tumour is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mgkeras.data import context
from mgkeras.data.stream import Patches, changed_context
from mgkeras.probes.fold import Fold, asked
from mgkeras.training.fit import fold_seed

SEAM_MM = 2.0  # ours, because a seam 5 mm wide is about a tumour's rim: Gaussian sigma, 2.56 of it are 80 % of the way


def altered_rows(fold: Fold, labels: Sequence[int]) -> list[dict[str, Any]]:
    """A dict a held-out subject: its partner and its probabilities of class 1 on altered exams; None where undefined.

    Args:
        fold: see there.
        labels: 0/1 of the held-out subjects.

    Returns:
        ``p_inside_filled``, and for networks that see whole exams ``p_hole``, ``partner`` (its name),
        ``partner_label``, ``p_transplant`` and ``p_transplant_soft``.
    """
    places = range(len(fold.held_out))
    found = {"p_inside_filled": asked(fold, lambda at: _filled(fold, at), places)}
    if not fold.settings.uses_box:
        found["p_hole"] = asked(fold, lambda at: _hole_elsewhere(fold, at), places)
        found |= _transplants(fold, np.asarray(labels))
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def partners_of(fold: Fold, labels: np.ndarray) -> list[int | None]:
    """Each held-out subject's partner, a place among them; None where a mask is empty, or nobody else has one.

    A breast whose own tumour is unknown cannot be rid of it, so it is nobody's partner. Of more than
    context.CANDIDATES others so many, drawn by the fold's seed, are partners.
    """
    known = [at for at in range(len(fold.held_out)) if _mask(fold, at).any()]
    if len(known) < 2:
        return [None] * len(fold.held_out)
    seed = fold_seed(fold.settings, fold.number)
    chosen = context.drawn_candidates(len(known), seed)
    covered = context.coverage((_image(fold, known[place]) for place in chosen), (_kept(fold, at) for at in known))
    others = context.balanced_partners(labels[known], covered, seed, chosen)
    found = {at: known[other] for at, other in zip(known, others, strict=True)}
    return [found.get(at) for at in range(len(fold.held_out))]


def _transplants(fold: Fold, labels: np.ndarray) -> dict[str, list]:
    partners, guidance = partners_of(fold, labels), fold.settings.guidance
    patches: Patches = {}

    def hard(at: int) -> np.ndarray | None:
        if partners[at] is None:
            return None
        row, other = (int(fold.held_out[place]) for place in (at, partners[at]))
        return changed_context(fold.cache, row, 0, "swap", other, guidance, patches)

    def soft(at: int) -> np.ndarray | None:
        if (other := partners[at]) is None:
            return None
        return context.softly_transplanted(
            _image(fold, at),
            _kept(fold, at),
            _image(fold, other),
            _kept(fold, other),
            guidance.blur_mm / _voxel_mm(fold, other),
            SEAM_MM / _voxel_mm(fold, at),
        )

    return {
        "partner": [None if at is None else fold.cache.subjects[fold.held_out[at]] for at in partners],
        "partner_label": [None if at is None else int(labels[at]) for at in partners],
        "p_transplant": asked(fold, hard, range(len(partners))),
        "p_transplant_soft": asked(fold, soft, range(len(partners))),
    }


def _filled(fold: Fold, at: int) -> np.ndarray | None:
    """A held-out exam with its kept tumour filled; None for an empty mask."""
    return _with_hole(fold, at, _kept(fold, at)) if _mask(fold, at).any() else None


def _hole_elsewhere(fold: Fold, at: int) -> np.ndarray | None:
    """A held-out exam with a hole of its tumour's shape elsewhere in the body, filled; None where there is no place."""
    rng = np.random.default_rng([fold_seed(fold.settings, fold.number), at])
    hole = context.elsewhere(_kept(fold, at), context.body_of(_image(fold, at)), rng)
    return None if hole is None else _with_hole(fold, at, hole)


def _with_hole(fold: Fold, at: int, hole: np.ndarray) -> np.ndarray:
    return context.filled(_image(fold, at), hole, fold.settings.guidance.blur_mm / _voxel_mm(fold, at))


def _image(fold: Fold, at: int) -> np.ndarray:
    return np.asarray(fold.cache.image[fold.held_out[at], 0], np.float32)


def _mask(fold: Fold, at: int) -> np.ndarray:
    return np.asarray(fold.cache.mask[fold.held_out[at], 0])


def _voxel_mm(fold: Fold, at: int) -> float:
    return float(fold.cache.voxel_mm[fold.held_out[at]])


def _kept(fold: Fold, at: int) -> np.ndarray:
    return context.kept(_mask(fold, at), _voxel_mm(fold, at), fold.settings.guidance)
