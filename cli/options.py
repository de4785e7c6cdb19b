"""What several commands share: settings as options, progress on a terminal, cohorts with their errors shown."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgkeras.settings import (
    ADDONS_OPTIMIZERS,
    AUGMENTS,
    CAM_MAPS,
    CE_REDUCTIONS,
    CONTEXTS,
    DICE_TERMS,
    GUIDED_MAPS,
    OPTIMIZERS,
    BackboneSettings,
)

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort


class OptimizerName(click.Choice):
    """A name of settings.OPTIMIZERS; one that this installation lacks is refused before anything is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = super().convert(value, param, ctx)
        if name in ADDONS_OPTIMIZERS:
            import_tensorflow()
            from mgkeras.models.keras_compat import NeedsAddons, check_optimizer

            try:
                check_optimizer(name)
            except NeedsAddons as error:
                self.fail(str(error), param, ctx)
        return name


class Names(click.ParamType):
    """NAME,NAME,... as a tuple; a name given twice counts once."""

    name = "name,name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, without surrounding space."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


# option, dotted setting, type, help
SETTINGS: tuple[tuple[str, str, Any, str], ...] = (
    ("--folds", "training.folds", click.IntRange(2), "Folds of the cross-validation."),
    ("--stratify", "training.stratify", Names(), "Columns that the folds balance jointly with the outcome."),
    ("--epochs", "training.epochs", click.IntRange(1), "Epochs a fold."),
    ("--batch-size", "training.batch_size", click.IntRange(2), "Volumes a step."),
    ("--learning-rate", "training.learning_rate", click.FloatRange(0, min_open=True), "Of the optimizer."),
    (
        "--optimizer",
        "training.optimizer",
        OptimizerName(OPTIMIZERS),
        f"Which of Keras' optimizers; {', '.join(ADDONS_OPTIMIZERS)} need mgkeras[addons].",
    ),
    ("--lambda", "guidance.lambda_dice", click.FloatRange(0), "Weight of the Dice term (guided models)."),
    (
        "--guided-map",
        "guidance.guided_map",
        click.Choice(GUIDED_MAPS),
        "Which map the Dice term compares with the mask: the label's class map, the label's evidence, its strength.",
    ),
    ("--cam-map", "guidance.cam_map", click.Choice(CAM_MAPS), "How that map is brought to [0, 1]."),
    ("--dice-term", "guidance.dice_term", click.Choice(DICE_TERMS), "CE - lambda Dice, or CE - lambda log Dice."),
    ("--ce", "guidance.ce", click.Choice(CE_REDUCTIONS), "Cross-entropy's mean over a batch, or its sum."),
    (
        "--context-dropout",
        "guidance.context_dropout",
        click.FloatRange(0, 1),
        "Share of training volumes whose context, what lies outside the dilated mask, is changed (guided models).",
    ),
    (
        "--context",
        "guidance.context",
        click.Choice(CONTEXTS),
        "What stands there then: another training patient's tissue, a blur, noise, or a mix.",
    ),
    ("--dilation-mm", "guidance.dilation_mm", click.FloatRange(0), "The mask's dilation by a ball, in mm."),
    ("--augment", "training.augment", click.Choice(AUGMENTS), "The paper's 34 variants, or none."),
    ("--variants-per-epoch", "training.variants_per_epoch", click.IntRange(1, 34), "Drawn a volume and epoch."),
    ("--shift-voxels", "training.shift_voxels", click.IntRange(0), "How far the corner shifts go."),
    (
        "--class-weight",
        "training.class_weight",
        click.Choice(("none", "balanced")),
        "Weights of cross-entropy; balanced: inverse to each class's frequency in the fold.",
    ),
    ("--dropout", "backbone.dropout", click.FloatRange(0, 1, max_open=True), "Rate before the output layer."),
    ("--side", "volume.side", click.IntRange(16, 512), "Voxels along the cube's edge, a multiple of 8."),
    ("--enhancement", "mask.enhancement", click.FloatRange(0), "Gate of the tumour masks that fit makes itself."),
)


ALLOW_THIN = click.option(
    "--allow-thin", is_flag=True, help="Take exams of fewer than 4 slices, in which a 3D network sees nothing."
)


class Range(click.ParamType):
    """NUMBER, or LOW:HIGH or LOW:HIGH:log as a tuple (low, high, log); each number checked as the option's own type."""

    name = "number|low:high[:log]"

    def __init__(self, number: click.ParamType) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number, or (low, high, log)."""
        if not isinstance(value, str) or ":" not in value:
            return self.number.convert(value, param, ctx)
        low, high, *scale = value.split(":")
        ends = [self.number.convert(end, param, ctx) for end in (low, high)]
        if scale not in ([], ["log"]) or ends[0] >= ends[1] or (scale and ends[0] <= 0):
            self.fail(f"expected LOW:HIGH or LOW:HIGH:log, LOW < HIGH, above 0 for log. Received: {value}", param, ctx)
        return (*ends, bool(scale))


def together(*options: Callable) -> Callable:
    """Options of several commands as one decorator; the help shows the last one first."""

    def add(command: Callable) -> Callable:
        for option in options:
            command = option(command)
        return command

    return add


def settings_options(searched: Collection[str] = ()) -> Callable:
    """Adds an option for each of SETTINGS; those not given are absent from the values (see chosen_settings).

    Args:
        searched: options that take a range as well.
    """
    found = []
    for option, _, kind, text in reversed(SETTINGS):
        if option in searched:
            kind, text = Range(kind), f"{text} A number, or LOW:HIGH[:log] to search."
        found.append(click.option(option, _name(option), type=kind, help=f"{text}  [default: the preset's]"))
    text = "Hold out the subjects whose column split says test and train on train and val: one fold."
    leave_out = "A fold for each value of a column, as site: all of one are held out."
    return together(
        *found,
        click.option("--leave-out", metavar="COLUMN", help=leave_out),
        click.option("--split", is_flag=True, help=text),
    )


def chosen_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as {dotted setting: value}."""
    chosen = {dotted: values[_name(option)] for option, dotted, _, _ in SETTINGS if values[_name(option)] is not None}
    if values["leave_out"]:
        if values["split"] or chosen.keys() & {"training.folds", "training.stratify"}:
            raise click.UsageError("--leave-out makes the folds. Received: --split, --folds or --stratify too")
        return chosen | {"training.leave_out": values["leave_out"]}
    if not values["split"]:
        return chosen
    if chosen.keys() & {"training.folds", "training.stratify"}:
        raise click.UsageError("--split is one fold, that of the column split. Received: --folds or --stratify too")
    return chosen | {"training.split": True, "training.folds": 1}


def _name(option: str) -> str:
    return "set_" + option.removeprefix("--").replace("-", "_")


def run_options(out: str) -> Callable:
    """Adds ``table``, ``outcome``, ``preset_name``, ``out`` and ``cache``: what a run is made from and where it goes.

    Args:
        out: what the help tells of --out's default, which the command sets.
    """

    return together(
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path(".mgkeras-cache"),
            show_default=True,
            help="Where prepared volumes are kept, for all runs.",
        ),
        click.option(
            "--out", type=click.Path(file_okay=False, path_type=Path), help=f"Folder of the run.  [default: {out}]"
        ),
        click.option(
            "--preset",
            "preset_name",
            type=click.Choice(("paper", "demo")),
            help="Settings to start from.  [default: paper]",
        ),
        click.option("--outcome", help="The column to predict; needed where more than one could be."),
        click.option(
            "--cohort",
            "table",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="cohort.csv; needed. For a synthetic one see mgkeras demo and mgkeras phantom.",
        ),
    )


# precision, jit and s2d_blocks of training.devices.choose_device
device_options = together(
    click.option(
        "--space-to-depth",
        "s2d_blocks",
        type=click.IntRange(0, len(BackboneSettings().filters) - 1),
        default=None,
        help="Compute so many of the first blocks after space-to-depth: the same function in less time on a GPU.  "
        "[default: auto; 2 on a GPU in half precision, else 0]",
    ),
    click.option(
        "--jit/--no-jit",
        default=None,
        help="Compile the steps with XLA or not.  [default: auto; on a GPU unless --deterministic]",
    ),
    click.option(
        "--precision",
        type=click.Choice(("auto", "float32", "float16", "bfloat16")),
        default="auto",
        show_default=True,
        help="Of the convolutions; auto is float32 on a CPU, float16 on a GPU.",
    ),
)
# clinical, samples, seed, probe, occlusions and cache: how runs are evaluated
evaluation_options = together(
    click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(".mgkeras-cache"),
        show_default=True,
        help="Where prepared volumes are kept, for the probes.",
    ),
    click.option(
        "--occlusions",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Subjects a run with an occlusion map and randomised layers.",
    ),
    click.option(
        "--probe/--no-probe",
        default=True,
        show_default=True,
        help="Ask the models themselves what their decisions rest on; needs the exams where they were.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap."),
    click.option(
        "--samples",
        type=click.IntRange(100),
        default=2000,
        show_default=True,
        help="Bootstrap draws of subjects behind each 95 % interval.",
    ),
    click.option(
        "--clinical",
        type=Names(),
        default=(),
        help="Columns of the cohort table for a clinical baseline; no column that is known only after the exam.",
    ),
)


def trust_option(command: Callable) -> Callable:
    """Adds ``trust``: whether to go on with a run that was edited after its training."""
    text = "Go on where files of a run are not those that fit wrote; what is written of it says so."
    return click.option("--trust", is_flag=True, help=text)(command)


def printable(text: Any) -> str:
    """A text in which what a terminal would obey, or hide, is spelt out: \\x1b for an escape."""
    return "".join(one if one.isprintable() or one in "\n\t" else f"\\x{ord(one):02x}" for one in str(text))


def echo(text: Any, **options: Any) -> None:
    """click.echo of what tables, files and servers may have a part in."""
    click.echo(printable(text), **options)


class Terminal:
    """Progress: on a terminal a tick overwrites the last one, elsewhere each is a plain line."""

    def __init__(self) -> None:
        self.live, self.open = sys.stderr.isatty(), False

    def line(self, text: str) -> None:
        """A line that stays."""
        self._close()
        echo(text, err=True)

    def tick(self, text: str) -> None:
        """A line that the next tick may overwrite."""
        if not self.live:
            return self.line(text)
        width = shutil.get_terminal_size().columns - 1
        click.echo("\r" + printable(text)[:width].ljust(width), nl=False, err=True)
        self.open = True
        return None

    def counter(self, what: str) -> Callable[[int, int], None]:
        """A function of (done, of) that ticks; off a terminal only at every tenth part, not to fill a log."""

        def count(done: int, of: int) -> None:
            if self.live or done == of or done * 10 // of > (done - 1) * 10 // of:
                self.tick(f"  {what} {done}/{of}")

        return count

    def _close(self) -> None:
        if self.open:
            click.echo("", err=True)
        self.open = False


@contextmanager
def quiet_import() -> Iterator[None]:
    """Keeps the lines back that TensorFlow's C++ prints while it is imported; shows them if that fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def import_tensorflow() -> None:
    """Imports TensorFlow, quietly; call it before anything of mgkeras.training or mgkeras.models."""
    with quiet_import():
        import tensorflow as tf

        tf.constant(0)  # the first use prints too
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns that each fold traces a model of its own


def checked_cohort(path: Path, outcome: str | None, console: Terminal, **options: Any) -> Cohort:
    """A cohort without errors; problems are shown, all of them, before anything is done with it.

    Raises:
        CohortError: an error that may not be skipped.
    """
    from mgkeras.data.cohort import open_cohort

    console.line(f"checking every file of {path}")
    cohort, problems = open_cohort(path, outcome, **options)
    for problem in problems:
        console.line(str(problem))
    if cohort.invalid:
        console.line(f"{len(cohort.invalid)} subjects left out for their errors: {', '.join(cohort.invalid)}")
    if cohort.unlabelled:
        console.line(
            f"{len(cohort.unlabelled)} subjects left out, their {cohort.outcome} is empty: "
            f"{', '.join(cohort.unlabelled[:10])}{' ...' if len(cohort.unlabelled) > 10 else ''}"
        )
    return cohort
