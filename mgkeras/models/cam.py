"""Class activation maps without gradients, and their Dice with the tumour mask. Axes: (b, x, y, z, channels).

Batch normalisation stands between pooling and the output layer, so it is folded into the map's weights:
W' = gamma W / sqrt(var + eps). Then the spatial mean of CAM_c plus the folded bias is exactly logit_c (where the last
block has no pool). The map is made of products of features and weights; no gradient is needed for it.

Softmax sees only differences between the output columns: a vector added to all of them changes every class map and no
probability. So the class maps are known only up to a map that they share. :func:`centred` takes it out: what is left,
the decision map, is the same however the columns are written.

Glossary:
    class map: CAM_c, literally; any sign.
    decision map: of class c, CAM_c less the mean of all classes' maps, which is the CAM of centred weights
        W_c - mean of W. Positive is evidence for the class, negative against it. Its spatial mean plus a constant is
        the centred logit, logit_c - mean of logits; of two classes plus and minus half the log-odds.
    K: classes; two in this package's networks.

Reference: Zhou et al. 2016 (CAM); Liu et al. 2021, eq. for lambda x Dice.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mgkeras.settings import GuidanceSettings

EPSILON = 1e-6


def folded_weights(model: keras.Model, mean: tf.Tensor | None = None, variance: tf.Tensor | None = None):
    """The output layer's weights and bias with the batch normalisation folded in.

    Args:
        model: from build_backbone.
        mean, variance: (k,) moments of the pooled features; the layer's stored moments where None. In training they
            are the batch's, as the forward pass uses.

    Returns:
        weights (k, K) and bias (K,), float32.
    """
    norm, dense = model.get_layer("batch_norm"), model.get_layer("logits")
    mean = tf.convert_to_tensor(norm.moving_mean) if mean is None else mean
    variance = tf.convert_to_tensor(norm.moving_variance) if variance is None else variance
    kernel = tf.convert_to_tensor(dense.kernel)  # (k, K)
    scale = tf.convert_to_tensor(norm.gamma) * tf.math.rsqrt(variance + norm.epsilon)  # (k,)
    shift = tf.convert_to_tensor(norm.beta) - mean * scale
    return scale[:, None] * kernel, tf.convert_to_tensor(dense.bias) + tf.linalg.matvec(kernel, shift, transpose_a=True)


def batch_moments(features: tf.Tensor, last_pool: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance (k,) over the batch of the pooled features: what batch normalisation sees in training."""
    return tf.nn.moments(pooled(features, last_pool), [0])


def pooled(features: tf.Tensor, last_pool: bool) -> tf.Tensor:
    """The features as batch normalisation gets them: (b, g, g, g, k) -> (b, k) float32."""
    features = tf.cast(features, tf.float32)
    if last_pool:
        features = tf.nn.max_pool3d(features, 2, 2, "VALID")
    return tf.reduce_mean(features, [1, 2, 3])


def class_maps(features: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """CAM of each class: features (b, g, g, g, k) and folded weights (k, K) -> (b, g, g, g, K), any sign."""
    return tf.einsum("bxyzk,kc->bxyzc", tf.cast(features, tf.float32), weights)


def centred(maps: tf.Tensor) -> tf.Tensor:
    """The decision's maps: (b, g, g, g, c) less their mean over the classes, the CAM of centred output weights.

    A vector added to all columns of the output weights changes every class map and no probability: softmax cancels it.
    Here it cancels too. The spatial mean of class c's map plus a constant is the centred logit; of two classes the maps
    are plus and minus half of the log-odds' map.
    """
    return maps - tf.reduce_mean(maps, -1, keepdims=True)


def pick_class(maps: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The map of one class per volume: (b, g, g, g, c) and (b,) int -> (b, g, g, g)."""
    return tf.einsum("bxyzc,bc->bxyz", maps, tf.one_hot(classes, maps.shape[-1], dtype=maps.dtype))


def guided_map(maps: tf.Tensor, classes: tf.Tensor, kind: str) -> tf.Tensor:
    """The map that the Dice term compares with the mask: (b, g, g, g, c) class maps and (b,) int -> (b, g, g, g).

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
    """A map brought to [0, 1], volume by volume: (b, g, g, g) -> (b, g, g, g).

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


def mask_cells(mask: tf.Tensor, grid: int) -> tf.Tensor:
    """A mask (b, s, s, s, 1) average-pooled to the map's (b, g, g, g) cells, scaled to a maximum of 1 (0 if empty)."""
    cell = mask.shape[1] // grid
    shape = [-1, grid, cell, grid, cell, grid, cell]
    cells = tf.reduce_mean(tf.reshape(tf.cast(mask, tf.float32), shape), [2, 4, 6])
    return cells / tf.maximum(tf.reduce_max(cells, [1, 2, 3], keepdims=True), EPSILON)


def soft_dice(attention: tf.Tensor, cells: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Dice 2 |A and B| / (|A| + |B|) of each volume, and which volumes have a mask.

    Args:
        attention: (b, g, g, g) in [0, 1].
        cells: (b, g, g, g) in [0, 1], from mask_cells.

    Returns:
        The Dice (b,), and (b,) 1 where a volume has a mask and 0 where it has none; its Dice is then 0.
    """
    axes = [1, 2, 3]
    has_mask = tf.cast(tf.reduce_max(cells, axes) > 0, tf.float32)  # (b,)
    total = tf.reduce_sum(attention, axes) + tf.reduce_sum(cells, axes)
    return 2 * tf.reduce_sum(attention * cells, axes) / (total + EPSILON), has_mask


def masked_mean(values: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
    """The mean of (b,) values over the volumes that have a mask; 0 if none has."""
    return tf.reduce_sum(values * has_mask) / tf.maximum(tf.reduce_sum(has_mask), 1.0)
