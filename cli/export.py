"""`mgkeras export`: a run as a SavedModel that TensorFlow Serving serves."""

from __future__ import annotations

from pathlib import Path

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import NOT_RUN, TABLE, THERE, trust_option
from mgkeras.cli.terminal import Terminal, answer, echo, import_tensorflow

EVALUATION = Path("evaluation") / "evaluation.json"


@click.command(name="export", cls=Command)
@click.argument("run", type=THERE)
@click.option(
    "--out",
    type=NOT_RUN,
    default=None,
    help="Write the served model to this folder, whose name is the model's.  [default: served/RUN's name]",
)
@click.option(
    "--fold",
    type=click.IntRange(1),
    default=None,
    help="Serve one fold's model, counted from 1 as by fit: 1 is RUN/fold_0.  [default: all folds, their mean]",
)
@click.option(
    "--evaluation",
    type=TABLE,
    default=None,
    help=f"Take the card's scores from this evaluation.json of the run.  [default: {EVALUATION}, if it has the run]",
)
@trust_option
def command(run: Path, out: Path | None, fold: int | None, evaluation: Path | None, trust: bool) -> None:
    """Write RUN, a folder of `mgkeras fit`, for TensorFlow Serving.

    The next version is added to OUT; a server that watches it takes it up. Signatures:

    \b
    serving_default  preprocessed cubes -> probabilities
    explain          preprocessed cubes -> probabilities, class, decision map on
                     the cube
    predict_bytes    cubes as zlib-compressed float16 -> probabilities, class, the
                     map's cells
    predict_exam     raw early volumes and voxel sizes -> the same, and the map on
                     the exam (not for mask-only)

    \b
    OUT/VERSION/saved_model.pb      the graph, with variables/ its weights; it is
                                    served without Python
    OUT/VERSION/model-card.md       data, scores, settings, purpose and limits
    OUT/VERSION/preprocessing.json  every number that a client needs
    OUT/VERSION/assets.extra/       requests to warm a server up (pip install
                                    'mgkeras[serving]')

    \b
    Serve it:  docker run -p 8500:8500 -p 8501:8501 -e MODEL_NAME=NAME \\
                   -v "$PWD/served/NAME:/models/NAME" tensorflow/serving:2.20.0
    """
    import_tensorflow()
    from mgkeras.serving.card import has_run
    from mgkeras.serving.export import export_run

    console = Terminal()
    if evaluation is None and EVALUATION.is_file() and has_run(EVALUATION, run):
        evaluation = EVALUATION
    chosen = None if fold is None else fold - 1
    done = export_run(run, out or Path("served") / run.resolve().name, fold=chosen, evaluation=evaluation, trust=trust)
    what = f"the mean of {len(done.folds)} folds" if len(done.folds) > 1 else f"fold_{done.folds[0]}"
    console.line(f"{what}: {', '.join(done.signatures)}")
    for note in done.notes:
        console.line(f"note: {note}")
    echo(done.path)
    answer(path=done.path, folds=done.folds, signatures=done.signatures, notes=done.notes)
