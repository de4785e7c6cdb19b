"""evaluation.json in, findings out: what the numbers say, in sentences that a radiologist reads.

The judgement is in readings.py, the sentences on what a decision rests on in rests_words.py.

Glossary:
    tells apart: the whole 95 % interval of an AUC lies above 0.5.
    unknown: the number is missing, undefined or without an interval; then the sentence says so or is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgkeras.evaluation.readings import (
    DECISIONS,
    MAPS,
    Model,
    Reading,
    map_reading,
    mean_of,
    rests_of,
    traps_of,
    untrained_mass,
)
from mgkeras.evaluation.rests import TRAPS, listed, map_controls, percent, rests_told, short
from mgkeras.scores.format import cell, signed, text
from mgkeras.settings import GuidanceSettings

__all__ = ["DECISIONS", "MAPS", "Findings", "findings"]
LEAK_AUC = 0.85  # published image-only AUCs of these outcomes on breast MRI are 0.58 to 0.75: above, suspect a leak
FEW = 10  # ours, because a bootstrap over fewer subjects of a class knows little of how others would vary
KEPT_MM = GuidanceSettings().dilation_mm  # what a run of before, which does not say, is asked with
SIMPLE = {
    "tumour volume": "the tumour's volume",
    "mask shape": "the shape of the tumour's mask",
    "clinical": "the clinical columns",
}
THESE_WEIGHTS = (
    "Scores, and tests of differences, are of these weights, not of the methods: trained again, they have others."
)


@dataclass(frozen=True)
class Findings:
    """The top of the page: sentences, and for each network what its map and its decision are read as."""

    headlines: tuple[str, ...]
    cautions: tuple[str, ...]
    readings: Mapping[str, Reading]
    sentences: Mapping[str, tuple[str, ...]]


def findings(
    results: Mapping[str, Any],
    guided: Collection[str],
    *,
    boxed: Collection[str] = (),
    phantom: bool = False,
    kept_mm: Mapping[str, float] | None = None,
) -> Findings:
    """The findings of an evaluation.

    Args:
        results: the content of evaluation.json; probes and robustness may be missing.
        guided: names of the networks whose map is trained to lie in the tumour.
        boxed: names of those that see only the tumour's box.
        phantom: whether the cohort is synthetic.
        kept_mm: {network: what stays around its masks in 'tumour only'}; KEPT_MM where it is missing.
    """
    mm = kept_mm or {}
    networks = [model for model in results["models"] if model["kind"] == "network"]
    readings = {
        model["name"]: Reading(model["name"], model["name"] in guided, map_reading(model), rests_of(model))
        for model in networks
    }
    told = {
        model["name"]: tuple(
            _sentences(model, results, readings[model["name"]], model["name"] in boxed, mm.get(model["name"], KEPT_MM))
        )
        for model in networks
    }
    return Findings(
        tuple(_headlines(readings, boxed, mm)), tuple(_cautions(results, networks, guided, phantom)), readings, told
    )


def _headlines(readings: Mapping[str, Reading], boxed: Collection[str], mm: Mapping[str, float]) -> Iterator[str]:
    """A sentence for each guided network, or for the last one where none is."""
    shown = [reading for reading in readings.values() if reading.guided]
    shown = (
        shown
        or [reading for reading in readings.values() if reading.name not in boxed][-1:]
        or list(readings.values())[-1:]
    )
    for reading in shown:
        where = MAPS[reading.map] if reading.map != "unknown" else "in a place that is not known"
        joint = "but" if (reading.map == "in") != (reading.decision == "tumour") else "and"
        yield f"{reading.name}: its map lies {where}, {joint} {short(reading.rests, mm.get(reading.name, KEPT_MM))}."


def _cautions(
    results: Mapping[str, Any], networks: Sequence[Model], guided: Collection[str], phantom: bool
) -> Iterator[str]:
    yield from (f"{told}." for told in results.get("edited", ()))
    fewest = min(results["positives"], results["subjects"] - results["positives"])
    if fewest < FEW:
        yield (
            f"The smaller class has {fewest} subjects: intervals are wide and themselves unsure, and what is not "
            "shown here may still be so."
        )
    if any(model["name"] in guided for model in networks):
        yield (
            "A guided map is trained to lie in the tumour; alone that proves nothing about the decision. Read the "
            "altered exams beside it."
        )
    yield from (
        f"{reason[0].upper()}{reason[1:]}." for reason in results.get("skipped", ()) if reason.startswith("map of")
    )
    high = [
        f"{model['name']} ({text(model['pooled']['auc']['value'])})"
        for model in networks
        if (model["pooled"]["auc"]["value"] or 0) > LEAK_AUC
    ]
    if len(networks) > 1:
        yield THESE_WEIGHTS
    if phantom:
        yield f"This cohort is synthetic. {_its_traps(networks)} Its AUCs say nothing about patients."
    elif high:
        yield (
            f"AUC above {LEAK_AUC}: {', '.join(high)}. Suspect a leak before you believe it: on public breast MRI, "
            "published AUCs of such outcomes from images alone are 0.58 to 0.75."
        )


def _its_traps(networks: Sequence[Model]) -> str:
    """Which traps a phantom has, as far as its networks were asked."""
    found = {TRAPS.get(trap["trap"], trap["trap"]): trap for model in networks for trap in traps_of(model)}
    if not found:
        return "Something other than the tumour may give the outcome away in it: no trap was asked for."
    has = [
        f"{what} (in {trap['with_trap']} of {trap['subjects']})" if "with_trap" in trap else what
        for what, trap in found.items()
        if trap.get("with_trap") != 0
    ]
    return f"It has traps, which may give the outcome away: {listed(has)}." if has else "No trap is on in it."


def _sentences(model: Model, results: Mapping[str, Any], reading: Reading, boxed: bool, mm: float) -> Iterator[str]:
    yield from _discrimination(model, results)
    yield from _map(model, results, reading, boxed)
    yield from rests_told(model, reading.rests, mm)
    yield from _occlusion(model)


def _discrimination(model: Model, results: Mapping[str, Any]) -> Iterator[str]:
    auc = model["pooled"]["auc"]
    if auc["value"] is None:
        yield "Its AUC is undefined: the held-out subjects are of one class."
        return
    low, high = auc.get("low"), auc.get("high")
    said = (
        "tells the classes apart"
        if low is not None and low > 0.5
        else "ranks the classes the wrong way round"
        if high is not None and high < 0.5
        else "is not shown to tell the classes apart"
    )
    yield f"For {results['outcome']} it {said}: AUC {cell(auc)}."
    yield from _against_no_mask(model, results)
    simple = [model["name"] for model in results["models"] if model["kind"] == "baseline"]
    for pair in results["pairs"]:
        test = pair["delong"] or {}
        if pair["a"] == model["name"] and pair["b"] in simple and test.get("low") is not None:
            higher = test["low"] > 0
            unbeaten = higher and test["auc_b"] < 0.5 and (low is None or low <= 0.5)  # see NOTES of evaluation.tables
            how = (
                "rank better than"
                if higher and not unbeaten
                else "rank worse than"
                if test["high"] < 0
                else "are not shown to rank better than"
            )
            yield (
                f"These weights {how} {SIMPLE.get(pair['b'], pair['b'])} alone, whose AUC is "
                f"{text(test['auc_b'])}: the difference is {signed({**test, 'value': test['difference']})}"
                + (", but a fitted baseline that knows nothing is under 0.5." if unbeaten else ".")
            )


def _against_no_mask(model: Model, results: Mapping[str, Any]) -> Iterator[str]:
    """The paper's claim is that guidance costs no accuracy; what is compared here are two models' weights."""
    plain = _no_mask(results)
    if plain is None:
        return
    for pair in results["pairs"]:
        test = pair["delong"] or {}
        theirs = model is not plain and {pair["a"], pair["b"]} == {model["name"], plain["name"]}
        if theirs and test.get("low") is not None:
            sign = 1 if pair["a"] == model["name"] else -1
            low, high = sorted((sign * test["low"], sign * test["high"]))
            shown = (
                "these rank better"
                if low > 0
                else "these rank worse"
                if high < 0
                else "neither better nor worse is shown"
            )
            turned = {"value": sign * test["difference"], "low": low, "high": high}
            yield f"Its AUC less that of the no-mask model's weights is {signed(turned)}: {shown}."


def _no_mask(results: Mapping[str, Any]) -> Model | None:
    """The first network that saw whole exams without a mask."""
    return next((model for model in results["models"] if model["name"].split(" ")[0] == "no-mask"), None)


def _map(model: Model, results: Mapping[str, Any], reading: Reading, boxed: bool) -> Iterator[str]:
    mass, chance, untrained = mean_of(model, "mass_in_mask"), mean_of(model, "mass_chance"), untrained_mass(model)
    if mass is None:
        yield "Where its map lies is not known: it has no attention scores."
        return
    beside = [f"{percent(chance)} by chance"]
    if untrained is not None:
        beside.append(f"{percent(untrained)} in the same network with random weights")
    plain = _no_mask(results)
    if plain and plain["name"] != model["name"] and mean_of(plain, "mass_in_mask") is not None and not boxed:
        beside.append(f"{percent(mean_of(plain, 'mass_in_mask'))} in the no-mask model")
    yield f"{percent(mass)} of its map's mass lies in the tumour, against {listed(beside)}."
    if reading.guided:
        yield "It was trained to, so this alone proves nothing."
    yield from map_controls(model)
    if boxed:
        yield "It sees the tumour's box only, on whose grid its map and its chance lie."


def _occlusion(model: Model) -> Iterator[str]:
    correlation = ((model.get("probes") or {}).get("occlusion") or {}).get("rank_correlation") or {}
    if correlation.get("mean") is None:
        yield "Whether its map agrees with what occlusion shows was not probed."
        return
    if correlation.get("low") is None or correlation["low"] <= 0 <= correlation["high"]:
        agrees = "is not shown to agree with"
    else:
        strength = abs(correlation["mean"])
        how = "weakly" if strength < 0.3 else "moderately" if strength < 0.6 else "strongly"
        agrees = f"{how} {'agrees with' if correlation['mean'] > 0 else 'contradicts'}"
    yield (
        f"Its map {agrees} what happens when parts of the exam are blurred one by one (rank correlation "
        f"{cell(correlation)})."
    )
