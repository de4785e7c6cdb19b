"""evaluation.json in, findings out: what the numbers say, in sentences that a radiologist reads.

Glossary:
    tumour only, rest only: the AUC with everything outside, or inside, the dilated tumour blurred.
    tells apart: the whole 95 % interval of an AUC lies above 0.5.
    unknown: the number is missing, undefined or without an interval; then the sentence says so or is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgkeras.evaluation.layout import cell, text

LEAK_AUC = 0.85  # published image-only AUCs of these outcomes on breast MRI are 0.58 to 0.75: above, suspect a leak
FEW = 10  # ours, because a bootstrap over fewer subjects of a class knows little of how others would vary
MOSTLY = 0.5  # ours, because more than half of the map's mass is what a reader calls 'in the tumour'
MAPS = {
    "in": "in the tumour", "some": "partly in the tumour", "chance": "no more in the tumour than by chance",
    "away": "away from the tumour", "unknown": "not known",
}  # fmt: skip
DECISIONS = {
    "tumour": "from the tumour", "rest": "from outside the tumour", "both": "from the tumour and the rest",
    "neither": "from neither alone, as shown", "none": "not shown better than chance", "unknown": "not known",
}  # fmt: skip
HEADLINES = {
    "tumour": "its decision holds on the tumour alone, and is not shown to hold without it",
    "rest": "its decision holds without the tumour, and is not shown to hold on the tumour alone",
    "both": "its decision can be read from there and from the rest alike",
    "neither": "neither the tumour nor the rest alone is shown to be enough for its decision",
    "none": "its decision is not shown to be better than chance",
    "unknown": "what its decision rests on is not known",
}  # fmt: skip
MEANING = {
    "tumour": "So the tumour and its rim are enough for the decision; that the rest would do is not shown.",
    "rest": "So what lies outside the tumour is enough for the decision, wherever the map may lie; that the tumour "
            "alone would do is not shown.",
    "both": "So the tumour carries the decision, and so does something outside it: the model has both to go by.",
    "neither": "So neither part alone is shown to be enough, which is no proof that it is not.",
    "none": "The AUC on whole exams is not shown to be better than chance, so there is no decision to explain.",
    "unknown": "What that says cannot be told from these numbers.",
}  # fmt: skip
SIMPLE = {"tumour volume": "the tumour's volume", "clinical": "the clinical columns"}
Model = Mapping[str, Any]
TRAPS = {  # of a phantom, as sentences name them
    "spot": "the spot far from the tumour", "marker": "the block burnt into a corner",
    "near": "the ball beside the tumour", "bias": "the gain from left to right", "noise": "the stronger noise",
    "enhancement": "the stronger enhancement of the breast", "site": "the site",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What one network's numbers say: a key of MAPS and one of DECISIONS."""

    name: str
    guided: bool
    map: str
    decision: str


@dataclass(frozen=True)
class Findings:
    """The top of the page: sentences, and for each network what its map and its decision are read as."""

    headlines: tuple[str, ...]
    cautions: tuple[str, ...]
    readings: Mapping[str, Reading]
    sentences: Mapping[str, tuple[str, ...]]


def findings(results: Mapping[str, Any], guided: Collection[str], *, boxed: Collection[str] = (),
             phantom: bool = False) -> Findings:
    """The findings of an evaluation.

    Args:
        results: the content of evaluation.json; probes and robustness may be missing.
        guided: names of the networks whose map is trained to lie in the tumour.
        boxed: names of those that see only the tumour's box.
        phantom: whether the cohort is synthetic.
    """
    networks = [model for model in results["models"] if model["kind"] == "network"]
    readings = {model["name"]: Reading(model["name"], model["name"] in guided, map_reading(model),
                                       decision_reading(model)) for model in networks}  # fmt: skip
    told = {model["name"]: tuple(_sentences(model, results, readings[model["name"]], model["name"] in boxed))
            for model in networks}  # fmt: skip
    return Findings(tuple(_headlines(networks, readings, boxed)), tuple(_cautions(results, networks, guided, phantom)),
                    readings, told)  # fmt: skip


def map_reading(model: Model) -> str:
    """Where a network's map lies, a key of MAPS: by mass in the tumour and its excess over chance."""
    mass = mean_of(model, "mass_in_mask")
    above = model.get("above_chance", {}).get("all", {})
    low, high = above.get("low"), above.get("high")
    if mass is None or low is None:
        return "unknown"
    if low > 0:
        return "in" if mass >= MOSTLY else "some"
    return "away" if high < 0 else "chance"


def decision_reading(model: Model) -> str:
    """What a network's decision rests on, a key of DECISIONS: by which blurred exams it still tells apart."""
    whole = model["pooled"]["auc"]
    tumour, rest = (model.get("causal", {}).get(f"auc_{part}_blurred", {}) for part in ("outside", "inside"))
    if any(one.get("low") is None for one in (whole, tumour, rest)):
        return "unknown"
    if whole["low"] <= 0.5:
        return "none"
    return {(True, False): "tumour", (False, True): "rest", (True, True): "both", (False, False): "neither"}[
        tumour["low"] > 0.5, rest["low"] > 0.5]  # fmt: skip


def mean_of(model: Model, score: str) -> float | None:
    """The mean over all subjects of an attention score; None where it is missing."""
    return model.get("attention", {}).get("all", {}).get(score, {}).get("mean")


def untrained_mass(model: Model) -> float | None:
    """Mass in the tumour of the same network with random weights; None where it was not probed."""
    scores = ((model.get("probes") or {}).get("random_network") or {}).get("attention") or {}
    return scores.get("mass_in_mask", {}).get("mean")


def traps_of(model: Model) -> Sequence[Mapping[str, Any]]:
    """What was found of each trap of the phantom; none where it was not probed or is no phantom."""
    return (model.get("probes") or {}).get("traps") or []


def _headlines(networks: Sequence[Model], readings: Mapping[str, Reading], boxed: Collection[str]) -> Iterator[str]:
    """A sentence for each guided network, or for the last one where none is."""
    shown = [one for one in readings.values() if one.guided]
    shown = shown or [one for one in readings.values() if one.name not in boxed][-1:] or list(readings.values())[-1:]
    for one in shown:
        where = MAPS[one.map] if one.map != "unknown" else "in a place that is not known"
        joint = "but" if (one.map == "in") != (one.decision in ("tumour", "both")) else "and"
        yield f"{one.name}: its map lies {where}, {joint} {HEADLINES[one.decision]}."


def _cautions(results: Mapping[str, Any], networks: Sequence[Model], guided: Collection[str],
              phantom: bool) -> Iterator[str]:
    fewest = min(results["positives"], results["subjects"] - results["positives"])
    if fewest < FEW:
        yield (f"The smaller class has {fewest} subjects. Intervals are wide with so few and themselves unsure: what "
               "is not shown here may still be so.")  # fmt: skip
    if any(model["name"] in guided for model in networks):
        yield ("A guided map is trained to lie in the tumour. That it does so shows that training worked; alone it "
               "proves nothing about the decision. Read the blurred exams beside it.")  # fmt: skip
    yield from (f"{one[0].upper()}{one[1:]}." for one in results.get("skipped", ()) if one.startswith("map of"))
    high = [f"{model['name']} ({text(model['pooled']['auc']['value'])})" for model in networks
            if (model["pooled"]["auc"]["value"] or 0) > LEAK_AUC]  # fmt: skip
    if phantom:
        traps = dict.fromkeys(TRAPS.get(one["trap"], one["trap"]) for model in networks for one in traps_of(model))
        away = f" {_listed(list(traps))} may give the outcome away in it." if traps else ""
        yield (f"This cohort is synthetic;{away or ' something other than the tumour may give the outcome away in it.'}"
               " Its AUCs say nothing about patients.")  # fmt: skip
    elif high:
        yield (f"AUC above {LEAK_AUC}: {', '.join(high)}. Suspect a leak before you believe it: on public breast MRI, "
               "published AUCs of such outcomes from images alone are 0.58 to 0.75.")  # fmt: skip


def _sentences(model: Model, results: Mapping[str, Any], reading: Reading, boxed: bool) -> Iterator[str]:
    yield from _discrimination(model, results)
    yield from _map(model, results, reading, boxed)
    yield from _decision(model, reading)
    yield from map(_trap, (one for one in traps_of(model) if one["auc_removed"]["value"] is not None))
    yield from _occlusion(model)


def _discrimination(model: Model, results: Mapping[str, Any]) -> Iterator[str]:
    auc = model["pooled"]["auc"]
    if auc["value"] is None:
        yield "Its AUC is undefined: the held-out subjects are of one class."
        return
    low, high = auc.get("low"), auc.get("high")
    said = ("tells the classes apart" if low is not None and low > 0.5 else
            "ranks the classes the wrong way round" if high is not None and high < 0.5 else
            "is not shown to tell the classes apart")  # fmt: skip
    yield f"For {results['outcome']} it {said}: AUC {cell(auc)}."
    yield from _against_no_mask(model, results)
    simple = [one["name"] for one in results["models"] if one["kind"] == "baseline"]
    for pair in results["pairs"]:
        test = pair["delong"] or {}
        if pair["a"] == model["name"] and pair["b"] in simple and test.get("low") is not None:
            beats = "better than" if test["low"] > 0 else "worse than" if test["high"] < 0 else "not shown to beat"
            yield (f"It is {beats} {SIMPLE.get(pair['b'], pair['b'])} alone, whose AUC is {text(test['auc_b'])}: the "
                   f"difference is {_signed(test)}.")  # fmt: skip


def _against_no_mask(model: Model, results: Mapping[str, Any]) -> Iterator[str]:
    """The paper's claim: guidance does not cost accuracy."""
    plain = _no_mask(results)
    for pair in results["pairs"] if plain else ():
        test = pair["delong"] or {}
        theirs = model is not plain and {pair["a"], pair["b"]} == {model["name"], plain["name"]}
        if theirs and test.get("low") is not None:
            sign = 1 if pair["a"] == model["name"] else -1
            low, high = sorted((sign * test["low"], sign * test["high"]))
            shown = "better" if low > 0 else "worse" if high < 0 else "neither better nor worse is shown"
            turned = {"difference": sign * test["difference"], "low": low, "high": high}
            yield f"Its AUC less that of the no-mask model is {_signed(turned)}: {shown}."


def _no_mask(results: Mapping[str, Any]) -> Model | None:
    """The first network that saw whole exams without a mask."""
    return next((one for one in results["models"] if one["name"].split(" ")[0] == "no-mask"), None)


def _signed(test: Mapping[str, Any]) -> str:
    return f"{test['difference']:+.2f} ({test['low']:+.2f} to {test['high']:+.2f})"


def percent(value: float | None) -> str:
    """'79 %' with a space that does not break, or 'an unknown share'."""
    return "an unknown share" if value is None else f"{100 * value:.0f}\u00a0%"


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
    yield f"{percent(mass)} of its map's mass lies in the tumour, against {_listed(beside)}."
    if reading.guided:
        yield "It was trained to, so this alone proves nothing."
    if boxed:
        yield "It sees the tumour's box only, on whose grid its map and its chance lie."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _decision(model: Model, reading: Reading) -> Iterator[str]:
    tumour, rest = (model.get("causal", {}).get(f"auc_{part}_blurred", {}) for part in ("outside", "inside"))
    if tumour.get("value") is None or rest.get("value") is None:
        yield "What its decision rests on is not known: it was not scored on blurred exams."
        return
    yield (f"With everything but the tumour blurred its AUC is {cell(tumour)}; with the tumour blurred, {cell(rest)}. "
           f"{MEANING[reading.decision]}")  # fmt: skip


def _trap(one: Mapping[str, Any]) -> str:
    """What a trap's removal shows; that of the site is that all are scanned by the one scanner, or by the other."""
    as_is, removed, what = one["auc_as_is"], one["auc_removed"], TRAPS.get(one["trap"], one["trap"])
    falls = as_is["value"] is not None and removed["high"] is not None and removed["high"] < as_is["value"]
    moved = one.get("change_removed", {}).get("mean")
    off, on, done = (("With every exam scanned at the one site", "at the other", "scanning it there")
                     if one["trap"] == "site" else
                     (f"With {what} removed from every exam", "added to every exam", "removing it"))  # fmt: skip
    return (f"{off} its AUC is {cell(removed)}, {on} {cell(one['auc_added'])}, as the exams are {cell(as_is)}"
            + ("" if moved is None else f"; {done} moves a patient's probability by {text(moved)} on average")
            + (f". So it leans on {what}." if falls else f". So it is not shown to need {what}."))  # fmt: skip


def _occlusion(model: Model) -> Iterator[str]:
    one = ((model.get("probes") or {}).get("occlusion") or {}).get("rank_correlation") or {}
    if one.get("mean") is None:
        yield "Whether its map agrees with what occlusion shows was not probed."
        return
    if one.get("low") is None or one["low"] <= 0 <= one["high"]:
        agrees = "is not shown to agree with"
    else:
        strength = abs(one["mean"])
        how = "weakly" if strength < 0.3 else "moderately" if strength < 0.6 else "strongly"
        agrees = f"{how} {'agrees with' if one['mean'] > 0 else 'contradicts'}"
    yield (f"Its map {agrees} what happens when parts of the exam are blurred one by one (rank correlation "
           f"{cell(one)}).")  # fmt: skip
