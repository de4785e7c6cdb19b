"""Backbone, CAM, Dice, and the training step, against NumPy written by hand."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from mgkeras.models import cam
from mgkeras.models.callbacks import SkippedSteps
from mgkeras.models.guided import build_model
from mgkeras.models.keras_compat import LossScaleOptimizer
from mgkeras.models.weights import named_weights
from mgkeras.settings import BackboneSettings, GuidanceSettings, for_model, with_values

pytestmark = pytest.mark.computes


@pytest.fixture
def batch():
    """Four volumes of 24^3 with a mask each, but the last, whose mask is empty."""
    rng = np.random.default_rng(0)
    mask = np.zeros((4, 24, 24, 24, 1), bool)
    for index, at in enumerate((3, 9, 14)):
        mask[index, at : at + 6, 5:12, 8:13] = True
    volume = rng.normal(1, 0.5, mask.shape).clip(0, 4).astype(np.float16)
    return {"volume": tf.constant(volume), "mask": tf.constant(mask)}, tf.constant([0, 1, 1, 0])


def compiled(settings, **options):
    model = build_model(settings, seed=3, **options)
    model.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=False)
    return model


def step_gradients(settings, batch):
    """What one step of SGD at rate 1 subtracts from each weight."""
    model = compiled(settings)
    before = [np.array(v) for v in model.trainable_variables]
    model.train_step(batch)
    return {name: b - np.array(v) for (name, v), b in zip(trainable(model).items(), before, strict=True)}


def trainable(model):
    """{layer/weight: variable} in the order of model.trainable_variables."""
    name_of = {id(variable): name for name, variable in named_weights(model)}
    return {name_of[id(variable)]: variable for variable in model.trainable_variables}


def randomised(model, seed=0):
    """Weights away from their start, so that no term of an identity is 0 or 1 by accident."""
    rng = np.random.default_rng(seed)
    for variable in model.net.get_layer("batch_norm").weights + model.net.get_layer("logits").weights:
        variable.assign(rng.uniform(0.5, 2, variable.shape) * rng.choice([1.0, 1.0], variable.shape))
    model.net.get_layer("logits").kernel.assign(rng.normal(size=model.net.get_layer("logits").kernel.shape))
    return model


def test_outputs_are_named_and_shaped(small):
    model = build_model(small)
    found = model.outputs_of(np.zeros((2, 24, 24, 24, 1), np.float32))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "probabilities": (2, 2),
        "logits": (2, 2),
        "features": (2, 3, 3, 3, 64),
    }
    convolutions = [layer for layer in model.net.layers if isinstance(layer, keras.layers.Conv3D)]
    assert [layer.filters for layer in convolutions] == [8, 8, 16, 16, 32, 32, 32, 64, 64, 64]


def test_cam_identity_on_random_weights(small):
    model = randomised(build_model(small, seed=1))
    volumes = np.random.default_rng(1).normal(1, 0.5, (3, 24, 24, 24, 1)).astype(np.float32)
    found = model.outputs_of(volumes)
    weights, bias = model.head.weights()
    mean = tf.reduce_mean(cam.class_maps(found["features"], weights), [1, 2, 3]) + bias
    largest = np.abs(found["logits"]).max()
    assert np.abs(mean - found["logits"]).max() <= 1e-5 * largest


def test_cam_identity_in_training_uses_the_batchs_moments(small, batch):
    still = replace(small, backbone=BackboneSettings(dropout=0.0))
    model = randomised(build_model(still, seed=1))
    found = model.outputs_of(batch[0]["volume"], training=True)
    weights, bias = model.head.weights(found["features"])
    mean = tf.reduce_mean(cam.class_maps(found["features"], weights), [1, 2, 3]) + bias
    assert np.abs(mean - found["logits"]).max() <= 1e-5 * np.abs(found["logits"]).max()


def by_hand(model, settings, batch):
    """The loss of a batch in NumPy: CE - lambda Dice, with the sigmoid of the standardised label's map."""
    found = {
        name: np.array(value, np.float64) for name, value in model.outputs_of(batch[0]["volume"], training=True).items()
    }
    label, features, logits = np.array(batch[1]), found["features"], found["logits"]
    ce = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(4), label])
    norm, dense = model.net.get_layer("batch_norm"), model.net.get_layer("logits")
    pooled = features.mean((1, 2, 3))
    weights = np.array(norm.gamma) / np.sqrt(pooled.var(0) + norm.epsilon)
    weights = weights[:, None] * np.array(dense.kernel)
    dices = []
    for volume, mask, c in zip(features, np.array(batch[0]["mask"])[..., 0], label, strict=True):
        if not mask.any():
            continue
        image = volume @ weights[:, c]
        attention = 1 / (1 + np.exp(-(2 * (image - image.mean()) / image.std() - 2)))
        cells = np.zeros((3, 3, 3))
        for i, j, k in np.ndindex(3, 3, 3):
            cells[i, j, k] = mask[8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 8 * k : 8 * k + 8].mean()
        cells /= cells.max()
        dices.append(2 * (attention * cells).sum() / (attention.sum() + cells.sum()))
    return ce, np.mean(dices), ce - settings.guidance.lambda_dice * np.mean(dices)


def test_loss_equals_the_one_by_hand(small, batch):
    still = replace(small, backbone=BackboneSettings(dropout=0.0))
    model = randomised(build_model(still, seed=2))
    outputs = model.outputs_of(batch[0]["volume"], training=True)
    loss, ce, dice, has_mask = model.loss_of(outputs, batch[0]["mask"], batch[1], training=True)
    hand_ce, hand_dice, hand_loss = by_hand(model, still, batch)
    assert float(loss) == pytest.approx(hand_loss, rel=1e-4)
    assert np.array(has_mask).tolist() == [1, 1, 1, 0] and float(dice[3]) == 0  # the empty mask has no term
    assert float(ce) == pytest.approx(hand_ce, rel=1e-5)
    assert float(cam.masked_mean(dice, has_mask)) == pytest.approx(hand_dice, rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("term", ["plain", "log"])
def test_the_loss_is_what_settings_say(term, reduction, small, batch):
    model = build_model(with_values(small, {"guidance.dice_term": term, "guidance.lambda_dice": 3.0}), seed=2)
    kind = {"reduction": "sum"} if reduction == "sum" else {}
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kind), jit_compile=False)
    outputs = model.outputs_of(batch[0]["volume"], training=True)
    logits, labels = np.array(outputs["logits"], np.float64), np.array(batch[1])
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels]
    plain = each.sum() if reduction == "sum" else each.mean()
    loss, ce, dice, has_mask = model.loss_of(outputs, batch[0]["mask"], batch[1], training=True)
    told = np.array(dice)[:3]
    expected = plain - 3 * np.mean(np.log(told) if term == "log" else told)
    assert float(ce) == pytest.approx(plain, rel=1e-5) and float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(model.loss_of(outputs, None, batch[1], training=True)[0]) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_common_vector_changes_class_maps_and_neither_evidence_nor_strength(classes):
    """Softmax cancels what the columns of the output weights share, and so must what is read as the decision's map."""
    rng = np.random.default_rng(classes)
    features, weights = rng.random((2, 3, 3, 3, 5)).astype(np.float32), rng.normal(size=(5, classes)).astype(np.float32)
    shared = 3 * rng.normal(size=(5, 1)).astype(np.float32)
    label = tf.constant([0, classes - 1])
    before, after = (cam.class_maps(tf.constant(features), tf.constant(w)) for w in (weights, weights + shared))
    logits = [features.mean((1, 2, 3)) @ w for w in (weights, weights + shared)]
    assert np.abs(np.diff(np.array(tf.nn.softmax(logits)), axis=0)).max() < 1e-5
    for kind in ("evidence", "strength"):
        a, b = (np.array(cam.guided_map(maps, label, kind)) for maps in (before, after))
        assert np.abs(a - b).max() <= 1e-5 * np.abs(np.array(after)).max()
    assert np.abs(np.array(cam.guided_map(before, label, "class") - cam.guided_map(after, label, "class"))).max() > 0.1
    mean = np.array(cam.centred(before)).mean((1, 2, 3))  # plus no constant here: the centred logits
    assert np.abs(mean - (logits[0] - logits[0].mean(1, keepdims=True))).max() <= 1e-5 * np.abs(logits[0]).max()
    difference = features @ weights
    difference = np.abs(difference - difference.mean(-1, keepdims=True)).max(-1)
    assert np.allclose(cam.guided_map(before, label, "strength"), difference, atol=1e-5)


def test_the_step_descends_ce_minus_lambda_dice(small, batch):
    """The step's gradient along each weight equals a finite difference of the hand-made loss."""
    still = replace(small, backbone=BackboneSettings(dropout=0.0))
    gradients = step_gradients(still, batch)
    model = compiled(still)
    for name in ("logits/kernel", "batch_norm/gamma"):
        gradient = gradients[name]
        variable = trainable(model)[name]
        start, step = np.array(variable), 1e-2 * gradient / np.linalg.norm(gradient)
        losses = []
        for sign in (1, -1):
            variable.assign(start + sign * step)
            losses.append(by_hand(model, still, batch)[2])
        variable.assign(start)
        assert (losses[0] - losses[1]) / 2 == pytest.approx(1e-2 * np.linalg.norm(gradient), rel=0.02)


def test_dice_gradient_reaches_the_convolutions(small, batch):
    guided = step_gradients(small, batch)
    plain = step_gradients(for_model(small, "no-mask"), batch)
    for name in guided:
        if name.endswith("conv1/kernel"):
            assert np.abs(guided[name] - plain[name]).max() > 1e-6, name


def test_lambda_0_gives_exactly_the_no_mask_gradients(small, batch):
    zero = replace(small, guidance=replace(small.guidance, lambda_dice=0.0))
    other_masks = {**batch[0], "mask": tf.zeros_like(batch[0]["mask"])}, batch[1]
    found, plain = step_gradients(zero, batch), step_gradients(for_model(small, "no-mask"), other_masks)
    assert all(np.array_equal(found[name], plain[name]) for name in plain)


def test_a_batch_without_masks_gives_finite_weights(small, batch):
    gradients = step_gradients(small, ({**batch[0], "mask": tf.zeros_like(batch[0]["mask"])}, batch[1]))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("kind", ["sigmoid", "cut-sigmoid", "minmax", "relu"])
def test_attention_map_is_in_0_1_and_survives_a_constant_map(kind):
    settings = GuidanceSettings(cam_map=kind)
    rng = np.random.default_rng(0)
    for maps in (rng.normal(size=(2, 3, 3, 3)), np.full((2, 3, 3, 3), -7.0), np.zeros((2, 3, 3, 3))):
        with tf.GradientTape() as tape:
            variable = tf.Variable(maps.astype(np.float32))
            found = cam.attention_map(variable, settings)
        assert np.all((found >= 0) & (found <= 1)) and np.isfinite(tape.gradient(found, variable)).all()


def test_balanced_weights_weigh_the_rare_class_up(small, batch):
    model = build_model(small, seed=2)
    outputs = {"logits": tf.constant([[2.0, 0], [2, 0], [2, 0], [2, 0]]), "features": tf.ones((4, 3, 3, 3, 64))}
    losses = -np.log(np.exp([2, 0, 0, 2]) / (np.exp(2) + 1))
    _, ce, *_ = model.loss_of(outputs, batch[0]["mask"], batch[1], tf.constant([1.0, 3, 3, 1]), training=True)
    assert float(ce) == pytest.approx((losses * [1, 3, 3, 1]).sum() / 4, rel=1e-5)  # as Keras: over the batch's size


def test_dropout_is_counted_and_off_in_prediction(small):
    model = build_model(small, seed=4)
    layer = model.net.get_layer("dropout")
    ones = tf.ones((200, 64))
    first, second = np.array(layer(ones, training=True)), np.array(layer(ones, training=True))
    assert int(layer.step) == 2 and not np.array_equal(first, second)
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.02) and first.mean() == pytest.approx(1, abs=0.03)
    layer.step.assign(0)
    assert np.array_equal(layer(ones, training=True), first)
    assert np.array_equal(layer(ones, training=False), ones)


def test_half_precision_blocks_keep_a_float32_head(small, batch, bfloat16):
    model = compiled(small, dtype="mixed_bfloat16")
    found = model.outputs_of(batch[0]["volume"])
    assert found["features"].dtype == tf.bfloat16 and found["probabilities"].dtype == tf.float32
    assert all(v.dtype in ("float32", tf.float32) for v in model.trainable_variables)
    assert np.isfinite(float(model.train_step(batch)["ce"]))


@pytest.mark.parametrize("what", ["gradients", "loss"])
def test_an_overflow_in_float16_skips_the_step_and_is_counted(what, small, float16):
    """Folded whole, as TensorFlow has no float16 max-pool on a CPU; eagerly, as its fused ReLU makes NaN 0 there."""
    narrow = replace(small, backbone=BackboneSettings(filters=(4, 4, 8, 8)))
    model = build_model(with_values(narrow, {"volume.side": 16}), seed=3, dtype="mixed_float16", s2d_blocks=3)
    scale = 2.0**100 if what == "gradients" else 1.0
    model.compile(optimizer=LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=scale), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    shape = (4, 16, 16, 16, 1)
    good = {
        "volume": tf.constant(rng.normal(1, 0.5, shape).clip(0, 4).astype(np.float16)),
        "mask": tf.constant(rng.random(shape) < 0.2),
    }
    labels = tf.constant([0, 1, 1, 0])
    bad = {**good, "volume": good["volume"] * tf.constant(16000, tf.float16)} if what == "loss" else good
    skipped = SkippedSteps()
    skipped.set_model(model)

    def step(inputs):
        """An epoch of one step."""
        skipped.on_epoch_begin(0)
        model.reset_metrics()
        logs = {name: float(value) for name, value in model.train_step((inputs, labels)).items()}
        skipped.on_train_batch_end(0)
        skipped.on_epoch_end(0, logs)
        return logs

    before = [np.array(v) for v in model.trainable_variables]
    logs = step(bad)
    assert all(np.array_equal(v, b) for v, b in zip(model.trainable_variables, before, strict=True))
    assert logs["skipped"] == 1 and float(model.optimizer.dynamic_scale) == scale / 2
    # a loss that is no number is left out of the means, a loss whose gradients alone overflowed is not
    assert float(model.ce_mean.count) == (0 if what == "loss" else 4) and all(map(np.isfinite, logs.values()))
    model.optimizer.dynamic_scale.assign(1)
    if what == "loss":
        outputs = model.outputs_of(good["volume"], training=True)
        _, ce, *_ = model.loss_of(outputs, good["mask"], labels, training=True)
        model.net.get_layer("dropout").step.assign_sub(1)
        assert step(good)["ce"] == pytest.approx(float(ce), rel=1e-3)
    assert step(good)["skipped"] == 0
    assert not any(np.array_equal(v, b) for v, b in zip(model.trainable_variables, before, strict=True))
