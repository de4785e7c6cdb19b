"""Settings: the model kinds, what a user chose above them, and the files of before."""

from __future__ import annotations

import json

import pytest

from mgkeras.settings import (
    CONTEXT_CHANGES,
    MODELS,
    PRESET_CHANGES,
    Settings,
    as_dict,
    differences,
    for_model,
    from_dict,
    preset,
    with_values,
)


@pytest.mark.parametrize("model", MODELS)
def test_settings_survive_their_file(model):
    settings = for_model(preset("demo"), model)
    assert from_dict(json.loads(json.dumps(as_dict(settings)))) == settings


@pytest.mark.parametrize("name", PRESET_CHANGES)
def test_a_preset_is_the_papers_but_for_what_it_says_and_why(name):
    changes = {dotted: value for dotted, value, why in PRESET_CHANGES[name] if why}
    assert len(changes) == len(PRESET_CHANGES[name])
    found = {dotted: theirs for dotted, _, theirs in differences(Settings(), preset(name))}
    assert found == {**changes, **({"preset": name} if changes else {})}
    with pytest.raises(ValueError, match="preset must be one of paper, workstation, demo. Received: 'fast'"):
        preset("fast")


def test_guided_is_the_papers_and_guided_context_is_what_it_says():
    guided = for_model(preset("paper"), "guided")
    assert guided == Settings() and guided.guidance.lambda_dice == 10 and guided.guidance.guided_map == "class"
    flat = {name: value for name, value, _ in CONTEXT_CHANGES}
    assert for_model(preset("paper"), "guided-context") == with_values(guided, {"model": "guided-context", **flat})


def test_what_was_chosen_stands_above_the_kind_but_never_guides_the_unguided():
    chosen = {"guidance.lambda_dice": 3.0, "guidance.context": "noise", "training.epochs": 7}
    kinds = {model: for_model(with_values(preset("demo"), chosen), model, chosen) for model in MODELS}
    assert all(kind.training.epochs == 7 for kind in kinds.values())
    assert kinds["guided-context"].guidance.lambda_dice == 3 and kinds["guided-context"].guidance.context == "noise"
    assert kinds["guided-context"].guidance.context_dropout > 0 == kinds["guided"].guidance.context_dropout
    assert kinds["no-mask"].guidance.lambda_dice == 0 == kinds["mask-only"].guidance.lambda_dice


def test_a_settings_file_of_before_is_read_as_what_was_trained():
    """Its dilation and blur were shares of the side; what was added later has the value it was trained with."""
    now = as_dict(for_model(preset("demo"), "guided"))
    before = json.loads(json.dumps(now)) | {"model": "guided-context"}
    added = ("guided_map", "dice_term", "ce", "context", "dilation_mm", "blur_mm")
    before["guidance"] = {name: value for name, value in now["guidance"].items() if name not in added}
    before["guidance"] |= {"context_dropout": 0.5, "dilation_share": 0.0625, "blur_share": 0.125}
    found = from_dict(before)
    assert (found.guidance.context, found.guidance.context_dropout) == ("blur", 0.5)
    kinds = (found.guidance.guided_map, found.guidance.cam_map, found.guidance.dice_term)
    assert kinds == ("class", "sigmoid", "plain")
    assert found.guidance.lambda_dice == 10
    with pytest.raises(ValueError, match="does not know. Received: guidance.colour"):
        from_dict(before | {"guidance": {"colour": 1}})


@pytest.mark.parametrize("name", ["guided_map", "cam_map", "dice_term", "ce", "context"])
def test_another_word_is_refused(name):
    with pytest.raises(ValueError, match=f"guidance.{name} must be one of .*Received: 'other'"):
        with_values(Settings(), {f"guidance.{name}": "other"})
