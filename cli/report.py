"""`mgkeras report`: one HTML file that a radiologist opens: findings, the exams with their maps, and 15 items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from mgkeras.cli.evaluate import ask_runs
from mgkeras.cli.options import Terminal, echo, evaluation_options, trust_option


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(1),
    default=15,
    show_default=True,
    help="How large the file may grow by exams; those that do not fit are counted in it.",
)
@evaluation_options
@trust_option
def command(
    runs: Sequence[Path],
    out: Path,
    max_mb: float,
    clinical: tuple[str, ...],
    samples: int,
    seed: int,
    probe: bool,
    occlusions: int,
    cache: Path,
    trust: bool,
) -> None:
    """Write one HTML file about RUNS of `mgkeras fit` on the same folds.

    It opens with findings in words: what each model's map shows, and what its decision rests on. Then a viewer: the
    best, the median and the worst map of the last guided model and the last model's errors, T1 with mask and maps to
    leaf through. Then 15 items of CLAIM, TRIPOD+AI and METRICS, with tables and pictures, and what the runs' files do
    not tell. The scores are those of `mgkeras evaluate`.

    The file needs no network and no other file; it holds exams, so treat it like them.

    \b
    Example: mgkeras report runs/no-mask runs/guided --clinical age,er --out report.html
    """
    console = Terminal()
    if probe:
        ask_runs(list(runs), clinical, cache, occlusions, console, trust)
    report_runs(list(runs), out, clinical, console, max_mb=max_mb, samples=samples, seed=seed, trust=trust)


def report_runs(
    runs: Sequence[Path],
    out: Path,
    clinical: Sequence[str],
    console: Terminal,
    *,
    max_mb: float = 15,
    samples: int = 2000,
    seed: int = 0,
    trust: bool = False,
) -> None:
    """Scores the runs, draws the pictures, collects the exams and writes the file."""
    console.line(f"scoring {len(runs)} runs with {samples} bootstrap draws")
    from mgkeras.evaluation.evaluate import evaluate
    from mgkeras.figures.pictures import held_out_maps
    from mgkeras.report.collect import report_facts, viewer
    from mgkeras.report.page import draw, page, room
    from mgkeras.runs.store import write_text

    found = evaluate(runs, clinical=clinical, samples=samples, seed=seed, maps_of=held_out_maps, trust=trust)
    for told in found.results["edited"]:
        console.line(f"warning: {told}")
    folders = {model["name"]: Path(model["folder"]) for model in found.results["models"] if model.get("folder")}
    facts = report_facts(folders)
    console.line("drawing the pictures")
    drawn = draw(found, facts)
    exams = viewer(folders, facts, room(found, facts, drawn, max_mb * 1e6), console.counter("exams"))
    write_text(out, page(found, facts, drawn, exams))
    echo(out)
    shown = f"{len(exams.cases)} exams in it" + (f", {len(exams.left_out)} left out" if exams.left_out else "")
    console.line(f"{out.stat().st_size / 1e6:.1f} MB, {shown}; open it in a browser, no network is needed")
    for name, why in (exams.unread or {}).items():
        console.line(f"not shown: {name}: {why}")
