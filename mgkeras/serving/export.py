"""A run in, a SavedModel in TensorFlow Serving's layout out: NAME/VERSION/, a number higher than all before.

NAME/VERSION/ holds saved_model.pb and variables/ (see graph.signatures_of), model-card.md, preprocessing.json and,
where tensorflow-serving-api is installed, assets.extra/tf_serving_warmup_requests. It appears whole: a server that
watches NAME never sees half a version.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from mgkeras.inference.predict import load_fold
from mgkeras.runs import store
from mgkeras.serving import card, graph, warmup
from mgkeras.settings import Settings

# what a mask-only run cannot serve, and why
BOX_NOTE = (
    "predict_exam is left out: a mask-only model looks at the box around the tumour, which an exam alone does "
    "not give. Its signatures take the box's cube, see preprocessing.json."
)


@dataclass(frozen=True)
class Exported:
    """What `mgkeras export` wrote.

    Attributes:
        path: NAME/VERSION.
        folds: whose models are served.
        signatures: their names.
        notes: sentences about what is missing or must be known.
    """

    path: Path
    folds: tuple[int, ...]
    signatures: tuple[str, ...]
    notes: tuple[str, ...]


def export_run(
    run: Path, out: Path, *, fold: int | None = None, evaluation: Path | None = None, trust: bool = False
) -> Exported:
    """Writes a run's models as the next version of the served model ``out``.

    Args:
        run: folder of a run of `mgkeras fit`.
        out: folder of the served model, its name; made where it is missing.
        fold: the number of one fold's folder; None for all folds as an ensemble.
        evaluation: evaluation.json of `mgkeras evaluate` with this run, for more scores in the card.
        trust: whether to export a run that was edited after its training; the card and the notes say so.

    Raises:
        RunError: no such run, fold or evaluation, folds that are not finished, or another export into ``out``.
        EditedRun: without ``trust``, the run was edited after its training.
    """
    edited = store.check_run(run, trust=trust)
    settings = store.load_settings(run)
    folders = _chosen(run, settings, fold)
    facts = card.read_facts(run, settings, tuple(folders), evaluation)
    models = {number: load_fold(folder, settings) for number, folder in folders.items()}
    signatures = graph.signatures_of(list(models.values()), settings)
    shapes = {name: graph.shapes_of(function) for name, function in signatures.items()}
    notes = [*edited, *([BOX_NOTE] if settings.uses_box else [])]
    with store.locked(out):
        for left in out.glob(".export-*.part"):  # of a process that was killed: it held the lock
            shutil.rmtree(left)
        temporary = out / f".export-{os.getpid()}.part"
        try:
            options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it on
            tf.saved_model.save(graph.module_of(models), str(temporary), signatures=signatures, options=options)
            if not warmup.write_warmup(temporary, out.resolve().name, signatures, settings.volume):
                notes.append(f"no warm-up requests: they need {warmup.NEEDED}")
            store.write_json(temporary / "preprocessing.json", card.preprocessing(facts, shapes))
            store.write_text(temporary / "model-card.md", card.model_card(facts, shapes, notes))
            path = out / str(next_version(out))
            os.rename(temporary, path)
        except tf.errors.OpError as error:  # as OSError reads better, which the others raise
            raise store.RunError(f"{out} cannot be written: {error.message.splitlines()[0]}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Exported(path, tuple(folders), tuple(signatures), tuple(notes))


def next_version(out: Path) -> int:
    """One more than the highest number among the names in a folder; 1 where there is none."""
    return 1 + max((int(path.name) for path in out.iterdir() if path.name.isdecimal()), default=0)


def _chosen(run: Path, settings: Settings, fold: int | None) -> dict[int, Path]:
    """The folders of the folds to serve, by number."""
    done = {int(folder.name.split("_")[1]): folder for folder in store.done_folds(run)}
    names = ", ".join(f"fold_{number}" for number in done) or "none"
    finished = f"{names} of {settings.training.folds} finished in {run}"
    if fold is None and len(done) < settings.training.folds:
        raise store.RunError(
            f"expected every fold to be finished. Received: {finished}. Run the same `mgkeras fit` "
            "again, or export one fold with --fold."
        )
    if fold is not None and fold not in done:
        raise store.RunError(f"expected a finished fold. Received: fold_{fold}; {finished}")
    return done if fold is None else {fold: done[fold]}
