"""What lies beside a SavedModel for people and for clients: model-card.md and preprocessing.json.

In: the files of a run, and evaluation.json where there is one. Out: text and plain values, and no subject's name.

Reference: Mitchell M, Wu S, Zaldivar A, et al. Model cards for model reporting. FAT* 2019.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mgkeras.evaluation.readings import rests_of
from mgkeras.evaluation.rests_words import so
from mgkeras.settings import Settings, as_dict, flatten
from mgkeras.training import run as files
from mgkeras.training.score import MAP

FORMAT = 2  # of preprocessing.json; 1 came with cells in [0, 1] and has no map.kind
THRESHOLD = 0.5  # the graph's, and that of training.apply
Shapes = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]  # graph.shapes_of, by signature
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


def read_facts(run: Path, settings: Settings, folds: tuple[int, ...], evaluation: Path | None = None) -> Facts:
    """Reads what the card says from a run's files.

    Raises:
        RunError: evaluation.json does not have this run.
    """
    summary, environment = (
        files.read_json(run / name) if (run / name).is_file() else {} for name in ("summary.json", "environment.json")
    )
    cohort, masks = (
        files.read_rows(run / name) if (run / name).is_file() else [] for name in ("cohort.csv", "masks.csv")
    )
    phantom = bool(cohort) and ((run / cohort[0]["early"]).parent.parent / "truth" / "phantom.json").is_file()
    if evaluation and not has_run(evaluation, run):
        raise files.RunError(
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
        {one["outer_fold"]: one["values"] for one in files.read_json(run / "tune.json")["chosen"]}
        if (run / "tune.json").is_file()
        else {},
    )


def has_run(evaluation: Path, run: Path) -> bool:
    """Whether evaluation.json holds the scores of this run as it is now."""
    return _evaluated(evaluation, run) is not None


def _evaluated(evaluation: Path, run: Path) -> Mapping[str, Any] | None:
    """A model counts as the run where folder's name and pooled AUC agree: paths are relative to anywhere."""
    try:
        auc = files.read_json(run / "summary.json")["pooled"]["auc"]["value"]
    except files.RunError:
        return None
    for model in files.read_json(evaluation).get("models", []):
        found = model["pooled"]["auc"]["value"]
        same = found == auc if None in (found, auc) else math.isclose(found, auc, abs_tol=1e-9)
        if same and Path(model.get("folder") or "").name == run.resolve().name:
            return model
    return None


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
        "input": "T1, the early post-contrast volume",
        "axes": "RAS+: right, anterior, superior",
        "normalisation": {
            "bright": "voxels above the volume's mean",
            "unit": "mean of the bright voxels",
            "ceiling": volume.intensity_ceiling,
        },
        "cube": {
            "side": volume.side,
            "background": volume.background,
            "dtype": "float32",
            "order": "normalise the exam, then resample it",
            "field": "the box around the tumour's mask" if box else "the whole field of view",
            "centre": "that of the box" if box else "that of the exam",
            "edge_mm": "the longest edge of the box + 2 margins" if box else "the longest edge of the exam",
            "box_margin_mm": settings.mask.box_margin_mm if box else None,
            "resampling": "axis by axis; weight of a sample at r mm for one at w mm: "
            "max(0, 1 - |w - r| / the larger spacing), divided by the weights' sum; background "
            "where w lies outside the exam's voxels",
            "bytes": "zlib, float16, little-endian, C order (x, y, z)",
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
                (one["outputs"]["cells"]["shape"][1:] for one in shapes.values() if "cells" in one["outputs"]), None
            ),
            "enlarged": "linear between the cells' centres, edges clamped",
        },
        "signatures": shapes,
        "settings": as_dict(settings),
    }


def model_card(facts: Facts, shapes: Shapes, notes: Sequence[str]) -> str:
    """The content of model-card.md.

    Args:
        facts: from read_facts.
        shapes: from graph.shapes_of, by signature.
        notes: sentences about what is missing.
    """
    settings = facts.settings
    parts = [
        f"# {facts.run}: {settings.outcome} from breast DCE-MRI",
        "**Research software, not a medical device.** No regulator has cleared it; no decision about a person may rest "
        "on it.",
        _served(facts),
        *([PHANTOM] if facts.phantom else []),
        "## What it is for",
        f"Research: to score early post-contrast breast MRI (T1 of a DCE series) for "
        f"`{settings.outcome}`, to study where such a model looks and on what it decides, to compare models.",
        NOT_FOR,
        "## Data",
        _data(facts),
        "## Scores",
        _scores(facts),
        "## Signatures",
        _signatures(shapes),
        MAP_NOTE,
        *notes,
        "## Limits",
        _limits(facts),
        "## Settings",
        _tuned(facts),
        _settings(settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


PHANTOM = "**Trained on synthetic phantoms** of `mgkeras phantom`: what it says about a patient's exam means nothing."
MAP_NOTE = (
    "`cells` and `map` are the decision map of the class that is predicted: its class activation map less the "
    "mean of all classes' maps, averaged over the folds. Above 0 is evidence for that class, below 0 against "
    "it. It is in log-odds: where no pool follows the last block (backbone.last_pool), the cells' mean plus a "
    "constant is half of the folds' mean log-odds of that class (`log_odds` is that of class 1). A class "
    "activation map itself is not served: a part of it can be changed at will without changing a probability."
)
NOT_FOR = (
    "Not for: diagnosis, prognosis or treatment of a person; screening; other sequences, phases or organs; "
    "exams unlike those below in scanner, protocol or population before it was validated on such exams."
)


def _served(facts: Facts) -> str:
    settings, versions = facts.settings, facts.environment
    values = {name: getattr(settings, name) for name in ("mask", "guidance")}
    count = facts.summary.get("folds", settings.training.folds)
    what = (
        f"the mean of the {len(facts.folds)} models of a cross-validation"
        if len(facts.folds) > 1
        else "the model of the cohort's own split"
        if settings.training.split
        else f"the model of fold {facts.folds[0]}, one of {count} of a cross-validation (0 to {count - 1})"
    )
    median = " Searched values differ by fold, see Settings; here stands their median." if facts.tuned else ""
    made = ", ".join(f"{name} {versions[name]}" for name in ("mgkeras", "tensorflow", "keras") if name in versions)
    return (
        f"Served is {what}, of kind `{settings.model}`. {KINDS[settings.model].format(**values)}{median} The "
        f"network is a 3D VGG on cubes of {settings.volume.side}^3 voxels, after Liu et al. 2021, "
        f"doi:10.1007/s10278-021-00449-y.{f' Trained with {made}.' if made else ''}"
    )


def _data(facts: Facts) -> str:
    summary = facts.summary
    split = summary and facts.settings.training.split
    how = (
        f"held out by the cohort's own split, and {_trained_on(facts)} more trained on"
        if split
        else f"each held out once in {summary.get('folds')} folds"
    )
    lines = (
        ["Not told: the run has no summary.json."]
        if not summary
        else [f"{summary['subjects']} subjects, {summary['positives']} with {facts.settings.outcome} = 1, {how}."]
    )
    if facts.sites:
        lines.append("Sites: " + ", ".join(f"{site} {count}" for site, count in sorted(facts.sites.items())) + ".")
    if facts.masks:
        given = sum(source == "given" for source, _ in facts.masks)
        lines.append(
            f"Tumour masks: {given} given, {len(facts.masks) - given} made by enhancement gate and fuzzy "
            f"C-means; {sum(warned for _, warned in facts.masks)} carry a warning."
        )
    return " ".join([*lines, "This folder holds no exam and no subject's name."])


def _scores(facts: Facts) -> str:
    if not facts.summary:
        return "Not told: the run has no summary.json."
    pooled, ours = facts.summary["pooled"], facts.summary.get("map") == MAP  # before, class maps were scored
    attention = facts.summary.get("attention", {}).get("all", {}) if ours else {}
    rows = [
        ("AUC", pooled["auc"]),
        ("accuracy at 0.5", pooled["accuracy"]),
        ("accuracy of always saying the larger class", {"value": pooled["majority_accuracy"]}),
    ]
    if facts.evaluated:
        more, half = facts.evaluated["pooled"], facts.evaluated["at_half"]
        rows += [
            (name.replace("_", " "), more[name])
            for name in ("average_precision", "brier_loss", "calibration_slope", "calibration_intercept")
            if name in more
        ]
        rows += [
            (f"{name} at 0.5", half[name]) for name in ("sensitivity", "specificity", "ppv", "npv") if name in half
        ]
    causal = (facts.evaluated or {}).get("causal") or {}
    paired = "auc_whole" in causal  # counted within folds; before, pooled
    parts, how = (causal, "AUC within folds") if paired else (pooled, "AUC")
    rows += [
        (f"{how}{what}", parts.get(name) or {})
        for name, what in (
            ("auc_whole", ""),
            ("auc_outside_blurred", " with everything outside the dilated tumour blurred"),
            ("auc_inside_blurred", " with the dilated tumour blurred"),
        )
        if paired or name != "auc_whole"
    ]
    rows += [
        (what, causal.get(name) or {})
        for name, what in (
            ("outside_less_whole", "the tumour only less the whole"),
            ("inside_less_whole", "the rest only less the whole"),
            ("outside_less_inside", "the tumour only less the rest only"),
        )
        if paired
    ]
    rows += [
        (text, {"value": attention[name]["mean"]})
        for name, text in (
            ("mass_in_mask", "share of the evidence for the predicted class in the tumour"),
            ("mass_chance", "the same by chance"),
        )
        if name in attention
    ]
    lines = [
        "Of subjects that the scored model had not seen, all folds pooled; intervals are 95 %, from a bootstrap "
        "over subjects.",
        "",
        "| score | value | low | high |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {text} | {_text(row.get('value'))} | {_text(row.get('low'))} | {_text(row.get('high'))} |"
        for text, row in rows
    ]
    if paired:
        lines += ["", so(rests_of(facts.evaluated), facts.settings.guidance.dilation_mm)]
    lines += ["", "| fold | subjects held out | AUC | accuracy | served |", "|---|---|---|---|---|"]
    for row in facts.summary["per_fold"]:
        held = row["held_out"]
        lines.append(
            f"| {row['fold']} | {held['subjects']} | {_text(held['auc'])} | {_text(held['accuracy'])} | "
            f"{'yes' if row['fold'] in facts.folds else 'no'} |"
        )
    if len(facts.folds) > 1:
        lines += [
            "",
            "These are scores of single folds' models. Their mean, which is served, has none: each subject "
            "was in the training of all of them but one. It needs other exams.",
        ]
    return "\n".join(lines)


def _signatures(shapes: Shapes) -> str:
    def told(tensors: Mapping[str, Mapping[str, Any]]) -> str:
        return ", ".join(
            f"`{name}` {one['dtype']} ({', '.join('?' if n is None else str(n) for n in one['shape'])})"
            for name, one in tensors.items()
        )

    rows = [f"| `{name}` | {told(one['inputs'])} | {told(one['outputs'])} |" for name, one in shapes.items()]
    return "\n".join(["| signature | inputs | outputs |", "|---|---|---|", *rows])


def _limits(facts: Facts) -> str:
    lines = [
        "A map in the tumour does not prove that the decision came from there; the AUCs with parts blurred ask, "
        "of the weights of single folds. Other weights of the same method may decide from elsewhere.",
        "A probability is a frequency only as far as calibration was shown, and only where the outcome is as common.",
        "Exams of other scanners, field strengths, protocols or populations may be scored wrongly without a warning.",
        "No exam is refused for being of the wrong phase, sequence or organ.",
        "Whoever serves it answers for the exams that are sent to it.",
    ]
    if facts.summary:
        lines.insert(0, f"It was trained on {_trained_on(facts)} subjects: read the intervals, not the values.")
    return "\n".join(f"- {line}" for line in lines)


def _trained_on(facts: Facts) -> int:
    """How many subjects the served models were trained on, all folds together."""
    split = facts.settings.training.split
    return facts.summary["per_fold"][0]["train"]["subjects"] if split else facts.summary["subjects"]


def _tuned(facts: Facts) -> str:
    if not facts.tuned:
        return ""
    lines = [
        "Each fold was trained with values that `mgkeras tune` chose inside its training subjects; the settings "
        "below hold their lower median.",
        "",
        "| fold | chosen | served |",
        "|---|---|---|",
    ]
    for fold, values in facts.tuned.items():
        told = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        lines.append(f"| {fold} | {told} | {'yes' if fold in facts.folds else 'no'} |")
    return "\n".join(lines)


def _settings(settings: Settings) -> str:
    flat = flatten(as_dict(settings))
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in flat.items())])


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
