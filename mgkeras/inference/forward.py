"""A trained model applied to volumes: probabilities, maps, and the causal probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mgkeras.data import context
from mgkeras.data.cache import Cache
from mgkeras.data.phases import first_channel
from mgkeras.data.stream import Rows, plain_stream
from mgkeras.models import cam
from mgkeras.models.guided import MaskGuided
from mgkeras.scores.attention import attention_scores, centred, mass_of_image
from mgkeras.settings import GuidanceSettings

Forward = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model says of n volumes.

    Attributes:
        probability: (n,) float32 of class 1.
        maps: (n, g, g, g, 2) float32, the class activation map of each class, literally; any sign.
        attention: (n, g, g, g) float32 in [0, 1], the map that the Dice term sees.
        outside_blurred, inside_blurred: (n,) probability of class 1 with everything outside, or inside, the dilated
            mask blurred; NaN where the mask is empty. None where it was not asked for.
        kept_ml: (n,) ml of the dilated mask, what outside_blurred leaves as it is; NaN and None as those.
    """

    probability: np.ndarray
    maps: np.ndarray
    attention: np.ndarray
    outside_blurred: np.ndarray | None = None
    inside_blurred: np.ndarray | None = None
    kept_ml: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int, the class of the larger probability."""
        return (self.probability >= 0.5).astype(int)

    @property
    def decision(self) -> np.ndarray:
        """(n, g, g, g) float32, the predicted class's decision map: what it is scored and shown by. Any sign."""
        return picked(centred(self.maps), self.predicted)


def picked(maps: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The map of one class per volume: (n, g, g, g, K) and (n,) int -> (n, g, g, g)."""
    return np.take_along_axis(maps, np.reshape(classes, (-1, 1, 1, 1, 1)), axis=-1)[..., 0]


def forward_of(model: MaskGuided) -> Forward:
    """The model as a plain function: (b, side, side, side, channels) float32 -> a dict of arrays.

    ``probability`` (b,) of class 1, ``evidence`` (b,) its log-odds, ``maps`` (b, g, g, g, 2) the class maps, literally,
    ``decision`` (b, g, g, g, 2) the same centred over the classes, ``attention`` (b, g, g, g) in [0, 1] that the Dice
    term sees, ``pooled`` (b, k) features as the layers after the pooling get them. It reads the model's weights at each
    call, so it follows when they change.
    """
    settings = model.guidance

    @tf.function(reduce_retracing=True)
    def run(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model.outputs_of(volumes)
        maps = cam.class_maps(outputs["features"], model.head.weights()[0])
        probability = outputs["probabilities"][:, 1]
        chosen = cam.guided_map(maps, tf.cast(probability >= 0.5, tf.int32), settings.guided_map)
        evidence = outputs["logits"][:, 1] - outputs["logits"][:, 0]
        attention = cam.attention_map(chosen, settings)
        return {
            "probability": probability,
            "evidence": evidence,
            "maps": maps,
            "decision": cam.centred(maps),
            "attention": attention,
            "pooled": model.head.pooled(outputs["features"]),
        }

    return lambda volumes: {name: value.numpy() for name, value in run(tf.convert_to_tensor(volumes)).items()}


def score_rows(model: MaskGuided, cache: Cache, rows: Rows, *, causal: bool, forward: Forward | None = None) -> Scored:
    """Scores cache rows as they are, never augmented.

    Args:
        model: trained, its moments recomputed.
        cache: the open cache.
        rows: which.
        causal: whether to score the blurred volumes too (three forward passes instead of one).
        forward: the model as forward_of makes it, where there is one already.
    """
    ask, guidance = forward or forward_of(model), model.settings.guidance

    def scored(volumes: np.ndarray, masks: np.ndarray, voxel_mm: np.ndarray) -> dict[str, np.ndarray]:
        answer = ask(volumes)
        found = {name: answer[name] for name in ("probability", "maps", "attention")}
        if causal:
            _, blurred, found["kept_ml"] = next(blurred_parts(volumes, masks, voxel_mm, guidance))
            found |= {name: known_only(ask(part)["probability"], masks) for name, part in blurred.items()}
        return found

    return Scored(**by_batches(scored, cache, rows, model.settings.training.batch_size))


def by_batches(
    ask: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]], cache: Cache, rows: Rows, size: int
) -> dict[str, np.ndarray]:
    """What is found of cache rows, ``size`` at a time, put together: arrays by name, (n, ...).

    ``ask`` gets a batch's volumes and masks as plain_stream gives them and the edges of their voxels (b,), mm.
    """
    batches = zip(range(0, len(rows), size), plain_stream(cache, rows, size), strict=True)
    found = [ask(*batch, cache.voxel_mm[list(rows[start : start + size])]) for start, batch in batches]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def blurred_parts(
    volumes: np.ndarray,
    masks: np.ndarray,
    voxel_mm: np.ndarray,
    guidance: GuidanceSettings,
    dilations_mm: Sequence[float] = (),
) -> Iterator[tuple[float, dict[str, np.ndarray], np.ndarray]]:
    """A batch of plain_stream with each volume blurred outside, and inside, its dilated mask; blurred once for all.

    Args:
        volumes, masks: (b, side, side, side, channels) and (b, side, side, side, 1).
        voxel_mm: (b,) edge of each cube's voxels, mm.
        guidance: blur_mm is used, and dilation_mm where dilations_mm is empty.
        dilations_mm: of the masks.

    Yields:
        For each dilation it, the batches ``outside_blurred`` and ``inside_blurred``, and (b,) float64 what the former
        keeps, ml; NaN where the mask is empty.
    """
    edges, empty = [float(mm) for mm in voxel_mm], ~masks.any(axis=(1, 2, 3, 4), keepdims=True)
    soft = np.stack([context.blurred(volume, guidance.blur_mm / mm) for volume, mm in zip(volumes, edges, strict=True)])
    for dilation in dilations_mm or (guidance.dilation_mm,):
        keep = np.stack([context.dilated(mask[..., 0], mm, dilation) for mask, mm in zip(masks, edges, strict=True)])[
            ..., None
        ]
        ml = keep.sum(axis=(1, 2, 3, 4)) * np.array(edges) ** 3 / 1000
        yield (
            dilation,
            {"outside_blurred": np.where(keep | empty, volumes, soft), "inside_blurred": np.where(keep, soft, volumes)},
            known_only(ml, masks),
        )


def known_only(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(b,) values, NaN where the mask (b, side, side, side, 1) is empty."""
    return np.where(masks.any(axis=(1, 2, 3, 4)), values, np.nan)


def attention_rows(cache: Cache, rows: Rows, fold: int, scored: Scored, *, box: bool = False) -> list[dict]:
    """Where the predicted class's decision map of each cache row lies, and the early phase as a map: rows of
    attention.csv.

    Args:
        cache, rows: the open cache, and which rows of it were scored.
        fold: whose model it was.
        scored: from score_rows.
        box: whether the cubes are boxes around the tumour; there is no outside of the body in them.
    """
    found = []
    for row, cells, attention in zip(rows, scored.decision, scored.attention, strict=True):
        image, mask = np.asarray(first_channel(cache.image[row, 0]), np.float32), np.asarray(cache.mask[row, 0])
        scores = attention_scores(
            cells, attention, mask, float(cache.voxel_mm[row]), body=None if box else context.body_of(image)
        )
        found.append(
            {
                "subject": cache.subjects[row],
                "fold": fold,
                **scores,
                "mass_of_t1": mass_of_image(image, mask, cells.shape[0]),
            }
        )
    return found
