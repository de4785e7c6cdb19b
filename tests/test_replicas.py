"""A step on two devices is the step on one; on two logical CPUs, in a process of its own, as they must be set first."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mgkeras.models.keras_compat import ADDONS

pytestmark = [
    pytest.mark.computes,
    pytest.mark.skipif(ADDONS, reason="one training on several devices is for Keras 3"),
]
TOLERANCE = 1e-5  # sums over two parts are rounded otherwise than over one


def made():
    """Seven exams (which two devices share as 4 and 3) whose masks all lie with the first device."""
    rng = np.random.default_rng(0)
    volumes = rng.random((7, 16, 16, 16, 1)) * np.linspace(0.2, 1.5, 7)[:, None, None, None, None]
    masks = np.zeros((7, 16, 16, 16))
    masks[0, 3:9, 4:10, 2:9] = masks[2, 8:14, 2:7, 5:9] = 1
    return volumes.astype("float32"), masks, np.arange(7) % 2, rng.random(7).astype("float32")


def stepped(strategy):
    """Of a model made in a strategy's scope: its weights after a step and after its moments were set, and its logs."""
    import keras
    import tensorflow as tf

    import mgkeras

    volumes, masks, labels, weights = made()
    with strategy.scope():
        keras.utils.set_random_seed(3)
        net = mgkeras.vgg3d((16, 16, 16, 1), filters=(4, 8), convolutions=(1, 1), dropout=0.3, seed=5)
        model = mgkeras.MaskGuided(net, dice_weight=10)
        scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
        model.compile(scaled, weighted_metrics=[keras.metrics.AUC(name="auc")])
    data = tf.data.Dataset.from_tensors(({"volume": volumes, "mask": masks}, labels, weights))
    callbacks = [mgkeras.RecomputeMoments(volumes, 4)]
    logs = model.fit(data, verbose=0, shuffle=False, callbacks=callbacks).history
    later = model.evaluate(data, verbose=0, return_dict=True)
    return model.net.get_weights(), {**logs, **{f"later {name}": [value] for name, value in later.items()}}


def folded(gpus, epochs, state=None):
    """A fold's weights and history, of two epochs whose batches hold 4 and 3 volumes."""
    from mgkeras.settings import for_model, preset, with_values
    from mgkeras.training.devices import Device
    from mgkeras.training.fit import train_fold

    values = {
        "volume.side": 16,
        "backbone.filters": (4, 8),
        "backbone.convolutions": (1, 1),
        "training.epochs": epochs,
        "training.batch_size": 4,
        "training.optimizer": "sgd",
        "training.learning_rate": 0.01,
        "training.shift_voxels": 2,
        "guidance.ce": "sum",
        "guidance.dice_term": "log",
        "guidance.lambda_dice": 0.3,
    }
    settings = for_model(with_values(preset("demo"), values), "guided", values)
    device = Device(kind="cpu", policy="float32", jit=False, why="", gpus=gpus)
    volumes, masks, labels, _ = made()
    cache = SimpleNamespace(
        image=np.stack([volumes[..., 0].astype(np.float16)] * 3, 1), mask=np.stack([masks > 0] * 3, 1), check=list
    )
    model, history = train_fold(cache, labels, range(7), settings, device, seed=1, state=state)
    return model.net.get_weights(), {name: [epoch[name] for epoch in history] for name in ("ce", "dice", "auc")}


def measured():
    """What the tests ask about, on two logical CPUs."""
    import tensorflow as tf

    parts = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    from mgkeras.training.devices import Device, replicated

    both = replicated(Device(kind="cpu", policy="float32", jit=False, why="", gpus=2))
    state = Path(tempfile.mkdtemp()) / "state.h5"
    folded(2, 1, state)
    return {
        "step": [stepped(tf.distribute.get_strategy()), stepped(both)],
        "fold": [folded(1, 2), folded(2, 2, state)],
    }


@pytest.fixture(scope="module")
def found():
    """measured(), as plain numbers."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["step", "fold"])
def test_two_devices_make_the_step_of_one(what, found):
    """CE, Dice, its masks on one device alone, dropout, normalisation, moments, loss scale, metrics, a resumed fold."""
    alike(*found[what])


def alike(measured, other):
    """Weights and logs of two trainings are the same but for rounding."""
    (weights, logs), (others, other_logs) = measured, other
    for ours, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(other, ours, rtol=0, atol=TOLERANCE)
    assert logs.keys() == other_logs.keys()
    for name in logs:
        np.testing.assert_allclose(other_logs[name], logs[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_two_workers_make_the_step_of_one(found, tmp_path):
    """MultiWorkerMirroredStrategy by TF_CONFIG, as processes on the loopback; all masks lie with the first worker."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    processes = []
    for index in range(2):
        there = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        options = {"env": {**os.environ, "TF_CONFIG": there, "CUDA_VISIBLE_DEVICES": ""}, "text": True}
        with open(tmp_path / f"{index}", "w") as told:
            processes.append(subprocess.Popen([sys.executable, __file__], stdout=told, stderr=told, **options))
    try:
        assert [process.wait(600) for process in processes] == [0, 0], (tmp_path / "0").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    for index in range(2):
        alike(found["step"][0], json.loads((tmp_path / f"{index}").read_text().splitlines()[-1]))


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        import tensorflow as tf

        weights, logs = stepped(tf.distribute.MultiWorkerMirroredStrategy())
        print(json.dumps([[weight.tolist() for weight in weights], logs]))
        sys.exit()
    as_lists = {
        what: [([np.asarray(weight).tolist() for weight in weights], logs) for weights, logs in pair]
        for what, pair in measured().items()
    }
    print(json.dumps(as_lists))
