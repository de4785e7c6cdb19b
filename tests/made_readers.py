"""Readers made by hand, whose source is known, scored on a made cohort as a network is; for the tests of the readings.

A cohort is 60 cubes of 24^3 voxels of 3 mm: a breast with a tumour in it, and one property that goes with the label.
A reader is a function cube -> score that never sees a mask. The exams are altered by the product's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mgkeras.data import context
from mgkeras.settings import GuidanceSettings

SIDE, MM, SUBJECTS, DRAWS = 24, 3.0, 60, 300
GUIDANCE = GuidanceSettings()
SIGMA = GUIDANCE.blur_mm / MM
AXES = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")).astype(float)  # (3, side, side, side) voxels
Reader = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Cohort:
    """cubes, masks: (n, side, side, side); labels: (n,)."""

    cubes: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def cohort(trait: str, strength: float = 1.0, seed: int = 0) -> Cohort:
    """A cohort whose label is written in one trait: a key of READERS."""
    rng, cubes, masks = np.random.default_rng(seed), [], []
    labels = np.arange(SUBJECTS) % 2
    for label in labels:
        sign = strength * (2 * label - 1)
        left = trait == "side" and sign < 0 or trait != "side" and rng.random() < 0.5
        centre = np.array([7.0 if left else 16.0, 11.5, 11.5]) + rng.uniform(-1, 1, 3)
        radius = 3.0 + (0.7 * sign if trait == "volume" else 0.0) + rng.uniform(-0.2, 0.2)
        apart = np.sqrt(((AXES - centre[:, None, None, None]) ** 2).sum(0))
        mask, body = apart <= radius, np.sqrt(((AXES - 11.5) ** 2).sum(0)) <= 11
        cube = np.where(body, 1.0, 0.0)
        cube[mask] = 2.0 + 0.5 * (0.5 + 0.5 * sign * (trait == "texture")) * _checked()[mask]
        if trait in SPOTS and sign > 0:
            cube[_beside(mask, centre + [0, 0, radius], *SPOTS[trait])] = 4.0
        if trait == "gradient":
            cube *= 1 + 0.2 * sign * (AXES[0] - 11.5) / 11.5
        cube += rng.normal(0, 0.05 + (0.02 * sign if trait == "noise" else 0), cube.shape)
        cubes.append(np.clip(cube, 0, 4).astype(np.float32))
        masks.append(mask)
    return Cohort(np.array(cubes), np.array(masks), labels)


def _checked() -> np.ndarray:
    """Plus and minus 1 from voxel to voxel: a texture that a blur takes away and whose mean is 0."""
    return 1.0 - 2.0 * (AXES.sum(0) % 2)


def _beside(mask: np.ndarray, pole: np.ndarray, low: float, high: float) -> np.ndarray:
    """The voxels over the tumour's pole that lie low to high mm from the mask: a spot beside the tumour."""
    apart = ndimage.distance_transform_edt(~mask) * MM
    over = np.hypot(*(AXES[:2] - pole[:2, None, None, None])) <= 1.5
    return over & (AXES[2] > pole[2]) & (apart >= low) & (apart <= high)


def texture(cube: np.ndarray) -> float:
    """Reads the tumour itself: the checks of the bright region."""
    bright = ndimage.gaussian_filter(cube, 1.0) > 1.5
    return float(np.abs(ndimage.laplace(cube))[bright].mean()) if bright.any() else 0.0


def gradient(cube: np.ndarray) -> float:
    """Reads the coil: how much brighter the right edge is than the left."""
    return float(np.log(cube[-5:, 6:18, 6:18].mean() / cube[:5, 6:18, 6:18].mean()))


def noise(cube: np.ndarray) -> float:
    """Reads the noise level: the deviation between neighbours in tissue of even brightness."""
    fine = cube - ndimage.gaussian_filter(cube, 1.0)
    return float(np.median(np.abs(fine[(cube > 0.5) & (cube < 1.5)])))


def spot(cube: np.ndarray) -> float:
    """Reads a spot brighter than any tumour, wherever it is."""
    return float(cube.max())


def _fine(cube: np.ndarray) -> np.ndarray:
    """High frequencies, which only what is not blurred has."""
    return np.abs(cube - ndimage.gaussian_filter(cube, 1.0))


def side(cube: np.ndarray) -> float:
    """Reads on which side there are more high frequencies: once all else is blurred, those of the tumour."""
    fine = _fine(cube)
    return float((fine * AXES[0]).sum() / fine.sum())


def volume(cube: np.ndarray) -> float:
    """Reads over how many voxels there are high frequencies: once all else is blurred, as many as the tumour has."""
    return float((_fine(cube) > 0.05).sum())


SPOTS = {"spot inside": (1, 5), "spot across": (4, 6), "spot beyond": (9, 12)}  # mm from the mask; 5 mm are kept
READERS: dict[str, Reader] = {
    "texture": texture,
    "gradient": gradient,
    "noise": noise,
    "side": side,
    "volume": volume,
    **dict.fromkeys(SPOTS, spot),
}


def asked(reader: Reader, found: Cohort, *, transplants: bool = True) -> dict:
    """A model's entry of evaluation.json: ``pooled``, ``causal`` and, if asked, ``probes`` with a transplant."""
    keeps = [context.kept(mask, MM, GUIDANCE) for mask in found.masks]
    pairs = list(zip(found.cubes, keeps, strict=True))
    scores = {
        "auc_whole": np.array([reader(cube) for cube in found.cubes]),
        "auc_outside_blurred": np.array([reader(context.blurred_outside(*pair, SIGMA)) for pair in pairs]),
        "auc_inside_blurred": np.array([reader(context.blurred_inside(*pair, SIGMA)) for pair in pairs]),
    }
    drawn = _draws(len(found.labels))
    values = {name: _aucs(found.labels, score, drawn) for name, score in scores.items()}
    less = {
        "outside_less_whole": ("auc_outside_blurred", "auc_whole"),
        "inside_less_whole": ("auc_inside_blurred", "auc_whole"),
        "outside_less_inside": ("auc_outside_blurred", "auc_inside_blurred"),
    }
    causal = {name: _interval(value) for name, value in values.items()}
    causal |= {name: _interval(values[a] - values[b]) for name, (a, b) in less.items()}
    causal["kept_ml"] = {"mean": float(np.mean([keep.sum() for keep in keeps]) * MM**3 / 1000)}
    model = {"name": "made", "kind": "network", "pooled": {"auc": causal["auc_whole"]}, "causal": causal}
    return model | {"probes": {"transplant": _transplants(reader, found, keeps, drawn)} if transplants else None}


def _transplants(reader: Reader, found: Cohort, keeps: list[np.ndarray], drawn: np.ndarray) -> dict:
    partner = context.balanced_partners(found.labels, context.coverage(found.cubes, keeps))
    told = {}
    for seam, alter in (("", context.filled), ("soft_", None)):
        scores = []
        for place, other in enumerate(partner):
            into = found.cubes[other]
            if alter is None:
                into = context.blurred_inside(into, keeps[other], SIGMA)
                weight = ndimage.gaussian_filter(keeps[place].astype(np.float32), 0.7)
                scores.append(reader(weight * found.cubes[place] + (1 - weight) * into))
            else:
                scores.append(reader(context.transplanted(found.cubes[place], keeps[place], into, keeps[other], SIGMA)))
        owner, breast = (_aucs(labels, np.array(scores), drawn) for labels in (found.labels, found.labels[partner]))
        told |= {f"{seam}owner": _interval(owner), f"{seam}breast": _interval(breast)}
        told |= {} if seam else {"owner_less_breast": _interval(owner - breast)}
    return told | {"subjects": len(partner), "swap_trained": False, "same_decision": {"mean": None}}


def _draws(n: int) -> np.ndarray:
    """(1 + draws, n) int: everybody once, then subjects drawn with replacement."""
    index = np.random.default_rng(1).integers(n, size=(DRAWS, n))
    return np.vstack([np.ones(n, int), *(np.bincount(drawn, minlength=n) for drawn in index)])


def _aucs(labels: np.ndarray, scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(1 + draws,) AUC of each draw, ties counted half."""
    high, low = scores[labels == 1][:, None], scores[labels == 0][None, :]
    wins = (high > low) + 0.5 * (high == low)
    m, n = drawn[:, labels == 1], drawn[:, labels == 0]
    return (m @ wins * n).sum(1) / (m.sum(1) * n.sum(1))


def _interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
