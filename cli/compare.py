"""`mgkeras compare`: runs on the same folds side by side, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from mgkeras.cli.options import Terminal

PICTURED = 3


@click.command(name="compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("comparison"), show_default=True,
              help="Folder to write to.")
def command(runs: Sequence[Path], out: Path) -> None:
    """Set RUNS of `mgkeras fit` on the same folds side by side.

    \b
    OUT/table.md         a row a model, in the form of the paper's Table 3, and tests between the models
    OUT/comparison.json  the same as numbers
    OUT/figure3.png      as the paper's Figure 3: the tumour's mask, and where each model looked
    OUT/curves.png       cross-entropy and Dice by epoch
    """
    compare(list(runs), out, Terminal())


def compare(runs: Sequence[Path], out: Path, console: Terminal) -> None:
    """Writes the comparison's files and prints its table."""
    from mgkeras.evaluation.comparison import as_markdown, as_text, comparison
    from mgkeras.evaluation.figures import figure3, training_curves
    from mgkeras.training.pictures import figure3_panels, run_histories
    from mgkeras.training.run import write_json, write_text

    found = comparison(runs)
    names = [run.name for run in found["runs"]]
    tables = [as_markdown(found[part]) for part in ("rows", "pair_rows") if found[part]]
    write_text(out / "table.md", "\n".join([*tables, found["note"]]) + "\n")
    write_json(out / "comparison.json", {key: found[key] for key in ("rows", "pairs", "note")})
    panels, outcome = figure3_panels(runs, names, PICTURED)
    figure3(out / "figure3.png", panels, outcome=outcome)
    training_curves(out / "curves.png", run_histories(runs, names))
    click.echo(as_text(found["rows"]))
    if found["pair_rows"]:
        click.echo(as_text(found["pair_rows"]))
    for name in ("table.md", "figure3.png", "curves.png", "comparison.json"):
        click.echo(out / name)
    console.line(f"Next: look at {out / 'figure3.png'}; then your own exams: `mgkeras --help` tells how")
