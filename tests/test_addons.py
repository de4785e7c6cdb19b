"""The two lanes: optimizers against NumPy, states that resume, weights and runs that pass from one lane to the other.

Run as a script (`python tests/test_addons.py train|score FOLDER`) it is the other lane's half of a test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from mgkeras.cli.main import cli

from mgkeras.data.augment import turn
from mgkeras.inference.forward import forward_of
from mgkeras.models import keras_compat
from mgkeras.models.guided import build_model
from mgkeras.models.weights import load_state, load_weights, named_weights, save_state, save_weights
from mgkeras.settings import ADDONS_OPTIMIZERS, OPTIMIZERS, BackboneSettings, as_dict, for_model, from_dict, preset
from mgkeras.settings import with_values as changed
from mgkeras.training import fit
from mgkeras.training.devices import Device, make_optimizer
from mgkeras.training.fit import TrainingError, recompute_batch_norm, train_fold

OTHER = os.environ.get("MGKERAS_OTHER_PYTHON")
ADDONS_ONLY = "only the addons lane has it: make test-addons"
other_lane = pytest.mark.skipif(not OTHER, reason="MGKERAS_OTHER_PYTHON names no Python of the other lane")
addons = pytest.mark.skipif(not keras_compat.ADDONS, reason=ADDONS_ONLY)
CPU = Device("cpu", "float32", False, "")
LABELS = np.array([0, 1] * 4)
VALUES = {
    "volume.side": 16,
    "training.folds": 2,
    "training.epochs": 5,
    "training.batch_size": 2,
    "training.shift_voxels": 2,
    "training.learning_rate": 1e-2,
}


def narrow(optimizer="adam", **values):
    """Settings of a model of few channels on volumes of side 16: 4 steps an epoch on eight subjects."""
    backbone = BackboneSettings(filters=(4, 4, 8, 8), convolutions=(1, 2, 1, 1))
    settings = replace(for_model(preset("demo"), "guided"), backbone=backbone, outcome="recurrence")
    return changed(settings, {**VALUES, "training.optimizer": optimizer, **values})


@pytest.fixture(scope="module")
def cache():
    return exams()


def exams():
    """What training reads of a cache: eight subjects of three stored volumes, random, with a cube for a tumour."""
    image = np.random.default_rng(0).normal(1, 0.5, (8, 3, 16, 16, 16)).clip(0, 4).astype(np.float16)
    mask = np.zeros(image.shape, bool)
    mask[..., 4:9, 5:11, 6:10] = True
    return SimpleNamespace(image=image, mask=mask, check=lambda: None)


def here(optimizer):
    """A parameter of a test: an optimizer, skipped in a lane that has it not."""
    return pytest.param(optimizer, marks=[addons] if optimizer in ADDONS_OPTIMIZERS else [])


# --- the optimizers, each against NumPy written by hand


def adam(rate, gradients, w, decay=0.0, epsilon=1e-7):
    m = v = 0.0
    for step, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        yield (w := w * (1 - rate * decay) - rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + epsilon))


def adamw(rate, gradients, w):
    return adam(rate, gradients, w, decay=0.004)


def sgd(rate, gradients, w):
    for g in gradients:
        yield (w := w - rate * g)


def rmsprop(rate, gradients, w):
    v = 0.0
    for g in gradients:
        v = 0.9 * v + 0.1 * g * g
        yield (w := w - rate * g / np.sqrt(v + 1e-7))


def nadam(rate, gradients, w):
    m, v, product = 0.0, 0.0, 1.0
    for step, g in enumerate(gradients, start=1):
        now, following = (0.9 * (1 - 0.5 * 0.96 ** (step + ahead)) for ahead in (0, 1))
        product *= now
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        mean = following * m / (1 - product * following) + (1 - now) * g / (1 - product)
        yield (w := w - rate * mean / (np.sqrt(v / (1 - 0.999**step)) + 1e-7))


def lamb(rate, gradients, w):
    """You et al. 2020: Adam's step, as long as the weights are."""
    m = v = 0.0
    for step, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        move = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6)
        yield (w := w - rate * np.linalg.norm(w) / np.linalg.norm(move) * move)


def rectifiedadam(rate, gradients, w):
    """Liu et al. 2020: Adam's step only once the variance is known well enough, and rectified; else momentum."""
    m, v, longest = 0.0, 0.0, 2 / (1 - 0.999) - 1
    for step, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        length = longest - 2 * step * 0.999**step / (1 - 0.999**step)
        mean = m / (1 - 0.9**step)
        if length >= 5:
            share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            mean = np.sqrt(share) * mean / (np.sqrt(v / (1 - 0.999**step)) + 1e-7)
        yield (w := w - rate * mean)


def lookahead(rate, gradients, w):
    """Zhang et al. 2019, around Adam: every 6 steps half the way back."""
    slow, fast = w, w
    m = v = 0.0
    for step, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        fast = fast - rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-7)
        if step % 6 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
        yield fast


TWINS = {make.__name__: make for make in (adam, adamw, sgd, rmsprop, nadam, lamb, rectifiedadam, lookahead)}
TWINS["swa"] = adam  # until its averages are assigned


@pytest.mark.parametrize("name", [here(name) for name in OPTIMIZERS])
def test_an_optimizer_is_its_slow_twin_in_both_lanes(name):
    """In a graph, as in training: an optimizer that counts in Python would count only when it is traced."""
    layer = keras.layers.Dense(4)
    layer.build((None, 3))
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=4)]
    gradients = [[rng.normal(size=start.shape) for start in starts] for _ in range(14)]
    for variable, start in zip(layer.trainable_variables, starts, strict=True):
        variable.assign(start.astype(np.float32))
    optimizer = keras_compat.optimizer_of(name, 0.05, 2, 7)
    keras_compat.build_optimizer(optimizer, layer.trainable_variables)

    @tf.function
    def step(of_kernel, of_bias):
        optimizer.apply_gradients(list(zip([of_kernel, of_bias], layer.trainable_variables, strict=True)))

    expected = [list(TWINS[name](0.05, [gradient[part] for gradient in gradients], starts[part])) for part in (0, 1)]
    for count, gradient in enumerate(gradients):
        step(*(tf.constant(part, tf.float32) for part in gradient))
        for variable, values in zip(layer.trainable_variables, expected, strict=True):
            np.testing.assert_allclose(np.array(variable), values[count], rtol=2e-4, atol=2e-5)
    keras_compat.assign_averages(optimizer, layer.trainable_variables)
    for variable, values in zip(layer.trainable_variables, expected, strict=True):
        # of 7 epochs of 2 steps the last quarter: the ends of epochs 6 and 7
        last = np.mean([values[11], values[13]], axis=0) if name == "swa" else values[-1]
        np.testing.assert_allclose(np.array(variable), last, rtol=2e-4, atol=2e-5)


def steps(model, count, begin=0):
    """Steps of a model on gradients that depend on their number alone; each fifth step overflows float16."""
    for number in range(begin, begin + count):
        rng = np.random.default_rng(number)
        gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in model.trainable_variables]
        if isinstance(model.optimizer, keras_compat.LossScaleOptimizer):
            scale = np.inf if number % 5 == 4 else np.array(model.optimizer.dynamic_scale)
            gradients = [gradient * scale for gradient in gradients]
        model.optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))


def dense(name, policy):
    """A model of one layer with an optimizer that is built."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense", kernel_initializer="ones")(inputs))
    model.compile(optimizer=make_optimizer(name, 0.05, policy, steps=3, epochs=8))
    keras_compat.build_optimizer(model.optimizer, model.trainable_variables)
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("name", [here(name) for name in OPTIMIZERS])
def test_a_state_is_kept_whole(name, policy, tmp_path):
    """Saved after any part of 24 steps and loaded into a new model, it goes on bit for bit."""
    whole = dense(name, policy)
    for part in range(0, 24, 8):
        save_state(tmp_path / f"{part}.h5", whole, {})
        steps(whole, 8, part)
    for part in (8, 16):
        resumed = dense(name, policy)
        load_state(tmp_path / f"{part}.h5", resumed)
        steps(resumed, 24 - part, part)
        for ours, theirs in zip(
            keras_compat.optimizer_state(resumed.optimizer), keras_compat.optimizer_state(whole.optimizer), strict=True
        ):
            assert np.array_equal(ours, theirs)
        assert all(np.array_equal(a, b) for a, b in zip(resumed.weights, whole.weights, strict=True))
    assert int(whole.optimizer.iterations) == (24 if policy == "float32" else 20)


# --- training


def trained(cache, settings, device=CPU, **options):
    """The model after training, and the history without the seconds."""
    model, history = train_fold(cache, LABELS, range(8), settings, device, seed=5, **options)
    return model, [{**row, "seconds": None} for row in history]


@addons
def test_a_training_with_swa_goes_on_bit_for_bit(cache, tmp_path):
    """Stopped after epochs 2 and 4 of 5, between which the averages begin; what is kept are not yet averages."""
    whole, history = trained(cache, narrow("swa"))

    class Stopped(Exception):
        pass

    def stop(report):
        if report.epoch in (2, 4):
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            trained(cache, narrow("swa"), state=tmp_path / "state.h5", report=stop)
    for _ in range(2):  # the second time nothing is left to train
        resumed, same = trained(cache, narrow("swa"), state=tmp_path / "state.h5")
        assert same == history and len(same) == 5
        for (_, ours), (_, its) in zip(named_weights(resumed), named_weights(whole), strict=True):
            assert np.array_equal(ours, its)


@addons
def test_swa_gives_the_average_and_its_own_moments(cache, monkeypatch):
    """The averages are assigned before the moments are recomputed: the moments are those of the averages."""
    ends, seen = [], []
    recompute = fit.recompute_batch_norm

    def spied(model, *arguments):
        seen.append([np.array(v) for v in model.trainable_variables])
        recompute(model, *arguments)

    def keep(report):
        ends.append([np.array(v) for v in models[0].trainable_variables])

    models, make = [], fit.build_model
    monkeypatch.setattr(fit, "build_model", lambda *a, **k: models.append(make(*a, **k)) or models[-1])
    monkeypatch.setattr(fit, "recompute_batch_norm", spied)
    model, _ = trained(cache, narrow("swa"), report=keep)
    averages = [np.mean(values, axis=0) for values in zip(*ends[3:], strict=True)]  # epochs 4 and 5 of 5
    for found, average, last in zip(model.trainable_variables, averages, ends[-1], strict=True):
        np.testing.assert_allclose(np.array(found), average, rtol=1e-5, atol=1e-6)
        assert np.abs(average - last).max() > 1e-5
    assert all(np.array_equal(a, b) for a, b in zip(seen[0], model.trainable_variables, strict=True))
    stored = np.array(model.net.get_layer("batch_norm").moving_variance)
    recompute_batch_norm(model, cache, range(8), 2)
    assert np.array_equal(stored, model.net.get_layer("batch_norm").moving_variance)


@addons
@pytest.mark.parametrize(("skipped", "averaged"), [((2, 3), True), (range(1, 6), False)])
def test_swa_averages_no_weights_that_float16_skipped(skipped, averaged):
    """Steps that overflow do not count, so no average is taken for done that was not; otherwise nothing changes."""
    layer = keras.layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    layer.kernel.assign([[1.0]])
    optimizer = keras_compat.LossScaleOptimizer(keras_compat.optimizer_of("swa", 0.1, 2, 3), initial_scale=4.0)
    keras_compat.build_optimizer(optimizer, layer.trainable_variables)
    values = []
    for count in range(6):
        gradient = np.inf if count in skipped else float(optimizer.dynamic_scale)
        optimizer.apply_gradients([(tf.constant([[gradient]]), layer.kernel)])
        values.append(float(layer.kernel[0, 0]))
    assert int(optimizer.iterations) == 6 - len(skipped)
    assert float(optimizer.dynamic_scale) == 4 / 2 ** len(skipped)
    keras_compat.assign_averages(optimizer, layer.trainable_variables)
    # of 3 epochs of 2 steps the last alone is averaged; 4 steps were done, so its end was never reached
    assert float(layer.kernel[0, 0]) == pytest.approx(values[-1])
    if averaged:
        for _ in range(2):
            optimizer.apply_gradients([(tf.constant([[float(optimizer.dynamic_scale)]]), layer.kernel)])
        reached = float(layer.kernel[0, 0])
        layer.kernel.assign([[7.0]])
        keras_compat.assign_averages(optimizer, layer.trainable_variables)
        assert float(layer.kernel[0, 0]) == pytest.approx(reached)


def test_a_state_of_the_other_generation_is_refused(cache, tmp_path, monkeypatch):
    trained(cache, narrow(**{"training.epochs": 1}), state=tmp_path / "state.h5")
    other = 5 - keras_compat.GENERATION
    monkeypatch.setattr(keras_compat, "GENERATION", other)
    with pytest.raises(TrainingError, match=f"trained in Keras {5 - other}.*cannot go on in Keras {other}. Go on"):
        trained(cache, narrow(**{"training.epochs": 2}), state=tmp_path / "state.h5")


@pytest.mark.skipif(keras_compat.ADDONS, reason="here tensorflow-addons is installed")
@pytest.mark.parametrize("name", ADDONS_OPTIMIZERS)
def test_what_only_addons_has_is_refused_with_how_to_install_it(name, cache, tmp_path):
    how = r"pip install 'mgkeras\[addons\]' in a virtual environment of its own with Python 3.10 or 3.11"
    settings = from_dict(json.loads(json.dumps(as_dict(narrow(name)))))  # as settings.json has them
    assert settings.training.optimizer == name
    with pytest.raises(keras_compat.NeedsAddons, match=how):
        trained(cache, settings)
    for command in ("fit", "tune"):
        done = CliRunner().invoke(cli, [command, "--optimizer", name, "--out", str(tmp_path / "run")])
        assert done.exit_code == 2 and "pip install 'mgkeras[addons]'" in " ".join(done.output.split())
        assert not list(tmp_path.iterdir())


@addons
def test_tensorflow_addons_is_what_the_extra_names():
    import tensorflow_addons

    assert tensorflow_addons.__version__.startswith("0.23.") and tf.__version__.startswith("2.15.")
    assert importlib.util.find_spec("keras_tuner") and importlib.util.find_spec("tensorflow_serving")


# --- turns


@addons
@pytest.mark.parametrize("background", [0.0, -3.0])
@pytest.mark.parametrize("degrees", [10.0, -10.0, 37.0, 90.0])
@pytest.mark.parametrize("side", [16, 21])
def test_a_turn_is_tensorflow_addons_turn(side, degrees, background):
    """tfa.image.rotate turns images whose rows point down and columns right, counter-clockwise as they are looked at.

    A cube's axial slice has x to the right and y up, so an image is made of it by row = y reversed, column = x. Both
    turn about the middle of the voxel grid, (side - 1) / 2. Where all four neighbours of a position are inside they
    do the same bilinear sum; tfa computes positions in float32 (about side * 1e-7 of a voxel off, so values of this
    noise by some 1e-5). At the border they differ by design: scipy's mode 'constant' fills whatever lies outside the
    grid's outermost centres, tfa blends it with what lies one voxel further out. So a voxel is compared wherever its
    source lies 1e-3 of a voxel or more inside those centres, and must be background where it lies 1 or more outside.
    """
    import tensorflow_addons as tfa

    cube = np.random.default_rng(side).normal(size=(side, side, side)).astype(np.float32)
    images = cube.transpose(2, 1, 0)[:, ::-1, :, None]  # (z, row, column, 1)
    rotated = tfa.image.rotate(
        tf.constant(images.copy()),
        np.radians(degrees),
        interpolation="bilinear",
        fill_mode="constant",
        fill_value=background,
    )
    expected = np.asarray(rotated)[:, ::-1, :, 0].transpose(2, 1, 0)
    found, source = turn(cube, degrees, background), sources(side, degrees)
    beyond = np.abs(source).max(axis=-1) - (side - 1) / 2  # (side, side) voxels outside the outermost centres
    inside, outside = beyond < -1e-3, beyond > 1
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert (found[outside] == background).all() and (expected[outside] == background).all()


@addons
@pytest.mark.parametrize("degrees", [10.0, -10.0, 37.0])
def test_a_masks_turn_is_tensorflow_addons_turn(degrees):
    """Nearest neighbour: equal wherever the nearest voxel is not a matter of rounding, 1e-3 of a voxel or less."""
    import tensorflow_addons as tfa

    side = 16
    mask = np.random.default_rng(0).random((side, side, side)) > 0.5
    images = mask.transpose(2, 1, 0)[:, ::-1, :, None].astype(np.uint8)
    rotated = np.asarray(tfa.image.rotate(tf.constant(images), np.radians(degrees), interpolation="nearest"))
    source = sources(side, degrees)
    place = source + (side - 1) / 2
    sure = (np.abs(place % 1 - 0.5) > 1e-3).all(axis=-1) & (np.abs(source).max(axis=-1) < (side - 1) / 2)
    assert sure.mean() > 0.7
    expected = rotated[:, ::-1, :, 0].transpose(2, 1, 0) > 0
    np.testing.assert_array_equal(turn(mask, degrees)[sure], expected[sure])


def sources(side, degrees):
    """(side, side, 2): where in x and y each voxel of a turned slice comes from, in voxels from the centre."""
    angle, middle = np.radians(degrees), (side - 1) / 2
    x, y = np.meshgrid(np.arange(side) - middle, np.arange(side) - middle, indexing="ij")
    return np.stack([np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x], axis=-1)


# --- from lane to lane


def train_into(folder):
    """Trains a small model and keeps its weights and settings, and what it says of volumes."""
    name = "swa" if keras_compat.ADDONS else "adam"
    model, _ = trained(exams(), narrow(name))
    save_weights(model, folder / "weights.h5")
    (folder / "settings.json").write_text(json.dumps(as_dict(model.settings)))
    np.savez(folder / "said.npz", **said(model))


def said(model):
    """What a model says of three volumes; each lane has the same volumes."""
    volumes = np.random.default_rng(7).normal(1, 0.5, (3, 16, 16, 16, 1)).clip(0, 4).astype(np.float32)
    return forward_of(model)(volumes)


def score_from(folder):
    """What the model of train_into says here."""
    model = build_model(from_dict(json.loads((folder / "settings.json").read_text())), seed=11)
    load_weights(model, folder / "weights.h5")
    return said(model)


def there(*arguments, check=True):
    """Runs the other lane's Python."""
    done = subprocess.run([OTHER, *map(str, arguments)], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5 * np.abs(expected[name]).max())


@other_lane
def test_the_other_python_is_of_the_other_lane():
    code = "from mgkeras.models.keras_compat import GENERATION; print('generation', GENERATION)"
    assert there("-c", code).stdout.split()[-1] == str(5 - keras_compat.GENERATION)


@other_lane
def test_weights_of_the_other_lane_say_the_same_here(tmp_path):
    there(__file__, "train", tmp_path)
    with np.load(tmp_path / "said.npz") as expected:
        assert_same(score_from(tmp_path), dict(expected))


@other_lane
def test_weights_of_this_lane_say_the_same_there(tmp_path):
    train_into(tmp_path)
    with np.load(tmp_path / "said.npz") as expected:
        there(__file__, "score", tmp_path)
        with np.load(tmp_path / "said-there.npz") as found:
            assert_same(dict(found), dict(expected))


MAIN = "from mgkeras.cli.main import main; main()"


@addons
def test_a_run_of_an_addons_optimizer_is_a_run_like_any_other(phantom, tmp_path):
    """Trained by the command, predicted and exported; and predicted in the other lane, which would not train it."""
    run = tmp_path / "run"
    command = [
        "fit",
        "--preset",
        "demo",
        "--outcome",
        "recurrence",
        "--side",
        "24",
        "--folds",
        "2",
        "--batch-size",
        "4",
        "--epochs",
        "2",
        "--optimizer",
        "swa",
        "--cohort",
        str(phantom),
        "--cache",
        str(tmp_path / "c"),
        "--out",
        str(run),
    ]
    first = subprocess.run([sys.executable, "-c", MAIN, *command], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "TFA" not in first.stderr and "Warning" not in first.stderr
    assert CliRunner().invoke(cli, ["export", str(run), "--out", str(tmp_path / "served")]).exit_code == 0
    predict = ["predict", str(run), "--cohort", str(phantom), "--out"]
    assert CliRunner().invoke(cli, [*predict, str(tmp_path / "here")]).exit_code == 0
    if not OTHER:
        pytest.skip("the other lane's half: MGKERAS_OTHER_PYTHON names no Python of the other lane")
    there("-c", MAIN, *predict, tmp_path / "there")
    found, expected = ((tmp_path / where / "predictions.csv").read_text().split() for where in ("there", "here"))
    assert found[0] == expected[0] and len(found) == len(expected) == 13
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        numbers = [[float(cell) for cell in row.split(",")[1:]] for row in (ours, theirs)]
        np.testing.assert_allclose(*numbers, atol=1e-5)
    refused = there("-c", MAIN, *command, check=False)
    assert refused.returncode == 2 and "pip install 'mgkeras[addons]'" in " ".join(refused.stderr.split())


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "train":
        train_into(where)
    else:
        np.savez(where / "said-there.npz", **score_from(where))
