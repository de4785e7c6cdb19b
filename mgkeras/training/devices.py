"""What the device decides: precision, XLA, determinism. One place, each choice with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass

PRECISIONS = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Device:
    """How the blocks are computed. ``policy`` is a Keras dtype policy, ``why`` a line for the log."""

    kind: str  # 'cpu' or 'gpu'
    policy: str
    jit: bool
    why: str


def choose_device(deterministic: bool = False, precision: str = "auto") -> Device:
    """The fastest settings measured on this kind of device, and the reason; also turns determinism on.

    Args:
        deterministic: the same numbers in every run on the same device and versions. Max-pool gradients on a GPU are
            not deterministic under XLA, so there it is turned off.
        precision: 'auto', or one of PRECISIONS to override.
    """
    import tensorflow as tf

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpu = bool(tf.config.list_physical_devices("GPU"))
    chosen = precision if precision != "auto" else ("float16" if gpu else "float32")
    policy = "float32" if chosen == "float32" else f"mixed_{chosen}"
    jit = gpu and not deterministic
    if gpu:
        xla = "XLA on" if jit else "XLA off (its max-pool gradients are not deterministic)"
        gain = ", half the time of float32 on an H100" if chosen == "float16" else ""
        why = f"GPU: {chosen}{gain}; {xla}"
        tf.config.experimental.enable_tensor_float_32_execution(False)  # or the CAM identity holds to 1e-3 only
    else:
        why = f"CPU ({os.cpu_count()} cores): {chosen}; XLA off, it is 12 times slower here"
    return Device("gpu" if gpu else "cpu", policy, jit, why)


def make_optimizer(name: str, learning_rate: float, policy: str):
    """A Keras optimizer by its name in settings.OPTIMIZERS; under float16 with a dynamic loss scale."""
    import keras

    optimizer = keras.optimizers.get({"class_name": name, "config": {"learning_rate": learning_rate}})
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
