"""tf.data: batches of augmented volumes from the cache. The only file in mgkeras.data that imports TensorFlow.

What an epoch holds and in which order is a pure function of the seed and the epoch's number (:func:`epoch_plan`), so a
training that is resumed sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from mgkeras.data import anatomical, context
from mgkeras.data.augment import Variant, apply_variant, variants
from mgkeras.data.cache import Cache
from mgkeras.data.phases import as_batch, cube_shape, input_shape, over
from mgkeras.settings import GuidanceSettings, Settings, TrainingSettings

ALIGNED = 64  # bytes
PATCHES = 4096  # ours, because they are kept in memory
MISSING: Any = object()
Rows = Sequence[int] | np.ndarray  # of a cache; an array is (n,) int
Patches = dict[tuple[int, int], context.Patch | None]  # by row and stored volume
CONTEXT_WAYS = ("", "swap", "swap-blur", "blur", "noise")  # of a plan: what stands around the tumour; '' its own tissue
SWAPS = ("swap", "swap-blur")  # with another patient's tissue, as it is or blurred


def epoch_plan(
    rows: Rows, settings: Settings, epoch: int, partners: Mapping[int, Rows] | None = None
) -> list[np.ndarray]:
    """The batches of one epoch, as indices.

    Args:
        rows: cache rows to train on.
        settings: seed, batch_size, augment, variants_per_epoch, context and context_dropout are used.
        epoch: 0 for the first.
        partners: for each row those whose tissue may stand around its tumour; all other rows where None.

    Returns:
        Batches whose sizes differ by one at most (so no batch is too small for batch normalisation), each (b, 4) int32
        of cache row, variant (of 'anatomical' the number of its change), context (an index into CONTEXT_WAYS) and, for
        a swap, the partner's cache row, for noise its seed. Row and variant are the same for every model kind.
    """
    rng, other = np.random.default_rng([settings.seed, epoch]), np.random.default_rng([settings.seed, epoch, 1])
    count, drawn = _variants(settings.training)
    if settings.training.augment == "anatomical":
        picks = [(row, number) for row in rows for number in rng.integers(count, size=drawn)]
    else:
        picks = [(row, variant) for row in rows for variant in rng.permutation(count)[:drawn]]
    changed = rng.random(len(picks)) < settings.guidance.context_dropout
    contexts = _contexts([row for row, _ in picks], changed, rows, settings, other, partners)
    plan = np.column_stack([np.array(picks), contexts]).astype(np.int32)  # (m, 4)
    return np.array_split(plan[rng.permutation(len(plan))], steps_per_epoch(len(rows), settings))


def _variants(training: TrainingSettings) -> tuple[int, int]:
    """How many variants of a volume there are, and how many an epoch holds."""
    anatomy = training.augment == "anatomical"
    count = anatomical.NUMBERS if anatomy else len(variants(training.augment))
    return count, min(count, training.variants_per_epoch)


def _contexts(
    own: Sequence[int],
    changed: np.ndarray,
    rows: Rows,
    settings: Settings,
    rng: np.random.Generator,
    partners: Mapping[int, Rows] | None,
) -> np.ndarray:
    """The last two columns of a plan, (m, 2) int: context and partner or seed of each volume, 0 where unchanged."""
    found = np.zeros((len(own), 2), np.int64)
    if not changed.any():
        return found
    ways = SWAPS if settings.guidance.context == "mix" else (settings.guidance.context,)
    for place, (row, change) in enumerate(zip(own, changed, strict=True)):
        way, number = ways[rng.integers(len(ways))], int(rng.integers(2**31))
        if change and way in SWAPS:
            choice = [partner for partner in rows if partner != row] if partners is None else partners[row]
            if len(choice):
                found[place] = CONTEXT_WAYS.index(way), choice[number % len(choice)]
        elif change:
            found[place] = CONTEXT_WAYS.index(way), number
    return found


def steps_per_epoch(subjects: int, settings: Settings) -> int:
    """Batches in an epoch of so many training subjects."""
    volumes = subjects * _variants(settings.training)[1]
    return max(1, min(-(-volumes // settings.training.batch_size), volumes // 2))  # no batch of a single volume


def train_stream(
    cache: Cache,
    labels: np.ndarray,
    rows: Rows,
    settings: Settings,
    epochs: range,
    prefetch_to: str = "",
    class_weights: Sequence[float] | None = None,
) -> tf.data.Dataset:
    """Training batches of several epochs, one after the other.

    Args:
        cache: the open cache.
        labels: (n,) int, the class of each cache row.
        rows: cache rows to train on.
        settings: of the run.
        epochs: which epochs.
        prefetch_to: a device, as '/gpu:0', to which batches are copied while the one before is trained on.
        class_weights: of each class in cross-entropy, or None.

    Returns:
        A dataset of what Keras trains on: a dict of ``volume`` (b, side, side, side, channels) float16 and ``mask``
        (b, side, side, side, 1) bool, labels (b,) int32 and, with class_weights, weights (b,) float32. Axes are RAS+
        before a variant reorients them.
    """
    near = partners_of(cache, rows, settings)
    patches: Patches = {}

    def plans() -> Iterator[np.ndarray]:
        for epoch in epochs:
            yield from epoch_plan(rows, settings, epoch, near)

    side, shape = settings.volume.side, cube_shape(settings.volume)
    labels = tf.constant(labels, tf.int32)
    weights = tf.constant(class_weights if class_weights is not None else [], tf.float32)

    def load(plan: tf.Tensor) -> tuple:
        volume, mask = tf.numpy_function(lambda p: fetch(cache, p, settings, patches), [plan], (tf.float16, tf.bool))
        inputs = {
            "volume": tf.reshape(tf.ensure_shape(volume, (None, *shape)), (-1, *input_shape(settings.volume))),
            "mask": tf.ensure_shape(mask, (None, side, side, side))[..., None],
        }
        label = tf.gather(labels, plan[:, 0])
        return (inputs, label) if class_weights is None else (inputs, label, tf.gather(weights, label))

    plan = tf.data.Dataset.from_generator(plans, output_signature=tf.TensorSpec((None, 4), tf.int32))
    batches = plan.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    return batches.apply(tf.data.experimental.prefetch_to_device(prefetch_to)) if prefetch_to else batches


def partners_of(cache: Cache, rows: Rows, settings: Settings) -> dict[int, np.ndarray] | None:
    """For each training row those whose body covers its tumour's place; None where no context is swapped.

    Of more than context.CANDIDATES rows so many, drawn by the seed, may stand around a tumour.
    """
    guidance, known = settings.guidance, np.asarray(rows)
    if not guidance.context_dropout or guidance.context not in (*SWAPS, "mix"):
        return None
    chosen = context.drawn_candidates(len(known), settings.seed)  # places in rows
    keeps = (_kept(cache, row, 0, guidance) for row in known)
    covered = context.coverage((cache.image[row, 0] for row in known[chosen]), keeps)
    own = context.columns_of(chosen, len(known))
    return {row: known[chosen[near]] for row, near in zip(known.tolist(), context.partners(covered, own), strict=True)}


def fetch(
    cache: Cache, plan: np.ndarray, settings: Settings, patches: Patches | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The volumes (b, *cube_shape) float16 and masks (b, side, side, side) bool of a batch's plan, made from the cache.

    ``patches`` keeps what was filled of a volume for the next time; give the same one with the same settings.
    """
    patches = {} if patches is None else patches
    training, background, ceiling = settings.training, settings.volume.background, settings.volume.intensity_ceiling
    chosen = None if training.augment == "anatomical" else variants(training.augment)
    images, masks = (_aligned((len(plan), *array.shape[2:]), array.dtype) for array in (cache.image, cache.mask))
    for (row, variant, way, number), image, mask in zip(plan, images, masks, strict=True):
        how = Variant() if chosen is None else chosen[variant]
        seen, inside = cache.image[row, how.stored], cache.mask[row, how.stored]
        if way:  # before the variant moves voxels, so that the partner is turned as the patient is
            seen = changed_context(cache, row, how.stored, CONTEXT_WAYS[way], int(number), settings.guidance, patches)
        if chosen is None:
            change = anatomical.drawn(int(variant), training)
            anatomical.changed(seen, change, background, ceiling, image)
            anatomical.moved(inside, change, mask)
        else:
            how = replace(how, stored=0)
            apply_variant(seen[None], how, training.shift_voxels, background, out=image)
            apply_variant(inside[None], how, training.shift_voxels, False, out=mask)
    return images, masks


def changed_context(
    cache: Cache, row: int, stored: int, way: str, number: int, guidance: GuidanceSettings, patches: Patches
) -> np.ndarray:
    """A stored volume of a cache row whose context is changed: float16, of the shape of a cube.

    Args:
        cache, row, stored: which volume.
        way: of CONTEXT_WAYS.
        number: of a swap the partner's row, of noise its seed.
        guidance: dilation_mm and blur_mm are used.
        patches: see fetch.
    """
    image, keep = cache.image[row, stored], _kept(cache, row, stored, guidance)
    if way == "blur":
        found = context.blurred_outside(image, keep, guidance.blur_mm / float(cache.voxel_mm[row]))
        return found.astype(image.dtype)
    if way == "noise":
        return context.shuffled_outside(image, keep, np.random.default_rng(number)).astype(image.dtype)
    if not keep.any():
        return image
    made = patches.get((number, stored), MISSING)
    if made is MISSING:
        sigma = guidance.blur_mm / float(cache.voxel_mm[number])
        hole = _kept(cache, number, stored, guidance)
        made = context.patch(cache.image[number, stored], hole, sigma)
        if len(patches) >= PATCHES:
            patches.clear()
        patches[number, stored] = made
    other = np.array(cache.image[number, stored])
    if made:
        other[made[0]] = made[1]
    if way == "swap-blur":
        other = context.blurred(other, guidance.blur_mm / float(cache.voxel_mm[number])).astype(image.dtype)
    return np.where(over(keep, image), image, other)


def _kept(cache: Cache, row: int, stored: int, guidance: GuidanceSettings) -> np.ndarray:
    return context.kept(cache.mask[row, stored], float(cache.voxel_mm[row]), guidance)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array on a multiple of 64 bytes, which TensorFlow takes over instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def plain_stream(cache: Cache, rows: Rows, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows as they are, never augmented, in order: volumes (b, side, side, side, channels) float32, and bool masks of
    one channel."""
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        yield (
            as_batch(np.stack([cache.image[row, 0] for row in part]).astype(np.float32)),
            np.stack([cache.mask[row, 0] for row in part])[..., None],
        )
