"""The 3D VGG of the paper as a functional Keras model that hands out probabilities, logits and last-conv features."""

from __future__ import annotations

from functools import partial

import keras
import tensorflow as tf

from mgkeras.models.folding import Fold, FoldableConv3D
from mgkeras.settings import BackboneSettings

CLASSES = 2


class CountedDropout(keras.layers.Layer):
    """Dropout whose random state is a step counter among the layer's weights.

    So a checkpoint of the weights is a checkpoint of the random state too, in Keras 2 and Keras 3 alike.

    Args:
        rate: share of the inputs set to 0 in training; the others are scaled by 1 / (1 - rate).
        seed: of the random stream.
    """

    def __init__(self, rate: float, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed

    def build(self, input_shape) -> None:
        self.step = self.add_weight(name="step", shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        self.step.assign_add(1)
        counter = tf.stack([self.seed, tf.convert_to_tensor(self.step)])
        kept = tf.random.stateless_uniform(tf.shape(inputs), counter) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


def build_backbone(
    side: int,
    settings: BackboneSettings,
    *,
    seed: int = 0,
    dtype: str = "float32",
    fold_blocks: int = 0,
    model_class: type[keras.Model] = keras.Model,
) -> keras.Model:
    """A functional 3D VGG: blocks of 3x3x3 convolutions and 2x2x2 max-pools, then the head.

    Args:
        side: voxels along the input cube's edge.
        settings: filters, convolutions, whether the last block ends in a pool, dropout, batch-norm momentum.
        seed: of dropout.
        dtype: Keras dtype policy of the blocks ('float32', 'mixed_float16', 'mixed_bfloat16'); the head is float32.
        fold_blocks: how many of the first blocks are computed folded (see models/folding.py); never the last. It
            changes neither the function nor a weight nor its name.
        model_class: keras.Model or a subclass that brings its own train_step.

    Returns:
        A model from ``volume`` (b, side, side, side, 1) to a dict of ``probabilities`` (b, 2) float32, ``logits``
        (b, 2) float32, ``features`` (b, g, g, g, filters[-1]), non-negative; g is side / 8 with the default settings.

    Raises:
        ValueError: fold_blocks is not between 0 and the number of blocks less one.

    Reference: Korolev et al. 2017 (3D VGG); Liu et al. 2021.
    """
    last = len(settings.filters) - 1
    if not 0 <= fold_blocks <= last:
        raise ValueError(
            f"fold_blocks must be between 0 and {last}: the last block is not folded. Received: {fold_blocks}"
        )
    volume = keras.Input((side, side, side, 1), name="volume")
    x = volume  # (b, s, s, s, 1)
    for block, (filters, count) in enumerate(zip(settings.filters, settings.convolutions, strict=True)):
        folded, name = block < fold_blocks, f"block{block + 1}"
        if folded:
            x = Fold(dtype=dtype, name=f"{name}_fold")(x)  # (b, s/2, s/2, s/2, 8c)
        for index in range(count):
            end = index == count - 1
            x = FoldableConv3D(
                filters,
                folded=folded,
                pooled=folded and end,
                activation="relu",
                kernel_initializer="he_normal",
                dtype=dtype,
                name="features" if block == last and end else f"{name}_conv{index + 1}",
            )(x)
        if block < last:  # a folded block has pooled already
            pool = keras.layers.Identity if folded else partial(keras.layers.MaxPooling3D, 2)
            x = pool(dtype=dtype, name=f"{name}_pool")(x)  # (b, s/2, s/2, s/2, f)
    features = x  # (b, g, g, g, 64)
    if settings.last_pool:
        x = keras.layers.MaxPooling3D(2, dtype=dtype, name=f"block{last + 1}_pool")(x)
    x = keras.layers.GlobalAveragePooling3D(dtype="float32", name="pooled")(x)  # (b, 64)
    x = keras.layers.BatchNormalization(momentum=settings.batch_norm_momentum, dtype="float32", name="batch_norm")(x)
    x = CountedDropout(settings.dropout, seed, dtype="float32", name="dropout")(x)
    logits = keras.layers.Dense(CLASSES, dtype="float32", name="logits")(x)  # (b, 2)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    outputs = {"probabilities": probabilities, "logits": logits, "features": features}
    return model_class(inputs=volume, outputs=outputs, name="mgkeras")
