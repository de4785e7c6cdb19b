"""What benchmarks/guidance.py asks of a trained model on new patients."""

from __future__ import annotations

import numpy as np

from mgkeras.data import context
from mgkeras.data.cache import Cache
from mgkeras.inference.forward import Forward, forward_of, score_rows
from mgkeras.models.guided import MaskGuided
from mgkeras.scores.attention import attention_scores
from mgkeras.scores.metrics import auc_score

BATCH = 10


def judged(model: MaskGuided, cache: Cache, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Scores of a model on the patients of a cache.

    Returns:
        ``auc``; ``auc_tumour_only`` and ``auc_rest_only`` with everything outside, or inside, the kept tumour blurred;
        ``transplant_owner`` and ``transplant_breast``, each tumour in another patient's exam; ``mass`` of the decision
        map's absolute value in cells that the tumour touches, with ``mass_chance``; ``mass_for_class`` of its positive
        part for the predicted class; ``class_mass`` of the literal class map's positive part; ``peak`` in the tumour;
        ``ledger`` the share of the log-odds' variance between patients that lies in those cells.
    """
    rows, forward = range(len(labels)), forward_of(model)
    scored = score_rows(model, cache, rows, causal=True, forward=forward)
    found = {"auc": auc_score(labels, scored.probability)}
    for name, values in (("tumour_only", scored.outside_blurred), ("rest_only", scored.inside_blurred)):
        known = ~np.isnan(values)
        found[f"auc_{name}"] = auc_score(labels[known], values[known])
    if not model.settings.uses_box:
        found |= transplants(model, cache, labels, seed, forward)
    evidence = scored.maps[..., 1] - scored.maps[..., 0]  # (n, g, g, g) of the log-odds
    sign = np.where(scored.predicted, 1.0, -1.0)[:, None, None, None]
    decision = looks(sign * evidence, scored.attention, cache)
    class_maps = np.stack([scored.maps[row, ..., one] for row, one in enumerate(scored.predicted)])
    literal = looks(class_maps, scored.attention, cache)
    found |= {
        "mass": decision["mass_in_mask"],
        "mass_chance": decision["mass_chance"],
        "mass_for_class": decision["mass_for_class"],
        "peak": decision["peak_in_mask"],
        "class_mass": literal["mass_for_class"],
        "ledger": in_tumour(evidence, cache),
    }
    return {name: float(value) for name, value in found.items()}


def looks(maps: np.ndarray, attention: np.ndarray, cache: Cache) -> dict[str, float]:
    """The mean over patients of the scores of maps (n, g, g, g), undefined ones left out."""
    each = [
        attention_scores(cells, seen, cache.mask[row, 0], float(cache.voxel_mm[row]))
        for row, (cells, seen) in enumerate(zip(maps, attention, strict=True))
    ]
    names = ("mass_in_mask", "mass_chance", "mass_for_class", "peak_in_mask")
    return {name: float(np.mean([one[name] for one in each if one[name] is not None])) for name in names}


def in_tumour(evidence: np.ndarray, cache: Cache) -> float:
    """Covariance over patients of the tumour's cells' evidence with all of it, over the variance of all of it."""
    n, grid = len(evidence), evidence.shape[1]
    cell = cache.mask.shape[-1] // grid
    cells = np.asarray(cache.mask[:n, 0]).reshape(n, grid, cell, grid, cell, grid, cell).any(axis=(2, 4, 6))
    inside, whole = (evidence * cells).sum((1, 2, 3)), evidence.sum((1, 2, 3))
    return float(np.cov(inside, whole)[0, 1] / whole.var(ddof=1))


def transplants(model: MaskGuided, cache: Cache, labels: np.ndarray, seed: int, forward: Forward) -> dict[str, float]:
    """AUC for the label of the tumour's owner, and for that of the breast it was put into."""
    guidance = model.settings.guidance
    images = [np.asarray(cache.image[row, 0], np.float32) for row in range(len(labels))]
    keeps = [context.kept(cache.mask[row, 0], float(cache.voxel_mm[row]), guidance) for row in range(len(labels))]
    partner = context.balanced_partners(labels, context.coverage(images, keeps), seed)
    cubes = np.stack(
        [
            context.transplanted(
                images[row], keeps[row], images[other], keeps[other], guidance.blur_mm / float(cache.voxel_mm[other])
            )
            for row, other in enumerate(partner)
        ]
    )[..., None]
    parts = [forward(cubes[start : start + BATCH])["probability"] for start in range(0, len(cubes), BATCH)]
    probability = np.concatenate(parts)
    return {
        "transplant_owner": auc_score(labels, probability),
        "transplant_breast": auc_score(labels[partner], probability),
    }
