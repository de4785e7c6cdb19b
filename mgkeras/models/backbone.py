"""The 3D VGG of the paper as a functional Keras model that hands out probabilities, logits and last-conv features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from mgkeras.errors import InputError
from mgkeras.models import keras_compat, replicas
from mgkeras.models.space_to_depth import SpaceToDepth, SpaceToDepthConv3D
from mgkeras.settings import BackboneSettings


@keras.saving.register_keras_serializable("mgkeras")
class CountedDropout(keras.layers.Layer):
    """Dropout whose random state is a step counter among the layer's weights.

    So a checkpoint of the weights is a checkpoint of the random state too, in Keras 2 and Keras 3 alike. What it draws
    for a batch does not depend on how many devices of a tf.distribute strategy share the batch.

    Args:
        rate: share of the inputs set to 0 in training; the others are scaled by 1 / (1 - rate).
        seed: of the random stream.

    Examples:
        >>> layer = mgkeras.CountedDropout(0.5, seed=1)
        >>> first = layer(tf.ones((1, 1000)), training=True)
        >>> int(layer.step), bool(400 < tf.reduce_sum(tf.cast(first > 0, tf.int32)) < 600)
        (1, True)
    """

    def __init__(self, rate: float, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed

    def build(self, input_shape) -> None:
        how = {"dtype": "int32", "initializer": "zeros", "trainable": False, **keras_compat.ONE_FOR_ALL}
        self.step = self.add_weight(name="step", shape=(), **how)
        self.built = True

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        self.step.assign_add(1)
        counter = tf.stack([self.seed, tf.convert_to_tensor(self.step)])
        kept = replicas.stateless_uniform(tf.shape(inputs), counter) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


def vgg3d(
    input_shape: Sequence[int] = (128, 128, 128, 1),
    classes: int = 2,
    *,
    filters: Sequence[int] = BackboneSettings.filters,
    convolutions: Sequence[int] = BackboneSettings.convolutions,
    last_pool: bool = BackboneSettings.last_pool,
    dropout: float = BackboneSettings.dropout,
    batch_norm_momentum: float = BackboneSettings.batch_norm_momentum,
    seed: int = 0,
    dtype: Any = None,
    s2d_blocks: int = 0,
    name: str = "vgg3d",
) -> keras.Model:
    """A functional 3D VGG: blocks of 3x3x3 convolutions and 2x2x2 max-pools, then the head.

    Args:
        input_shape: (x, y, z, channels) of a volume; each side 2 voxels or more for every pool.
        classes: K, 2 or more.
        filters: of each block's convolutions.
        convolutions: how many each block has; the last one of the last block makes the features.
        last_pool: whether the last block ends in a pool too.
        dropout: share of the pooled features set to 0 in training.
        batch_norm_momentum: of the normalisation between pooling and the output layer.
        seed: of dropout. The weights' is Keras' own, keras.utils.set_random_seed.
        dtype: Keras dtype policy of the blocks, as 'mixed_float16'; Keras' global policy where None. The head is
            float32.
        s2d_blocks: how many of the first blocks are computed after space-to-depth (see models/space_to_depth.py);
            never the last. It changes neither the function nor a weight nor its name.
        name: of the model.

    Returns:
        A model from ``volume`` (b, x, y, z, channels) to a dict of ``probabilities`` (b, K) float32, ``logits`` (b, K)
        float32, ``features`` (b, x/8, y/8, z/8, filters[-1]), non-negative, with the default settings.

    Raises:
        ValueError: a side too short for the pools, fewer than 2 classes, filters and convolutions of two lengths, or
            s2d_blocks not between 0 and the number of blocks less one.

    Examples:
        >>> net = mgkeras.vgg3d((16, 16, 24, 1), classes=3)
        >>> {name: tuple(tensor.shape) for name, tensor in sorted(net.output.items())}
        {'features': (None, 2, 2, 3, 64), 'logits': (None, 3), 'probabilities': (None, 3)}

    Reference: Korolev et al. 2017 (3D VGG); Liu et al. 2021.
    """
    last = len(filters) - 1
    if classes < 2 or len(filters) != len(convolutions):
        raise InputError(
            "a VGG needs 2 classes or more, and as many convolutions as filters. Received: "
            f"classes={classes}, filters={tuple(filters)}, convolutions={tuple(convolutions)}"
        )
    if not 0 <= s2d_blocks <= last:
        raise InputError(
            f"s2d_blocks must be between 0 and {last}: the last block is computed as it is. Received: {s2d_blocks}"
        )
    shortest = 2 ** (last + last_pool)
    if len(input_shape) != 4 or any(size is not None and size < shortest for size in input_shape[:3]):
        raise InputError(
            f"input_shape must be (x, y, z, channels) with sides of {shortest} or more. Received: {tuple(input_shape)}"
        )
    volume = keras.Input(tuple(input_shape), name="volume")
    x = volume  # (b, x, y, z, c)
    for block, (count_of_filters, count) in enumerate(zip(filters, convolutions, strict=True)):
        packed, prefix = block < s2d_blocks, f"block{block + 1}"
        if packed:
            x = SpaceToDepth(dtype=dtype, name=f"{prefix}_s2d")(x)  # (b, x/2, y/2, z/2, 8c)
        for index in range(count):
            end = index == count - 1
            x = SpaceToDepthConv3D(
                count_of_filters,
                packed=packed,
                pooled=packed and end,
                activation="relu",
                kernel_initializer="he_normal",
                dtype=dtype,
                name="features" if block == last and end else f"{prefix}_conv{index + 1}",
            )(x)
        if block < last:  # a packed block has pooled already
            pool = keras.layers.Identity if packed else partial(keras.layers.MaxPooling3D, 2)
            x = pool(dtype=dtype, name=f"{prefix}_pool")(x)  # (b, x/2, y/2, z/2, f)
    features = x  # (b, x/8, y/8, z/8, 64)
    if last_pool:
        x = keras.layers.MaxPooling3D(2, dtype=dtype, name=f"block{last + 1}_pool")(x)
    x = keras.layers.GlobalAveragePooling3D(dtype="float32", name="pooled")(x)  # (b, 64)
    shared = {"synchronized": True} if replicas.count() > 1 else {}  # the moments of the global batch
    x = keras.layers.BatchNormalization(momentum=batch_norm_momentum, dtype="float32", name="batch_norm", **shared)(x)
    x = CountedDropout(dropout, seed, dtype="float32", name="dropout")(x)
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)  # (b, K)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    outputs = {"probabilities": probabilities, "logits": logits, "features": features}
    return keras.Model(inputs=volume, outputs=outputs, name=name)
