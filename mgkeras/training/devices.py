"""What the device decides, each with its reason: precision, XLA, space-to-depth, steps at once, determinism.

None of it is part of a run's Settings. Space-to-depth and steps at once compute the same function; space-to-depth and
XLA add in another order, which training carries on as it does any change in the last digit, and XLA draws other dropout
masks. The precision is checked where a run is resumed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from mgkeras.errors import InputError

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
# a step of some 15 ms feels Python between steps, one of a second on a CPU does not; the paper's epochs of 313 and 296
# steps are then one execution each (313 is prime), which Ctrl-C must wait for: seconds
GPU_STEPS = 400


@dataclass(frozen=True)
class Device:
    """How a model is trained here. ``policy`` is a Keras dtype policy, ``why`` a line for the log."""

    kind: str  # 'cpu' or 'gpu'
    policy: str
    jit: bool
    why: str
    s2d_blocks: int = 0  # of models.backbone.build_backbone
    steps_per_execution: int = 1  # at most so many steps without Python between them, see steps_at_once
    gpus: int = 1  # that share each batch, see replicated
    prefetch_to: str = ""  # where batches wait, as '/gpu:0'; '' in the host's memory, until a GPU has shown a gain


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(
    deterministic: bool = False,
    precision: str = "auto",
    jit: bool | None = None,
    s2d_blocks: int | None = None,
    gpus: int = 1,
) -> Device:
    """The fastest settings measured on this kind of device, and the reason; also turns determinism on.

    Args:
        deterministic: the same numbers in every run on the same device and versions. Max-pool gradients on a GPU are
            not deterministic under XLA, so there it is turned off.
        precision: 'auto', or one of PRECISIONS to override.
        jit: whether steps are compiled by XLA; None to choose by device.
        s2d_blocks: how many of the first blocks are computed after space-to-depth (models/space_to_depth.py); None to
            choose by device.
        gpus: how many share each batch, as tf.distribute.MirroredStrategy has it; XLA is then off, since Keras has none
            for its sums over GPUs.

    Raises:
        ValueError: another precision; float16 on a CPU, but for blocks after space-to-depth; half precision on a CPU
            that has no convolutions of it; XLA together with determinism on a GPU, or with several; more GPUs than
            there are.
    """
    import tensorflow as tf

    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    found = len(tf.config.list_physical_devices("GPU"))
    gpu = bool(found)
    for refused, told in (
        (
            gpus > max(1, found),
            f"expected --gpus up to {found}, as many as TensorFlow sees here. Received: {gpus}",
        ),
        (gpus > 1 and jit, f"one training on several GPUs needs XLA off. Received: --gpus {gpus} and --jit"),
        (
            gpu and deterministic and jit,
            "deterministic numbers on a GPU need XLA off: its max-pool gradients add up in any order. "
            "Received: --deterministic and --jit; leave one out",
        ),
        (
            not gpu and precision == "float16" and not s2d_blocks,
            "float16 is for a GPU: on a CPU TensorFlow has no max-pool of it. Received: --precision "
            "float16 on a CPU; use float32 or bfloat16",
        ),
    ):
        if refused:
            raise InputError(told)
    if not gpu and precision in ("float16", "bfloat16") and not has_convolutions(precision):  # asked last: it computes
        raise InputError(
            f"{precision} on a CPU needs convolutions of it, which oneDNN has for AVX-512, not for AVX2 "
            f"alone. Received: --precision {precision} on a CPU that fails a small one; use float32"
        )
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if gpu:
        tf.config.experimental.enable_tensor_float_32_execution(False)  # or the CAM identity holds to 1e-3 only
    chosen = precision if precision != "auto" else ("float16" if gpu else "float32")
    half = chosen != "float32"
    compiled = (gpu and gpus == 1 and not deterministic) if jit is None else jit
    packed = (2 if gpu and half else 0) if s2d_blocks is None else s2d_blocks
    reasons = [
        _precision_reason(gpu, chosen),
        "XLA off, for several GPUs" if gpus > 1 and jit is None else _xla_reason(gpu, compiled, jit is not None),
        _packing_reason(gpu, half, packed, s2d_blocks is not None),
    ]
    if gpu:
        reasons.append(f"up to {GPU_STEPS} steps at once, so that none waits for Python")
    if gpus > 1:
        reasons.append(f"each batch shared out to {gpus} GPUs")
    return Device(
        kind="gpu" if gpu else "cpu",
        policy=f"mixed_{chosen}" if half else "float32",
        jit=compiled,
        why=f"{'GPU' if gpu else f'CPU ({os.cpu_count()} cores)'}: {'; '.join(reasons)}",
        s2d_blocks=packed,
        steps_per_execution=GPU_STEPS if gpu else 1,
        gpus=gpus,
    )


@cache
def has_convolutions(dtype: str) -> bool:
    """Whether this CPU has 3D convolutions of a dtype and their gradients: tried on a tiny one, as nothing else tells.

    Args:
        dtype: such as 'bfloat16'.
    """
    import tensorflow as tf

    volume, kernel = tf.ones((1, 4, 4, 4, 2), dtype), tf.ones((3, 3, 3, 2, 2), dtype)
    try:
        with tf.GradientTape() as tape:
            tape.watch([volume, kernel])
            found = tf.nn.conv3d(volume, kernel, [1] * 5, "SAME")
        tape.gradient(found, [volume, kernel])
    except tf.errors.OpError:  # oneDNN could not create a primitive descriptor
        return False
    return True


def _precision_reason(gpu: bool, chosen: str) -> str:
    return "float16, for a GPU's matrix units" if gpu and chosen == "float16" else chosen


def _xla_reason(gpu: bool, on: bool, asked: bool) -> str:
    if on:
        return "XLA on" if gpu else "XLA on, as asked, though it is 12 times slower here"
    if asked:
        return "XLA off, as asked"
    return "XLA off (its max-pool gradients are not deterministic)" if gpu else "XLA off, it is 12 times slower here"


def _packing_reason(gpu: bool, half: bool, packed: int, asked: bool) -> str:
    what = {0: "blocks plain", 1: "block 1 by space-to-depth"}.get(packed, f"blocks 1 to {packed} by space-to-depth")
    if asked:
        return f"{what}, as asked"
    if not gpu:
        return f"{what}, space-to-depth is 3 times slower here"
    return f"{what}, since matrix units want many channels" if half else f"{what}, space-to-depth is for half precision"


def replicated(device: Device) -> Any:
    """The tf.distribute strategy that shares batches out to the device's GPUs; the default one, without any, for one.

    Raises:
        ValueError: TensorFlow has fewer devices of that kind, or this is the addons lane, where none of it was tried.
    """
    import tensorflow as tf

    from mgkeras.models import keras_compat

    if device.gpus == 1:
        return tf.distribute.get_strategy()
    if keras_compat.ADDONS:
        raise InputError(f"one training on several GPUs needs Keras 3. Received: {device.gpus} GPUs and Keras 2")
    names = [gpu.name for gpu in tf.config.list_logical_devices(device.kind.upper())]
    if len(names) < device.gpus:
        raise InputError(f"expected {device.gpus} devices to share batches out to. Received: {', '.join(names)}")
    return _mirrored(tuple(names[: device.gpus]))


@cache
def _mirrored(names: tuple[str, ...]) -> Any:
    """One strategy for all folds of a process: TensorFlow takes the sums of a second one for those of the first."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(names))


def steps_at_once(device: Device, steps: int) -> int:
    """Keras' steps_per_execution for an epoch of so many steps: the device's, lowered to a divisor of them.

    Keras runs every execution whole, so another number would carry an epoch's steps over into the next.
    """
    return max(count for count in range(1, device.steps_per_execution + 1) if steps % count == 0)


def make_optimizer(
    name: str,
    learning_rate: float,
    policy: str,
    *,
    steps: int = 1,
    epochs: int = 1,
    schedule: str = "constant",
    warmup: float = 0.0,
    weight_decay: float | None = None,
):
    """An optimizer by its name in settings.OPTIMIZERS; under float16 with a dynamic loss scale.

    Args:
        name, learning_rate: of the settings.
        policy: of the device.
        steps, epochs: of the training, which SWA and a schedule must know.
        schedule, warmup: of the learning rate, see settings.TrainingSettings.
        weight_decay: of adamw; None for Keras' own.

    Raises:
        NeedsAddons: of models.keras_compat, where only tensorflow-addons has it and that is not here.
    """
    from mgkeras.models import keras_compat

    rate = keras_compat.cosine(learning_rate, steps * epochs, warmup) if schedule == "cosine" else learning_rate
    optimizer = keras_compat.optimizer_of(name, rate, steps, epochs, weight_decay)
    return keras_compat.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer
