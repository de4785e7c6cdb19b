"""Sentences on what a decision rests on: each says its numbers and no more than they say.

What is scored are one training's weights, so that is what the sentences speak of: another training of the same method
has others. The rules that stand behind a sentence are in readings.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mgkeras.evaluation.readings import (
    DECISIONS,
    Interval,
    Model,
    Rests,
    beats,
    controls_of,
    interval,
    leans_on,
    mean_of,
    transplant_reading,
    traps_of,
)
from mgkeras.scores.format import cell, signed, text
from mgkeras.settings import READING_MARGIN

SO = {
    "tumour": "these weights decide from the tumour or what lies within {mm:g} mm of it",
    "partly": "these weights decide partly from the tumour or what lies within {mm:g} mm of it",
    "outside": "these weights decide mostly from outside the tumour",
    "several": "these weights can decide from either part: there is more than one source, or one that lies everywhere",
    "open": "what these weights decide from cannot be told from these numbers",
    "chance": "these weights are not shown to rank better than chance",
}
FOLLOWS = {
    "owner": "In another breast the decision goes with the tumour's owner.",
    "breast": "In another breast the decision goes with the breast, not with the tumour's owner.",
    "both": "In another breast the decision goes with the tumour's owner and with the breast.",
    "neither": "In another breast the decision is not shown to go with the tumour's owner.",
}
TAKERS = {"transplant": "the transplants", "ring": "the exams with the mask alone left", "filled": "the filled tumours"}
TRAPS = {  # of a phantom, as sentences name them
    "spot": "the spot far from the tumour",
    "marker": "the block burnt into a corner",
    "near": "the ball beside the tumour",
    "bias": "the gain from left to right",
    "noise": "the stronger noise",
    "enhancement": "the stronger enhancement of the breast",
    "site": "the site",
}
PLACES = {
    "tumour": "the tumour",
    "ring": "the ring around it",
    "body": "the rest of the body",
    "outside": "what is outside the body",
}


def rests_told(model: Model, rests: Rests, mm: float) -> Iterator[str]:
    """Everything that was asked of what a network's decision rests on, a sentence or two each; the reading last.

    Args:
        model: its entry of evaluation.json.
        rests: its reading.
        mm: what stays around the mask in 'tumour only'.
    """
    yield from _blurred(rests, mm)
    yield from _mask_alone(model, rests)
    yield from _transplant(model, mm)
    yield from _controls(model)
    yield from map(_trap, traps_of(model))
    yield from _ledger(model)
    yield so(rests, mm)
    yield from _site(model)


def short(rests: Rests, mm: float) -> str:
    """The reading and the AUCs that it goes by, without a full stop, for a headline."""
    if rests.whole.value is None:
        return SO[rests.kind].format(mm=mm)
    parts = [f"AUC {text(rests.whole.value)} on whole exams"]
    if None not in (rests.tumour.value, rests.rest.value):
        parts += [
            f"{text(rests.tumour.value)} with only the tumour and {mm:g} mm around it left",
            f"{text(rests.rest.value)} with that blurred",
        ]
    against = f"; {listed([_taker(trap) for trap in rests.taken])} speak against the tumour" if rests.taken else ""
    return f"{SO[rests.kind].format(mm=mm)}: {', '.join(parts)}{against}"


def so(rests: Rests, mm: float) -> str:
    """What follows from the numbers, what was taken from it, and what such exams cannot tell."""
    if rests.tumour.value is None or rests.rest.value is None:
        return "What its decision rests on is not known: it was not scored on blurred exams."
    said = []
    if rests.taken:
        said.append(
            f"By the blurred exams alone its decision would read '{DECISIONS[rests.blurred]}'; "
            f"{listed([_taker(trap) for trap in rests.taken])} speak against it."
        )
    said.append(f"So {SO[rests.kind].format(mm=mm)}.")
    said += _why_not(rests)
    if rests.tumour.informs and rests.kind not in ("outside", "chance"):
        said.append(
            f"What lies within {mm:g} mm of the tumour, its place and its size, which the edge of a blur shows "
            "too, count as the tumour here: these exams cannot tell them apart."
        )
    return " ".join(said)


def _why_not(rests: Rests) -> Iterator[str]:
    parts = {
        "only the tumour left": (rests.tumour, rests.tumour_less_whole),
        "the tumour blurred": (rests.rest, rests.rest_less_whole),
    }
    if rests.kind == "open" and not rests.tumour_less_whole.known:
        yield "Differences within folds are missing: `mgkeras evaluate` makes them."
    if rests.kind in ("open", "chance"):
        for what, (auc, less) in parts.items():
            if auc.informs and (paired := less.known) and paired.low > 0:
                yield f"With {what} its AUC is above that on whole exams: the blur itself changes what it goes by."
            elif rests.kind == "chance" and auc.informs:
                yield f"With {what} its AUC is {_auc(auc)}, which is not chance."


def _taker(what: str) -> str:
    return TAKERS.get(what) or f"the exams without {TRAPS.get(what, what)}"


def _blurred(rests: Rests, mm: float) -> Iterator[str]:
    if rests.tumour.value is None or rests.rest.value is None:
        return
    kept = "" if rests.kept_ml is None else f" ({rests.kept_ml:.0f} ml)"
    yield (
        f"With only the tumour and {mm:g} mm around it left{kept}, its AUC is {_auc(rests.tumour)}"
        f"{_against(rests.tumour_less_whole)}; with that blurred it is {_auc(rests.rest)}"
        f"{_against(rests.rest_less_whole)}. On whole exams it is {_auc(rests.whole)}."
    )
    if rests.tumour_less_rest.known:
        yield f"The tumour only less the rest only: {signed(vars(rests.tumour_less_rest))}."


def _against(less: Interval) -> str:
    """', 0.28 (0.17 to 0.40) below that on whole exams'."""
    known = less.known
    if known is None:
        return ""
    if known.within:
        return f", as on whole exams within {READING_MARGIN:g}"
    if known.low > 0:
        return f", {cell(vars(known))} above that on whole exams"
    if known.high < 0:
        return f", {cell(vars(Interval(-known.value, -known.high, -known.low)))} below that on whole exams"
    return f", {signed(vars(known))} against that on whole exams"


def _auc(auc: Interval) -> str:
    turned = ": below 0.5, so it ranks the classes the other way round, which is information as well"
    return cell(vars(auc)) + (turned if auc.informs and auc.value is not None and auc.value < 0.5 else "")


def _mask_alone(model: Model, rests: Rests) -> Iterator[str]:
    for scores in (model.get("probes") or {}).get("causal") or ():
        if scores["dilation_mm"] == 0 and rests.tumour.value is not None:
            auc = interval(scores["auc_outside_blurred"])
            lost = auc.holds(0.5) and rests.tumour.informs
            yield (
                f"With the mask alone left, nothing around it, its AUC is {_auc(auc)}"
                + (": what it goes by there is in the ring around the mask, or needs it." if lost else ".")
            )


def _transplant(model: Model, mm: float) -> Iterator[str]:
    transplant = (model.get("probes") or {}).get("transplant")
    reading = transplant_reading(transplant)
    if transplant is None or not reading:
        return
    hard, soft = (
        (interval(transplant.get(f"{seam}owner")), interval(transplant.get(f"{seam}breast"))) for seam in ("", "soft_")
    )
    less = interval(transplant.get("owner_less_breast"))
    apart = f" (difference {signed(vars(less))})" if less.known else ""
    same = (transplant.get("same_decision") or {}).get("mean")
    told = (
        (
            hard[0].value is not None,
            f"With each tumour and {mm:g} mm around it in another patient's breast, whose own tumour is filled, its "
            f"AUC is {_auc(hard[0])} for the owner and {_auc(hard[1])} for the breast{apart}.",
        ),
        (transplant.get("swap_trained"), "It was trained on such exams."),
        (
            soft[0].value is not None,
            f"With a soft seam, which no model is trained with, {_auc(soft[0])} and {_auc(soft[1])}.",
        ),
        (same is not None, f"The predicted class stays in {percent(same)}."),
        (True, FOLLOWS[reading]),
    )
    yield " ".join(text for known, text in told if known)


def _controls(model: Model) -> Iterator[str]:
    found = controls_of(model)
    hole, filled = (found.get(name) or {} for name in ("hole", "filled"))
    for control, what in (
        (filled, "With the tumour itself filled from around"),
        (hole, "With a hole of the tumour's shape filled elsewhere in the body"),
    ):
        auc = interval(control.get("auc"))
        if auc.value is not None:
            moved = (control.get("change") or {}).get("mean")
            yield (
                f"{what}, its AUC is {_auc(auc)}{_against(interval(control.get('less_whole')))}"
                + ("" if moved is None else f"; a patient's probability moves by {text(moved)} on average")
                + "."
            )


def map_controls(model: Model) -> Iterator[str]:
    """What a map is to exceed before it lies in the tumour, a sentence."""
    found = controls_of(model)
    beside = [
        (interval(found.get(name)), beats(model, name), what)
        for name, what in (
            ("mass_chance_body", "by chance over the body's cells"),
            ("mass_of_t1", "of a map of the mean early phase"),
        )
    ]
    beside = [share for share in beside if share[0].value is not None]
    if not beside:
        if mean_of(model, "mass_in_mask") is not None:
            yield (
                "Chance counts all cells, air included; chance over the body's cells and a map of the mean early phase "
                "were not asked."
            )
        return
    shares = listed([f"{percent(share.value)} {what}" for share, _, what in beside])
    short_of = [what for _, more, what in beside if more is False]
    yield (
        f"{shares[0].upper()}{shares[1:]} would lie in the tumour; its map "
        + (f"is not shown to have more than {listed(short_of)}." if short_of else "has more.")
    )


def _trap(trap: Mapping[str, Any]) -> str:
    """What a trap's removal shows; that of the site is that all are scanned by the one scanner, or by the other."""
    what, moved = TRAPS.get(trap["trap"], trap["trap"]), trap.get("change_removed", {}).get("mean")
    off, on, done = (
        ("With every exam scanned at the one site", "at the other", "scanning it there")
        if trap["trap"] == "site"
        else (f"With {what} removed from every exam", "added to every exam", "removing it")
    )
    return (
        f"{off} its AUC is {cell(trap['auc_removed'])}, {on} {cell(trap['auc_added'])}, as the exams are "
        f"{cell(trap['auc_as_is'])}"
        + ("" if moved is None else f"; {done} moves a patient's probability by {text(moved)} on average")
        + (f". So it leans on {what}." if leans_on(trap) else f". It is not shown to need {what}.")
    )


def _ledger(model: Model) -> Iterator[str]:
    found = (model.get("probes") or {}).get("ledger") or {}
    parts = [part for part in found.get("parts") or () if (part.get("evidence") or {}).get("mean") is not None]
    if not parts:
        return
    places = [PLACES.get(part["part"], part["part"]) for part in parts]
    cells = listed([percent((part.get("cells") or {}).get("mean")) for part in parts])
    shares = listed(
        [f"{percent(part['evidence']['mean'])} lies in {place}" for part, place in zip(parts, places, strict=True)]
    )
    yield f"Of all evidence for and against, by size, {shares}; of the map's cells these are {cells}."
    moves = [
        f"{_percents(part['variance'])} comes from {place}"
        for part, place in zip(parts, places, strict=True)
        if (part.get("variance") or {}).get("value") is not None
    ]
    if moves:
        yield (
            f"Of what differs between patients (the variance of the log-odds), {listed(moves)}. A cell sees further "
            "than its own place, so its evidence may be made of what lies elsewhere."
        )


def _site(model: Model) -> Iterator[str]:
    for column in ((model.get("probes") or {}).get("site") or {}).get("columns") or ():
        auc = interval(column.get("predicted_auc"))
        if auc.value is None:
            continue
        groups = [
            f"{cell(group['auc'])} in {group['group']} ({group['subjects']} subjects)"
            for group in column.get("within") or ()
            if group["auc"].get("value") is not None
        ]
        inside = f" Within one {column['column']} its AUC for the outcome is {listed(groups)}." if groups else ""
        shown = auc.low is not None and auc.low > 0.5
        yield (
            f"From its features the {column['column']} is {'predicted' if shown else 'not shown to be predicted'}, AUC "
            f"{_auc(auc)}.{inside}"
            + (
                f" Where the {column['column']} goes with the outcome, these features can too; where one looks cannot "
                "mend this."
                if shown
                else ""
            )
        )


def percent(value: float | None) -> str:
    """'79 %' with a space that does not break, or 'an unknown share'."""
    return "an unknown share" if value is None else f"{100 * value:.0f}\u00a0%"


def _percents(values: Mapping[str, Any]) -> str:
    low, high = values.get("low"), values.get("high")
    between = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f}\u00a0%)"
    return percent(values["value"]) + between


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
