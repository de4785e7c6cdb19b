"""Every number of the method, once, with where it comes from.

A comment behind a field says ``paper`` (Liu et al. 2021 state it) or ``ours, because ...`` (they leave it
open). A run is described completely by one :class:`Settings`; it is written to ``settings.json`` and a model is
rebuilt from that file and its weights, never from a pickle.

Reference: Liu G, Mitra D, Jones EF, et al. Mask-Guided Convolutional Neural Network for Breast Tumor Prognostic
Outcome Prediction on 3D DCE-MR Images. J Digit Imaging 34(3), 2021. doi:10.1007/s10278-021-00449-y.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mgkeras.errors import InputError

MODELS = ("no-mask", "mask-only", "guided", "guided-context")
UNGUIDED = ("no-mask", "mask-only")  # of MODELS: no Dice term, no blurring
NEVER = -1  # the fold of a subject that every fold trains on, where a cohort's own split holds only some out
TRAPS = ("spot", "marker", "near", "bias", "noise", "enhancement", "site")  # of a phantom, see phantom/traps.py
GUIDED_MAPS = ("class", "evidence", "strength")
CAM_MAPS = ("sigmoid", "cut-sigmoid", "minmax", "relu")
DICE_TERMS = ("plain", "log")
CE_REDUCTIONS = ("mean", "sum")
# What a channel of the network's cube may be, in the order in which channels stand. All are in units of early's bright
# tissue: ours, because washout and enhancement would vanish if each phase had its own scale. A subtraction, early less
# pre, is cut at minus the ceiling too and not shifted: ours, because 0 then means no change, in the padding too.
PHASES = ("early", "pre", "late", "subtraction")
CONTEXTS = ("swap", "swap-blur", "blur", "noise", "mix")
AUGMENTS = ("none", "paper", "anatomical")
SCHEDULES = ("constant", "cosine")
ADDONS_OPTIMIZERS = ("lookahead", "swa", "rectifiedadam")  # only tensorflow-addons has them, see models/keras_compat.py
READING_MARGIN = 0.05  # ours, because an AUC this near another means the same to a reader; of readings, not of a run
LEARNED_AUC = 0.8  # ours, because a network that learns a few dozen exams passes it; of a fold's own training exams
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "nadam", "lamb", *ADDONS_OPTIMIZERS)


@dataclass(frozen=True)
class VolumeSettings:
    """How an exam becomes a cube."""

    side: int = 128  # ours, because four blocks of pooling then leave maps of 16 cells a side; the paper is silent
    background: float = 0.0  # ours, because air in MRI is dark; fills padding and shifted-in voxels
    intensity_ceiling: float = 4.0  # ours, because bright vessels and coil flare would otherwise set the scale
    phases: tuple[str, ...] = ("early",)  # paper: the early phase alone; of PHASES, each a channel

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(sorted({*self.phases}, key=(*PHASES, *self.phases).index)))


@dataclass(frozen=True)
class MaskSettings:
    """How the tumour mask is made from the pre and early phases."""

    enhancement: float = 0.70  # paper: "more than 70 %"; of (early - pre) / pre, as the field defines it
    noise_floor: float = 0.10  # ours, because a ratio over air is noise: voxels under this share of bright tissue
    clusters: int = 2  # ours, because strongly and weakly enhancing voxels are to be told apart
    fuzziness: float = 2.0  # ours, because it is the usual exponent of fuzzy C-means
    smallest_mm3: float = 100.0  # ours, because a 6 mm lesion has 113 mm3: smaller is noise or a vessel's stub
    thinnest_mm: float = 3.0  # ours, because vessels are thinner than tumours: what an opening this wide removes, goes
    box_margin_mm: float = 5.0  # ours, because a box cut at the rim would hide the rim from the mask-only model


@dataclass(frozen=True)
class BackboneSettings:
    """The 3D VGG: blocks of 3x3x3 convolutions and 2x2x2 max-pools."""

    filters: tuple[int, ...] = (8, 16, 32, 64)  # paper's reference: Korolev 2017, Yang 2018
    convolutions: tuple[int, ...] = (2, 2, 3, 3)  # paper's reference: the same two
    last_pool: bool = False  # ours, because without it pooling averages exactly what the CAM projects on
    dropout: float = 0.3  # ours, because the 180 trainings behind the defaults used it; the paper names no rate
    batch_norm_momentum: float = 0.9  # ours, because a fold has few steps; the moments are recomputed at its end


@dataclass(frozen=True)
class GuidanceSettings:
    """The Dice term between a map and the mask, and what stands around the tumour in training. CONTEXT_CHANGES says
    what guided-context has instead."""

    lambda_dice: float = 10.0  # paper
    guided_map: str = "class"  # paper: the label's class map; see GUIDED in models/cam.py for the others
    cam_map: str = "sigmoid"  # ours, because at lambda 10 min-max stops the label from being learned and ReLU dies
    dice_term: str = "plain"  # paper: CE - lambda Dice; 'log' is CE - lambda log Dice, which does not fade
    ce: str = "mean"  # ours, because lambda then means the same in any batch; 'sum' over it reads the loss as written
    sigmoid_slope: float = 2.0  # ours, from the 180 trainings behind the defaults
    sigmoid_offset: float = -2.0  # ours, from the same trainings: a cell must stand out by one deviation to reach 0.5
    context_dropout: float = 0.0  # ours: share of training volumes whose context is changed; paper: none
    context: str = "blur"  # ours: what stands outside the kept tumour then, see data/context.py
    dilation_mm: float = 5.0  # ours, because peritumoral tissue counts: a ball of it round the mask is kept
    blur_mm: float = 12.0  # ours, because it must wipe out a spot of 14 mm: Gaussian sigma


def check_guidance(guidance: GuidanceSettings, prefix: str = "") -> GuidanceSettings:
    """The settings, once guided_map, cam_map and dice_term are known to be ones that exist; else a ValueError."""
    for name, allowed in (("guided_map", GUIDED_MAPS), ("cam_map", CAM_MAPS), ("dice_term", DICE_TERMS)):
        if (value := getattr(guidance, name)) not in allowed:
            raise InputError(f"{prefix}{name} must be one of {', '.join(allowed)}. Received: {value!r}")
    return guidance


@dataclass(frozen=True)
class TrainingSettings:
    """How a fold is trained."""

    optimizer: str = "adam"  # paper
    learning_rate: float = 2.5e-5  # paper; with a schedule its highest
    schedule: str = "constant"  # paper names none; 'cosine' falls to 0 along half a cosine
    warmup: float = 0.0  # ours: share of a cosine's steps in which the rate first rises from 0
    weight_decay: float = 0.004  # ours, because it is Keras' own of adamw, which alone of the optimizers has one
    epochs: int = 250  # paper
    batch_size: int = 10  # paper
    augment: str = "paper"  # paper: 34 variants of each training volume; 'anatomical': see data/anatomical.py
    shift_voxels: int = 10  # paper: 8 shifts toward the cube's corners; anatomical: the most along each axis
    turn_degrees: float = 10.0  # paper: 2 turns in the axial plane; anatomical: the most about each axis
    scale: float = 0.1  # ours, because breasts differ more: anatomical: up to a tenth larger or smaller
    gain: float = 0.1  # ours, because it is what normalisation leaves between scanners: up to a tenth brighter, darker
    noise: float = 0.05  # ours, because an MR image's noise is some hundredths of its bright tissue: highest sigma
    variants_per_epoch: int = 34  # paper: every variant in every epoch; fewer are drawn anew each epoch
    class_weight: str = "none"  # paper; 'balanced' weighs cross-entropy by inverse class frequency
    folds: int = 5  # paper
    stratify: tuple[str, ...] = ()  # ours: columns that the folds balance jointly with the outcome; paper: none told
    leave_out: str = ""  # ours: a fold for each value of this column of the cohort, as site; '' for drawn folds
    split: bool = False  # ours: one fold, whose held-out subjects the cohort's column split names


@dataclass(frozen=True)
class ImportSettings:
    """How a public cohort becomes a table; no part of a run."""

    horizon_days: float = 1826.0  # paper: "in 5 years"; 5 x 365.25, rounded down
    early_seconds: float = 150.0  # ours, because I-SPY1 has its early phase at 2 min 30 s
    late_seconds: float = 450.0  # ours, because its late phase is at 7 min 30 s


@dataclass(frozen=True)
class Settings:
    """A run, whole: what is predicted, by which model, how."""

    model: str = "guided"
    outcome: str = "recurrence"
    preset: str = "paper"
    seed: int = 0
    deterministic: bool = False
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        check_guidance(self.guidance, "guidance.")
        for name, value, allowed in (
            ("model", self.model, MODELS),
            *(("volume.phases", phase, PHASES) for phase in self.volume.phases or ("",)),
            ("guidance.ce", self.guidance.ce, CE_REDUCTIONS),
            ("guidance.context", self.guidance.context, CONTEXTS),
            ("training.augment", self.training.augment, AUGMENTS),
            ("training.schedule", self.training.schedule, SCHEDULES),
            ("training.optimizer", self.training.optimizer, OPTIMIZERS),
            ("training.class_weight", self.training.class_weight, ("none", "balanced")),
        ):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}. Received: {value!r}")
        training, backbone, side = self.training, self.backbone, self.volume.side
        cells = 2 ** (len(backbone.filters) - (not backbone.last_pool))
        for refused, told in (
            (
                training.split and (training.folds != 1 or training.stratify),
                "the cohort's own split is one fold, which nothing stratifies. Received: training.folds "
                f"{training.folds}, training.stratify {training.stratify}",
            ),
            (
                training.leave_out and (training.split or training.stratify),
                "folds that leave a value of a column out are not drawn. Received: training.leave_out "
                f"{training.leave_out!r}, training.split {training.split}, training.stratify {training.stratify}",
            ),
            (
                len(backbone.filters) != len(backbone.convolutions),
                "backbone.filters and backbone.convolutions must have a number for each block. Received: "
                f"{backbone.filters} and {backbone.convolutions}",
            ),
            (
                side % cells or side < 2 * cells,
                f"volume.side must be a multiple of {cells}, {2 * cells} or more, so that each pool halves it evenly. "
                f"Received: {side}",
            ),
        ):
            if refused:
                raise InputError(told)

    @property
    def uses_box(self) -> bool:
        """True for the mask-only model, which sees only the mask's bounding box and so needs one to predict."""
        return self.model == "mask-only"


CONTEXT_CHANGES: tuple[tuple[str, Any, str], ...] = (
    ("guidance.guided_map", "strength", "softmax cancels what class maps share, and strength needs no label"),
    ("guidance.cam_map", "relu", "of a map that is never negative it is the map over its maximum: it has no floor"),
    ("guidance.dice_term", "log", "it pulls as hard on a tumour of 1 cell in 4096 as on one of 10 in 216"),
    ("guidance.lambda_dice", 0.3, "log Dice is in nats, as cross-entropy is; at 1 the label was learned too slowly"),
    ("guidance.context_dropout", 1.0, "a network that never sees a patient's own context has no use for it"),
    ("guidance.context", "swap", "a blur can be told from tissue, another patient's tissue cannot"),
)


def for_model(settings: Settings, model: str, chosen: Mapping[str, Any] | None = None) -> Settings:
    """The same run for another of the model kinds: only what the kind is about changes.

    no-mask and mask-only have no Dice term and their context is as it is; guided has the paper's Dice term;
    guided-context has CONTEXT_CHANGES.

    Args:
        settings: of a run of any kind.
        model: one of MODELS.
        chosen: {dotted name: value} that a user asked for, which stands above what the kind brings.
    """
    changes = {name: value for name, value, _ in CONTEXT_CHANGES} if model == "guided-context" else {}
    settings = with_values(replace(settings, model=model), {**changes, **(chosen or {})})
    if model in UNGUIDED:
        settings = with_values(settings, {"guidance.lambda_dice": 0.0, "guidance.context_dropout": 0.0})
    return settings


def preset(name: str) -> Settings:
    """The settings of a preset of PRESETS.

    Raises:
        ValueError: for another name.
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}. Received: {name!r}")
    return with_values(replace(Settings(), preset=name), {key: value for key, value, _ in PRESET_CHANGES[name]})


DEMO_CHANGES: tuple[tuple[str, Any, str], ...] = (
    ("volume.side", 48, "a CPU trains 48^3 volumes in seconds an epoch, 128^3 in many minutes"),
    ("training.learning_rate", 1e-3, "a fold has hundreds of steps instead of the paper's 78,000"),
    ("training.epochs", 60, "enough at this rate on the phantom"),
    ("training.shift_voxels", 4, "10 voxels of 128 are 4 of 48"),
    ("training.variants_per_epoch", 1, "one of the 34 variants a volume and epoch, drawn anew"),
    ("training.folds", 3, "to end within minutes"),
)
WORKSTATION_CHANGES: tuple[tuple[str, Any, str], ...] = (
    (
        "volume.side",
        64,
        "two cores train 80 volumes of 64^3 in some 3.3 s an epoch: one of five folds took 6 min 40 s",
    ),
    ("training.learning_rate", 1e-3, "a fold has hundreds of steps instead of the paper's 78,000"),
    ("training.schedule", "cosine", "its last steps are small; with augment, see there"),
    ("training.warmup", 0.1, "Adam's first steps are as large as its moments are wrong"),
    ("training.epochs", 100, "60 left the phantom's label half learned: AUC 0.75 in training, 0.60 held out"),
    (
        "training.augment",
        "anatomical",
        "in 600 steps on the phantom the training AUC was 0.75, demo's 0.57; on lung nodules the paper's held out more",
    ),
    ("training.turn_degrees", 15.0, "a patient lies about so differently from one exam to the next"),
    ("training.shift_voxels", 5, "10 voxels of 128 are 5 of 64"),
    ("training.variants_per_epoch", 1, "one change a volume and epoch, drawn anew"),
)
PRESET_CHANGES: dict[str, tuple[tuple[str, Any, str], ...]] = {  # what each changes of the paper's settings, and why
    "paper": (),
    "workstation": WORKSTATION_CHANGES,
    "demo": DEMO_CHANGES,
}
PRESETS = tuple(PRESET_CHANGES)


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as nested plain values, the content of settings.json."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


RETIRED = ("guidance.dilation_share", "guidance.blur_share")  # of before, in shares of the side; only a blur used them


def from_dict(values: dict[str, Any]) -> Settings:
    """The inverse of :func:`as_dict`; an unknown name is an error that lists it.

    What a settings.json of before does not name has the default, with which it was trained; RETIRED names are left out:
    a run of before trained with another dilation, but is asked with today's.
    """
    flat = {name: value for name, value in flatten(values).items() if name not in RETIRED}
    unknown = sorted(set(flat) - set(flatten(as_dict(Settings()))))
    if unknown:
        raise InputError(f"settings have names that this version does not know. Received: {', '.join(unknown)}")
    known = flatten(dataclasses.asdict(Settings()))
    if wrong := [name for name in flat if "." not in name and type(flat[name]) is not type(known[name])]:
        raise InputError(
            f"expected {', '.join(wrong)} as settings hold them. Received: {[flat[name] for name in wrong]}"
        )
    flat = {name: typed(name, value) if "." in name else value for name, value in flat.items()}
    return with_values(Settings(), flat)


BOUNDS: Mapping[str, tuple[float, float]] = {  # of numbers that a user sets; of others from 0
    "volume.background": (-math.inf, math.inf),
    "mask.noise_floor": (0, 1),
    "mask.clusters": (1, 9),
    "mask.fuzziness": (1.01, math.inf),  # fuzzy C-means divides by it less 1
    "backbone.filters": (1, math.inf),
    "backbone.convolutions": (1, math.inf),
    "backbone.batch_norm_momentum": (0, 1),
    "guidance.sigmoid_offset": (-math.inf, math.inf),
}


def typed(name: str, value: Any) -> Any:
    """A value for a dotted name, from text or a file, as settings hold it: 'backbone.filters', '8,16' -> (8, 16).

    Raises:
        ValueError: no such setting, a value of another kind, or one out of its BOUNDS.
    """
    known = {key: value for key, value in flatten(dataclasses.asdict(Settings())).items() if "." in key}
    if name not in known:
        raise InputError(f"expected one of {', '.join(known)}. Received: {name}")
    default, several = known[name], isinstance(known[name], tuple)
    kind = type((default or ("",))[0]) if several else type(default)
    words = value if isinstance(value, list | tuple) else str(value).split(",") if several else [value]
    low, high = BOUNDS.get(name, (0, math.inf))
    try:
        found = tuple(_READ[kind](str(word).strip()) for word in words if not several or str(word).strip())
        fits = kind in (bool, str) or all(math.isfinite(value) and low <= value <= high for value in found)
        if not fits or (not found and default) or not (several or len(found) == 1):
            raise ValueError
    except (KeyError, ValueError):
        among = f" from {low:g}" + (f" to {high:g}" if high < math.inf else "") if kind in (int, float) else ""
        what = _KINDS[kind] + (", or several parted by commas" if several else "")
        raise InputError(f"expected {name} to be {what}{among}. Received: {value}") from None
    return found if several else found[0]


_READ: dict[type, Any] = {bool: lambda word: {"true": True, "false": False}[word.lower()]} | {
    kind: kind for kind in (int, float, str)
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level of dotted names: {'volume': {'side': 48}} -> {'volume.side': 48}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def with_values(settings: Settings, flat: dict[str, Any]) -> Settings:
    """Settings with some dotted names replaced, all at once: with_values(s, {'volume.side': 64})."""
    changes: dict[str, Any] = {}
    for part in fields(settings):
        current = getattr(settings, part.name)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            inner = {
                name.partition(".")[2]: tuple(value) if isinstance(value, list) else value
                for name, value in flat.items()
                if name.startswith(f"{part.name}.")
            }
            changes[part.name] = replace(current, **inner)
        elif part.name in flat:
            changes[part.name] = flat[part.name]
    return replace(settings, **changes)


def differences(ours: Settings, theirs: Settings) -> list[tuple[str, Any, Any]]:
    """(dotted name, our value, their value) wherever two settings differ."""
    a, b = flatten(as_dict(ours)), flatten(as_dict(theirs))
    return [(name, a[name], b[name]) for name in a if a[name] != b[name]]
