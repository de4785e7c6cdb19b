"""The map that is scored, shown and served is the decision's: it moves exactly when probabilities can."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import reporting
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mgkeras.evaluation.evaluate import evaluate
from mgkeras.figures.pictures import held_out_maps
from mgkeras.inference.forward import Scored, forward_of, picked
from mgkeras.models import cam
from mgkeras.models.guided import build_model
from mgkeras.models.head import Head
from mgkeras.models.weights import read_arrays
from mgkeras.report.collect import chosen_subjects, report_facts
from mgkeras.report.facts import Viewer
from mgkeras.report.page import draw, page
from mgkeras.runs import store
from mgkeras.scores import attention
from mgkeras.scores.comparison import comparison, read_run
from mgkeras.settings import for_model


def head(classes: int, rng: np.random.Generator, grid: int = 3, filters: int = 5) -> keras.Model:
    """Features in, logits out: what stands behind a backbone's last convolution, with weights at random."""
    features = keras.Input((grid, grid, grid, filters))
    x = keras.layers.BatchNormalization(name="batch_norm")(keras.layers.GlobalAveragePooling3D()(features))
    model = keras.Model(features, {"logits": keras.layers.Dense(classes, name="logits")(x), "features": features})
    for weight in model.get_layer("batch_norm").weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    for weight in model.get_layer("logits").weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


def add_to_columns(model: keras.Model, vector: np.ndarray) -> None:
    """The same vector to each column of the output weights."""
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.array(kernel) + vector[:, None])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.floats(0.5, 20))
def test_what_softmax_cancels_is_in_no_decision_map(classes, seed, size):
    rng = np.random.default_rng(seed)
    model, features = head(classes, rng), rng.uniform(0, 2, (4, 3, 3, 3, 5)).astype(np.float32)

    def asked():
        maps = cam.class_maps(features, Head(model).weights()[0])
        return (
            softmax(np.array(model(features)["logits"], np.float64), axis=1),
            np.array(maps),
            np.array(cam.centred(maps)),
        )

    p, maps, decision = asked()
    add_to_columns(model, size * rng.choice([-1.0, 1.0], 5))
    p_after, maps_after, after = asked()
    largest = np.abs(decision).max()
    assert np.abs(p_after - p).max() < 1e-5 and np.abs(maps_after - maps).max() > 0.1 * size
    assert np.abs(after - decision).max() <= 1e-5 * max(largest, np.abs(maps_after).max() / 10)
    assert np.abs(decision.sum(-1)).max() <= 1e-5 * largest
    assert np.allclose(attention.centred(maps), decision, atol=1e-5 * largest)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_maps_mean_and_a_constant_are_the_centred_logit_and_the_picked_one_is_the_classs(classes, seed):
    rng = np.random.default_rng(seed)
    model, features = head(classes, rng), rng.uniform(0, 2, (4, 3, 3, 3, 5)).astype(np.float32)
    weights, bias = Head(model).weights()
    decision = cam.centred(cam.class_maps(features, weights))
    logits = np.array(model(features)["logits"])
    expected = logits - logits.mean(1, keepdims=True)
    found = np.mean(decision, axis=(1, 2, 3)) + np.array(bias) - np.mean(bias)
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(logits).max(), 1)
    chosen = logits.argmax(1)
    assert np.allclose(cam.pick_class(decision, chosen), picked(np.array(decision), chosen))
    assert np.allclose(cam.pick_class(decision, chosen)[2], decision[2, ..., chosen[2]])


@pytest.fixture
def network(small):
    """A model with an output layer away from its start, and four volumes."""
    model, rng = build_model(small, seed=1), np.random.default_rng(4)
    model.net.get_layer("logits").kernel.assign(3 * rng.normal(size=(64, 2)))
    return model, rng.normal(1, 0.5, (4, 24, 24, 24, 1)).astype(np.float32)


def test_nothing_that_is_shown_of_a_network_moves_with_what_cancels(network):
    model, volumes = network
    before = forward_of(model)(volumes)
    vector = np.random.default_rng(5).normal(size=64)
    add_to_columns(model.net, vector)
    after = forward_of(model)(volumes)
    assert np.abs(after["probability"] - before["probability"]).max() < 1e-5
    largest = np.abs(before["decision"]).max()
    assert np.abs(after["decision"] - before["decision"]).max() <= 1e-5 * largest
    assert np.abs(after["maps"] - before["maps"]).max() > 0.1 * largest
    mask = np.zeros((24, 24, 24), bool)
    mask[3:9, 5:12, 8:13] = True
    shown = [Scored(found["probability"], found["maps"], found["attention"]).decision for found in (before, after)]
    for at in range(4):
        first, second = (attention.attention_scores(maps[at], before["attention"][at], mask, 2.0) for maps in shown)
        assert first == pytest.approx(second, abs=1e-4)


def test_the_mean_of_the_difference_and_a_constant_are_the_log_odds(network):
    model, volumes = network
    found, (_, bias) = forward_of(model)(volumes), model.head.weights()
    difference = found["maps"][..., 1] - found["maps"][..., 0]
    log_odds = difference.mean((1, 2, 3)) + float(bias[1] - bias[0])
    assert np.abs(log_odds - found["evidence"]).max() <= 1e-5 * np.abs(found["evidence"]).max()
    assert np.allclose(found["decision"][..., 1], difference / 2, atol=1e-5 * np.abs(difference).max())
    assert np.allclose(found["decision"][..., 0], -difference / 2, atol=1e-5 * np.abs(difference).max())


def test_a_gradient_passes_through_the_centred_map():
    maps = tf.Variable(np.random.default_rng(0).normal(size=(2, 3, 3, 3, 3)).astype(np.float32))
    with tf.GradientTape() as tape:
        found = tf.reduce_sum(cam.centred(maps)[..., 1])
    assert np.allclose(tape.gradient(found, maps)[0, 0, 0, 0], [-1 / 3, 2 / 3, -1 / 3])


# --- runs of before, whose attention.csv is of class maps


@pytest.fixture
def older(tmp_path, phantom, small):
    """A run by hand as it would be had it been made before: its summary does not name the map."""
    run = reporting.make_run(tmp_path / "guided", phantom, for_model(replace(small, outcome="recurrence"), "guided"))
    summary = store.read_json(run / "summary.json")
    assert summary.pop("map") == "decision"
    store.write_json(run / "summary.json", summary)
    return run


def test_maps_of_before_are_shown_by_what_they_say_of_the_decision(older, phantom, small):
    held, shown = read_run(older).held_out, held_out_maps(older)
    other = reporting.make_run(older.parent / "new", phantom, for_model(replace(small, outcome="recurrence"), "guided"))
    assert set(shown) == set(held)
    assert all(np.array_equal(held_out_maps(other)[name], maps) for name, maps in shown.items())
    for folder in store.done_folds(older):
        arrays, _ = read_arrays(folder / "cams.h5")
        for name, maps in zip(arrays["subject"], arrays["cam"], strict=True):
            sign = 1 if held[name.decode()][2] >= 0.5 else -1
            expected = sign * (maps[..., 1] - maps[..., 0]) / 2
            assert np.abs(shown[name.decode()] - expected).max() <= 1e-5 * np.abs(maps).max()


def test_scores_of_class_maps_are_left_out_and_it_is_said_why(older, phantom, small):
    found = evaluate([older], samples=50)
    (model, *_) = found.results["models"]
    assert model["attention"] == {} == model["above_chance"] and found.attention["guided"] == []
    said = [text for text in found.results["skipped"] if text.startswith("map of guided: ")]
    assert len(said) == 1 and "class map" in said[0] and "repeat the fit command" in said[0]
    both = comparison([older])
    assert both["rows"][0]["mass in tumour (chance)"] == "-" and "Left out: map of guided" in both["note"]
    facts = report_facts({"guided": older})
    shown = page(found, facts, draw(found, facts), Viewer())
    assert "Map of guided: where it lies was scored on the class map" in shown
    assert not any(
        "map of" in why for reasons in chosen_subjects({"guided": older}, facts.runs).values() for why in reasons
    )


def test_a_folder_without_a_name_of_its_map_is_read_as_before_and_another_is_not(older):
    values = json.loads((older / "summary.json").read_text())
    (older / "summary.json").write_text(json.dumps(values | {"map": "decision"}))
    again = read_run(older)
    assert again.older == "" and again.attention == values["attention"] and again.attention_rows()
    shutil.copy(older / "attention.csv", older / "kept.csv")
    (older / "attention.csv").unlink()
    assert again.attention_rows() == []
