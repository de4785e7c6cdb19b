"""Options that several commands share: the cohort, where things go, devices, how runs are evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.terminal import Terminal

from mgkeras.errors import few
from mgkeras.settings import PRESETS, BackboneSettings, Settings

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort


class _NotRun(click.Path):
    """A folder that holds no run."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        path = Path(str(super().convert(value, param, ctx)))
        if (path / "settings.json").exists() and (path / "folds.json").exists():
            self.fail(f"expected a folder that holds no run, whose files would be written over. Received: {path}")
        return path


FOLDER = click.Path(file_okay=False, path_type=Path)
NOT_RUN = _NotRun(file_okay=False, path_type=Path)  # where a command other than fit writes
TABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
THERE = click.Path(exists=True, file_okay=False, path_type=Path)


class Names(click.ParamType):
    """NAME,NAME,... as a tuple; a name given twice counts once."""

    name = "name,name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, without surrounding space."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


def together(*options: Callable) -> Callable:
    """Options of several commands as one decorator; the help shows the last one first."""

    def add(command: Callable) -> Callable:
        for option in options:
            command = option(command)
        return command

    return add


def gathered(name: str, kind: Callable[..., Any], *options: Callable) -> Callable:
    """As together, for options whose values a command gets as one argument ``name``: kind(**values)."""

    def add(command: Callable) -> Callable:
        before = len(getattr(command, "__click_params__", ()))
        command = together(*options)(command)
        own = [param.name for param in reversed(command.__click_params__[before:])]  # type: ignore[attr-defined]

        @functools.wraps(command)
        def called(*args: Any, **values: Any) -> Any:
            values[name] = kind(**{option: values.pop(option) for option in own})
            return command(*args, **values)

        return called

    return add


@dataclass(frozen=True)
class Scoring:
    """How runs are evaluated, as the options of evaluate, report and study ask for it.

    Attributes:
        clinical: columns of the cohort for a clinical baseline.
        samples, seed: of the bootstrap.
        probe: whether the models are probed first.
        occlusions: subjects a run of whom occlusion maps are made.
        cache: folder of prepared volumes, for the probes.
        trust: whether to go on with runs that were edited.
    """

    clinical: tuple[str, ...]
    samples: int
    seed: int
    probe: bool
    occlusions: int
    cache: Path
    trust: bool

    @property
    def scores(self) -> dict[str, Any]:
        """The arguments of evaluation.evaluate."""
        return {"clinical": self.clinical, "samples": self.samples, "seed": self.seed, "trust": self.trust}


ALLOW_THIN = click.option(
    "--allow-thin", is_flag=True, help="Take exams of fewer than 4 slices, in which a 3D network sees nothing."
)


DETERMINISTIC = click.option(
    "--deterministic", is_flag=True, help="Give the same numbers again on the same device and versions; it is slower."
)
SKIP_INVALID = click.option(
    "--skip-invalid", is_flag=True, help="Leave subjects with errors out, by name, instead of stopping."
)


def cache_option(text: str = "Keep prepared volumes here, for all runs.") -> Callable:
    """Adds ``cache``: the folder of prepared volumes."""
    return click.option("--cache", type=FOLDER, default=Path(".mgkeras-cache"), show_default=True, help=text)


def run_options(out: str) -> Callable:
    """Adds ``table``, ``outcome``, ``preset_name``, ``out`` and ``cache``: what a run is made from and where it goes.

    Args:
        out: what the help tells of --out's default, which the command sets.
    """
    return together(
        cache_option(),
        click.option("--out", type=FOLDER, help=f"Write the run to this folder.  [default: {out}]"),
        click.option(
            "--preset",
            "preset_name",
            type=click.Choice(PRESETS),
            default=PRESETS[0],
            show_default=True,
            help="Start from these settings.",
        ),
        click.option("--outcome", help="Predict this column; needed where more than one could be."),
        click.argument("table", required=False, type=TABLE, metavar="COHORT"),
    )


def trust_option(command: Callable) -> Callable:
    """Adds ``trust``: whether to go on with a run that was edited after its training."""
    text = "Go on where files of a run are not those that fit wrote; what is written of it says so."
    return click.option("--trust", is_flag=True, help=text)(command)


# how: precision, jit and s2d_blocks of training.devices.choose_device
device_options = gathered(
    "how",
    dict,
    click.option(
        "--space-to-depth",
        "s2d_blocks",
        type=click.IntRange(0, len(BackboneSettings().filters) - 1),
        default=None,
        help="Compute this many of the first blocks after space-to-depth: the same function in less time on a GPU.  "
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
        help="Compute convolutions in this precision; auto is float32 on a CPU, float16 on a GPU.",
    ),
)
evaluation_options = gathered(
    "scoring",
    Scoring,
    trust_option,
    cache_option("Keep prepared volumes here, for the probes."),
    click.option(
        "--occlusions",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Make occlusion maps and randomise layers for this many subjects a run.",
    ),
    click.option(
        "--probe/--no-probe",
        default=True,
        show_default=True,
        help="Ask the models themselves what their decisions rest on; needs the exams where they were.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed the bootstrap with this."),
    click.option(
        "--samples",
        type=click.IntRange(100),
        default=2000,
        show_default=True,
        help="Draw subjects this many times for each 95 % interval.",
    ),
    click.option(
        "--clinical",
        type=Names(),
        default=(),
        help="Make a clinical baseline of these columns of the cohort; name none that is known only after the exam.",
    ),
)


def cohort_of_run(path: Path, outcome: str | None, settings: Settings, console: Terminal, **options: Any) -> Cohort:
    """As checked_cohort, with the columns and the subjects of each class that a run with these settings needs."""
    from mgkeras.data.phases import needed_columns
    from mgkeras.runs.folds import drawn_folds

    need, folds = needed_columns(settings.volume), drawn_folds(settings.training)
    return checked_cohort(path, outcome, console, need=need, folds=folds, **options)


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
            f"{len(cohort.unlabelled)} subjects left out, their {cohort.outcome} is empty: {few(cohort.unlabelled, 10)}"
        )
    return cohort
