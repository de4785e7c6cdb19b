"""How far scores and maps move when the mask is another, or the seed: what of a result would hold a second time.

The models are not trained again for another mask: the same maps are scored against it.

Glossary:
    change: a mask moved, grown or shrunk as another reader might have drawn it; "as it is" comes first.
    repeat: a run whose settings differ from another's in the seed alone, on the same subjects; its folds may differ.
    mean with interval: {mean, low, high, subjects}, a bootstrap over subjects with a defined value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mgkeras.data.augment import Variant, apply_variant
from mgkeras.data.context import dilated
from mgkeras.data.tumour import bounding_box
from mgkeras.errors import InputError
from mgkeras.probes.scores import rank_correlation
from mgkeras.scores import metrics
from mgkeras.scores.attention import overlap, own_grid_scores
from mgkeras.scores.comparison import ComparedRun
from mgkeras.scores.summary import mean_and_sd, mean_interval

# ours, because a ball of 20 mm has a Dice of 0.73, 0.53, 0.68 and 0.70 with itself changed so: poor outlines of it
DILATED_MM = (2.0, 4.0)
ERODED_MM = 2.0
SHIFTED_MM = 4.0
SCORES = ("mass_in_mask", "mass_chance", "peak_within_10mm", "soft_dice")
UNLIKE = ("seed", "deterministic")  # settings that may differ between a run and its repeat
Subject = tuple[np.ndarray, np.ndarray, np.ndarray, float]
Maps = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Change:
    """A mask changed in one way.

    Attributes:
        name: "dilated 2 mm"; the wanted length, the same for every subject.
        mm: the length really used: one voxel where the wanted one is less, whole voxels for a shift.
        masks: (side, side, side) bool each; six of a shift (both ways along each axis), else one.
    """

    name: str
    mm: float
    masks: tuple[np.ndarray, ...]


def mask_changes(mask: np.ndarray, voxel_mm: float) -> tuple[Change, ...]:
    """A mask as it is, grown, shrunk and moved.

    Args:
        mask: (side, side, side) bool, RAS+. It may be empty; what is shrunk or moved out of the cube is lost.
        voxel_mm: edge of a voxel, mm.
    """
    step = max(1, round(SHIFTED_MM / voxel_mm))
    moved = tuple(shifted(mask, axis, way * step) for axis in range(3) for way in (-1, 1))
    eroded = max(ERODED_MM, voxel_mm)
    return (
        Change("as it is", 0.0, (mask,)),
        *(
            Change(f"dilated {mm:g} mm", max(mm, voxel_mm), (dilated(mask, voxel_mm, max(mm, voxel_mm)),))
            for mm in DILATED_MM
        ),
        Change(f"eroded {ERODED_MM:g} mm", eroded, (shrunk(mask, eroded / voxel_mm),)),
        Change(f"shifted {SHIFTED_MM:g} mm", step * voxel_mm, moved),
    )


def shrunk(mask: np.ndarray, radius: float) -> np.ndarray:
    """A (side, side, side) bool mask eroded by a ball of ``radius`` voxels; outside the cube nothing is mask."""
    found = mask.copy()
    if box := bounding_box(mask):
        depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1, 1:-1]
        found[box] = depth > radius + 1e-9
    return found


def shifted(mask: np.ndarray, axis: int, voxels: int) -> np.ndarray:
    """A (side, side, side) bool mask moved along an axis; what leaves the cube is lost."""
    along = ((1, 0, 0), (0, 1, 0), (0, 0, 1))[axis]
    return apply_variant(mask[None], Variant(shift=along), voxels)


def mask_robustness(subjects: Iterable[Subject], *, samples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """How the attention scores move when the reference mask is changed, the maps as they are.

    Args:
        subjects: one at a time (cam (g, g, g) decision map of the predicted class, attention (g, g, g) in [0, 1], mask
            (side, side, side) bool, voxel_mm), as attention.attention_scores takes them.
        samples, seed: of the bootstrap.

    Returns:
        A row a change, "as it is" first: ``change``; ``mm`` really used, mean over subjects; ``subjects``; ``empty``,
        how many are left without a mask; and with intervals over subjects ``dice_with_mask`` (with the unchanged
        mask, 0 for one eroded away), the scores of SCORES, and ``mass_moved``, a subject's mass_in_mask less that as
        it is: paired, so that subjects whose mask is eroded away do not bias it. Of several masks of one change (a
        shift's six) a subject gets the mean. [] without subjects.

    Raises:
        ValueError: as attention.attention_scores.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for cam, attention, mask, voxel_mm in subjects:
        mask, before = np.asarray(mask, bool), None
        for change in mask_changes(mask, float(voxel_mm)):
            row = _change_scores(change, cam, attention, mask, float(voxel_mm))
            before = row["mass_in_mask"] if before is None else before  # "as it is" comes first
            known = before is not None and row["mass_in_mask"] is not None
            row["mass_moved"] = row["mass_in_mask"] - before if known else None
            found.setdefault(change.name, []).append(row)
    return [
        {
            "change": name,
            "mm": float(np.mean([row["mm"] for row in rows])),
            "subjects": len(rows),
            "empty": sum(row["empty"] for row in rows),
            **{
                score: mean_interval([row[score] for row in rows if row[score] is not None], samples=samples, seed=seed)
                for score in ("dice_with_mask", *SCORES, "mass_moved")
            },
        }
        for name, rows in found.items()
    ]


def _change_scores(
    change: Change, cam: np.ndarray, attention: np.ndarray, mask: np.ndarray, voxel_mm: float
) -> dict[str, Any]:
    """One subject's row of one change: the mean over its masks of each score that is defined."""
    scored = [own_grid_scores(cam, attention, changed, voxel_mm) for changed in change.masks]
    found: dict[str, Any] = {"mm": change.mm, "empty": not any(changed.any() for changed in change.masks)}
    dice = [overlap(changed, mask)[0] for changed in change.masks]
    columns = {"dice_with_mask": dice, **{name: [scores[name] for scores in scored] for name in SCORES}}
    return found | {name: mean_and_sd(values)["mean"] for name, values in columns.items()}


def repeats(
    runs: Sequence[ComparedRun], maps: Sequence[Maps] | None = None, *, samples: int = 2000, seed: int = 0
) -> dict[str, Any] | None:
    """How far one model's results move when it is trained again with other seeds.

    Args:
        runs: a run and its repeats, from :func:`split_repeats`; the first names the subjects' order.
        maps: of each run, {subject: (g, g, g) held-out map}; ranks alone count, so any scale. Subjects may be missing.
        samples, seed: of the bootstrap over subjects.

    Returns:
        ``runs`` names, ``seeds``, ``auc`` of each (pooled), their ``mean`` and ``sd``; ``probability_sd`` a subject's
        SD of P(class 1) over the runs; ``flipped`` the share of subjects whose decision at 0.5 is not the same in
        all; ``map_correlation`` Spearman of a subject's maps, mean over every two runs where neither is constant;
        ``mass_in_mask`` of each run's summary.json. ``probability_sd`` and ``map_correlation`` are means with
        intervals. None for fewer than two runs.

    Raises:
        ValueError: runs of other subjects or labels, or another number of maps than runs.
    """
    if len(runs) < 2:
        return None
    _check(runs, maps)
    names = list(runs[0].held_out)
    labels = np.array([runs[0].held_out[name][1] for name in names])
    p = np.array([[run.held_out[name][2] for name in names] for run in runs])  # (runs, subjects)
    called = p >= metrics.THRESHOLD
    auc = [metrics.auc_score(labels, row) for row in p]
    over = mean_and_sd(auc)
    options = {"samples": samples, "seed": seed}
    looks = [run.attention.get("all", {}).get("mass_in_mask", {}).get("mean") for run in runs]
    return {
        "runs": [runs[0].name, *(f"{run.name} (seed {run.settings.get('seed')})" for run in runs[1:])],
        "seeds": [run.settings.get("seed") for run in runs],
        "auc": auc,
        "mean": over["mean"],
        "sd": over["sd"],
        "probability_sd": mean_interval(p.std(axis=0, ddof=1), **options),
        "flipped": float((called != called[0]).any(axis=0).mean()),
        "map_correlation": mean_interval(_map_correlations(names, maps or ()), **options),
        "mass_in_mask": looks,
    }


def _check(runs: Sequence[ComparedRun], maps: Sequence[Maps] | None) -> None:
    for run in runs[1:]:
        if _labels(run) != _labels(runs[0]):
            raise InputError(
                "expected repeats on the same subjects and labels. Received: others in "
                f"{run.folder} than in {runs[0].folder}"
            )
    if maps is not None and len(maps) != len(runs):
        raise InputError(f"expected the maps of {len(runs)} runs. Received: of {len(maps)}")


def _map_correlations(names: Sequence[str], maps: Sequence[Maps]) -> list[float]:
    """Each subject's mean over every two runs' maps; subjects without a defined pair are left out."""
    found = []
    for name in names:
        held = [by_name[name] for by_name in maps if name in by_name]
        pairs = [rank_correlation(a, b) for a, b in combinations(held, 2)]
        found.append(mean_and_sd(pairs)["mean"])
    return [value for value in found if value is not None]


def split_repeats(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], dict[Path, list[ComparedRun]]]:
    """Runs parted into models and their repeats.

    A run is a repeat where its settings equal those of an earlier model but for ``seed`` (and ``deterministic``), its
    seed is new among that model's runs, and it holds the same subjects with the same labels. The same model with the
    same seed twice is no repeat and stays beside the first.

    Returns:
        The models in their order, and {folder of a model: its repeats in their order}, without those that have none.
    """
    models: list[ComparedRun] = []
    found: dict[Path, list[ComparedRun]] = {}
    for run in runs:
        for model in models:
            seeds = {run.settings.get("seed") for run in (model, *found.get(model.folder, ()))}
            if _alike(model) == _alike(run) and run.settings.get("seed") not in seeds:
                found.setdefault(model.folder, []).append(run)
                break
        else:
            models.append(run)
    return models, found


def _alike(run: ComparedRun) -> tuple[dict[str, Any], dict[str, int]]:
    """What a run shares with its repeats; the outcome is one of the settings."""
    return {name: value for name, value in run.settings.items() if name not in UNLIKE}, _labels(run)


def _labels(run: ComparedRun) -> dict[str, int]:
    return {name: label for name, (_, label, _) in run.held_out.items()}
