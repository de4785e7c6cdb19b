"""The 3D VGG of the paper as a functional Keras model that hands out probabilities, logits and last-conv features."""

from __future__ import annotations

import keras
import tensorflow as tf

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


def build_backbone(side: int, settings: BackboneSettings, *, seed: int = 0, dtype: str = "float32",
                   model_class: type[keras.Model] = keras.Model) -> keras.Model:
    """A functional 3D VGG: blocks of 3x3x3 convolutions and 2x2x2 max-pools, then the head.

    Args:
        side: voxels along the input cube's edge.
        settings: filters, convolutions, whether the last block ends in a pool, dropout, batch-norm momentum.
        seed: of dropout.
        dtype: Keras dtype policy of the blocks ('float32', 'mixed_float16', 'mixed_bfloat16'); the head is float32.
        model_class: keras.Model or a subclass that brings its own train_step.

    Returns:
        A model from ``volume`` (b, side, side, side, 1) to a dict of ``probabilities`` (b, 2) float32, ``logits``
        (b, 2) float32, ``features`` (b, g, g, g, filters[-1]), non-negative; g is side / 8 with the default settings.

    Reference: Korolev et al. 2017 (3D VGG); Liu et al. 2021.
    """
    volume = keras.Input((side, side, side, 1), name="volume")
    x = volume  # (b, s, s, s, 1)
    last = len(settings.filters) - 1
    for block, (filters, count) in enumerate(zip(settings.filters, settings.convolutions, strict=True)):
        for index in range(count):
            name = "features" if (block, index) == (last, count - 1) else f"block{block + 1}_conv{index + 1}"
            x = keras.layers.Conv3D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal",
                                    dtype=dtype, name=name)(x)  # fmt: skip
        if block < last:
            x = keras.layers.MaxPooling3D(2, dtype=dtype, name=f"block{block + 1}_pool")(x)  # (b, s/2, s/2, s/2, f)
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
