"""Settings of a run as options: one for each that is often changed, --set and --config for every one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from mgkeras.cli.command import GROUP_OF
from mgkeras.cli.kinds import OptimizerName, Range
from mgkeras.cli.options import TABLE, Names, together

from mgkeras.errors import InputError
from mgkeras.settings import (
    ADDONS_OPTIMIZERS,
    AUGMENTS,
    CAM_MAPS,
    CE_REDUCTIONS,
    CONTEXT_CHANGES,
    CONTEXTS,
    DICE_TERMS,
    GUIDED_MAPS,
    OPTIMIZERS,
    PHASES,
    PRESETS,
    SCHEDULES,
    UNGUIDED,
    as_dict,
    flatten,
    preset,
    typed,
)

# option, dotted setting, type, help
SETTINGS: tuple[tuple[str, str, Any, str], ...] = (
    ("--folds", "training.folds", click.IntRange(2), "Make this many folds."),
    ("--stratify", "training.stratify", Names(), "Balance the folds by these columns jointly with the outcome."),
    ("--epochs", "training.epochs", click.IntRange(1), "Train each fold for this many epochs."),
    ("--batch-size", "training.batch_size", click.IntRange(2), "Take this many volumes a step."),
    (
        "--learning-rate",
        "training.learning_rate",
        click.FloatRange(0, min_open=True),
        "Start the optimizer at this rate.",
    ),
    ("--schedule", "training.schedule", click.Choice(SCHEDULES), "Keep that rate, or let it fall to 0 along a cosine."),
    (
        "--warmup",
        "training.warmup",
        click.FloatRange(0, 0.5),
        "Let a cosine's rate rise from 0 in this share of the steps first.",
    ),
    ("--weight-decay", "training.weight_decay", click.FloatRange(0), "Let adamw shrink the weights at this rate."),
    (
        "--optimizer",
        "training.optimizer",
        OptimizerName(OPTIMIZERS),
        f"Train with this optimizer of Keras; {', '.join(ADDONS_OPTIMIZERS)} need mgkeras[addons].",
    ),
    ("--lambda", "guidance.lambda_dice", click.FloatRange(0), "Weigh the Dice term by this (guided models)."),
    (
        "--guided-map",
        "guidance.guided_map",
        click.Choice(GUIDED_MAPS),
        "Compare this map with the mask: the label's class map, the label's evidence, or its strength.",
    ),
    ("--cam-map", "guidance.cam_map", click.Choice(CAM_MAPS), "Bring that map to [0, 1] in this way."),
    (
        "--dice-term",
        "guidance.dice_term",
        click.Choice(DICE_TERMS),
        "Minimise CE - lambda Dice (plain) or CE - lambda log Dice (log).",
    ),
    ("--ce", "guidance.ce", click.Choice(CE_REDUCTIONS), "Take cross-entropy's mean over a batch, or its sum."),
    (
        "--context-dropout",
        "guidance.context_dropout",
        click.FloatRange(0, 1),
        "Change the context, what lies outside the dilated mask, in this share of training volumes (guided models).",
    ),
    (
        "--context",
        "guidance.context",
        click.Choice(CONTEXTS),
        "Put this there: another training patient's tissue, a blur, noise, or a mix.",
    ),
    ("--dilation-mm", "guidance.dilation_mm", click.FloatRange(0), "Dilate the mask by a ball of this many mm."),
    (
        "--augment",
        "training.augment",
        click.Choice(AUGMENTS),
        "Train on the paper's 34 variants; on changes that another exam could have (anatomical: left and right "
        "exchanged, turned, shifted, scaled, brighter, noisier); or on none.",
    ),
    (
        "--variants-per-epoch",
        "training.variants_per_epoch",
        click.IntRange(1, 34),
        "Draw this many variants a volume and epoch.",
    ),
    (
        "--shift-voxels",
        "training.shift_voxels",
        click.IntRange(0),
        "Shift by this many voxels toward the corners; anatomical: at most, along each axis.",
    ),
    (
        "--turn-degrees",
        "training.turn_degrees",
        click.FloatRange(0, 45),
        "Turn by this many degrees in the axial plane; anatomical: at most, about each axis.",
    ),
    (
        "--class-weight",
        "training.class_weight",
        click.Choice(("none", "balanced")),
        "Weigh cross-entropy by class; balanced is inverse to each class's frequency in the fold.",
    ),
    (
        "--dropout",
        "backbone.dropout",
        click.FloatRange(0, 1, max_open=True),
        "Drop this share of features before the output layer.",
    ),
    (
        "--phases",
        "volume.phases",
        Names(),
        f"Show the network these phases, a channel each: {', '.join(PHASES)} (early - pre).",
    ),
    ("--side", "volume.side", click.IntRange(16, 512), "Make cubes of this many voxels a side, a multiple of 8."),
    (
        "--enhancement",
        "mask.enhancement",
        click.FloatRange(0),
        "Gate the tumour masks that fit makes itself at this enhancement.",
    ),
)
TITLES = {"training": "Training", "guidance": "Guidance", "backbone": "Network and volumes"}
for _option, _setting, *_ in SETTINGS:
    GROUP_OF.setdefault(_option, TITLES.get(_setting.split(".")[0], TITLES["backbone"]))


def start_of(name: str) -> str:
    """What a setting is where nobody sets it, as a help text shows it: [paper 250, demo 60]."""
    values = {start: flatten(as_dict(preset(start)))[name] for start in PRESETS}
    first = values[PRESETS[0]]
    if all(value == first for value in values.values()):
        found = f"default: {_shown(first)}"
    else:
        found = ", ".join(f"{start} {_shown(value)}" for start, value in values.items())
    more = [f"; guided-context {_shown(value)}" for setting, value, _ in CONTEXT_CHANGES if setting == name]
    return f"[{found}{''.join(more)}]"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_options(searched: Collection[str] = ()) -> Callable:
    """Adds an option for each of SETTINGS, --set and --config; see chosen_settings for those that were given.

    Args:
        searched: options that take a range as well.
    """
    found = []
    for option, name, kind, text in reversed(SETTINGS):
        if option in searched:
            kind, text = Range(kind), f"{text} A number, or LOW:HIGH[:log] to search."
        found.append(click.option(option, _name(option), type=kind, help=f"{text}  {start_of(name)}"))
    return together(
        *found,
        click.option("--leave-out", metavar="COLUMN", help="Make a fold for each value of a column, as site."),
        click.option(
            "--split",
            is_flag=True,
            help="Hold out the subjects whose column split says test and train on train and val: one fold.",
        ),
        click.option(
            "--set",
            "set_any",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_set_any,
            help="Set any number of a run by its name in settings.json, such as backbone.filters=8,16,32; repeatable.",
        ),
        click.option(
            "--config",
            type=TABLE,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="Take settings from a .toml file, or from another run's settings.json; options stand above it.",
        ),
    )


def chosen_settings(values: dict[str, Any], model: str) -> dict[str, Any]:
    """{dotted setting: value} of --config, above it of the options, above them of --set.

    Of --config, what guides is left out for a model without guidance.
    """
    chosen = {name: values[_name(option)] for option, name, *_ in SETTINGS if values[_name(option)] is not None}
    chosen |= values["set_any"]
    makers = chosen.keys() & {"training.folds", "training.stratify"}
    if values["leave_out"]:
        if values["split"] or makers:
            raise click.UsageError("--leave-out makes the folds. Received: --split, --folds or --stratify too")
        chosen["training.leave_out"] = values["leave_out"]
    if values["split"]:
        if makers:
            raise click.UsageError("--split is one fold, that of the column split. Received: --folds or --stratify too")
        chosen |= {"training.split": True, "training.folds": 1}
    if model in UNGUIDED and (guiding := [name for name in chosen if name.startswith("guidance.")]):
        raise click.UsageError(f"{model} has no guidance. Received: {', '.join(guiding)}; leave it out")
    configured = click.get_current_context().meta.get("mgkeras.config", {})
    return {
        name: value for name, value in configured.items() if model not in UNGUIDED or not name.startswith("guidance.")
    } | chosen


def _set_any(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"expected NAME=VALUE. Received: {pair}", context, option)
        found[name.strip()] = checked_value(name.strip(), value, context, option)
    return found


def _configure(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Keeps the numbers of a file for chosen_settings and makes its other names the options' defaults."""
    if path is None:
        return
    flat = flatten(_read(path, context, option))
    context.meta["mgkeras.config"] = {
        name: checked_value(name, value, context, option) for name, value in flat.items() if "." in name
    }
    others = {name: value for name, value in flat.items() if "." not in name}
    options = {param.opts[-1].removeprefix("--").replace("-", "_"): param.name for param in context.command.params}
    if unknown := [name for name in others if name.replace("-", "_") not in options]:
        raise click.BadParameter(
            f"expected names of options, or of settings in tables as [training]. Received: {', '.join(unknown)}",
            context,
            option,
        )
    named = {str(options[name.replace("-", "_")]): value for name, value in others.items()}
    context.default_map = {**(context.default_map or {}), **named}


def _read(path: Path, context: click.Context, option: click.Parameter) -> dict[str, Any]:
    from mgkeras.data.io import read_toml

    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_toml(path)
    except ValueError as error:  # of JSON, of TOML, of UTF-8
        raise click.BadParameter(f"expected TOML, or JSON as .json. Received: {error}", context, option) from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"expected names and values. Received: {type(found).__name__}", context, option)
    return found


def checked_value(
    name: str, value: Any, context: click.Context | None = None, option: click.Parameter | None = None
) -> Any:
    """A setting's value as settings have it, in the range that its own option allows."""
    try:
        found = typed(name, value)
    except InputError as error:
        raise click.BadParameter(str(error), context, option) from None
    kinds = [kind for _, dotted, kind, _ in SETTINGS if dotted == name]
    if kinds and not (name == "training.folds" and found == 1):  # 1 is --split, as settings.json has it
        try:
            found = kinds[0].convert(found, None, context)
        except click.BadParameter as error:
            raise click.BadParameter(f"{name}: {error.message}", context, option) from None
    return found


def _name(option: str) -> str:
    return "set_" + option.removeprefix("--").replace("-", "_")
