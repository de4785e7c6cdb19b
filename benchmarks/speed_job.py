"""The rest of a run, for speed.py: masks, cache, batch norm, scoring, files; and the paper's protocol in hours."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from speed_measure import HELD_OUT, TRAINING, Row, Task, row_of, settings_of, times

EXAM = (256, 256, 64)  # voxels of an exam
FOLDS, EPOCHS, MODELS = 5, 250, 3  # paper
OUTCOMES = {"recurrence": (115, 313), "HER2": (109, 296)}  # paper: subjects, batches of 10 an epoch


def write_exams(folder: Path, count: int) -> list:
    """Phantom exams resampled to 256 x 256 x 64 voxels, pre and early as .nii.gz; a list of Subject."""
    import nibabel as nib
    from scipy import ndimage

    from mgkeras.data.cohort import read_cohort
    from mgkeras.phantom.cohort import make_phantom

    subjects = []
    for subject in read_cohort(make_phantom(folder / "phantom", count, 64, seed=7), "recurrence").subjects:
        paths = {}
        for phase in ("pre", "early"):
            image = nib.as_closest_canonical(nib.load(getattr(subject, phase)))
            factors = np.array(EXAM) / image.shape
            voxels = ndimage.zoom(np.asarray(image.dataobj), factors, order=1)
            zooms = np.linalg.norm(image.affine[:3, :3], axis=0) / factors
            paths[phase] = folder / f"{subject.name}-{phase}.nii.gz"
            nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([*zooms, 1.0])), paths[phase])
        subjects.append(replace(subject, **paths))
    return subjects


def files(key: str, task: Task) -> list[Row]:
    """What happens to a subject's files: its mask and its map as NIfTI on one core, the cache on all."""
    from mgkeras.data.cache import cached, exam_cube
    from mgkeras.data.tumour import tumour_mask
    from mgkeras.data.volume import from_cube, load_volume, save_like

    cores = os.sched_getaffinity(0)
    subjects, settings = write_exams(task.folder, 2 if task.quick else 8), settings_of(task.side, task.batch)
    cells = np.random.default_rng(0).random((task.side // 8,) * 3).astype(np.float32)
    clocks: dict[str, list[float]] = {"read": [], "mask": [], "export": []}
    run_on({min(cores)})
    for subject in subjects:
        began = time.perf_counter()
        pre, early = load_volume(subject.pre), load_volume(subject.early)
        read = time.perf_counter()
        mask = tumour_mask(pre, early, settings.mask).mask
        made = time.perf_counter()
        frame = exam_cube(early, mask, settings)[2]
        export = time.perf_counter()
        save_like(subject.early, from_cube(cells, frame), task.folder / "map.nii.gz")
        for name, seconds in (("read", read - began), ("mask", made - read), ("export", time.perf_counter() - export)):
            clocks[name].append(seconds)
    run_on(cores)
    fresh = iter(range(1 << 20))
    built = times(lambda: cached(subjects, settings, task.folder / f"cache-{next(fresh)}"), 1 if task.quick else 3)
    size = " x ".join(map(str, EXAM))
    return [
        row_of("job", "read", f"reading pre and early of an exam of {size}, one core", task, "s", clocks["read"]),
        row_of("job", "mask", "its tumour mask (data.tumour), one core", task, "s", clocks["mask"]),
        row_of(
            "job",
            "cache",
            f"building the cache, an exam of {len(subjects)}, all cores (reading, mask, cube, 2 turns, writing)",
            task,
            "s",
            [seconds / len(subjects) for seconds in built],
        ),
        row_of(
            "job",
            "export",
            "a map as NIfTI on the exam's grid, one core (from_cube, save_like)",
            task,
            "s",
            clocks["export"],
        ),
    ]


def run_on(cores: set[int]) -> None:
    """Binds every thread of this process to these cores, those that a library has started already too."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def scores(key: str, task: Task) -> list[Row]:
    """What a fold does besides its steps, as crossval does it: moments, scores, attention, states."""
    from speed_mgkeras import device_of, rows_of, synthetic_cache

    from mgkeras.inference.forward import attention_rows, score_rows
    from mgkeras.models.guided import build_model
    from mgkeras.models.weights import save_state
    from mgkeras.training.devices import make_optimizer
    from mgkeras.training.fit import recompute_batch_norm

    device, settings, (cache, _) = device_of("mgkeras"), settings_of(task.side, task.batch), synthetic_cache(task)
    model = build_model(settings, dtype=device.policy, s2d_blocks=device.s2d_blocks)
    model.compile(make_optimizer("adam", settings.training.learning_rate, device.policy))
    model.optimizer.build(model.trainable_variables)
    train, held_out = rows_of(cache, TRAINING), rows_of(cache, HELD_OUT)
    scored = score_rows(model, cache, held_out, causal=True)
    calls = {
        ("moments", f"recompute_batch_norm over {TRAINING} volumes"): lambda: recompute_batch_norm(
            model, cache, train, task.batch
        ),
        ("held-out", f"scoring a held-out fold of {HELD_OUT}, causal scores too (score_rows)"): lambda: score_rows(
            model, cache, held_out, causal=True
        ),
        ("attention", f"where its {HELD_OUT} maps lie (attention_rows)"): lambda: attention_rows(
            cache, held_out, 0, scored
        ),
        ("train", f"scoring its {TRAINING} training volumes (score_rows)"): lambda: score_rows(
            model, cache, train, causal=False
        ),
        ("state", "saving an epoch's state (save_state)"): lambda: save_state(
            task.folder / "state.h5", model, {"history": [], "policy": device.policy}
        ),
    }
    return [
        row_of("job", name, what, task, "s", times(call, 1 if task.quick else 3))
        for (name, what), call in calls.items()
    ]


def exams(key: str, task: Task) -> list[Row]:
    """`mgkeras predict` of one exam from its NIfTI by 5 folds, without writing the map."""
    from mgkeras.inference.forward import forward_of
    from mgkeras.inference.predict import score_exam
    from mgkeras.models.guided import build_model

    subject, settings = write_exams(task.folder / "predict", 1)[0], settings_of(task.side, task.batch)
    forwards = [forward_of(build_model(settings, seed=fold)) for fold in range(FOLDS)]
    score_exam(subject, settings, forwards)
    values = times(lambda: score_exam(subject, settings, forwards), 1 if task.quick else 5)
    return [
        row_of(
            "job", "predict", f"scoring an exam from its early phase by {FOLDS} folds (score_exam)", task, "s", values
        )
    ]


def protocol(seconds: Mapping[str, float], batch: int) -> list[tuple[str, int, float]]:
    """The paper's whole protocol, both outcomes and three models, as (part, how often, seconds each).

    Args:
        seconds: medians under the keys of the rows: 'mgkeras-fit' of one step, 'start', 'state', 'moments', 'held-out',
            'attention', 'train', 'cache' and, of maps for every subject, 'predict' and 'export'.
        batch: volumes a step; the paper's batches of 10 are counted anew for another.
    """
    steps = sum(FOLDS * EPOCHS * -(-batches * 10 // batch) for _, batches in OUTCOMES.values()) * MODELS
    folds = FOLDS * MODELS * len(OUTCOMES)
    exams_ = sum(subjects for subjects, _ in OUTCOMES.values())
    return [
        ("training steps with the real pipeline", steps, seconds["mgkeras-fit"]),
        ("epoch ends: saving the state", folds * EPOCHS, seconds["state"]),
        ("fold starts: tracing, XLA", folds, seconds["start"]),
        ("fold ends: batch-norm moments", folds, seconds["moments"]),
        ("fold ends: scoring the held-out fold, causal too", folds, seconds["held-out"]),
        ("fold ends: where its maps lie", folds, seconds["attention"]),
        ("fold ends: scoring the training volumes", folds, seconds["train"]),
        ("cache: an exam whole, and in its box for mask-only", 2 * exams_, seconds["cache"]),
        ("maps of every subject as NIfTI, each model", MODELS * exams_, seconds["predict"] + seconds["export"]),
    ]
