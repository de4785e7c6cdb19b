"""mgkeras as a Keras library: what a Keras user writes, with networks of their own and Keras' own tools."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import mgkeras
from mgkeras.models import cam, keras_compat
from mgkeras.models.head import Head

layers = keras.layers
SHAPE = (16, 16, 24, 1)  # no cube
rng = np.random.default_rng(0)
VOLUMES = rng.random((8, *SHAPE)).astype("float32")
MASKS = np.zeros((8, *SHAPE[:3]), "float32")
MASKS[:6, 4:9, 4:9, 4:9] = 1  # the last two are empty
LABELS = np.array([0, 1] * 4)
DATA = {"volume": VOLUMES, "mask": MASKS}


@pytest.fixture(autouse=True)
def names_anew():
    """Keras numbers the names of metrics and layers in a process: auc, auc_1, ..."""
    keras.backend.clear_session()


def small_vgg(classes=2, **options):
    keras.utils.set_random_seed(1)
    return mgkeras.vgg3d(SHAPE, classes, filters=(4, 4, 8), convolutions=(1, 1, 1), **options)


def guided(classes=2, **options):
    model = mgkeras.MaskGuided(small_vgg(classes), **options)
    model.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy", keras.metrics.AUC()] if classes == 2 else None)
    return model


def own(head, *, shape=(12, 10, 14, 2), norm=True):
    """A residual network of a user: two blocks, then what ``head`` makes of its features."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape)
    x = layers.Conv3D(6, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv3D(6, 3, padding="same")(x)
    y = layers.BatchNormalization()(y) if norm else y
    x = layers.Activation("relu", name="conv5_out")(layers.Add()([x, y]))
    return keras.Model(inputs, head(x), name="resnet")


def softmax_head(x, classes=3):
    return layers.Dense(classes, activation="softmax", name="predictions")(layers.GlobalAveragePooling3D()(x))


def identity_gap(model, volumes):
    """How far the centred maps' mean plus the constant is from the centred logits, relative to the largest."""
    outputs = model.outputs_of(volumes)
    matrix, bias = model.head.weights()
    found = np.array(cam.class_maps(outputs["features"], matrix)).mean((1, 2, 3)) + np.array(bias)
    logits = np.array(outputs["logits"])
    found, logits = (values - values.mean(1, keepdims=True) for values in (found, logits))
    return np.abs(found - logits).max() / max(np.abs(logits).max(), 1e-3)


def perturbed(model):
    """Weights and moments away from where they start."""
    draw = np.random.default_rng(3)
    for layer in model.net.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(draw.uniform(0.5, 2, weight.shape))
    return model


# --- the ten lines


def test_fit_evaluate_and_predict_as_any_keras_model(tmp_path):
    model = guided(dice_weight=10)
    calls = [
        keras.callbacks.EarlyStopping("val_loss", patience=5),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), monitor="val_auc", mode="max"),
        keras.callbacks.TensorBoard(str(tmp_path / "logs")),
    ]
    held = {"volume": VOLUMES[:4], "mask": MASKS[:4]}, LABELS[:4]
    history = model.fit(DATA, LABELS, validation_data=held, epochs=2, batch_size=4, callbacks=calls, verbose=0).history
    names = {"loss", "ce", "dice", "accuracy", "auc"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert all(np.isfinite(values).all() for values in history.values())
    assert list((tmp_path / "logs").rglob("events*"))
    found = model.evaluate(*held, verbose=0, return_dict=True)
    assert found == pytest.approx({name: history[f"val_{name}"][-1] for name in names}, abs=1e-5)
    p = model.predict(VOLUMES, verbose=0)
    assert p.shape == (8, 2) and np.allclose(p.sum(1), 1, atol=1e-6)
    assert np.array_equal(p, model.predict(DATA, verbose=0))
    best = keras.models.load_model(str(tmp_path / "best.keras"))
    assert best.evaluate(*held, verbose=0, return_dict=True).keys() == found.keys()


def test_metrics_of_two_classes_get_the_probability_of_class_1():
    model = mgkeras.MaskGuided(small_vgg())
    model.compile("adam", metrics=["accuracy", "AUC", keras.metrics.Precision()], weighted_metrics=["accuracy"])
    found = model.evaluate(DATA, LABELS, sample_weight=np.arange(8.0), verbose=0, return_dict=True)
    p = model.predict(VOLUMES, verbose=0)
    assert found["accuracy"] == pytest.approx(np.mean(p.argmax(1) == LABELS))
    direct = keras.metrics.AUC()
    direct.update_state(LABELS, p[:, 1])
    assert found["auc"] == pytest.approx(float(direct.result()))


def test_the_loss_is_cross_entropy_less_the_dice_and_the_weights_are_keras_own():
    model, weights = guided(dice_weight=3), np.linspace(0.5, 2, 8)
    found = model.evaluate(DATA, LABELS, batch_size=8, sample_weight=weights, verbose=0, return_dict=True)
    outputs = model.outputs_of(VOLUMES)
    p = np.array(outputs["probabilities"], np.float64)[np.arange(8), LABELS]
    assert found["ce"] == pytest.approx(-(weights * np.log(p)).sum() / 8, rel=1e-4)
    dice, has_mask = model.dice_of(outputs["features"], tf.constant(MASKS), tf.constant(LABELS), training=False)
    assert np.array(has_mask).tolist() == [1] * 6 + [0, 0]
    assert found["dice"] == pytest.approx(np.array(dice)[:6].mean(), rel=1e-4)
    assert found["loss"] == pytest.approx(found["ce"] - 3 * found["dice"], rel=1e-4)
    unmasked = model.evaluate(VOLUMES, LABELS, batch_size=8, verbose=0, return_dict=True)
    assert unmasked["dice"] == 0 and unmasked["loss"] == pytest.approx(unmasked["ce"])


@pytest.mark.parametrize("labels", ["int", "one-hot"])
def test_three_classes(labels):
    model = mgkeras.MaskGuided(small_vgg(3))
    y = np.arange(8) % 3
    if labels == "one-hot":
        model.compile("adam", loss="categorical_crossentropy", metrics=["accuracy"])
        y = np.eye(3)[y]
    else:
        model.compile("adam", metrics=["accuracy"])
    model.fit(DATA, y, verbose=0)
    p = model.predict(VOLUMES, verbose=0)
    found = model.evaluate(DATA, y, verbose=0, return_dict=True)
    assert found["ce"] == pytest.approx(-np.log(p[np.arange(8), np.arange(8) % 3]).mean(), rel=1e-4)
    assert mgkeras.class_activation_map(model, VOLUMES).shape == (8, 4, 4, 6, 3)
    assert identity_gap(model, VOLUMES) < 1e-4


def test_a_saved_model_is_the_same_model_and_trains_on(tmp_path):
    model = guided(dice_weight=2.0, guided_map="strength", cam_map="relu", dice_term="log")
    model.fit(DATA, LABELS, verbose=0, batch_size=4)
    model.save(tmp_path / "guided.keras")
    loaded = keras.models.load_model(tmp_path / "guided.keras")
    assert np.array_equal(loaded.predict(VOLUMES, verbose=0), model.predict(VOLUMES, verbose=0))
    assert loaded.guidance == model.guidance and loaded.get_config().keys() == model.get_config().keys()
    scores = [trained.evaluate(DATA, LABELS, verbose=0, return_dict=True) for trained in (model, loaded)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert int(keras_compat.as_number(loaded.optimizer.iterations)) == 2
    for trained in (model, loaded):
        trained.fit(DATA, LABELS, verbose=0, shuffle=False)
    assert np.allclose(loaded.predict(VOLUMES, verbose=0), model.predict(VOLUMES, verbose=0), atol=1e-5)


def test_a_clone_has_the_same_settings_and_weights_of_its_own():
    model = guided(dice_weight=4.0)
    copy = keras.models.clone_model(model)
    assert copy.guidance == model.guidance
    assert {name for name, _ in named(copy)} == {name for name, _ in named(model)}
    copy.net.get_layer("logits").bias.assign([1.0, 2.0])
    assert np.array_equal(model.net.get_layer("logits").bias, [0, 0])


def named(model):
    from mgkeras.models.weights import named_weights

    return named_weights(model)


@pytest.mark.parametrize(
    "first",
    [
        "import keras, mgkeras",
        pytest.param("import mgkeras, keras", marks=pytest.mark.slow),
        pytest.param(
            "import mgkeras, importlib.util; importlib.util.find_spec('keras'); import keras", marks=pytest.mark.slow
        ),
    ],
)
def test_a_new_process_loads_it_whichever_is_imported_first(first, tmp_path):
    model = guided()
    model.save(tmp_path / "guided.keras")
    code = f"{first}; print(type(keras.models.load_model({str(tmp_path / 'guided.keras')!r})).__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.stdout.split()[-1] == "MaskGuided", found.stderr[-2000:]


def test_importing_mgkeras_imports_nothing_heavy():
    code = "import mgkeras, sys; print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)), mgkeras.__all__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("[] [") and not found.stderr
    assert all(hasattr(mgkeras, name) for name in mgkeras.__all__)


# --- what Keras users do besides


def test_steps_at_once_and_backup_and_restore(tmp_path):
    data = tf.data.Dataset.from_tensor_slices((DATA, LABELS)).batch(2)
    model = guided()
    model.compile("adam", steps_per_execution=2, metrics=["accuracy"])
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    history = model.fit(data, epochs=2, callbacks=[backup], verbose=0).history
    assert len(history["loss"]) == 2 and np.isfinite(history["loss"]).all()


def test_mixed_precision_and_a_regulariser(bfloat16):
    before = keras.mixed_precision.global_policy() if hasattr(keras.mixed_precision, "global_policy") else None
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = guided()
        assert model.outputs_of(VOLUMES)["features"].dtype == tf.bfloat16
        model.fit(DATA, LABELS, verbose=0)
        assert model.predict(VOLUMES, verbose=0).dtype == np.float32
    finally:
        keras.mixed_precision.set_global_policy(before or "float32")


def test_losses_that_layers_add_count():
    def head(x):
        return layers.Dense(2, kernel_regularizer=keras.regularizers.L2(10.0))(layers.GlobalAveragePooling3D()(x))

    model = mgkeras.MaskGuided.of(own(head), dice_weight=0)
    model.compile("sgd")
    volumes = np.random.default_rng(0).random((4, 12, 10, 14, 2))
    found = model.evaluate(volumes, np.array([0, 1, 0, 1]), verbose=0, return_dict=True)
    penalty = 10 * float(np.square(np.array(model.net.layers[-1].kernel)).sum())
    assert found["loss"] == pytest.approx(found["ce"] + penalty, rel=1e-4)


def test_moments_are_recomputed_exactly_in_the_head_and_by_batches_before_it():
    keras.utils.set_random_seed(5)

    def head(x):
        x = layers.BatchNormalization(name="last")(layers.GlobalAveragePooling3D()(x))
        return layers.Dense(2)(layers.BatchNormalization(name="second")(layers.Dense(4)(x)))

    model = mgkeras.MaskGuided.of(own(head, shape=SHAPE))
    recompute = mgkeras.RecomputeMoments(VOLUMES, batch_size=8)
    model.compile("adam")
    model.fit(DATA, LABELS, epochs=1, verbose=0, callbacks=[recompute])
    body, last, second = (layer for layer in model.net.layers if isinstance(layer, layers.BatchNormalization))
    before = keras.Model(model.net.input, body.input)(VOLUMES).numpy()
    assert np.allclose(body.moving_mean, before.mean((0, 1, 2, 3)), atol=1e-4)
    pooled = np.array(model.pooled_features(VOLUMES))
    assert np.allclose(last.moving_mean, pooled.mean(0), atol=1e-5)
    assert np.allclose(last.moving_variance, pooled.var(0), atol=1e-5)
    between = keras.Model(model.net.input, second.input)(VOLUMES).numpy()
    assert np.allclose(second.moving_mean, between.mean(0), atol=1e-4)
    assert body.momentum == 0.99


# --- your own networks


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_residual_net_with_and_without_batch_normalisation(classes, norm):
    net = own(lambda x: softmax_head(x, classes), norm=norm)
    model = perturbed(mgkeras.MaskGuided.of(net, features="conv5_out"))
    volumes = np.random.default_rng(0).random((3, 12, 10, 14, 2)).astype("float32")
    assert np.allclose(model.predict(volumes, verbose=0), net.predict(volumes, verbose=0), atol=1e-6)
    assert identity_gap(model, volumes) < 1e-3
    assert np.allclose(
        mgkeras.class_activation_map(model, volumes).sum(-1), 0, atol=1e-4
    )  # decision maps are centred over the classes
    masks = np.zeros((3, 12, 10, 14))
    masks[:, 3:6, 3:6, 3:6] = 1
    model.compile("adam")
    before = [np.array(weight) for weight in net.trainable_variables]
    model.fit({"volume": volumes, "mask": masks}, np.arange(3) % classes, verbose=0)
    assert any(np.abs(np.array(a) - b).max() > 0 for a, b in zip(net.trainable_variables, before, strict=True))


def linear_chain(x):
    x = layers.BatchNormalization()(layers.GlobalAveragePooling3D()(x))
    x = layers.Dropout(0.5)(layers.Dense(5, use_bias=False)(x))
    x = layers.BatchNormalization(scale=False)(x)
    return layers.Softmax()(layers.Dense(3)(x))


def one_sigmoid(x):
    return layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling3D()(x))


def bare_logits(x):
    return layers.Dense(2)(layers.Flatten()(layers.GlobalAveragePooling3D()(x)))


@pytest.mark.parametrize("head", [linear_chain, one_sigmoid, bare_logits])
def test_heads_that_are_linear_after_the_pooling(head):
    net = own(head)
    model = perturbed(mgkeras.MaskGuided.of(net))
    volumes = np.random.default_rng(0).random((3, 12, 10, 14, 2)).astype("float32")
    assert identity_gap(model, volumes) < 1e-3
    p, theirs = model.predict(volumes, verbose=0), net.predict(volumes, verbose=0)
    if head is one_sigmoid:
        assert p.shape == (3, 2) and np.allclose(p[:, 1:], theirs, atol=1e-6)
    elif head is linear_chain:
        assert np.allclose(p, theirs, atol=1e-6)
    outputs = model.outputs_of(volumes, training=False)
    matrix, bias = model.head.weights(outputs["features"])  # by the batch's moments
    slow, values = np.array(model.head.pooled(outputs["features"]), np.float64), None
    for layer in model.head.linear:
        if isinstance(layer, layers.BatchNormalization):
            gamma = np.array(layer.gamma) if layer.scale else 1.0
            slow = gamma * (slow - slow.mean(0)) / np.sqrt(slow.var(0) + layer.epsilon) + np.array(layer.beta)
        elif isinstance(layer, layers.Dense):
            slow = slow @ np.array(layer.kernel) + (np.array(layer.bias) if layer.use_bias else 0)
    values = np.array(model.head.pooled(outputs["features"])) @ np.array(matrix) + np.array(bias)
    slow = np.concatenate([np.zeros_like(slow), slow], 1) if slow.shape[1] == 1 else slow
    assert np.abs(values - slow).max() < 1e-3 * max(1, np.abs(slow).max())


def hidden_relu(x):
    x = layers.Dense(4, activation="relu", name="hidden")(layers.GlobalAveragePooling3D()(x))
    return layers.Dense(2, activation="softmax")(x)


def flattened(x):
    return layers.Dense(2)(layers.Flatten(name="flat")(x))


def of_the_maximum(x):
    return layers.Dense(2)(layers.GlobalMaxPooling3D(name="largest")(x))


def normalised_by_layer(x):
    return layers.Dense(2)(layers.LayerNormalization(name="across")(layers.GlobalAveragePooling3D()(x)))


def branched(x):
    a, b = layers.GlobalAveragePooling3D()(x), layers.GlobalMaxPooling3D()(x)
    return layers.Dense(2)(layers.Concatenate(name="both")([a, b]))


@pytest.mark.parametrize(
    ("head", "named_layer"),
    [
        (hidden_relu, "hidden"),
        (flattened, "flat"),
        (of_the_maximum, "largest"),
        (normalised_by_layer, "across"),
        (branched, "both"),
    ],
)
def test_a_head_that_is_not_linear_is_an_error_that_names_the_layer(head, named_layer):
    with pytest.raises(mgkeras.HeadError, match=f"Received: .*{named_layer}"):
        mgkeras.MaskGuided.of(own(head), features="conv5_out")


def test_features_that_are_not_pooled_next_are_an_error():
    net = own(softmax_head)
    with pytest.raises(mgkeras.HeadError, match="a layer 'nowhere'.*Received: the layers add"):
        mgkeras.MaskGuided.of(net, features="nowhere")
    with pytest.raises(mgkeras.HeadError, match="conv5_out"):  # a ReLU stands between these features and the pooling
        mgkeras.MaskGuided.of(net, features=net.layers[-4].name)
    with pytest.raises(mgkeras.HeadError, match="Received: one output"):
        mgkeras.MaskGuided(net)


def test_a_head_whose_numbers_are_not_its_layers_is_refused(monkeypatch):
    net = own(bare_logits)
    right = Head.weights
    monkeypatch.setattr(Head, "weights", lambda self, features=None: (2 * right(self)[0], right(self)[1]))
    with pytest.raises(mgkeras.HeadError, match="differ by"):
        mgkeras.MaskGuided.of(net)


@pytest.mark.parametrize("options", [{"guided_map": "heat"}, {"cam_map": "tanh"}, {"dice_term": "cube"}])
def test_unknown_terms_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be one of .*Received: {value!r}"):
        mgkeras.MaskGuided(small_vgg(), **options)


@pytest.mark.parametrize("name", ["DenseNet121", "ResNet18"])
def test_networks_of_medicai(name):
    if keras_compat.ADDONS:
        pytest.skip("medicai needs Keras 3")
    models = pytest.importorskip("medicai.models", reason="medicai is not installed: pip install 'mgkeras[medicai]'")
    net = getattr(models, name)(input_shape=(32, 32, 32, 1), num_classes=3, classifier_activation="softmax")
    model = mgkeras.MaskGuided.of(net)
    volumes = np.random.default_rng(0).random((2, 32, 32, 32, 1)).astype("float32")
    assert np.allclose(model.predict(volumes, verbose=0), net.predict(volumes, verbose=0), atol=1e-5)
    assert identity_gap(model, volumes) < 1e-3
    masks = np.zeros((2, 32, 32, 32))
    masks[:, 8:20, 8:20, 8:20] = 1
    model.compile("adam")
    loss, *_ = model.loss_of(model.outputs_of(volumes, training=True), masks, tf.constant([0, 2]), training=True)
    assert np.isfinite(float(loss))


@pytest.mark.parametrize(
    ("sides", "grid"), [((12, 10, 14), (6, 5, 7)), ((13, 7, 10), (6, 3, 4)), ((5, 5, 5), (2, 3, 5))]
)
def test_a_mask_is_averaged_over_cells_by_overlap(sides, grid):
    mask = np.random.default_rng(1).random((2, *sides)) < 0.3
    fine = np.kron(mask, np.ones((1, *grid)))  # each voxel into as many pieces as there are cells
    cells = np.zeros((2, *grid))
    for at in np.ndindex(*grid):
        parts = tuple(slice(i * s, (i + 1) * s) for i, s in zip(at, sides, strict=True))
        cells[(slice(None), *at)] = fine[(slice(None), *parts)].mean((1, 2, 3))
    assert np.allclose(cam.mask_cells(mask, grid), cells / cells.max((1, 2, 3), keepdims=True), atol=1e-5)
    assert np.allclose(cam.mask_cells(mask[..., None], grid), cam.mask_cells(mask, grid))
    assert np.array_equal(cam.mask_cells(np.zeros((1, *sides)), grid), np.zeros((1, *grid)))


def test_one_hot_labels_need_no_other_loss():
    model, hot = guided(), np.eye(2)[LABELS]
    found, same = (model.evaluate(DATA, y, verbose=0, return_dict=True) for y in (hot, LABELS))
    assert found["ce"] == pytest.approx(same["ce"], rel=1e-5) and found["auc"] == pytest.approx(same["auc"])
    model.fit(DATA, hot, verbose=0)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_binary_loss_of_one_unit_is_keras_own(from_logits, shape):
    head = one_logit if from_logits else one_sigmoid
    volumes, y = np.random.default_rng(0).random((4, 12, 10, 14, 2)).astype("float32"), np.array([0, 1, 1, 0])
    net = own(head)
    model = mgkeras.MaskGuided.of(net)
    model.compile("sgd", loss=keras.losses.BinaryCrossentropy(from_logits=from_logits))
    found = model.evaluate(volumes, y.reshape(shape), verbose=0, return_dict=True)["ce"]
    values = net.predict(volumes, verbose=0)[:, 0].astype(float)
    p = 1 / (1 + np.exp(-values)) if from_logits else values
    assert found == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-4)
    two = mgkeras.MaskGuided(small_vgg())
    with pytest.raises(ValueError, match="2 units wants a categorical loss"):
        two.compile("sgd", loss="binary_crossentropy")


def one_logit(x):
    return layers.Dense(1)(layers.GlobalAveragePooling3D()(x))


def test_networks_that_were_put_together_step_by_step():
    net = keras.Sequential()
    net.add(keras.Input((12, 10, 14, 2)))
    for layer in (layers.Conv3D(4, 3), layers.GlobalAveragePooling3D(), layers.Dense(3), layers.Softmax()):
        net.add(layer)
    inputs = keras.Input((12, 10, 14, 2))
    backbone = keras.Model(inputs, layers.Conv3D(4, 3, activation="relu")(inputs), name="backbone")
    other = keras.Input((12, 10, 14, 2))
    nested = keras.Model(inputs=[other], outputs=[softmax_head(backbone(other))])
    volumes = np.random.default_rng(0).random((3, 12, 10, 14, 2)).astype("float32")
    for own_net, features in ((net, None), (nested, "backbone"), (nested, None)):
        model = mgkeras.MaskGuided.of(own_net, features=features)
        theirs = own_net.predict(volumes, verbose=0)
        assert np.allclose(model.predict(volumes, verbose=0), theirs, atol=1e-6) and identity_gap(model, volumes) < 1e-3


def test_metrics_by_their_lower_case_names_in_lists_and_dicts():
    model = mgkeras.MaskGuided(small_vgg())
    model.compile("adam", metrics=["auc", "precision", "binary_accuracy", keras.metrics.AUC(name="second")])
    found = model.evaluate(DATA, LABELS, verbose=0, return_dict=True)
    p = model.predict(VOLUMES, verbose=0)[:, 1]
    assert found["binary_accuracy"] == pytest.approx(np.mean((p > 0.5) == LABELS))
    assert found["auc"] == pytest.approx(found["second"])


def test_frozen_normalisation_is_read_as_keras_uses_it():
    model = perturbed(mgkeras.MaskGuided.of(own(linear_chain)))
    volumes = np.random.default_rng(0).random((3, 12, 10, 14, 2)).astype("float32")
    for layer in model.net.layers:
        layer.trainable = not isinstance(layer, (layers.BatchNormalization, layers.Dropout))
    drop = next(layer for layer in model.net.layers if isinstance(layer, layers.Dropout))
    drop.rate = 0.0
    outputs = model.outputs_of(volumes, training=True)
    matrix, bias = model.head.weights(outputs["features"])
    own_logits = np.array(model.head.pooled(outputs["features"])) @ np.array(matrix) + np.array(bias)
    p = np.exp(own_logits) / np.exp(own_logits).sum(1, keepdims=True)
    assert np.abs(p - np.array(outputs["probabilities"])).max() < 1e-4


def test_a_trained_softmax_network_is_not_refused():
    net = own(linear_chain)
    draw = np.random.default_rng(1)
    for layer in net.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(1e-3 * np.ones(layer.moving_variance.shape))
        if isinstance(layer, layers.Dense):
            layer.kernel.assign(draw.normal(size=layer.kernel.shape))
    mgkeras.MaskGuided.of(net)


def test_masks_of_unknown_sides_are_an_error_that_says_what_to_do():
    unknown = tf.TensorSpec((None, None, None, None))
    with pytest.raises(ValueError, match="tf.ensure_shape"):
        tf.function(lambda mask: cam.mask_cells(mask, (2, 2, 2)), [unknown], autograph=False)(MASKS)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ((VOLUMES, MASKS), "2 arrays without keys"),
        ({"image": VOLUMES, "mask": MASKS}, "the keys image, mask"),
        ({"volume": VOLUMES, "mask": MASKS[:, :12]}, r"sides \(16, 16, 24\). Received: \(None, 12, 16, 24\)"),
    ],
)
def test_inputs_of_another_form_are_named(inputs, told):
    kind = Exception if keras_compat.ADDONS else ValueError  # Keras 2 has an error of its own for what is traced
    with pytest.raises(kind, match=told):
        guided().fit(inputs, LABELS, verbose=0)


def test_a_resumed_history_goes_on(tmp_path):
    path = tmp_path / "state.h5"
    first = guided()
    first.fit(DATA, LABELS, epochs=2, verbose=0, callbacks=[mgkeras.SaveState(path)])
    second = guided()
    history = mgkeras.SaveState.resume(path, second)
    calls = [mgkeras.SaveState(path, history=history)]
    second.fit(DATA, LABELS, initial_epoch=len(history), epochs=3, verbose=0, callbacks=calls)
    assert [row["epoch"] for row in mgkeras.SaveState.resume(path, guided())] == [1, 2, 3]


MODULES = ("backbone", "callbacks", "class_metrics", "guided")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    import pathlib
    import tempfile

    module = importlib.import_module(f"mgkeras.models.{name}")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    names = {"mgkeras": mgkeras, "keras": keras, "np": np, "tf": tf, "pathlib": pathlib, "tempfile": tempfile}
    tests = [test for test in finder.find(module, extraglobs=names) if test.examples]
    assert tests
    for test in tests:
        keras.backend.clear_session()
        assert runner.run(test).failed == 0, test.name
