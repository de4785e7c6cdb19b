"""This project's engines of speed.py: the guided step, the step fed by the real pipeline, the stream alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from speed_measure import (
    TRAINING,
    Row,
    Task,
    labels_of,
    random_volumes,
    rates,
    read_synthetic,
    row_of,
    settings_of,
    step_times,
)

from mgkeras.models import cam
from mgkeras.models.guided import build_model
from mgkeras.training.devices import Device, choose_device, make_optimizer

NAMES = {"mgkeras": "mgkeras, as `mgkeras fit` trains", "mgkeras-plain": "mgkeras, blocks not folded"}
FED = "the same fed by the real pipeline (train_fold)"
CHECKED = {"side": 32, "batch": 4}  # of the batch on which the twin's loss is compared


def device_of(key: str) -> Device:
    """The device's choice, or one that the key names instead."""
    if key in ("mgkeras-float32", "mgkeras-bfloat16"):
        return choose_device(precision=key.removeprefix("mgkeras-"))
    return choose_device(s2d_blocks=0) if key == "mgkeras-plain" else choose_device()


def described(device: Device) -> str:
    packed = f", {device.s2d_blocks} blocks by space-to-depth" if device.s2d_blocks else ""
    return f"{device.policy.removeprefix('mixed_')}{', XLA' if device.jit else ''}{packed}"


def step(key: str, task: Task) -> list[Row]:
    """train_step on a batch that is on the device; for the key 'mgkeras' also as part of the real fit."""
    device, settings = device_of(key), settings_of(task.side, task.batch)
    model = build_model(settings, dtype=device.policy, s2d_blocks=device.s2d_blocks)
    model.compile(make_optimizer("adam", settings.training.learning_rate, device.policy))
    model.optimizer.build(model.trainable_variables)
    train_step = tf.function(model.train_step, jit_compile=device.jit, reduce_retracing=True)
    volumes, masks = random_volumes(task.batch, task.side)
    batch = {"volume": volumes[..., None], "mask": masks[..., None]}, labels_of(task.batch)
    there = tf.nest.map_structure(tf.identity, batch)

    def run(count: int, next_batch=lambda: there) -> None:
        for _ in range(count):
            train_step(next_batch())
        model.trainable_variables[0].numpy()  # the first layer's gradient is the last thing that a step finds out

    values, _ = step_times(task, run)
    gpu = device.kind == "gpu"
    if task.gpu and not gpu:
        raise RuntimeError("TensorFlow sees no GPU")
    memory = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9 if gpu else None
    name = f"{NAMES.get(key, 'mgkeras')}: {described(device)}"
    rows = [row_of("step", key, name, task, "ms a step", values, memory_gb=memory)]
    if key != "mgkeras":
        return rows
    if gpu:
        values, _ = step_times(task, lambda count: run(count, lambda: {k: tf.constant(v) for k, v in batch.items()}))
        rows.append(
            row_of(
                "step",
                "mgkeras-copied",
                "the same, its batch copied from the host each step",
                task,
                "ms a step",
                values,
            )
        )
    try:
        rows += fit_rows(task, device)
        ahead = replace(device, prefetch_to="/gpu:0" if gpu else "/cpu:0")
        return rows + [
            replace(row, key="mgkeras-fit-ahead", what=f"{FED}, prefetched to the device")
            for row in fit_rows(task, ahead)[:1]
        ]
    except ModuleNotFoundError as error:  # the cache's module needs more than the step
        note = f"not installed: {error.name}"
        return [*rows, Row("step", "mgkeras-fit", FED, task.side, task.batch, "ms a step", note=note)]


def fit_rows(task: Task, device: Device) -> list[Row]:
    """The real fit of a fold, cache -> stream -> device: ms a step, and what a fold's first epoch costs on top.

    On a GPU an epoch has about as many steps as the paper's (313 at batches of 10).
    """
    from mgkeras.data.stream import steps_per_epoch
    from mgkeras.training.fit import train_fold

    epochs = 2 if task.quick else 4 if task.gpu else 6
    if task.gpu and not task.quick:
        count, variants = TRAINING, max(1, min(34, round(34 * task.batch / 10)))
    else:
        count, variants = 3 * task.batch, 1
    settings = settings_of(task.side, task.batch, epochs=epochs, variants_per_epoch=variants)
    cache, labels = synthetic_cache(task)
    rows = rows_of(cache, count)
    _, history = train_fold(cache, labels, rows, settings, device)
    steps = steps_per_epoch(count, settings)
    seconds = [epoch["seconds"] for epoch in history]
    values = [1000 * second / steps for second in seconds[1:]]
    start = seconds[0] - sorted(seconds[1:])[len(seconds[1:]) // 2]
    return [
        row_of("step", "mgkeras-fit", FED, task, "ms a step", values, note=f"epochs of {steps} steps"),
        row_of("job", "start", "a fold's first epoch, more than another (tracing, XLA)", task, "s", [max(0.0, start)]),
    ]


def stream(key: str, task: Task) -> list[Row]:
    """stream.train_stream alone, the 34 variants of 92 subjects."""
    from mgkeras.data.stream import train_stream

    cache, labels = synthetic_cache(task)
    batches = train_stream(cache, labels, rows_of(cache, TRAINING), settings_of(task.side, task.batch), range(1 << 20))
    values = rates(task, (inputs["volume"].shape[0] for inputs, _ in batches))
    return [row_of("stream", key, "mgkeras, train_stream, memory map", task, "volumes/s", values)]


def synthetic_cache(task: Task):
    """A Cache of the synthetic volumes in files as `mgkeras fit` makes them, and their labels (n,)."""
    from mgkeras.data.cache import Cache
    from mgkeras.data.exam_file import ExamArray, open_exam, write_exam

    image, mask = read_synthetic(task.folder, task.side)
    names, voxel_mm, files = tuple(f"{task.side}-s{place:03d}" for place in range(len(image))), 256 / task.side, []
    for name, volumes, masks in zip(names, image, mask, strict=True):
        path = task.folder / f"{name}.h5"
        if not path.exists():
            write_exam(path, name, np.array(volumes), np.array(masks, np.uint8), voxel_mm, {})
        files.append(open_exam(path))
    arrays = (ExamArray(files, "image"), ExamArray(files, "mask"))
    cache = Cache(task.folder, names, *arrays, np.full(len(names), voxel_mm), tuple({} for _ in names))
    return cache, labels_of(len(names))


def rows_of(cache, count: int) -> list[int]:
    """So many rows of the cache, in turn: a fold has more subjects than the synthetic cache."""
    return [place % len(cache.subjects) for place in range(count)]


def reference(path: Path) -> None:
    """Writes a batch, weights, and what this project makes of them: ce, dice, the loss and its gradients."""
    task = Task(**CHECKED, steps=1, quick=True, gpu=False, folder=path.parent)
    settings = settings_of(task.side, task.batch)
    model = build_model(replace(settings, backbone=replace(settings.backbone, dropout=0.0)))
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:  # biases and batch normalisation begin at 0 and 1: too easy to get right
        variable.assign_add(0.1 * rng.standard_normal(variable.shape).astype(np.float32))
    volumes, masks = random_volumes(task.batch, task.side)
    masks[-1] = False  # a volume without a mask has no Dice term
    labels = labels_of(task.batch)
    with tf.GradientTape() as tape:
        outputs = model.outputs_of(tf.constant(volumes[..., None], tf.float32), training=True)
        loss, ce, dice, has_mask = model.loss_of(
            outputs, tf.constant(masks[..., None]), tf.constant(labels), training=True
        )
        dice = cam.masked_mean(dice, has_mask)
    gradients = tape.gradient(loss, model.trainable_variables)
    arrays = {f"weight{place}": variable.numpy() for place, variable in enumerate(model.trainable_variables)}
    arrays |= {f"gradient{place}": gradient.numpy() for place, gradient in enumerate(gradients)}
    np.savez(path, volumes=volumes, masks=masks, labels=labels, ce=ce, dice=dice, loss=loss, **arrays)
