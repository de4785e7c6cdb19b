"""What is chosen on a CPU and on a GPU that is only made believe, and that a fold is trained the same in each way."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from mgkeras.cli.main import cli

from mgkeras.models import keras_compat
from mgkeras.models.guided import MaskGuided
from mgkeras.models.keras_compat import LossScaleOptimizer
from mgkeras.settings import BackboneSettings, with_values
from mgkeras.training import devices, fit
from mgkeras.training.devices import Device, choose_device, steps_at_once
from mgkeras.training.fit import TrainingError, train_fold

pytestmark = pytest.mark.computes


@pytest.fixture
def machine(monkeypatch):
    """A function that makes TensorFlow see GPUs, or none, and keeps its switches as they are."""
    for switch in ("enable_op_determinism", "enable_tensor_float_32_execution"):
        monkeypatch.setattr(tf.config.experimental, switch, lambda *on: None)
    return lambda *gpus: monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))


def test_a_cpu_gets_float32_plain_blocks_and_no_xla(machine):
    machine()
    found = choose_device()
    assert (found.kind, found.policy, found.jit, found.s2d_blocks, found.steps_per_execution) == (
        "cpu",
        "float32",
        False,
        0,
        1,
    )
    assert "XLA off, it is 12 times slower here; blocks plain, space-to-depth is 3 times slower here" in found.why
    with pytest.raises(ValueError, match="float16 is for a GPU.*use float32"):
        choose_device(precision="float16")


def test_a_cpu_does_what_is_asked(machine, monkeypatch):
    machine()
    monkeypatch.setattr(devices, "has_convolutions", lambda dtype: True)
    asked = choose_device(deterministic=True, precision="bfloat16", jit=True, s2d_blocks=1)
    assert (asked.policy, asked.jit, asked.s2d_blocks) == ("mixed_bfloat16", True, 1)
    assert "XLA on, as asked, though it is 12 times slower here; block 1 by space-to-depth, as asked" in asked.why


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_refused_where_the_processor_has_no_convolutions_of_it(precision, machine, monkeypatch):
    monkeypatch.setattr(devices, "has_convolutions", lambda dtype: False)
    machine()
    with pytest.raises(ValueError, match=f"^{precision} on a CPU needs.*Received: --precision {precision} .*float32"):
        choose_device(precision=precision, s2d_blocks=3)
    assert choose_device().policy == "float32"
    machine("GPU:0")  # which has them, whatever the CPU beside it does
    assert choose_device(precision=precision).policy == f"mixed_{precision}"


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="oneDNN limits x86 processors only")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_processor_of_avx2_alone_refuses_half_precision_before_it_trains(precision, phantom, tmp_path):
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "1"}
    ask = f"from mgkeras.training.devices import has_convolutions; raise SystemExit(has_convolutions('{precision}'))"
    if subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True).returncode == 1:
        pytest.skip(f"here TensorFlow has {precision} convolutions with AVX2 alone")
    command = [
        "fit",
        "--cohort",
        str(phantom),
        "--outcome",
        "recurrence",
        "--preset",
        "demo",
        "--side",
        "24",
        "--epochs",
        "1",
        "--precision",
        precision,
        "--space-to-depth",
        "3",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from mgkeras.cli.main import main; main()", *command],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 1 and f"Error: {precision} on a CPU needs convolutions of it" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "could not create" not in done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_a_gpu_gets_float16_xla_and_two_folded_blocks(machine):
    machine("GPU:0")
    found = choose_device()
    assert (found.kind, found.policy, found.jit, found.s2d_blocks) == ("gpu", "mixed_float16", True, 2)
    assert found.steps_per_execution > 1 and "XLA on; blocks 1 to 2 by space-to-depth" in found.why
    assert choose_device(precision="float32").s2d_blocks == 0
    plain = choose_device(jit=False, s2d_blocks=0)
    assert (plain.jit, plain.s2d_blocks) == (False, 0) and "XLA off, as asked; blocks plain, as asked" in plain.why


def test_determinism_on_a_gpu_excludes_xla(machine):
    machine("GPU:0")
    found = choose_device(deterministic=True)
    assert not found.jit and "XLA off (its max-pool gradients are not deterministic)" in found.why
    assert not choose_device(deterministic=True, jit=False).jit
    with pytest.raises(ValueError, match="need XLA off.*Received: --deterministic and --jit"):
        choose_device(deterministic=True, jit=True)


def test_several_gpus_are_as_many_as_there_are_and_without_xla(machine):
    machine("one", "two")
    found = choose_device(gpus=2)
    assert (found.gpus, found.jit) == (2, False) and "XLA off, for several GPUs" in found.why
    assert "each batch shared out to 2 GPUs" in found.why
    with pytest.raises(ValueError, match="--gpus up to 2.*Received: 3"):
        choose_device(gpus=3)
    with pytest.raises(ValueError, match="--gpus 2 and --jit"):
        choose_device(gpus=2, jit=True)


def test_the_commands_options_reach_the_choice(phantom, tmp_path, monkeypatch):
    asked = []

    def refuse(*arguments, **options):
        asked.append((arguments, options))
        raise RuntimeError("far enough")

    monkeypatch.setattr(devices, "choose_device", refuse)
    command = ["fit", "--cohort", str(phantom), "--outcome", "recurrence", "--preset", "demo", "--out", str(tmp_path)]
    for options in ([], ["--no-jit", "--space-to-depth", "0", "--precision", "bfloat16", "--deterministic"]):
        assert str(CliRunner().invoke(cli, command + options).exception) == "far enough"
    assert asked == [
        ((False,), {"precision": "auto", "jit": None, "s2d_blocks": None, "gpus": 1}),
        ((True,), {"precision": "bfloat16", "jit": False, "s2d_blocks": 0, "gpus": 1}),
    ]
    assert CliRunner().invoke(cli, [*command, "--space-to-depth", "4"]).exit_code == 2


@pytest.mark.parametrize(
    ("most", "steps", "at_once"), [(50, 272, 34), (50, 4, 4), (50, 97, 1), (1, 9, 1), (400, 313, 313)]
)
def test_steps_at_once_divide_the_epoch(most, steps, at_once):
    assert steps_at_once(Device("gpu", "float32", True, "", steps_per_execution=most), steps) == at_once


# --- a fold, trained


@pytest.fixture
def narrow(small):
    """Settings of a model of few channels on volumes of side 16; 2 epochs of 4 steps on eight subjects."""
    backbone = BackboneSettings(filters=(4, 4, 8, 8), convolutions=(1, 2, 1, 1))
    return with_values(replace(small, backbone=backbone), {"volume.side": 16, "training.batch_size": 2})


@pytest.fixture
def cache():
    """What training reads of a cache: eight subjects of three stored volumes, random, with a cube for a tumour."""
    image = np.random.default_rng(0).normal(1, 0.5, (8, 3, 16, 16, 16)).clip(0, 4).astype(np.float16)
    mask = np.zeros(image.shape, bool)
    mask[..., 4:9, 5:11, 6:10] = True
    return SimpleNamespace(image=image, mask=mask, check=lambda: None)


LABELS = np.array([0, 1] * 4)
PLAIN = Device("cpu", "float32", False, "")


def trained(cache, settings, device, **options):
    """The model after training, and the history without the seconds."""
    model, history = train_fold(cache, LABELS, range(8), settings, device, seed=5, **options)
    return model, [{**row, "seconds": None} for row in history]


def same_weights(model, other):
    return all(np.array_equal(a, b) for a, b in zip(model.weights, other.weights, strict=True))


def test_a_cosine_rises_and_falls_and_adamw_decays():
    steps, most = 40, 0.25

    def slow(step, rising):
        if step < rising:
            return most * step / rising
        return most * (1 + np.cos(np.pi * (step - rising) / (steps - rising))) / 2

    for warmup, rising in ((0.0, 0), (0.2, 8)):
        made = devices.make_optimizer("sgd", most, "float32", steps=8, epochs=5, schedule="cosine", warmup=warmup)
        weight = tf.Variable(0.0)
        keras_compat.build_optimizer(made, [weight])
        for step in range(steps):
            before = float(weight)
            made.apply_gradients([(tf.constant(1.0), weight)])
            assert before - float(weight) == pytest.approx(slow(step, rising), abs=2e-6)  # float32 near 5
    kept = tf.Variable(1.0)
    made = devices.make_optimizer("adamw", 0.5, "float32", weight_decay=0.1)
    keras_compat.build_optimizer(made, [kept])
    made.apply_gradients([(tf.constant(0.0), kept)])
    assert float(kept) == pytest.approx(0.95)


def test_a_training_that_goes_on_keeps_its_cosine_and_its_anatomical_changes(cache, narrow, tmp_path):
    values = {"training.augment": "anatomical", "training.schedule": "cosine", "training.warmup": 0.2}
    settings = with_values(narrow, values | {"training.optimizer": "adamw", "training.weight_decay": 0.1})
    whole, history = trained(cache, settings, PLAIN)

    def stop(report):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(cache, settings, PLAIN, state=tmp_path / "state.h5", report=stop)
    again, after = trained(cache, settings, PLAIN, state=tmp_path / "state.h5")
    assert len(history) == 2 and same_weights(whole, again)
    assert [row["ce"] for row in history] == [row["ce"] for row in after]


def test_steps_without_python_between_them_change_no_bit(cache, narrow, tmp_path, monkeypatch):
    epochs, at_once, compile_model = [], [], MaskGuided.compile

    def spied(model, **options):
        at_once.append(options["steps_per_execution"])
        compile_model(model, **options)

    monkeypatch.setattr(MaskGuided, "compile", spied)
    plain, history = trained(cache, narrow, PLAIN)
    several = replace(PLAIN, steps_per_execution=50)
    found, same = trained(cache, narrow, several, report=lambda report: epochs.append(report.epoch))
    assert at_once == [1, 4]
    assert same == history and len(history) == 2 and epochs == [1, 2]  # the hooks run at each epoch's end
    assert same_weights(found, plain)
    trained(cache, with_values(narrow, {"training.epochs": 1}), several, state=tmp_path / "state.h5")
    resumed, same = trained(cache, narrow, several, state=tmp_path / "state.h5")
    assert same == history and same_weights(resumed, plain)
    for device in (PLAIN, several):  # batches that wait on the device
        found, same = trained(cache, narrow, replace(device, prefetch_to="/cpu:0"))
        assert same == history and same_weights(found, plain)


def test_batches_that_leave_a_gpu_without_a_volume_are_told(cache, narrow):
    with pytest.raises(TrainingError, match="each of 3 GPUs gets a volume. Received: batches of 2 volumes"):
        trained(cache, narrow, replace(PLAIN, gpus=3))


def test_a_fold_begun_folded_goes_on_plain(cache, narrow, tmp_path):
    short = with_values(narrow, {"training.epochs": 1})
    trained(cache, short, replace(PLAIN, s2d_blocks=2), state=tmp_path / "state.h5")
    _, history = trained(cache, narrow, PLAIN, state=tmp_path / "state.h5")
    assert [row["epoch"] for row in history] == [1, 2]
    assert [row["skipped"] for row in history] == [0, 0]  # float32 skips nothing


def test_bfloat16_is_refused_where_onednn_gets_a_gradient_wrong(cache, narrow):
    """On a grid of 2 cells its bfloat16 gradients of a 3D kernel are off by their own size, or no numbers."""
    half = replace(PLAIN, policy="mixed_bfloat16")
    with pytest.raises(TrainingError, match="maps of 3 or more cells a side.*Received: 2.*--side 24 or more"):
        trained(cache, narrow, half)


def test_bfloat16_trains_where_it_is_right(cache, narrow, bfloat16):
    shallow = replace(narrow, backbone=replace(narrow.backbone, filters=(4, 8, 8), convolutions=(1, 1, 1)))
    half = replace(PLAIN, policy="mixed_bfloat16")
    assert len(trained(cache, shallow, half)[1]) == 2  # a grid of 4


# every pool folded, as TensorFlow has no float16 max-pool on a CPU
HALF = Device("cpu", "mixed_float16", False, "", s2d_blocks=3)


def test_skipped_steps_are_in_the_history_and_the_report(cache, narrow, monkeypatch, float16):
    def scaled_up(*arguments, **options):
        optimizer = devices.make_optimizer(*arguments, **options)
        return LossScaleOptimizer(optimizer.inner_optimizer, initial_scale=2.0**100)

    monkeypatch.setattr(fit, "make_optimizer", scaled_up)
    reports = []
    _, history = trained(cache, narrow, HALF, report=reports.append)
    assert [row["skipped"] for row in history] == [4, 4] == [report.skipped for report in reports]
    assert all(row["ce"] > 0 for row in history)  # the losses were numbers and are shown


@pytest.mark.filterwarnings("ignore:Even though")
def test_an_epoch_whose_every_loss_overflows_ends_the_training(cache, narrow, float16):
    cache.image[:] = np.inf
    tf.config.run_functions_eagerly(True)  # fused ReLU on a CPU would turn NaN into 0
    try:
        with pytest.raises(TrainingError, match="must stay a number. Received: {'ce': nan.*epoch 1"):
            trained(cache, narrow, HALF)
    finally:
        tf.config.run_functions_eagerly(False)
