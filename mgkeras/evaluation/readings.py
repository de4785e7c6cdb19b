"""What a network's numbers are read as: where its map lies, and what its decision rests on. Facts; no sentences.

Every rule is here and nowhere else; words.py and rests_words.py put them in sentences.

Glossary:
    whole, tumour, rest: the AUC within folds on whole exams, with only the dilated tumour left, with it blurred.
    less: a paired difference of two of them, on the same draws of subjects.
    within: the whole interval of a difference to the whole lies inside plus and minus READING_MARGIN.
    informs: the interval of an AUC does not hold 0.5. One below 0.5 ranks the classes the other way round, which is
        information as well.
    keeps: within, or more than HALF of what the whole's AUC is above 0.5, in either direction.
    weights: what is scored. Another training of the same method has others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mgkeras.settings import READING_MARGIN

HALF = 0.5  # ours, because more than half of a map's mass, or of an AUC's way up from 0.5, is 'most' of it
MAPS = {
    "in": "in the tumour",
    "some": "partly in the tumour",
    "chance": "no more in the tumour than by chance",
    "bright": "no more in the tumour than a map of the early phase",
    "away": "away from the tumour",
    "unknown": "not known",
}
DECISIONS = {
    "tumour": "from the tumour or close by",
    "partly": "partly from the tumour or close by",
    "outside": "mostly from outside the tumour",
    "several": "from either part: more than one source, or one that lies everywhere",
    "open": "not to be told from these numbers",
    "chance": "not shown better than chance",
}
READING_NOTE = (
    "AUCs of altered exams are counted within folds, between subjects of one fold, and their differences on the same "
    "draws of subjects. A decision reads 'from the tumour or close by' only where the tumour only lies within "
    f"{READING_MARGIN:g} of whole exams, its whole interval, and the rest only does not: its interval holds 0.5, and "
    f"that of its difference to whole exams lies more than {READING_MARGIN:g} below 0. An AUC below 0.5 is information "
    "as well. Transplants, the mask alone left, the filled tumour and a phantom's traps can take that reading away and "
    "never give it."
)
Model = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval; None where it is missing or undefined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> Known | None:
        """The same where all three are there, else None."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return Known(self.value, self.low, self.high)

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        known = self.known
        return known is not None and known.low <= value <= known.high

    @property
    def informs(self) -> bool:
        """Of an AUC: see the glossary."""
        return self.known is not None and not self.holds(0.5)

    @property
    def within(self) -> bool:
        """Of a difference to the whole: see the glossary."""
        known = self.known
        return known is not None and -READING_MARGIN <= known.low and known.high <= READING_MARGIN


@dataclass(frozen=True)
class Known(Interval):
    """An Interval of which all three numbers are there."""

    value: float
    low: float
    high: float

    @property
    def turned(self) -> Known:
        """Of an AUC: that of the ranks turned round, where it is below 0.5."""
        return Known(1 - self.value, 1 - self.high, 1 - self.low) if self.value < 0.5 else self


def interval(values: Mapping[str, Any] | None) -> Interval:
    """{value or mean, low, high} of evaluation.json as an Interval; of None an empty one."""
    found = values or {}
    return Interval(found.get("value", found.get("mean")), found.get("low"), found.get("high"))


@dataclass(frozen=True)
class Rests:
    """What these weights' decision rests on.

    Attributes:
        kind: a key of DECISIONS.
        blurred: the kind by the blurred exams alone, before anything took from it.
        taken: what took from it: 'transplant', 'ring', 'filled' or the name of a trap.
        whole, tumour, rest: AUCs. tumour_less_whole, rest_less_whole, tumour_less_rest: see the glossary.
        kept_ml: what 'tumour only' keeps, mean, ml; None where it was not measured.
    """

    kind: str
    blurred: str
    taken: tuple[str, ...]
    whole: Interval
    tumour: Interval
    rest: Interval
    tumour_less_whole: Interval
    rest_less_whole: Interval
    tumour_less_rest: Interval
    kept_ml: float | None = None


@dataclass(frozen=True)
class Reading:
    """What one network's numbers say: ``map`` is a key of MAPS, ``guided`` whether that was trained for."""

    name: str
    guided: bool
    map: str
    rests: Rests

    @property
    def decision(self) -> str:
        """A key of DECISIONS."""
        return self.rests.kind


def rests_of(model: Model) -> Rests:
    """What a network's decision rests on, from its entry of evaluation.json.

    The blurred exams say it; transplants, the ring, the filled tumour and traps can only take 'from the tumour' away.
    """
    causal = model.get("causal") or {}
    whole = interval(causal.get("auc_whole") or model["pooled"]["auc"])
    tumour, rest = (interval(causal.get(f"auc_{part}_blurred")) for part in ("outside", "inside"))
    less = [interval(causal.get(name)) for name in ("outside_less_whole", "inside_less_whole", "outside_less_inside")]
    kept = (causal.get("kept_ml") or {}).get("mean")
    found = Rests("open", "open", (), whole, tumour, rest, less[0], less[1], less[2], kept)
    kind = blurred = _by_blurring(found)
    taken = []
    for what, instead in _takers(model):
        if kind in instead:
            kind = instead[kind]
            taken.append(what)
    return replace(found, kind=kind, blurred=blurred, taken=tuple(taken))


def _by_blurring(rests: Rests) -> str:
    """The kind by the blurred exams alone; the first rule that holds."""
    whole, tumour, rest = rests.whole.known, rests.tumour.known, rests.rest.known
    tumour_less_whole, rest_less_whole = rests.tumour_less_whole.known, rests.rest_less_whole.known
    tumour_less_rest = rests.tumour_less_rest.known
    if whole and whole.low <= 0.5:
        return "chance"
    if not (whole and tumour and rest and tumour_less_whole and rest_less_whole and tumour_less_rest):
        return "open"
    lost = rest.holds(0.5) and rest_less_whole.high < -READING_MARGIN
    if tumour_less_whole.within and lost:
        return "tumour"
    half = 0.5 + HALF * (whole.value - 0.5)
    tumour_keeps = tumour_less_whole.within or tumour.turned.low >= half
    rest_keeps = rest_less_whole.within or rest.turned.low >= half
    if tumour_keeps and rest_keeps:
        return "several"
    if rest_keeps and tumour_less_rest.high < 0:
        return "outside"
    more = tumour.low > 0.5 and tumour_less_rest.low > 0 and rest.high >= 0.5
    return "partly" if more and tumour_less_whole.value <= READING_MARGIN else "open"


OUTSIDE = dict.fromkeys(("tumour", "partly", "several", "open"), "outside")
OPEN = dict.fromkeys(("tumour", "partly", "several"), "open")
NOT_IT = dict.fromkeys(("tumour", "partly"), "open")
PARTLY = {"tumour": "partly"}


def _takers(model: Model) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(what, {kind: what it leaves of it}) of everything that speaks against 'from the tumour'."""
    probes = model.get("probes") or {}
    found = {"breast": OUTSIDE, "neither": OPEN, "both": PARTLY}.get(transplant_reading(probes.get("transplant")) or "")
    if found:
        yield "transplant", found
    mask_only = [scores for scores in probes.get("causal") or () if scores["dilation_mm"] == 0]
    if mask_only and interval(mask_only[0]["auc_outside_blurred"]).holds(0.5):
        yield "ring", NOT_IT
    if interval((controls_of(model).get("filled") or {}).get("auc")).informs:
        yield "filled", PARTLY
    for trap in traps_of(model):
        if leans_on(trap):
            removed = interval(trap["auc_removed"]).known
            yield trap["trap"], PARTLY if removed and removed.low > 0.5 else OUTSIDE


def transplant_reading(found: Mapping[str, Any] | None) -> str | None:
    """What the decision follows where a tumour stands in another breast: 'owner', 'breast', 'both' or 'neither'.

    Hard and soft seams are both asked and the one that says less for the owner counts. None where it was not probed.
    """
    if not found:
        return None
    hard = _follows(found.get("owner"), found.get("breast"), interval(found.get("owner_less_breast")))
    soft = _follows(found.get("soft_owner"), found.get("soft_breast"), Interval())
    said = [answer for answer in (hard, soft) if answer]
    return next((answer for answer in ("breast", "neither", "both", "owner") if answer in said), None)


def _follows(owner: Mapping[str, Any] | None, breast: Mapping[str, Any] | None, less: Interval) -> str | None:
    a, b = interval(owner), interval(breast)
    if a.value is None or b.value is None:
        return None
    first, second = a.known, b.known
    if first is None or second is None:
        return "neither"
    # without a paired difference: the intervals must not touch
    apart = less.known or Known(first.value - second.value, first.low - second.high, first.high - second.low)
    if second.low > 0.5 and apart.high < 0:
        return "breast"
    if first.low <= 0.5:
        return "neither"
    return "owner" if second.holds(0.5) and apart.low > 0 else "both"


def traps_of(model: Model) -> Sequence[Mapping[str, Any]]:
    """What was found of each trap of the phantom, those with a number; none where it is no phantom or not probed."""
    found = (model.get("probes") or {}).get("traps") or ()
    return [trap for trap in found if trap["auc_removed"]["value"] is not None]


def leans_on(trap: Mapping[str, Any]) -> bool:
    """Whether the AUC falls, by more than the margin, once a trap is removed from every exam or added to every exam."""
    as_is = trap["auc_as_is"]["value"]
    after = [auc for name in ("auc_removed", "auc_added") if (auc := interval(trap.get(name)).known)]
    return as_is is not None and any(auc.high < as_is and auc.value < as_is - READING_MARGIN for auc in after)


def map_reading(model: Model) -> str:
    """Where a network's map lies, a key of MAPS: by mass in the tumour, its excess over chance and over controls.

    'In the tumour' must exceed what the body's cells hold by chance and what a map of the mean early phase holds, where
    those were
    probed: the interval of the mass above the intervals of both.
    """
    mass, above = mean_of(model, "mass_in_mask"), interval((model.get("above_chance") or {}).get("all")).known
    if mass is None or above is None:
        return "unknown"
    if above.high < 0:
        return "away"
    if above.low <= 0 or beats(model, "mass_chance_body") is False:
        return "chance"
    if beats(model, "mass_of_t1") is False:
        return "bright"
    return "in" if mass >= HALF else "some"


def controls_of(model: Model) -> Mapping[str, Any]:
    """What the probes found of the controls that know nothing of the tumour, {} where they were not asked."""
    return (model.get("probes") or {}).get("controls") or {}


def beats(model: Model, control: str) -> bool | None:
    """Whether the map has more mass in the tumour than a control (mass_chance_body, mass_of_t1); None: not probed."""
    other = interval(controls_of(model).get(control))
    above, chance = interval((model.get("above_chance") or {}).get("all")).known, mean_of(model, "mass_chance")
    if other.value is None or above is None or chance is None:
        return None
    return above.low + chance > (other.value if other.high is None else other.high)


def mean_of(model: Model, score: str) -> float | None:
    """The mean over all subjects of an attention score; None where it is missing."""
    return model.get("attention", {}).get("all", {}).get(score, {}).get("mean")


def untrained_mass(model: Model) -> float | None:
    """Mass in the tumour of the same network with random weights; None where it was not probed."""
    scores = ((model.get("probes") or {}).get("random_network") or {}).get("attention") or {}
    return scores.get("mass_in_mask", {}).get("mean")
