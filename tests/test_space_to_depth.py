"""Convolutions after space-to-depth, against loops, against Keras' plain layers, and within the trained model."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from mgkeras.models import space_to_depth as s2d
from mgkeras.models.guided import build_model
from mgkeras.models.weights import load_state, load_weights, named_weights, save_state, save_weights
from mgkeras.settings import BackboneSettings, with_values

pytestmark = pytest.mark.computes
SHAPES = [((4, 6, 8), 1, 8), ((8, 8, 8), 3, 5), ((2, 2, 2), 8, 8), ((6, 4, 10), 5, 1)]


def slow_packing(volume):
    """space_to_depth voxel by voxel."""
    b, x, y, z, c = volume.shape
    out = np.zeros((b, x // 2, y // 2, z // 2, 8 * c), volume.dtype)
    for i, j, k in np.ndindex(x, y, z):
        place = 4 * (i % 2) + 2 * (j % 2) + k % 2
        out[:, i // 2, j // 2, k // 2, place * c : (place + 1) * c] = volume[:, i, j, k]
    return out


def both(ci, co, pooled, dtype="float32"):
    """A plain convolution (then pooled, or packed) and, in some dtype, a packed convolution with its weights."""
    plain = keras.layers.Conv3D(co, 3, padding="same", activation="relu")
    plain.build((None, 8, 8, 8, ci))
    plain.bias.assign(np.random.default_rng(1).normal(size=co))
    packed = s2d.SpaceToDepthConv3D(co, packed=True, pooled=pooled, activation="relu", dtype=dtype)
    packed.build((None, 4, 4, 4, 8 * ci))
    for ours, its in zip(packed.weights, plain.weights, strict=True):
        ours.assign(its)
    after = keras.layers.MaxPooling3D(2) if pooled else s2d.SpaceToDepth()
    before = s2d.SpaceToDepth(dtype=dtype)
    return (lambda x: after(plain(x)), plain.weights), (lambda x: packed(before(x)), packed.weights)


def gradients(function, weights, volume, *, jit=False):
    """Output, and the gradients for inputs and weights of a random but fixed combination of the outputs."""

    @tf.function(jit_compile=jit)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            mix = tf.constant(np.random.default_rng(2).integers(-2, 3, y.shape), y.dtype)
            total = tf.reduce_sum(tf.cast(y * mix, tf.float32))
        return [y, *tape.gradient(total, [x, *weights])]

    return [np.asarray(tf.cast(value, tf.float32)) for value in run(tf.constant(volume))]


def close(found, expected, tolerance=1e-5):
    """Whether arrays differ by no more than a share of the largest value."""
    assert len(found) == len(expected)
    return all(np.abs(a - b).max() <= tolerance * np.abs(b).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("space", "channels"), [((2, 4, 6), 1), ((4, 2, 2), 3)])
def test_space_to_depth_is_the_loop(space, channels):
    volume = np.random.default_rng(0).normal(size=(2, *space, channels)).astype(np.float32)
    assert np.array_equal(s2d.space_to_depth(tf.constant(volume)), slow_packing(volume))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("space", "ci", "co"), SHAPES)
def test_outputs_and_gradients_are_the_plain_layers(space, ci, co, pooled):
    volume = np.random.default_rng(0).normal(size=(2, *space, ci)).astype(np.float32)
    plain, packed = both(ci, co, pooled)
    assert close(gradients(*packed, volume), gradients(*plain, volume))


def test_xla_compiles_it_to_the_same():
    volume = np.random.default_rng(0).normal(size=(2, 4, 4, 4, 3)).astype(np.float32)
    plain, packed = both(3, 2, True)
    assert close(gradients(*packed, volume, jit=True), gradients(*plain, volume))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_whole_numbers_leave_nothing_to_round(dtype, request):
    """Sums of a few whole numbers are exact in any order and precision, so both forms give the same bits."""
    if dtype != "float32":  # which every processor has
        request.getfixturevalue(dtype.removeprefix("mixed_"))
    rng = np.random.default_rng(0)
    # packed, a grid of 3: oneDNN's bfloat16 gradients of a kernel are wrong on one of 2, see training/fit.py
    volume = rng.integers(0, 2, (1, 6, 6, 6, 2)).astype(np.float32)
    plain, packed = both(2, 3, False, dtype)
    kernel, bias = rng.integers(-1, 2, (3, 3, 3, 2, 3)), [1, 0, -2]
    for _, weights in (plain, packed):
        weights[0].assign(kernel)
        weights[1].assign(bias)
    found, expected = gradients(*packed, volume), gradients(*plain, volume)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(np.abs(value).max() > 0 for value in expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_places(dtype):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 3, (2, 4, 2, 6, 3)).astype(np.float32)
    upstream = rng.integers(1, 5, (2, 2, 1, 3, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.cast(tf.constant(volume), dtype)
        tape.watch(x)
        largest = s2d.max_over_places(s2d.space_to_depth(x))
    found = tape.gradient(largest, x, tf.cast(upstream, dtype))
    places = slow_packing(volume).reshape(2, 2, 1, 3, 8, 3)
    first = np.argmax(places, axis=-2)[..., None, :] == np.arange(8)[:, None]
    assert np.array_equal(tf.cast(largest, tf.float32), places.max(axis=-2))
    expected = (first * upstream[..., None, :]).reshape(2, 2, 1, 3, 24)
    assert np.array_equal(slow_packing(np.asarray(tf.cast(found, tf.float32))), expected)


def test_the_volumes_border_sees_zeros_beyond_it():
    ones = tf.ones((1, 4, 6, 4, 1))
    kernel = s2d.packed_kernel(tf.ones((3, 3, 3, 1, 1)))
    packed = tf.nn.conv3d(s2d.space_to_depth(ones), kernel, [1] * 5, "SAME")
    inside = [np.minimum(3, 2 + (np.arange(n) > 0) * (np.arange(n) < n - 1)) for n in (4, 6, 4)]
    neighbours = np.einsum("x,y,z->xyz", *inside)[None, ..., None].astype(np.float32)  # 8 in a corner, 27 within
    assert np.array_equal(packed, slow_packing(neighbours))


def test_of_the_neighbouring_cells_only_the_adjacent_place_is_read():
    kernel = np.asarray(s2d.packed_kernel(tf.ones((3, 3, 3, 1, 1))))
    cells = kernel.reshape(3, 3, 3, 2, 2, 2, 8)  # cell x, y, z, place x, y, z of the input, place of the output
    assert not cells[0, :, :, 0].any() and not cells[2, :, :, 1].any()
    assert not cells[:, 0, :, :, 0].any() and not cells[:, :, 2, :, :, 1].any()
    small = np.random.default_rng(0).normal(size=(3, 3, 3, 2, 3)).astype(np.float32)
    values, counts = np.unique(s2d.packed_kernel(tf.constant(small)), return_counts=True)
    assert set(values) == {0.0, *small.ravel()}  # every entry is a weight, unrounded,
    assert set(counts[values != 0]) == {8}  # which stands once for each place of the output


def test_an_overflow_is_not_lost_in_the_pool():
    for place in range(8):
        packed = np.zeros((1, 1, 1, 1, 8), np.float32)
        packed[..., place] = np.nan
        assert np.isnan(s2d.max_over_places(tf.constant(packed))).all()


def test_what_cannot_be_folded_is_refused(small):
    with pytest.raises(ValueError, match=r"sides must be even. Received: \(4, 3, 4\)"):
        s2d.space_to_depth(tf.zeros((1, 4, 3, 4, 1)))
    with pytest.raises(ValueError, match="only a packed convolution can be pooled"):
        s2d.SpaceToDepthConv3D(4, pooled=True)
    for blocks in (-1, 4):
        with pytest.raises(ValueError, match=f"between 0 and 3.*Received: {blocks}"):
            build_model(small, s2d_blocks=blocks)


# --- the model


@pytest.fixture
def still(small):
    return replace(small, backbone=BackboneSettings(dropout=0.0))


def test_a_folded_model_has_the_plain_ones_names_and_first_weights(small):
    plain, packed = build_model(small, seed=3), build_model(small, seed=3, s2d_blocks=3)
    orders = [
        [name for ours in model.trainable_variables for name, weight in named_weights(model) if weight is ours]
        for model in (packed, plain)
    ]
    assert orders[0] == orders[1] and len(orders[0]) == len(plain.trainable_variables)
    assert {layer.name for layer in plain.net.layers} <= {layer.name for layer in packed.net.layers}
    for (name, a), (twin, b) in zip(named_weights(plain), named_weights(packed), strict=True):
        assert name == twin and np.array_equal(a, b)
    for name in ("block1_pool", "block2_pool", "block3_pool", "features", "pooled"):
        assert packed.net.get_layer(name).output.shape == plain.net.get_layer(name).output.shape


@pytest.mark.parametrize(("saved_in", "read_in"), [(0, 2), (2, 0)])
def test_a_checkpoint_of_one_form_is_one_of_the_other(saved_in, read_in, small, tmp_path):
    saved, read = build_model(small, seed=1, s2d_blocks=saved_in), build_model(small, seed=2, s2d_blocks=read_in)
    for model in (saved, read):
        model.compile(optimizer="adam", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    saved.optimizer.variables[-1].assign_add(tf.ones_like(saved.optimizer.variables[-1]))
    volumes = np.random.default_rng(0).normal(1, 0.5, (2, 24, 24, 24, 1)).astype(np.float32)
    expected = saved.outputs_of(volumes)
    save_weights(saved, tmp_path / "weights.h5")
    load_weights(read, tmp_path / "weights.h5")
    found = read.outputs_of(volumes)
    assert close([np.asarray(found[name]) for name in expected], [np.asarray(value) for value in expected.values()])
    save_state(tmp_path / "state.h5", saved, {})
    load_state(tmp_path / "state.h5", read)
    for a, b in zip(saved.optimizer.variables, read.optimizer.variables, strict=True):
        assert np.array_equal(a, b)


def nearest_tie(model, volume):
    """The smallest gap between the two largest values of a max-pool's window, in shares of the largest of all.

    Rounding decides which place of a nearer window gets the gradient; TensorFlow's own kernels then differ too.
    """
    gaps = []
    for block in (1, 2, 3):
        x = np.asarray(keras.Model(model.net.input, model.net.get_layer(f"block{block}_pool").input)(volume))
        *cells, channels = slow_packing(x).shape
        second, largest = np.moveaxis(np.sort(slow_packing(x).reshape(*cells, 8, channels // 8), axis=-2), -2, 0)[-2:]
        gaps.append((largest - second)[largest > 0].min() / x.max())
    return min(gaps)


@pytest.mark.parametrize("s2d_blocks", [1, 2, 3])
def test_one_training_step_gives_the_same_weights(s2d_blocks, still):
    settings = with_values(still, {"volume.side": 16})
    rng = np.random.default_rng(4)
    mask = np.zeros((4, 16, 16, 16, 1), bool)
    mask[:3, 4:11, 5:12, 8:13] = True
    volume = rng.normal(1, 0.5, mask.shape).clip(0, 4).astype(np.float16)
    batch = {"volume": tf.constant(volume), "mask": tf.constant(mask)}, tf.constant([0, 1, 1, 0])
    weights, steps = [], []
    for blocks in (0, s2d_blocks):
        model = build_model(settings, seed=3, s2d_blocks=blocks)
        for variable in model.trainable_variables:
            if not np.any(variable):  # else what starts at 0 would be nothing but its step
                variable.assign(np.random.default_rng(1).normal(0, 0.1, variable.shape))
        assert blocks or nearest_tie(model, volume.astype(np.float32)) > 1e-5
        model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
        before = [np.array(v) for v in model.trainable_variables]
        model.train_step(batch)
        weights.append([np.array(v) for v in model.trainable_variables])
        steps.append([new - old for new, old in zip(weights[-1], before, strict=True)])
    assert close(weights[1], weights[0])
    assert close(steps[1], steps[0], 1e-3)  # of which the weights keep fewer digits
    assert all(np.abs(step).max() > 0 for step in steps[0])


def test_half_precision_keeps_float32_weights(small, bfloat16):
    settings = with_values(small, {"volume.side": 16})
    model = build_model(settings, dtype="mixed_bfloat16", s2d_blocks=2)
    found = model.outputs_of(np.ones((2, 16, 16, 16, 1), np.float32))
    assert found["features"].dtype == tf.bfloat16 and found["logits"].dtype == tf.float32
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert model.net.get_layer("block1_conv1").output.dtype == "bfloat16"
