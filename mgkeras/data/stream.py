"""tf.data: batches of augmented volumes from the cache. The only file in mgkeras.data that imports TensorFlow.

What an epoch holds and in which order is a pure function of the seed and the epoch's number (:func:`epoch_plan`), so a
training that is resumed sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from mgkeras.data.augment import apply_variant, variants
from mgkeras.data.cache import Cache
from mgkeras.settings import Settings

ALIGNED = 64  # bytes


def epoch_plan(rows: Sequence[int], settings: Settings, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, as indices.

    Args:
        rows: cache rows to train on.
        settings: seed, batch_size, augment, variants_per_epoch and context_dropout are used.
        epoch: 0 for the first.

    Returns:
        Batches whose sizes differ by one at most (so no batch is too small for batch normalisation), each (b, 3) int32
        of cache row, variant, and 1 where the context is blurred.
    """
    rng = np.random.default_rng([settings.seed, epoch])
    count = len(variants(settings.training.augment))
    drawn = min(count, settings.training.variants_per_epoch)
    picks = [(row, variant) for row in rows for variant in rng.permutation(count)[:drawn]]
    blurred = rng.random(len(picks)) < settings.guidance.context_dropout
    plan = np.column_stack([np.array(picks), blurred]).astype(np.int32)[rng.permutation(len(picks))]  # (m, 3)
    return np.array_split(plan, steps_per_epoch(len(rows), settings))


def steps_per_epoch(subjects: int, settings: Settings) -> int:
    """Batches in an epoch of so many training subjects."""
    volumes = subjects * min(len(variants(settings.training.augment)), settings.training.variants_per_epoch)
    return max(1, min(-(-volumes // settings.training.batch_size), volumes // 2))  # no batch of a single volume


def train_stream(
    cache: Cache, labels: np.ndarray, rows: Sequence[int], settings: Settings, epochs: range, prefetch_to: str = ""
) -> tf.data.Dataset:
    """Training batches of several epochs, one after the other.

    Args:
        cache: the open cache.
        labels: (n,) int, the class of each cache row.
        rows: cache rows to train on.
        settings: of the run.
        epochs: which epochs.
        prefetch_to: a device, as '/gpu:0', to which batches are copied while the one before is trained on.

    Returns:
        A dataset of dicts: ``volume`` (b, side, side, side, 1) float16 in [0, ceiling], ``mask`` the same shape bool,
        ``label`` (b,) int32, ``blurred`` (b,) bool. Axes are RAS+ before a variant reorients them.
    """

    def plans() -> Iterator[np.ndarray]:
        for epoch in epochs:
            yield from epoch_plan(rows, settings, epoch)

    side = settings.volume.side
    labels = tf.constant(labels, tf.int32)

    def load(plan: tf.Tensor) -> dict[str, tf.Tensor]:
        volume, mask = tf.numpy_function(lambda p: fetch(cache, p, settings), [plan], (tf.float16, tf.bool))
        return {
            "volume": tf.ensure_shape(volume, (None, side, side, side))[..., None],
            "mask": tf.ensure_shape(mask, (None, side, side, side))[..., None],
            "label": tf.gather(labels, plan[:, 0]),
            "blurred": plan[:, 2] > 0,
        }

    plan = tf.data.Dataset.from_generator(plans, output_signature=tf.TensorSpec((None, 3), tf.int32))
    batches = plan.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    return batches.apply(tf.data.experimental.prefetch_to_device(prefetch_to)) if prefetch_to else batches


def fetch(cache: Cache, plan: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The volumes and masks of a batch's plan, (b, side, side, side) float16 and bool, made from the memory maps."""
    chosen, shift = variants(settings.training.augment), settings.training.shift_voxels
    shape = (len(plan), *cache.image.shape[2:])
    images, masks = _aligned(shape, cache.image.dtype), _aligned(shape, cache.mask.dtype)
    for (row, variant, _), image, mask in zip(plan, images, masks, strict=True):
        apply_variant(cache.image[row], chosen[variant], shift, settings.volume.background, out=image)
        apply_variant(cache.mask[row], chosen[variant], shift, False, out=mask)
    return images, masks


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array on a multiple of 64 bytes, which TensorFlow takes over instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def plain_stream(cache: Cache, rows: Sequence[int], batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows as they are, never augmented, in order: (b, side, side, side, 1) float32 volumes and bool masks."""
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        yield (
            np.stack([cache.image[row, 0] for row in part]).astype(np.float32)[..., None],
            np.stack([cache.mask[row, 0] for row in part])[..., None],
        )
