"""A finished run probed: its input blurred, its layers randomised, the phantom's shortcut added and removed.

Writes RUN/probes/: subjects.csv (a row a subject), random_network.csv (where the map of an untrained network lies),
occlusion.h5 (the occlusion maps) and, last, probes.json. What the probes are is said in evaluation.probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mgkeras.data.cache import Cache, cached, exam_cube, file_digests
from mgkeras.data.cohort import Subject, read_cohort
from mgkeras.data.phantom import has_spot, phantom_folder, with_spot
from mgkeras.data.stream import plain_stream
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import Volume
from mgkeras.evaluation import probes
from mgkeras.evaluation.attention import body_of, pool
from mgkeras.evaluation.comparison import read_run
from mgkeras.evaluation.robustness import mask_robustness
from mgkeras.models.context import blurred_inside, blurred_outside
from mgkeras.models.guided import MaskGuided, build_model
from mgkeras.models.weights import read_arrays, write_arrays
from mgkeras.settings import Settings
from mgkeras.training import run as files
from mgkeras.training.apply import load_fold
from mgkeras.training.crossval import Console
from mgkeras.training.fit import fold_seed, recompute_batch_norm
from mgkeras.training.predict import Forward, attention_rows, forward_of, score_rows

FORMAT = 1
RANDOM = 777_767_777  # ours: added to a fold's seed, so that the random network is not the one that was trained
MOMENTS = 12  # ours, because a randomised layer needs moments, but only roughly: volumes that they are made from
BLURS = {"outside": blurred_outside, "inside": blurred_inside}
BOXES = {  # ours: how a mask-only model's box moves, margin in mm and shift toward R, A, S in mm
    "dilated 4 mm": (4.0, (0, 0, 0)), "eroded 2 mm": (-2.0, (0, 0, 0)), "shifted 4 mm to R": (0.0, (4, 0, 0)),
    "shifted 4 mm to A": (0.0, (0, 4, 0)), "shifted 4 mm to S": (0.0, (0, 0, 4)),
}  # fmt: skip
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fold:
    """A fold being probed: which one, its held-out and training cache rows, its model and that as a function."""

    number: int
    held_out: np.ndarray
    train: np.ndarray
    model: MaskGuided
    forward: Forward


def probe_run(run: Path, cache_folder: Path, console: Console, *, occlusions: int = 16, seed: int = 0) -> Path:
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
        RunError: the run's exams are not where it found them, or have changed.
    """
    out, wanted = run / "probes", {"format": FORMAT, "occlusions": occlusions, "seed": seed}
    if (out / "probes.json").exists() and files.read_json(out / "probes.json")["asked"] == wanted:
        return out
    settings = files.load_settings(run)
    subjects = _subjects(run, settings)
    fold_of = files.read_json(run / "folds.json")["held_out_in"]
    cache = cached(subjects, settings, cache_folder, console.counter("volumes"))
    place = np.array([fold_of[name] for name in cache.subjects])
    sample = _spread(run, occlusions)
    rows: dict[str, dict[str, Any]] = {}
    untrained, maps = [], {}
    for count, folder in enumerate(folders := files.done_folds(run)):
        number = int(folder.name.split("_")[1])
        model = load_fold(folder, settings)
        fold = Fold(number, np.flatnonzero(place == number), np.flatnonzero(place != number), model, forward_of(model))
        chosen = np.array([row for row in fold.held_out if cache.subjects[row] in sample], int)
        columns = _causal(fold, cache, settings)
        own = [subjects[row] for row in fold.held_out]
        columns |= _spots(fold, own, columns["probability"], settings) | _boxes(fold, own, settings)
        for at, row in enumerate(fold.held_out):
            rows[cache.subjects[row]] = {"subject": cache.subjects[row], "fold": number, "label": subjects[row].label,
                                         **{name: _cell(values[at]) for name, values in columns.items()}}  # fmt: skip
        for row, scores, effect in _occlusions(fold, cache, chosen, settings):
            rows[cache.subjects[row]] |= scores
            maps[cache.subjects[row]] = effect
        for name, ranks in _randomised(fold, cache, chosen, settings, seed).items():
            for row, rank in zip(chosen, ranks, strict=True):
                rows[cache.subjects[row]][name] = rank
        untrained += _untrained(fold, cache, [subject.label for subject in own])
        del fold, model
        keras.backend.clear_session()
        console.tick(f"  {settings.model}: fold {count + 1}/{len(folders)} probed")
    out.mkdir(exist_ok=True)
    files.write_json(out / "masks.json", mask_robustness(_maps(run, cache)))
    _write(out, wanted, cache, settings, rows, untrained, maps)
    return out


def _maps(run: Path, cache: Cache) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """(cam of the predicted class, attention, mask, voxel_mm) of each held-out subject."""
    held_out, place = read_run(run).held_out, {name.encode(): row for row, name in enumerate(cache.subjects)}
    for folder in files.done_folds(run):
        arrays, _ = read_arrays(folder / "cams.h5")
        for name, cam, attention in zip(arrays["subject"], arrays["cam"], arrays["attention"], strict=True):
            predicted, row = int(held_out[name.decode()][2] >= 0.5), place[name]
            yield cam[..., predicted], attention, np.asarray(cache.mask[row, 0]), float(cache.voxel_mm[row])


def _subjects(run: Path, settings: Settings) -> tuple[Subject, ...]:
    """The run's subjects, whose files must be those that it was trained on."""
    subjects = read_cohort(run / "cohort.csv", settings.outcome).subjects
    known = files.read_json(run / "data.json")["subjects"]
    for subject in subjects:
        try:
            now = file_digests(subject)
        except OSError as error:
            raise files.RunError(f"expected the exams of {run} where its cohort.csv says. Received: {error}") from None
        if any(now[name] != known[subject.name][name] for name in now):
            raise files.RunError(f"expected the exams that {run} was trained on. Received: other files for subject "
                                 f"{subject.name}")  # fmt: skip
    return subjects


def _spread(run: Path, count: int) -> set[str]:
    """Subjects spread evenly over their held-out probability, so that sure and unsure ones are among them."""
    held_out = read_run(run).held_out
    ranked = sorted(held_out, key=lambda name: (held_out[name][2], name))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return {ranked[place] for place in places}


def _causal(fold: Fold, cache: Cache, settings: Settings) -> Columns:
    """Each held-out subject's probability as it is, and blurred outside and inside the mask at several dilations."""
    side, parts = settings.volume.side, {}
    for volumes, masks in plain_stream(cache, fold.held_out, settings.training.batch_size):
        found = {"probability": fold.forward(volumes)["probability"]}
        known = masks.any(axis=(1, 2, 3, 4))
        for radius in probes.dilations(side):
            asked = replace(settings.guidance, dilation_share=radius / side)
            for name, blur in BLURS.items():
                p = fold.forward(blur(tf.constant(volumes), tf.constant(masks), asked))["probability"]
                found[f"p_{name}_blurred_{radius}"] = np.where(known, p, np.nan)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _occlusions(fold: Fold, cache: Cache, rows: Sequence[int], settings: Settings):
    """(cache row, scores, occlusion map) of each chosen subject."""
    for row in rows:
        volume = np.asarray(cache.image[row, 0], np.float32)
        everywhere = tf.ones((1, *volume.shape, 1), tf.bool)
        blurred = blurred_inside(tf.constant(volume[None, ..., None]), everywhere, settings.guidance).numpy()[0, ..., 0]
        found = fold.forward(volume[None, ..., None])
        cam = found["maps"][0, ..., int(found["probability"][0] >= 0.5)]
        asked = pool(body_of(volume), probes.occlusion_grid(cam.shape[0])) > 0
        effect = probes.occlusion_map(fold.forward, volume, blurred, asked)
        yield row, probes.occlusion_scores(effect, asked, cam, np.asarray(cache.mask[row, 0])), effect


def _spots(fold: Fold, subjects: Sequence[Subject], probability: np.ndarray, settings: Settings) -> Columns:
    """On the phantom: whether a subject has the spot, and its probability with it and without; else nothing."""
    folder = phantom_folder(subjects[0].early) if subjects else None
    spots = has_spot(folder) if folder else None
    if spots is None or any(subject.name not in spots for subject in subjects):
        return {}
    spot, other = np.array([int(spots[subject.name]) for subject in subjects]), []
    for subject in subjects:
        t1 = with_spot(folder, subject.name, not spots[subject.name])
        mask = subject_mask(subject, settings.mask)[1].mask if settings.uses_box else np.zeros(t1.data.shape, bool)
        other.append(_ask(fold, t1, mask, settings))
    return {"spot": spot, "p_without_spot": np.where(spot, other, probability),
            "p_with_spot": np.where(spot, probability, other)}  # fmt: skip


def _boxes(fold: Fold, subjects: Sequence[Subject], settings: Settings) -> Columns:
    """For a mask-only model, whose box follows the mask: the probability under each of BOXES; else nothing."""
    found: dict[str, list[float]] = {}
    for subject in subjects if settings.uses_box else ():
        t1, tumour = subject_mask(subject, settings.mask)
        for name, (margin_mm, shift_mm) in BOXES.items():
            box = replace(settings, mask=replace(settings.mask, box_margin_mm=settings.mask.box_margin_mm + margin_mm))
            steps = np.rint(np.array(shift_mm) / t1.zooms).astype(int)
            found.setdefault(f"p_box_{name}", []).append(_ask(fold, t1, np.roll(tumour.mask, steps, (0, 1, 2)), box))
    return {name: np.array(values) for name, values in found.items()}


def _ask(fold: Fold, t1: Volume, mask: np.ndarray, settings: Settings) -> float:
    """The fold's probability of an exam that is not in the cache, rounded as the cache rounds it."""
    cube = exam_cube(t1, mask, settings)[0].astype(np.float16).astype(np.float32)
    return float(fold.forward(cube[None, ..., None])["probability"][0])


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers with weights from the output downward, batch normalisation aside: it goes with the output layer."""
    return [layer for layer in reversed(model.layers) if layer.trainable_weights and layer.name != "batch_norm"]


def _randomised(fold: Fold, cache: Cache, rows: Sequence[int], settings: Settings, seed: int) -> dict[str, list]:
    """Rank correlation of each chosen subject's map with itself after each layer, from the output down, is made new.

    Afterwards the fold's model is a network of random weights.
    """
    fresh = build_model(settings, seed=(fold_seed(settings, fold.number) + RANDOM + seed) % 2**31)
    volumes = [np.asarray(cache.image[row, 0], np.float32)[None, ..., None] for row in rows]
    before = [fold.forward(volume) for volume in volumes]
    classes = [int(one["probability"][0] >= 0.5) for one in before]
    ranks: dict[str, list] = {}
    for layer in _layers(fold.model):
        for name in (layer.name, *(("batch_norm",) if layer.name == "logits" else ())):
            for ours, new in zip(fold.model.get_layer(name).weights, fresh.get_layer(name).weights, strict=True):
                ours.assign(new)
        recompute_batch_norm(fold.model, cache, fold.train[:MOMENTS], settings.training.batch_size)
        after = [fold.forward(volume) for volume in volumes]
        ranks[f"rank_random_{layer.name}"] = [
            probes.rank_correlation(a["maps"][0, ..., c], b["maps"][0, ..., c])
            for a, b, c in zip(before, after, classes, strict=True)
        ]
    return ranks


def _untrained(fold: Fold, cache: Cache, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of random_network.csv: the fold's model, now of random weights, scored as a trained one is."""
    recompute_batch_norm(fold.model, cache, fold.train, fold.model.settings.training.batch_size)
    scored = score_rows(fold.model, cache, fold.held_out, causal=False)
    looks = attention_rows(cache, fold.held_out, fold.number, scored, box=fold.model.settings.uses_box)
    return [{"subject": look.pop("subject"), "fold": look.pop("fold"), "label": label, "probability": _cell(p), **look}
            for look, label, p in zip(looks, labels, scored.probability, strict=True)]  # fmt: skip


def _cell(value: np.generic) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else round(float(value), 7)


def _write(out: Path, asked: Mapping[str, int], cache: Cache, settings: Settings, rows: Mapping[str, dict],
           untrained: Sequence[dict], maps: Mapping[str, np.ndarray]) -> None:  # fmt: skip
    """The files, probes.json last: what it says is there, is there."""
    (out / "probes.json").unlink(missing_ok=True)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    files.write_rows(out / "subjects.csv", [{name: row.get(name) for name in columns} for row in rows.values()])
    files.write_rows(out / "random_network.csv", untrained)
    names = np.array(list(maps), dtype="S")
    effects = np.array(list(maps.values()), np.float32)
    write_arrays(out / "occlusion.h5", {"subject": names, "effect": effects},
                 {"effect": "(n, b, b, b) fall of the log-odds of the predicted class when a block is blurred"})
    voxel = float(np.mean(cache.voxel_mm))
    radii = [{"voxels": radius, "mm": round(radius * voxel, 2)} for radius in probes.dilations(settings.volume.side)]
    layers = [name.removeprefix("rank_random_") for name in columns if name.startswith("rank_random_")]
    boxes = [name for name in BOXES if f"p_box_{name}" in columns]
    files.write_json(out / "probes.json", {"asked": dict(asked), "dilations": radii, "layers": layers, "boxes": boxes,
                                           "grid": effects.shape[1] if len(effects) else 0})  # fmt: skip
