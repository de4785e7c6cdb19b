"""One fold's model asked what its decisions rest on: each function here is one probe of probes.scores.

Axes are RAS+; volumes are those of the cache or rounded as the cache rounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import keras
import numpy as np
from scipy import ndimage

from mgkeras.data import context
from mgkeras.data.cache import Cache, exam_cube
from mgkeras.data.cohort import Subject
from mgkeras.data.phases import as_batch, load_others
from mgkeras.data.stream import Rows, plain_stream
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import Volume
from mgkeras.inference.forward import Forward, attention_rows, blurred_parts, by_batches, known_only, score_rows
from mgkeras.models.guided import MaskGuided, build_model
from mgkeras.phantom.cohort import phantom_folder, phantom_traps, phases_with_trap
from mgkeras.probes import scores as probes
from mgkeras.scores.attention import pool
from mgkeras.settings import Settings
from mgkeras.training.fit import fold_seed, recompute_batch_norm

RANDOM = 777_767_777  # ours: added to a fold's seed, so that the random network is not the one that was trained
MOMENTS = 12  # ours, because a randomised layer needs moments, but only roughly: volumes that they are made from
BOXES = {  # ours: how a mask-only model's box moves, margin in mm and shift toward R, A, S in mm
    "dilated 4 mm": (4.0, (0, 0, 0)),
    "eroded 2 mm": (-2.0, (0, 0, 0)),
    "shifted 4 mm to R": (0.0, (4, 0, 0)),
    "shifted 4 mm to A": (0.0, (0, 4, 0)),
    "shifted 4 mm to S": (0.0, (0, 0, 4)),
}
Columns = dict[str, np.ndarray]
One = TypeVar("One")


@dataclass(frozen=True)
class Fold:
    """A fold being probed: which one, its held-out and training rows of the cache, its model and that as a function."""

    number: int
    held_out: np.ndarray
    train: np.ndarray
    cache: Cache
    model: MaskGuided
    forward: Forward

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self.model.settings


@dataclass(frozen=True)
class Asked:
    """What a fold answered: a row a subject, a row a subject by a network of random weights, and occlusion maps."""

    rows: dict[str, dict[str, Any]]
    untrained: list[dict[str, Any]]
    occlusions: dict[str, np.ndarray]


def probe_fold(fold: Fold, subjects: Sequence[Subject], chosen: Sequence[int], seed: int) -> Asked:
    """Every probe of one fold, on its held-out subjects; afterwards its model is a network of random weights.

    Args:
        fold: see there.
        subjects: of the run, in the cache's order.
        chosen: the held-out rows that get an occlusion map and randomised layers.
        seed: of the random weights.
    """
    own = [subjects[row] for row in fold.held_out]
    columns = _causal(fold)
    columns |= trap_columns(fold, own, columns["probability"]) | _boxes(fold, own)
    rows = {
        subject.name: {
            "subject": subject.name,
            "fold": fold.number,
            "label": subject.label,
            **{name: _cell(values[at]) for name, values in columns.items()},
        }
        for at, subject in enumerate(own)
    }
    maps = {}
    for row in chosen:
        name = subjects[row].name
        maps[name], scores = _occlusion(fold, row)
        rows[name] |= scores
    for column, ranks in _randomised(fold, chosen, seed).items():
        for row, rank in zip(chosen, ranks, strict=True):
            rows[subjects[row].name][column] = rank
    return Asked(rows, _untrained(fold, own), maps)


def _causal(fold: Fold) -> Columns:
    """Each held-out subject's probability as it is, and blurred outside and inside the mask at several dilations."""
    guidance, size = fold.settings.guidance, fold.settings.training.batch_size

    def scored(volumes: np.ndarray, masks: np.ndarray, voxel_mm: np.ndarray) -> Columns:
        found = {"probability": fold.forward(volumes)["probability"]}
        for mm, blurred, kept_ml in blurred_parts(volumes, masks, voxel_mm, guidance, probes.DILATIONS_MM):
            found[f"kept_ml_{mm:g}mm"] = kept_ml
            for name, part in blurred.items():
                found[f"p_{name}_{mm:g}mm"] = known_only(fold.forward(part)["probability"], masks)
        return found

    return by_batches(scored, fold.cache, fold.held_out, size)


def _occlusion(fold: Fold, row: int) -> tuple[np.ndarray, dict[str, float | None]]:
    """The occlusion map of a cache row, and its scores."""
    volume = np.asarray(fold.cache.image[row, 0], np.float32)
    soft = context.blurred(volume, fold.settings.guidance.blur_mm / float(fold.cache.voxel_mm[row]))
    found = fold.forward(as_batch(volume[None]))
    cam = found["decision"][0, ..., int(found["probability"][0] >= 0.5)]
    asked = pool(context.body_of(volume), probes.occlusion_grid(cam.shape[0])) > 0
    effect = probes.occlusion_map(fold.forward, volume, soft, asked)
    return effect, probes.occlusion_scores(effect, asked, cam, np.asarray(fold.cache.mask[row, 0]))


def trap_columns(fold: Fold, subjects: Sequence[Subject], probability: np.ndarray) -> Columns:
    """On a phantom: whether each of its traps is on in a subject, and its probability with it off and on."""
    settings, folder = fold.settings, phantom_folder(subjects[0].early_file) if subjects else None
    if folder is None:
        return {}
    found: Columns = {}

    def otherwise(subject: Subject, trap: str, states: Mapping[str, bool]) -> np.ndarray:
        phases = phases_with_trap(folder, subject.name, trap, not states[subject.name])
        early = phases["early"]
        mask = _mask_on(subject, early, settings) if settings.uses_box else np.zeros(early.data.shape, bool)
        return _cube(early, mask, settings, phases)

    for trap, states in (phantom_traps(folder) or {}).items():
        if any(subject.name not in states for subject in subjects):
            return {}
        on = np.array([int(states[subject.name]) for subject in subjects])
        other = np.array(asked(fold, partial(otherwise, trap=trap, states=states), subjects), np.float64)
        found |= {
            f"trap_{trap}": on,
            f"p_without_{trap}": np.where(on, other, probability),
            f"p_with_{trap}": np.where(on, probability, other),
        }
    return found


def _mask_on(subject: Subject, early: Volume, settings: Settings) -> np.ndarray:
    """A subject's mask at the voxels of another scan of the same patient, bool: the nearest voxel's."""
    own, tumour = subject_mask(subject, settings.mask)
    step = np.linalg.inv(own.affine) @ early.affine  # voxel of the one -> voxel of the other
    voxels = step[:3, :3] @ np.indices(early.data.shape).reshape(3, -1) + step[:3, 3:]  # (3, x*y*z)
    return ndimage.map_coordinates(tumour.mask.astype(np.uint8), voxels, order=0).reshape(early.data.shape) > 0


def _boxes(fold: Fold, subjects: Sequence[Subject]) -> Columns:
    """For a mask-only model, whose box follows the mask: the probability under each of BOXES; else nothing."""
    settings = fold.settings
    if not settings.uses_box:
        return {}

    def boxed(subject: Subject, margin_mm: float, shift_mm: tuple[float, ...]) -> np.ndarray:
        early, tumour = subject_mask(subject, settings.mask)
        box = replace(settings, mask=replace(settings.mask, box_margin_mm=settings.mask.box_margin_mm + margin_mm))
        steps = np.rint(np.array(shift_mm) / early.zooms).astype(int)
        others = load_others(subject, early, settings.volume)
        return _cube(early, np.roll(tumour.mask, steps, (0, 1, 2)), box, others)

    return {
        f"p_box_{name}": np.array(asked(fold, partial(boxed, margin_mm=margin_mm, shift_mm=shift_mm), subjects))
        for name, (margin_mm, shift_mm) in BOXES.items()
    }


def _cube(early: Volume, mask: np.ndarray, settings: Settings, others: Mapping[str, Volume]) -> np.ndarray:
    """An exam that is not in the cache."""
    return exam_cube(early, mask, settings, others)[0]


def asked(fold: Fold, make: Callable[[One], np.ndarray | None], ones: Sequence[One]) -> list[float | None]:
    """The fold's probabilities of cubes made for this, a batch at a time on all cores; None where there is none.

    make gets one of ``ones``. Cubes are rounded as the cache rounds its own.
    """
    found: list[float | None] = []
    size = fold.settings.training.batch_size
    with ThreadPoolExecutor() as workers:
        for start in range(0, len(ones), size):
            cubes = list(workers.map(make, ones[start : start + size]))
            there = [cube.astype(np.float16).astype(np.float32) for cube in cubes if cube is not None]
            p = iter(fold.forward(as_batch(np.stack(there)))["probability"] if there else ())
            found += [None if cube is None else round(float(next(p)), 7) for cube in cubes]
    return found


def _layers(model: MaskGuided) -> list[keras.layers.Layer]:
    """The layers with weights from the output downward, batch normalisation aside: it goes with the output layer."""
    return [layer for layer in reversed(model.net.layers) if layer.trainable_weights and layer.name != "batch_norm"]


def _randomised(fold: Fold, rows: Rows, seed: int) -> dict[str, list[float | None]]:
    """Rank correlation of each chosen subject's decision map with itself as layers are made new, from the output down.

    Afterwards the fold's model is a network of random weights.
    """
    fresh = build_model(fold.settings, seed=(fold_seed(fold.settings, fold.number) + RANDOM + seed) % 2**31)
    batches = [volumes for volumes, _ in plain_stream(fold.cache, rows, fold.settings.training.batch_size)]

    def maps() -> list[tuple[np.ndarray, float]]:
        found = [fold.forward(volumes) for volumes in batches]
        return [pair for answer in found for pair in zip(answer["decision"], answer["probability"], strict=True)]

    before, ranks = maps(), {}
    for layer in _layers(fold.model):
        for name in (layer.name, *(("batch_norm",) if layer.name == "logits" else ())):
            for ours, new in zip(
                fold.model.net.get_layer(name).weights, fresh.net.get_layer(name).weights, strict=True
            ):
                ours.assign(new)
        _recompute(fold, fold.train[:MOMENTS])
        ranks[f"rank_random_{layer.name}"] = [
            probes.rank_correlation(a[..., int(p >= 0.5)], b[..., int(p >= 0.5)])
            for (a, p), (b, _) in zip(before, maps(), strict=True)
        ]
    return ranks


def _untrained(fold: Fold, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Rows of random_network.csv: the fold's model, now of random weights, scored as a trained one is."""
    _recompute(fold, fold.train)
    scored = score_rows(fold.model, fold.cache, fold.held_out, causal=False, forward=fold.forward)
    looks = attention_rows(fold.cache, fold.held_out, fold.number, scored, box=fold.settings.uses_box)
    return [
        {
            "subject": look.pop("subject"),
            "fold": look.pop("fold"),
            "label": subject.label,
            "probability": float(p),
            **look,
        }
        for look, subject, p in zip(looks, subjects, scored.probability, strict=True)
    ]


def _recompute(fold: Fold, rows: Rows) -> None:
    recompute_batch_norm(fold.model, fold.cache, rows, fold.settings.training.batch_size)


def _cell(value: np.generic) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else round(float(value), 7)
