"""`mgkeras phantom`: write a synthetic cohort."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN
from mgkeras.cli.terminal import Terminal, answer, echo

from mgkeras.settings import TRAPS


class Gone(click.ParamType):
    """An option of earlier versions, which says what to type now."""

    name = "float"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> None:
        """Refuses any value."""
        raise click.UsageError("--shortcut is now --trap spot --agreement P", ctx)


@click.command(name="phantom", cls=Command)
@click.argument("out", type=NOT_RUN)
@click.option(
    "--subjects", type=click.IntRange(1, 9999), default=100, show_default=True, help="Make this many patients."
)
@click.option(
    "--side",
    type=click.IntRange(16, 512),
    default=48,
    show_default=True,
    help="Make exams of this many voxels along their longest side; train with the same --side.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32),
    default=0,
    show_default=True,
    help="Draw patients by this seed: the same seed gives the same files.",
)
@click.option(
    "--trap",
    "traps",
    type=click.Choice(TRAPS),
    multiple=True,
    help="Let this trap agree with recurrence, beside the tumour's texture; repeatable.  [default: none]",
)
@click.option(
    "--agreement",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Set the probability that a trap is on exactly where recurrence is 1; 0.5 is harmless.",
)
@click.option(
    "--size-with-label",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Tie the tumours' volume to recurrence this much: 2 AUC - 1 of recurrence by volume.",
)
@click.option("--shortcut", type=Gone(), expose_value=False, hidden=True, help="Now --trap spot --agreement P.")
def command(
    out: Path,
    subjects: int,
    side: int,
    seed: int,
    traps: tuple[str, ...],
    agreement: float,
    size_with_label: float,
) -> None:
    """Write a synthetic cohort of breast exams to the folder OUT.

    \b
    OUT/cohort.csv            a row per patient: files, site, age, two outcomes
    OUT/images/*.nii.gz       the pre, early and late phases of each patient
    OUT/truth/*.nii.gz        the tumours' true masks, not named in cohort.csv
    OUT/truth/phantom.json    what it was made from
    OUT/truth/truth.csv       tumours' sizes (mm, voxels, cells), traps, geometry

    The outcome recurrence is written in the tumour's texture (a bright rim or none), her2 in its shape (lobulated or
    smooth; empty for 5 %). Age and site carry nothing, unless a trap is set:

    \b
    spot         a bright ball at the chest wall, far from the tumour
    marker       a bright block in the air, in a corner, as if burnt in
    near         a bright ball just outside the tumour
    bias         a coil's gain from left to right, or the other way round
    noise        the noise's level
    enhancement  the enhancement of everything but the tumour
    site         the scanner: geometry and gain

    Next: mgkeras fit --model guided --preset demo OUT/cohort.csv --outcome recurrence
    """
    from mgkeras.phantom.cohort import make_phantom

    try:
        cohort = make_phantom(
            out,
            subjects=subjects,
            side=side,
            seed=seed,
            traps=traps,
            agreement=agreement,
            size_with_label=size_with_label,
            progress=Terminal().counter("patients"),
        )
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    echo(cohort)
    answer(cohort=cohort, subjects=subjects)
    fitted = f"--side {side} {quote(str(cohort))} --outcome recurrence"
    echo(f"Next: mgkeras fit --model guided --preset demo {fitted}")
