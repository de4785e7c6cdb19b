"""Class activation maps without gradients, and their Dice with the tumour mask. Axes: (b, x, y, z, channels).

The linear layers after the pooling, batch normalisation among them, are one matrix of weights (models/head.py). The
spatial mean of CAM_c plus a bias is exactly logit_c (where the last block has no pool). The map is made of products of
features and weights; no gradient is needed for it.

Softmax sees only differences between the output columns: a vector added to all of them changes every class map and no
probability. So the class maps are known only up to a map that they share. :func:`centred` takes it out: what is left,
the decision map, is the same however the columns are written.

Glossary:
    class map: CAM_c, literally; any sign.
    decision map: of class c, CAM_c less the mean of all classes' maps, which is the CAM of centred weights
        W_c - mean of W. Positive is evidence for the class, negative against it. Its spatial mean plus a constant is
        the centred logit, logit_c - mean of logits; of two classes plus and minus half the log-odds.
    K: classes; two in the runs of this package.
    cells: of a map, (x, y, z); fewer than the volume has voxels.

Reference: Zhou et al. 2016 (CAM); Liu et al. 2021, eq. for lambda x Dice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mgkeras.errors import InputError
from mgkeras.models import replicas
from mgkeras.settings import GuidanceSettings

EPSILON = 1e-6


def class_maps(features: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """CAM of each class: features (b, x, y, z, k) and weights (k, K) -> (b, x, y, z, K), any sign."""
    return tf.einsum("bxyzk,kc->bxyzc", tf.cast(features, tf.float32), weights)


def centred(maps: tf.Tensor) -> tf.Tensor:
    """The decision's maps: (b, x, y, z, K) less their mean over the classes, the CAM of centred output weights.

    A vector added to all columns of the output weights changes every class map and no probability: softmax cancels it.
    Here it cancels too. The spatial mean of class c's map plus a constant is the centred logit; of two classes the maps
    are plus and minus half of the log-odds' map.
    """
    return maps - tf.reduce_mean(maps, -1, keepdims=True)


def pick_class(maps: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The map of one class per volume: (b, x, y, z, K) and (b,) int -> (b, x, y, z)."""
    return tf.einsum("bxyzc,bc->bxyz", maps, tf.one_hot(classes, maps.shape[-1], dtype=maps.dtype))


def guided_map(maps: tf.Tensor, classes: tf.Tensor, kind: str) -> tf.Tensor:
    """The map that the Dice term compares with the mask: (b, x, y, z, K) class maps and (b,) int -> (b, x, y, z).

    Args:
        maps: from class_maps.
        classes: the labels while training, the predicted classes when a trained model is scored.
        kind: 'class', the class's map; 'evidence', its centred map, whose mean is the decision; 'strength', the largest
            absolute value of the centred maps over the classes: how much a cell says, for whichever class.
    """
    if kind == "class":
        return pick_class(maps, classes)
    if kind == "evidence":
        return pick_class(centred(maps), classes)
    return tf.reduce_max(tf.abs(centred(maps)), -1)


def attention_map(cam: tf.Tensor, settings: GuidanceSettings) -> tf.Tensor:
    """A map brought to [0, 1], volume by volume: (b, x, y, z) -> (b, x, y, z).

    'sigmoid' standardises the map and squashes it, so that it never dies; 'cut-sigmoid' takes off the floor that the
    sigmoid leaves under cells at the mean; 'minmax' stretches the map; 'relu' cuts at 0 and divides by the maximum,
    which leaves a map of zeros where no cell is positive (of the strength, which has none below 0, nothing is cut).
    """
    axes = [1, 2, 3]
    if settings.cam_map in ("sigmoid", "cut-sigmoid"):
        mean = tf.reduce_mean(cam, axes, keepdims=True)
        deviation = tf.sqrt(tf.reduce_mean(tf.square(cam - mean), axes, keepdims=True) + EPSILON**2)
        found = tf.sigmoid(settings.sigmoid_slope * (cam - mean) / (deviation + EPSILON) + settings.sigmoid_offset)
        floor = tf.sigmoid(settings.sigmoid_offset) if settings.cam_map == "cut-sigmoid" else 0.0
        return tf.nn.relu(found - floor) / (1 - floor)
    if settings.cam_map == "minmax":
        low, high = tf.reduce_min(cam, axes, keepdims=True), tf.reduce_max(cam, axes, keepdims=True)
        return (cam - low) / (high - low + EPSILON)
    cut = tf.nn.relu(cam)
    return cut / (tf.reduce_max(cut, axes, keepdims=True) + EPSILON)


def mask_cells(mask: tf.Tensor, grid: Sequence[int]) -> tf.Tensor:
    """A mask averaged over a map's cells and scaled to a maximum of 1; 0 where it is empty.

    Args:
        mask: (b, X, Y, Z) or (b, X, Y, Z, 1), bool or of 0 and 1.
        grid: (x, y, z) cells. Where a side is no multiple of its cells, a voxel counts in two of them, by its overlap.

    Returns:
        (b, x, y, z) float32 in [0, 1].
    """
    cells = tf.cast(mask[..., 0] if len(mask.shape) == 5 else mask, tf.float32)
    sides = cells.shape[1:]
    if None in (*sides, *grid):
        raise InputError(
            f"the sides of masks and volumes must be known when the step is made. Received: masks {tuple(sides)}, maps "
            f"{tuple(grid)}; give them by tf.ensure_shape in the dataset"
        )
    if all(side % count == 0 for side, count in zip(sides, grid, strict=True)):
        split = [size for side, count in zip(sides, grid, strict=True) for size in (count, side // count)]
        cells = tf.reduce_mean(tf.reshape(cells, [-1, *split]), [2, 4, 6])
    else:
        for side, count in zip(sides, grid, strict=True):
            cells = tf.tensordot(cells, tf.constant(_overlaps(side, count)), [[1], [0]])  # the axis moves to the end
    return cells / tf.maximum(tf.reduce_max(cells, [1, 2, 3], keepdims=True), EPSILON)


def _overlaps(side: int, count: int) -> np.ndarray:
    """(side, count) float32: the share of each cell that a voxel fills, where cells divide the side evenly."""
    voxel, cell = np.arange(side)[:, None], np.arange(count) * side / count
    common = np.minimum(voxel + 1, cell + side / count) - np.maximum(voxel, cell)
    return (np.maximum(common, 0) * count / side).astype(np.float32)


def soft_dice(attention: tf.Tensor, cells: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Dice 2 |A and B| / (|A| + |B|) of each volume, and which volumes have a mask.

    Args:
        attention: (b, x, y, z) in [0, 1].
        cells: (b, x, y, z) in [0, 1], from mask_cells.

    Returns:
        The Dice (b,), and (b,) 1 where a volume has a mask and 0 where it has none; its Dice is then 0.
    """
    axes = [1, 2, 3]
    has_mask = tf.cast(tf.reduce_max(cells, axes) > 0, tf.float32)  # (b,)
    total = tf.reduce_sum(attention, axes) + tf.reduce_sum(cells, axes)
    return 2 * tf.reduce_sum(attention * cells, axes) / (total + EPSILON), has_mask


def masked_mean(values: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
    """The mean of (b,) values over the volumes that have a mask; 0 if none has.

    On several replicas it is this replica's share: the sum of all shares is the mean over the global batch.
    """
    return tf.reduce_sum(values * has_mask) / tf.maximum(replicas.total(tf.reduce_sum(has_mask)), 1.0)
