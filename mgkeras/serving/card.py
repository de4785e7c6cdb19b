"""What lies beside a SavedModel for people and for clients: model-card.md and preprocessing.json.

In: the files of a run, and evaluation.json where there is one. Out: text and plain values, and no subject's name.

Reference: Mitchell M, Wu S, Zaldivar A, et al. Model cards for model reporting. FAT* 2019.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from mgkeras.data.markdown import escaped, escaped_all
from mgkeras.data.phases import files_of
from mgkeras.evaluation.readings import rests_of
from mgkeras.evaluation.rests import so
from mgkeras.inference.score import MAP
from mgkeras.phantom.cohort import phantom_folder
from mgkeras.runs import store
from mgkeras.runs.exams import field_of_view, range_text
from mgkeras.runs.forms import EVALUATION, SUMMARY, TUNED, check_form
from mgkeras.settings import Settings, as_dict, flatten, from_dict

FORMAT = 2  # of preprocessing.json; 1 came with cells in [0, 1] and has no map.kind
THRESHOLD = 0.5  # the graph's, and that of inference.predict
PACKAGES = ("mgkeras", "tensorflow", "keras")  # whose versions the card tells
Shapes = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]  # graph.shapes_of, by signature
INPUTS = {  # by phases.files_of
    ("early",): "the early post-contrast volume",
    ("early", "pre"): "the early post-contrast volume, and the pre phase, on one grid",
    ("early", "late"): "the early post-contrast volume, and the late phase, on one grid",
    ("early", "pre", "late"): "the early post-contrast volume, the pre phase and the late phase, on one grid",
}
KINDS = {
    "no-mask": "It sees the whole volume and was trained by cross-entropy alone.",
    "mask-only": "It sees the box around the tumour's mask, with a margin of {mask.box_margin_mm:g} mm.",
    "guided": "It sees the whole volume. In training, {guidance.lambda_dice:g} times the Dice between its class "
    "activation map and the tumour's mask pushed the map into the tumour.",
    "guided-context": "It sees the whole volume. In training, {guidance.lambda_dice:g} times the Dice term (map: "
    "{guidance.guided_map}, term: {guidance.dice_term}) pushed the map into the tumour, and in "
    "{guidance.context_dropout:.0%} of the volumes what lies more than {guidance.dilation_mm:g} mm "
    "outside the mask was changed ({guidance.context}).",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a served run.

    Attributes:
        run: the folder's name.
        settings: of the run.
        folds: whose models are served.
        summary, environment: the run's files of that name, {} where one is missing.
        sites: {site: subjects}, {} where the cohort names none.
        masks: (source of its mask, whether that carries a warning) of each subject.
        phantom: whether the exams are those of `mgkeras phantom`.
        evaluated: the run's entry among the models of evaluation.json, or None.
        tuned: {fold: {setting: value}} of tune.json, {} where nothing was searched.
        trained_on: see runs.exams.field_of_view.
    """

    run: str
    settings: Settings
    folds: tuple[int, ...]
    summary: Mapping[str, Any]
    environment: Mapping[str, str]
    sites: Mapping[str, int]
    masks: Sequence[tuple[str, bool]]
    phantom: bool
    evaluated: Mapping[str, Any] | None
    tuned: Mapping[int, Mapping[str, float]]
    trained_on: tuple[float, float] | None = None


def read_facts(run: Path, settings: Settings, folds: tuple[int, ...], evaluation: Path | None = None) -> Facts:
    """Reads what the card says from a run's files.

    Raises:
        RunError: evaluation.json does not have this run.
    """
    summary, environment = (
        store.read_json(run / name) if (run / name).is_file() else {} for name in ("summary.json", "environment.json")
    )
    if summary:
        check_form(run / "summary.json", summary, SUMMARY)
    cohort, masks = (
        store.read_rows(run / name) if (run / name).is_file() else [] for name in ("cohort.csv", "masks.csv")
    )
    phantom = bool(cohort and phantom_folder(run / cohort[0]["early"]))
    if evaluation and not has_run(evaluation, run):
        raise store.RunError(
            f"expected the scores of {run} in {evaluation}. Received: those of other runs, or of this "
            "one before it changed; run `mgkeras evaluate` again."
        )
    return Facts(
        run.resolve().name,
        settings,
        folds,
        summary,
        environment,
        Counter(row["site"] for row in cohort if row.get("site")),
        [(row["source"], bool(row["warning"])) for row in masks],
        phantom,
        _evaluated(evaluation, run) if evaluation else None,
        _tuned(run / "tune.json"),
        field_of_view(run),
    )


def _tuned(path: Path) -> dict[int, Mapping[str, float]]:
    if not path.is_file():
        return {}
    check_form(path, found := store.read_json(path), TUNED)
    return {fold["outer_fold"]: fold["values"] for fold in found["chosen"]}


def has_run(evaluation: Path, run: Path) -> bool:
    """Whether evaluation.json holds the scores of this run as it is now."""
    return _evaluated(evaluation, run) is not None


def _evaluated(evaluation: Path, run: Path) -> Mapping[str, Any] | None:
    """A model counts as the run where folder's name and pooled AUC agree: paths are relative to anywhere."""
    if not (run / "summary.json").is_file():
        return None
    summary, scores = store.read_json(run / "summary.json"), store.read_json(evaluation)
    for path, found, form in ((run / "summary.json", summary, SUMMARY), (evaluation, scores, EVALUATION)):
        check_form(path, found, form)
    auc = summary["pooled"]["auc"]["value"]
    for model in scores["models"]:
        found = model["pooled"]["auc"]["value"]
        same = found == auc if None in (found, auc) else math.isclose(found, auc, abs_tol=1e-9)
        if same and Path(model.get("folder") or "").name == run.resolve().name:
            return _readable(model, evaluation)
    return None


def _readable(model: Mapping[str, Any], evaluation: Path) -> Mapping[str, Any]:
    """The model's entry, from which the card's sentence can be read; else a RunError."""
    try:
        so(rests_of(model), 0.0)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise store.RunError(
            f"expected {evaluation} as `mgkeras evaluate` writes it. Received: {error!r:.200} in {model['name']!r:.50}"
        ) from None
    return model


def preprocessing(facts: Facts, shapes: Shapes) -> dict[str, Any]:
    """The content of preprocessing.json: what a client must know to make a cube, and to read an answer."""
    settings, box = facts.settings, facts.settings.uses_box
    volume = settings.volume
    return {
        "format": FORMAT,
        "mgkeras": version("mgkeras"),
        "model": settings.model,
        "outcome": settings.outcome,
        "folds": list(facts.folds),
        "threshold": THRESHOLD,
        "classes": [f"{settings.outcome} = 0", f"{settings.outcome} = 1"],
        "input": INPUTS[files_of(volume)],
        "channels": list(volume.phases),
        "axes": "RAS+: right, anterior, superior",
        "normalisation": {
            "bright": "voxels above the volume's mean",
            "unit": "mean of the bright voxels",
            "ceiling": volume.intensity_ceiling,
            "of": "the early phase, whose unit all channels have; a subtraction is early - pre in "
            "it, from - ceiling to ceiling",
        },
        "cube": {
            "side": volume.side,
            "background": volume.background,
            "dtype": "float32",
            "order": "normalise the exam, then resample it",
            "field": "the box around the tumour's mask" if box else "the whole field of view",
            "centre": "that of the box" if box else "that of the exam",
            "edge_mm": "the longest edge of the box + 2 margins" if box else "the longest edge of the exam",
            "trained_on_mm": facts.trained_on,
            "box_margin_mm": settings.mask.box_margin_mm if box else None,
            "resampling": "axis by axis; weight of a sample at r mm for one at w mm: "
            "max(0, 1 - |w - r| / the larger spacing), divided by the weights' sum; background "
            "where w lies outside the exam's voxels",
            "bytes": f"zlib, float16, little-endian, C order (x, y, z{', channel' * (len(volume.phases) > 1)})",
        },
        "map": {
            "kind": MAP,
            "of": "the class that the mean probability predicts",
            "unit": "log-odds",
            "sign": "above 0 evidence for that class, below 0 against it",
            "adds_up_to": None
            if settings.backbone.last_pool
            else "mean of the cells + a constant = half of the folds' mean log-odds of that class",
            "cells": next(
                (
                    signature["outputs"]["cells"]["shape"][1:]
                    for signature in shapes.values()
                    if "cells" in signature["outputs"]
                ),
                None,
            ),
            "enlarged": "linear between the cells' centres, edges clamped",
        },
        "signatures": shapes,
        "settings": as_dict(settings),
    }


TEXTS = ("run", "summary", "environment", "sites", "evaluated", "tuned")  # of Facts, whose names others may have given


def model_card(facts: Facts, shapes: Shapes, notes: Sequence[str]) -> str:
    """The content of model-card.md, from assets/model-card.md.

    Args:
        facts: from read_facts.
        shapes: from graph.shapes_of, by signature.
        notes: sentences about what is missing.
    """
    facts = replace(facts, **{name: escaped_all(getattr(facts, name)) for name in TEXTS})
    facts = replace(facts, settings=from_dict(escaped_all(as_dict(facts.settings))))
    notes = [escaped(note) for note in notes]
    settings, summary, evaluated = facts.settings, facts.summary, facts.evaluated or {"pooled": None, "at_half": None}
    causal = evaluated.get("causal") or {}
    paired = "auc_whole" in causal  # counted within folds; before, pooled
    split = settings.training.split
    values = {name: getattr(settings, name) for name in ("mask", "guidance")}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "assets"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    told = environment.get_template("model-card.md").render(
        facts=facts,
        settings=settings,
        summary=summary,
        evaluated=evaluated,
        causal=causal if paired else {},
        attention=summary.get("attention", {}).get("all", {}) if summary.get("map") == MAP else {},  # not class maps
        rests=so(rests_of(evaluated), settings.guidance.dilation_mm) if paired else "",
        split=split,
        count=summary.get("folds", settings.training.folds),
        trained=summary and (summary["per_fold"][0]["train"]["subjects"] if split else summary["subjects"]),
        kind=KINDS[settings.model].format(**values),
        input=INPUTS[files_of(settings.volume)],
        versions=[f"{name} {facts.environment[name]}" for name in PACKAGES if name in facts.environment],
        given=sum(source == "given" for source, _ in facts.masks),
        field=range_text(facts.trained_on) if facts.trained_on else "",
        shapes=shapes,
        notes=notes,
        flat=flatten(as_dict(settings)),
    )
    return re.sub(r"\n{3,}", "\n\n", told).strip() + "\n"
