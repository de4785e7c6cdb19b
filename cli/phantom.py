"""`mgkeras phantom`: write a synthetic cohort."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="phantom")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--subjects", type=click.IntRange(1, 9999), default=100, show_default=True, help="How many patients.")
@click.option("--side", type=click.IntRange(16, 512), default=48, show_default=True,
              help="Voxels along the longest side of an exam; train with the same --side.")
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
              help="Same seed, same bytes; another seed, other patients.")
@click.option("--shortcut", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Probability that a bright spot at the chest wall, far from the tumour, agrees with recurrence: "
                   "0.95 is a trap, 0.5 is harmless.")
def command(out: Path, subjects: int, side: int, seed: int, shortcut: float) -> None:
    """Write a synthetic cohort of breast exams to the folder OUT.

    \b
    OUT/cohort.csv            a row per patient: files, site, age, and two outcomes
    OUT/images/*.nii.gz       T0 (pre), T1 (early) and T2 (late) of each patient
    OUT/truth/*.nii.gz        the tumours' true masks, which the cohort does not name
    OUT/truth/phantom.json    what it was made from
    OUT/truth/truth.csv       tumour sizes (mm, voxels, map cells), spots, geometry

    The outcome recurrence is written in the tumour's texture (a bright rim or none), her2 in its shape (lobulated or
    smooth; empty for 5 %). Age and site carry nothing.

    Next: mgkeras fit --model guided --preset demo --cohort OUT/cohort.csv --outcome recurrence
    """
    from mgkeras.data.phantom import make_phantom

    def progress(done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            click.echo(f"{done} of {total} patients", err=True)

    try:
        cohort = make_phantom(out, subjects=subjects, side=side, seed=seed, shortcut=shortcut, progress=progress)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    click.echo(cohort)
    click.echo(f"Next: mgkeras fit --model guided --preset demo --side {side} --cohort {cohort} --outcome recurrence")
