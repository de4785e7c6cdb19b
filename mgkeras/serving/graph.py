"""What is served: preprocessing, the folds' networks and their maps as one graph of tf.* operations.

In: the folds' trained models. Out: a tf.Module that holds their weights, and the signatures of its SavedModel. Nothing
in the graph calls Python, so any TensorFlow runtime computes it without this package.

Glossary:
    cube    (b, side, side, side, channels) float32: what data.cache.exam_cube makes of an exam.
    exam    (b, x, y, z) float32: raw early volumes in RAS+ axis order, any units; b exams of one shape, mostly one.
    Beside
            them the other phases that a run's channels are made of, on the same grid and in the same units.
    zooms   (b, 3) float64: voxel sizes in mm. Not float32: volume.axis_weights compares them in float64.
    cells   (b, g, g, g) float32, log-odds, any sign: the decision map (see models.cam) on the network's own grid,
            g = side / 8 by default. Where no pool follows the last block, its mean plus a constant is half of the
            folds' mean log-odds of that class.
    map     the cells enlarged to the grid of the signature's input.

Every signature has a leading batch dimension, that of exams too, because a server with batching on refuses inputs
whose first dimensions differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mgkeras.data import volume as volumes
from mgkeras.data.phases import files_of, input_shape
from mgkeras.models import cam, keras_compat
from mgkeras.models.guided import MaskGuided
from mgkeras.models.weights import named_weights
from mgkeras.settings import Settings, VolumeSettings

Tensors = dict[str, tf.Tensor]
EQUATIONS = ("ix,bxyz->biyz", "iy,bxyz->bxiz", "iz,bxyz->bxyi")  # a matrix along each axis of (b, x, y, z)


def module_of(models: Mapping[int, MaskGuided]) -> tf.Module:
    """A tf.Module that holds each fold's weights under fold_K and their names in weights.h5, and nothing else."""
    module = tf.Module(name="mgkeras")
    for fold, model in models.items():
        weights = {name: keras_compat.tf_variable(weight) for name, weight in named_weights(model)}
        setattr(module, f"fold_{fold}", weights)
    return module


def signatures_of(models: Sequence[MaskGuided], settings: Settings) -> dict[str, Callable]:
    """The served functions by name, each a concrete function with named, typed inputs and outputs.

    ``serving_default`` cube -> probabilities. ``explain`` cube -> probabilities, class, map. ``predict_bytes``
    cube_bytes (b,) string, each a zlib-compressed float16 little-endian cube in C order -> probabilities, class, cells,
    fold_probabilities. ``predict_exam`` volume (the early phase), zooms and, where channels are made of them, pre and
    late -> the same and map; left out of a mask-only run, whose cube needs a tumour mask.

    Outputs: ``probabilities`` (b, 2) float32, the mean of the folds'; ``class`` (b,) int32, 1 where that of class 1 is
    0.5 or more; ``cells`` and ``map`` the decision map of that class, the mean of the folds'; ``fold_probabilities``
    (b, k) float32 of class 1 by each fold; ``log_odds`` (b,) float32 of class 1, the mean of the folds', which exports
    of before have not: their cells are a class map brought to [0, 1].

    Args:
        models: of the folds, in order.
        settings: of their run.
    """
    side, shape = settings.volume.side, input_shape(settings.volume)
    cube = tf.TensorSpec((None, *shape), tf.float32, name="cube")

    def serving_default(cube: tf.Tensor) -> Tensors:
        each = [model(_checked(cube, shape), training=False) for model in models]
        return {"probabilities": tf.reduce_mean(tf.stack(each), 0)}

    def explain(cube: tf.Tensor) -> Tensors:
        found = scores(models, _checked(cube, shape))
        return {"probabilities": found["probabilities"], "class": found["class"], "map": enlarged(found["cells"], side)}

    def predict_bytes(cube_bytes: tf.Tensor) -> Tensors:
        return scores(models, decoded(cube_bytes, shape))

    def predict_exam(volume: tf.Tensor, zooms: tf.Tensor, *others: tf.Tensor) -> Tensors:
        phases = dict(zip(files_of(settings.volume)[1:], others, strict=True))
        found = scores(models, exam_cube(volume, zooms, settings, phases))
        return found | {"map": on_exam(found["cells"], tf.shape(volume), zooms, side)}

    traced = {
        "serving_default": tf.function(serving_default, input_signature=[cube]),
        "explain": tf.function(explain, input_signature=[cube]),
        "predict_bytes": tf.function(
            predict_bytes, input_signature=[tf.TensorSpec((None,), tf.string, name="cube_bytes")]
        ),
    }
    if not settings.uses_box:
        traced["predict_exam"] = tf.function(
            predict_exam,
            input_signature=[
                tf.TensorSpec((None, None, None, None), tf.float32, name="volume"),
                tf.TensorSpec((None, 3), tf.float64, name="zooms"),
                *(tf.TensorSpec((None,) * 4, tf.float32, name=name) for name in files_of(settings.volume)[1:]),
            ],
        )
    return {name: function.get_concrete_function() for name, function in traced.items()}


def shapes_of(signature: tf.types.experimental.ConcreteFunction) -> dict[str, dict[str, dict]]:
    """``inputs`` and ``outputs`` of one of signatures_of: {name: {dtype, shape}}, a free dimension as None."""
    specs, _ = signature.structured_input_signature
    tensors = {"inputs": {spec.name: spec for spec in specs}, "outputs": signature.structured_outputs}
    return {
        part: {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in named.items()}
        for part, named in tensors.items()
    }


def _checked(cube: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """The cube, its shape compared when it is served: convolutions would score a cube of another size too."""
    return tf.ensure_shape(cube, (None, *shape))


def _if_right(value: tf.Tensor, right: tf.Tensor, *message) -> tf.Tensor:
    """The value, once it is known to be right; else an error that the client gets."""
    with tf.control_dependencies([tf.debugging.Assert(right, message)]):
        return tf.identity(value)


def scores(models: Sequence[MaskGuided], cube: tf.Tensor) -> Tensors:
    """Probabilities, class, cells, fold_probabilities and log_odds of a cube, as inference.predict has them."""
    outputs = [model.outputs_of(cube) for model in models]
    each = tf.stack([output["probabilities"] for output in outputs], 1)  # (b, k, 2)
    probabilities = tf.reduce_mean(each, 1)  # (b, 2)
    classes = tf.cast(probabilities[:, 1] >= 0.5, tf.int32)
    cells, log_odds = [], [output["logits"][:, 1] - output["logits"][:, 0] for output in outputs]
    for model, output in zip(models, outputs, strict=True):
        maps = cam.class_maps(output["features"], model.head.weights()[0])  # (b, g, g, g, 2)
        cells.append(cam.pick_class(cam.centred(maps), classes))
    return {
        "probabilities": probabilities,
        "class": classes,
        "cells": tf.reduce_mean(tf.stack(cells), 0),
        "fold_probabilities": each[:, :, 1],
        "log_odds": tf.reduce_mean(tf.stack(log_odds), 0),
    }


def decoded(cube_bytes: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """zlib-compressed float16 cubes (b,) string -> (b, *shape) float32, shape being (side, side, side, channels)."""
    values = tf.io.decode_raw(tf.io.decode_compressed(cube_bytes, "ZLIB"), tf.float16)  # (b, voxels)
    count, side, wanted = tf.shape(values)[1], shape[0], math.prod(shape)
    told = f"expected {wanted} float16 voxels, {side} along each axis{f' of {shape[3]} channels' * (shape[3] > 1)}."
    values = _if_right(values, tf.equal(count, wanted), f"{told} Received:", count)
    return tf.reshape(tf.cast(values, tf.float32), (-1, *shape))


def exam_cube(
    volume: tf.Tensor, zooms: tf.Tensor, settings: Settings, others: Mapping[str, tf.Tensor] | None = None
) -> tf.Tensor:
    """data.cache.exam_cube of the whole field of view: volume and others (b, x, y, z), zooms (b, 3) -> a cube."""
    side, background = settings.volume.side, settings.volume.background
    zooms = _if_right(
        zooms,
        tf.reduce_all((zooms > 0) & tf.math.is_finite(zooms)),
        "expected voxel sizes in mm above 0. Received:",
        zooms,
    )
    shape, voxel_mm = tf.shape(volume)[1:], _voxel_mm(tf.shape(volume), zooms, side)
    matrices = [axis_weights(shape[axis], zooms[:, axis], tf.constant(side), voxel_mm) for axis in range(3)]
    channels = channels_of({**(others or {}), "early": volume}, settings.volume)
    cubes = [along_axes(channel - background, matrices) + background for channel in channels]
    return tf.ensure_shape(tf.stack(cubes, -1), (None, *input_shape(settings.volume)))


def on_exam(cells: tf.Tensor, shape: tf.Tensor, zooms: tf.Tensor, side: int) -> tf.Tensor:
    """data.volume.from_cube: cells (b, g, g, g) on the grid of exams of ``shape`` (b, x, y, z) and zooms (b, 3)."""
    grid, voxel_mm = cells.shape[1], _voxel_mm(shape, zooms, side)
    cell_mm = side * voxel_mm / grid
    return along_axes(
        cells, [axis_weights(tf.constant(grid), cell_mm, shape[1 + axis], zooms[:, axis]) for axis in range(3)]
    )


def enlarged(cells: tf.Tensor, side: int) -> tf.Tensor:
    """scores.attention.enlarge: cells (b, g, g, g) -> (b, side, side, side), linear, edges clamped."""
    grid = cells.shape[1]
    return along_axes(cells, [volumes.axis_weights(grid, side / grid, side, 1.0)] * 3)


def _voxel_mm(shape: tf.Tensor, zooms: tf.Tensor, side: int) -> tf.Tensor:
    """(b,) float64 edge of a cube voxel, as data.volume.frame_of: the longest side of the field of view, divided."""
    return tf.reduce_max(tf.cast(shape[1:], tf.float64) * zooms, 1) / side


def channels_of(phases: Mapping[str, tf.Tensor], settings: VolumeSettings) -> list[tf.Tensor]:
    """data.phases.channels_of of exams (b, x, y, z)."""
    unit, ceiling = unit_of(phases["early"]), settings.intensity_ceiling
    return [
        tf.clip_by_value((phases["early"] - phases["pre"]) / unit, -ceiling, ceiling)
        if name == "subtraction"
        else tf.clip_by_value(phases[name] / unit, 0.0, ceiling)
        for name in settings.phases
    ]


def unit_of(volume: tf.Tensor) -> tf.Tensor:
    """data.volume.unit_of of exams (b, x, y, z): (b, 1, 1, 1) float32."""
    axes, exact = [1, 2, 3], tf.cast(volume, tf.float64)
    bright = exact > tf.reduce_mean(exact, axes, keepdims=True)
    count = tf.reduce_sum(tf.cast(bright, tf.int32), axes, keepdims=True)
    total = tf.reduce_sum(tf.where(bright, exact, tf.zeros((), tf.float64)), axes, keepdims=True)
    level = tf.math.divide_no_nan(total, tf.cast(count, tf.float64))  # (b, 1, 1, 1)
    level = _if_right(
        level,
        tf.reduce_all((level > 0) & tf.math.is_finite(level)),
        "expected finite volumes with bright voxels. Received: volumes from",
        tf.reduce_min(volume, axes),
        "to",
        tf.reduce_max(volume, axes),
    )
    return tf.cast(level, tf.float32)


def axis_weights(n_in: tf.Tensor, zoom_in: tf.Tensor, n_out: tf.Tensor, zoom_out: tf.Tensor) -> tf.Tensor:
    """data.volume.axis_weights without an offset, in the graph: a matrix an exam.

    Args:
        n_in, n_out: scalars int32, samples of the axis that is read and of the one that is written.
        zoom_in, zoom_out: (b,) float64, their spacing in mm.

    Returns:
        (b, n_out, n_in) float32; rows sum to 1, or to 0 outside the read axis's voxels.
    """
    read, written = _centres(n_in, zoom_in), _centres(n_out, zoom_out)  # (b, n_in), (b, n_out)
    reach = tf.maximum(zoom_in, zoom_out)[:, None, None]
    weights = tf.nn.relu(1 - tf.abs(written[:, :, None] - read[:, None, :]) / reach)  # (b, n_out, n_in)
    edge = tf.cast(n_in, tf.float64) * zoom_in / 2 + 1e-6 * zoom_in
    total = tf.reduce_sum(weights, 2, keepdims=True)
    kept = (tf.abs(written) <= edge[:, None])[..., None] & (total > 0)
    return tf.cast(tf.where(kept, tf.math.divide_no_nan(weights, total), tf.zeros((), tf.float64)), tf.float32)


def _centres(count: tf.Tensor, zoom: tf.Tensor) -> tf.Tensor:
    """(b, count) float64 positions in mm of an axis's samples around its middle."""
    exact = tf.cast(count, tf.float64)
    return (tf.range(exact, dtype=tf.float64) - (exact - 1) / 2)[None, :] * zoom[:, None]


def along_axes(array: tf.Tensor, matrices: Sequence[tf.Tensor]) -> tf.Tensor:
    """Applies a matrix (n_out, n_in), or (b, n_out, n_in), to each axis of space of an array (b, x, y, z)."""
    for equation, matrix in zip(EQUATIONS, matrices, strict=True):
        array = tf.einsum(("b" if len(matrix.shape) == 3 else "") + equation, matrix, array)
    return array
