"""`mgkeras compare`: runs on the same folds side by side, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN, THERE, Names, trust_option
from mgkeras.cli.terminal import Terminal, answer, echo

PICTURED = 3


def _planes(context: click.Context, option: click.Parameter, named: tuple[str, ...]) -> tuple[str, ...]:
    from mgkeras.figures.figure3 import PLANES

    if not named or not set(named) <= set(PLANES):
        raise click.BadParameter(f"expected some of {', '.join(PLANES)}, parted by commas. Received: {','.join(named)}")
    return named


@click.command(name="compare", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=THERE)
@click.option(
    "--out",
    type=NOT_RUN,
    default=Path("comparison"),
    show_default=True,
    help="Write to this folder.",
)
@click.option(
    "--subject",
    "subjects",
    type=Names(),
    default=(),
    help="Show these subjects in figure3.png.  [default: of the last run's maps the best, the median and the worst by "
    "mass in the tumour]",
)
@click.option(
    "--plane",
    "planes",
    type=Names(),
    default="axial",
    show_default=True,
    callback=_planes,
    help="Cut subjects in these planes in figure3.png, through the tumour's largest slice: axial, coronal, sagittal.",
)
@trust_option
def command(runs: Sequence[Path], out: Path, subjects: tuple[str, ...], planes: tuple[str, ...], trust: bool) -> None:
    """Set RUNS of `mgkeras fit` on the same folds side by side.

    \b
    OUT/table.md         a row for each model, in the form of the paper's Table 3,
                         and tests between the models
    OUT/comparison.json  the same as numbers
    OUT/figure3.png      as the paper's Figure 3: the tumour's mask, and where
                         each model has its evidence
    OUT/curves.png       cross-entropy and Dice by epoch

    \b
    Example: mgkeras compare runs/no-mask runs/guided \\
                 --subject A001,A002 --plane axial,sagittal
    """
    found = compare(list(runs), out, Terminal(), subjects=subjects, planes=planes, trust=trust)
    answer(folder=out, **found)


def compare(
    runs: Sequence[Path],
    out: Path,
    console: Terminal,
    *,
    subjects: Sequence[str] = (),
    planes: Sequence[str] = ("axial",),
    trust: bool = False,
) -> dict[str, Any]:
    """Writes the comparison's files and prints its table; nothing is written where a run or subject cannot be used.

    Returns the content of comparison.json.
    """
    from mgkeras.data.markdown import escaped
    from mgkeras.data.volume import ExamError
    from mgkeras.figures.figure3 import figure3, training_curves
    from mgkeras.figures.pictures import figure3_panels, run_histories
    from mgkeras.runs.store import write_json, write_text
    from mgkeras.scores.comparison import comparison
    from mgkeras.scores.format import as_markdown, as_text

    found = comparison(runs, trust=trust)
    models = [run.name for run in found["runs"]]
    try:
        panels, outcome = figure3_panels(runs, models, PICTURED, subjects=subjects)
    except ExamError as error:
        if subjects:
            raise
        panels = []
        console.line(f"no figure3.png: {error}")
    tables = [as_markdown(found[part]) for part in ("rows", "pair_rows") if found[part]]
    write_text(out / "table.md", "\n".join([*tables, escaped(found["note"])]) + "\n")
    numbers = {key: found[key] for key in ("rows", "pairs", "note")}
    write_json(out / "comparison.json", numbers)
    (out / "figure3.png").unlink(missing_ok=True)  # of an earlier call
    if panels:
        figure3(out / "figure3.png", panels, outcome=outcome, planes=planes)
    training_curves(out / "curves.png", run_histories(runs, models))
    echo(as_text(found["rows"]))
    if found["pair_rows"]:
        echo(as_text(found["pair_rows"]))
    for path in (out / name for name in ("table.md", "figure3.png", "curves.png", "comparison.json")):
        if path.exists():
            echo(path)
    console.next("`mgkeras report` on the same runs: what their decisions rest on, and the exams with their maps")
    return numbers
