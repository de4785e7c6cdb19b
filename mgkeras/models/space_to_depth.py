"""Convolutions of few channels, computed on a grid half as wide: the same function, with more work for matrix units.

With 8 or 16 channels a 3x3x3 convolution leaves a GPU's matrix units idle. So each 2x2x2 neighbourhood is moved into
the channels once at a block's start; the block's convolutions run there with kernels of 8 times the channels each way,
made from the stored small kernels; and the 2x2x2 max-pool that ends the block is a maximum over channels.

In: what the plain layers get. Out: what the plain layers give, from the same weights under the same names.

Glossary:
    place    one of the 8 voxels of a 2x2x2 neighbourhood, numbered 4x + 2y + z.
    packed   a volume (b, x, y, z, c) as (b, x/2, y/2, z/2, 8c), channels ordered place by place: channel k c + i is
             channel i at place k.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mgkeras.errors import InputError
from mgkeras.models import keras_compat

PLACES = 8


def space_to_depth(volume: tf.Tensor) -> tf.Tensor:
    """A volume (b, x, y, z, c) packed: (b, x/2, y/2, z/2, 8c).

    Raises:
        ValueError: an axis of space is odd or unknown.
    """
    *space, channels = volume.shape[1:]
    if any(size is None or size % 2 for size in space):
        raise InputError(f"a volume is packed by halves, so its sides must be even. Received: {tuple(space)}")
    x, y, z = (size // 2 for size in space)
    split = tf.reshape(volume, (-1, x, 2, y, 2, z, 2, channels))
    return tf.reshape(tf.transpose(split, (0, 1, 3, 5, 2, 4, 6, 7)), (-1, x, y, z, PLACES * channels))


def _placement() -> np.ndarray:
    """(3, 3, 3, 8, 8, 3, 3, 3) float32 of 0 and 1: whether tap u, v, w of the small kernel stands in the packed
    kernel's cell A, B, C between input place i and output place o.

    Along one axis the output at place o of cell 0 reads, by tap u, the voxel o + u - 1, which is place i of the packed
    cell A - 1 where 2 (A - 1) + i = o + u - 1. Of the neighbouring cells only the adjacent place is ever read.
    """
    cell, place_in, place_out, tap = np.ogrid[:3, :2, :2, :3]
    axis = (2 * (cell - 1) + place_in == place_out + tap - 1).astype(np.float32)  # (A, i, o, u)
    three = np.einsum("Aiou,Bjpv,Ckqw->ABCijkopquvw", axis, axis, axis)
    return three.reshape(3, 3, 3, PLACES, PLACES, 3, 3, 3)


PLACEMENT = _placement()


def packed_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """The kernel (3, 3, 3, 8ci, 8co) that does on packed volumes what (3, 3, 3, ci, co) does on plain ones.

    Every entry is a weight of the small kernel or 0, so nothing is rounded; the gradient sums the 8 places of a weight.
    """
    placed = tf.einsum("ABCiouvw,uvwcd->ABCicod", PLACEMENT, kernel)  # (3, 3, 3, 8, ci, 8, co)
    return tf.reshape(placed, (3, 3, 3, PLACES * kernel.shape[3], PLACES * kernel.shape[4]))


@tf.custom_gradient
def max_over_places(packed: tf.Tensor):
    """The 2x2x2 max-pool of a packed volume: (b, x, y, z, 8c) -> (b, x, y, z, c).

    The gradient goes to the first of equal places, as in the max-pools of XLA and oneDNN (TensorFlow's other kernels
    differ). Only the place is kept for it, an eighth of the volume, in the volume's dtype: all that is done with it has
    GPU kernels for that. An overflow (NaN) at any place stays one.
    """
    largest, *others = tf.split(packed, PLACES, axis=-1)
    winner = tf.zeros_like(largest)
    for place, other in enumerate(others, start=1):
        winner = tf.where(other > largest, tf.cast(place, packed.dtype), winner)
        largest = tf.maximum(largest, other)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        places = tf.cast(tf.range(PLACES)[:, None], packed.dtype)  # (8, 1)
        routed = tf.where(winner[..., None, :] == places, upstream[..., None, :], tf.zeros((), packed.dtype))
        return tf.reshape(routed, tf.shape(packed))  # (b, x, y, z, 8, c) -> (b, x, y, z, 8c)

    return largest, gradient


@keras.saving.register_keras_serializable("mgkeras")
class SpaceToDepth(keras.layers.Layer):
    """space_to_depth as a layer: how a packed block begins."""

    def call(self, inputs):
        return space_to_depth(inputs)


@keras.saving.register_keras_serializable("mgkeras")
class SpaceToDepthConv3D(keras.layers.Conv3D):
    """A 3x3x3 convolution with padding 'same' and stride 1 whose inputs may be packed.

    Its weights are those of keras.layers.Conv3D, ``kernel`` (3, 3, 3, ci, co) and ``bias`` (co,), in every form, so a
    checkpoint of one form is one of the others.

    Args:
        filters: co, of the plain convolution.
        packed: whether inputs (b, x/2, y/2, z/2, 8ci) and outputs (b, x/2, y/2, z/2, 8co) are packed.
        pooled: of a packed layer, whether it ends in the 2x2x2 max-pool: outputs (b, x/2, y/2, z/2, co), not packed.
            The maximum is taken before bias and activation, of which an eighth is then left to do and to keep. That is
            exact: adding one number and ReLU both keep order, also when rounded. Another activation must do so too.
        kwargs: of keras.layers.Conv3D.
    """

    def __init__(self, filters: int, *, packed: bool = False, pooled: bool = False, **kwargs) -> None:
        super().__init__(filters, **kwargs | {"kernel_size": 3, "padding": "same"})
        if pooled and not packed:
            raise InputError("only a packed convolution can be pooled. Received: pooled=True, packed=False")
        self.packed, self.pooled = packed, pooled

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"packed": self.packed, "pooled": self.pooled}

    def build(self, input_shape) -> None:
        *outer, channels = input_shape
        super().build((*outer, channels // PLACES) if self.packed else input_shape)
        self.input_spec = keras.layers.InputSpec(ndim=5, axes={-1: channels})

    def add_weight(self, *args, **kwargs):
        if self.packed:
            # weights come in float32 and are cast once they are placed: outputs are the same as if cast before, but
            # the gradients of a weight's 8 places are summed in float32
            kwargs |= keras_compat.NO_AUTOCAST
        return super().add_weight(*args, **kwargs)

    def compute_output_shape(self, input_shape):
        if not self.packed:
            return super().compute_output_shape(input_shape)
        return (*input_shape[:-1], self.filters if self.pooled else PLACES * self.filters)

    def call(self, inputs):
        if not self.packed:
            return super().call(inputs)
        kernel = tf.cast(packed_kernel(tf.convert_to_tensor(self.kernel)), inputs.dtype)
        bias = tf.cast(tf.convert_to_tensor(self.bias), inputs.dtype)  # (co,)
        # zeros beyond the packed grid are zeros beyond the plain one: the places read there are its padding
        x = tf.nn.conv3d(inputs, kernel, (1, 1, 1, 1, 1), "SAME")  # (b, x/2, y/2, z/2, 8co)
        if self.pooled:
            return self.activation(tf.nn.bias_add(max_over_places(x), bias))  # (b, x/2, y/2, z/2, co)
        return self.activation(tf.nn.bias_add(x, tf.tile(bias, (PLACES,))))
