"""A finished run probed: its input blurred, its layers randomised, the phantom's traps added and removed.

Writes RUN/probes/: subjects.csv (a row a subject), ledger.csv (what each part of the exam brings to the log-odds),
random_network.csv (where the map of an untrained network lies), shapes.csv (the masks' shapes), occlusion.h5 (the
occlusion maps), features.h5 (what is pooled) and, last, probes.json. What the probes are is said in probes.scores,
interventions, ledger, shape and site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mgkeras.data.cache import Cache, cached, file_digest
from mgkeras.data.context import CANDIDATES
from mgkeras.figures.pictures import decision_maps
from mgkeras.inference.forward import forward_of
from mgkeras.inference.predict import load_fold
from mgkeras.models.weights import write_arrays
from mgkeras.probes import scores as probes
from mgkeras.probes.fold import BOXES, Fold, probe_fold
from mgkeras.probes.ledger import NO_LEDGER
from mgkeras.probes.robustness import mask_robustness
from mgkeras.probes.seen import Seen, seen, write_seen
from mgkeras.probes.shape import shape_rows
from mgkeras.probes.transplant import altered_rows
from mgkeras.runs import store
from mgkeras.runs.digests import PROBES, with_digests
from mgkeras.runs.exams import check_unchanged, run_subjects
from mgkeras.scores.comparison import read_run
from mgkeras.settings import Settings
from mgkeras.training.progress import Console


def probe_run(run: Path, cache_folder: Path, console: Console, *, occlusions: int = 10, seed: int = 0) -> Path:
    """Probes every finished fold on its held-out subjects; a run that was probed so before is left as it is.

    Args:
        run: folder of a finished run.
        cache_folder: where caches of volumes are kept.
        console: gets the progress.
        occlusions: subjects with an occlusion map and randomised layers, spread evenly over the predicted probability.
        seed: of the random weights.

    Returns:
        RUN/probes.

    Raises:
        RunError: a fold is not finished. ExamError: the run's exams are not where it found them, or have changed.
    """
    out, settings, folders = run / "probes", store.load_settings(run), store.done_folds(run)
    if len(folders) < settings.training.folds:
        raise store.RunError(
            f"expected {settings.training.folds} finished folds in {run}. Received: {len(folders)}; "
            "the same fit command finishes them"
        )
    weights = {folder.name: file_digest(folder / "weights.h5") for folder in folders}
    wanted = {"format": probes.FORMAT, "occlusions": occlusions, "seed": seed, "weights": weights}
    if (out / "probes.json").exists() and store.read_json(out / "probes.json").get("asked") == wanted:
        return out
    subjects = tuple(run_subjects(run).values())
    check_unchanged(run, subjects)
    out.mkdir(exist_ok=True)  # before the work, so that a folder that may not be written to is told at once
    fold_of = store.read_json(run / "folds.json")["held_out_in"]
    cache = cached(subjects, settings, cache_folder, console.counter("volumes"), console.line)
    place = np.array([fold_of[name] for name in cache.subjects])
    sample = _spread(run, occlusions)
    rows: dict[str, dict[str, Any]] = {}
    untrained: list[dict[str, Any]] = []
    maps: dict[str, np.ndarray] = {}
    looks: list[Seen] = []
    for count, folder in enumerate(folders):
        number = int(folder.name.split("_")[1])
        model = load_fold(folder, settings)
        fold = Fold(
            number, np.flatnonzero(place == number), np.flatnonzero(place != number), cache, model, forward_of(model)
        )
        labels = [subjects[row].label for row in fold.held_out]
        if len(labels) > CANDIDATES and not settings.uses_box:
            console.line(
                f"  fold {number + 1}: {CANDIDATES} of {len(labels)} exams are those that tumours are put into"
            )
        look, altered = seen(fold, labels), altered_rows(fold, labels)  # before the next, which undoes the weights
        asked = probe_fold(fold, subjects, [row for row in fold.held_out if cache.subjects[row] in sample], seed)
        for row, *more in zip(fold.held_out, altered, look.controls, strict=True):
            asked.rows[cache.subjects[row]].update(more[0] | more[1])
        looks.append(look)
        rows, untrained, maps = rows | asked.rows, untrained + asked.untrained, maps | asked.occlusions
        del fold, model
        keras.backend.clear_session()
        console.tick(f"  {settings.model}: fold {count + 1}/{len(folders)} probed")
    (out / "probes.json").unlink(missing_ok=True)  # what it says is there, is there
    store.write_json(out / "masks.json", mask_robustness(_maps(run, cache)))
    store.write_rows(out / "shapes.csv", shape_rows(cache, subjects, settings))
    write_seen(out, looks)
    _write(out, wanted, cache, settings, rows, untrained, maps)
    return out


def _maps(run: Path, cache: Cache) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """(decision map of the predicted class, attention, mask, voxel_mm) of each held-out subject, where stored."""
    row_of = {name: row for row, name in enumerate(cache.subjects)}
    for name, cam, attention in decision_maps(run):
        if attention is not None:
            yield cam, attention, np.asarray(cache.mask[row_of[name], 0]), float(cache.voxel_mm[row_of[name]])


def _spread(run: Path, count: int) -> set[str]:
    """Subjects spread evenly over their held-out probability, so that sure and unsure ones are among them."""
    held_out = read_run(run).held_out
    ranked = sorted(held_out, key=lambda name: (held_out[name][2], name))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return {ranked[place] for place in places}


def _write(
    out: Path,
    wanted: Mapping[str, Any],
    cache: Cache,
    settings: Settings,
    rows: Mapping[str, dict],
    untrained: Sequence[dict],
    maps: Mapping[str, np.ndarray],
) -> None:
    """The files, probes.json last."""
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    store.write_rows(out / "subjects.csv", list(rows.values()))
    store.write_rows(out / "random_network.csv", untrained)
    names = np.array(list(maps), dtype="S")
    effects = np.array(list(maps.values()), np.float32)
    write_arrays(
        out / "occlusion.h5",
        {"subject": names, "effect": effects},
        {"effect": "(n, b, b, b) fall of the log-odds of the predicted class when a block is blurred"},
    )
    radii = [{"mm": mm} for mm in probes.DILATIONS_MM]
    layers = [name.removeprefix("rank_random_") for name in columns if name.startswith("rank_random_")]
    boxes = [name for name in BOXES if f"p_box_{name}" in columns]
    guidance = settings.guidance
    about = {
        "asked": dict(wanted),
        "dilations": radii,
        "layers": layers,
        "boxes": boxes,
        "grid": effects.shape[1] if len(effects) else 0,
        "swap_trained": guidance.context_dropout > 0 and guidance.context in ("swap", "mix"),
        "ledger": (out / "ledger.csv").exists(),
        "no_ledger": NO_LEDGER if settings.backbone.last_pool else "",
    }
    store.write_json(out / "probes.json", with_digests(out.parent, PROBES, about))
