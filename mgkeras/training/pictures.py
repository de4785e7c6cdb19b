"""From the files of runs to what the figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mgkeras.data.cache import exam_cube
from mgkeras.data.cohort import Subject, read_cohort
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame
from mgkeras.evaluation.comparison import read_run
from mgkeras.evaluation.figures import Panel
from mgkeras.models.weights import read_arrays
from mgkeras.settings import Settings
from mgkeras.training import run as files


def figure3_panels(runs: Sequence[Path], names: Sequence[str], count: int) -> tuple[list[Panel], str]:
    """The subjects of Figure 3, by rule: of the last run's held-out maps the best, the median and the worst.

    They are ordered by the mass of the last run's map in the tumour. Mask-only runs are left out: their maps lie on the
    box's grid, not the volume's.

    Args:
        runs: folders of runs on the same folds.
        names: what each is called.
        count: how many subjects at most.

    Returns:
        The panels, and the outcome's name.
    """
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if not files.load_settings(run).uses_box]
    if not shown:
        shown = list(zip(runs, names, strict=True))[:1]
    last = shown[-1][0]
    settings = files.load_settings(last)
    mass = {row["subject"]: float(row["mass_in_mask"]) for row in files.read_rows(last / "attention.csv")
            if row["mass_in_mask"]}  # fmt: skip
    ranked = sorted(mass, key=lambda name: (-mass[name], name)) or list(files.read_json(last / "data.json")["subjects"])
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    chosen = [ranked[place] for place in places]
    subjects = {subject.name: subject for subject in read_cohort(last / "cohort.csv", settings.outcome).subjects}
    maps = {name: held_out_maps(run) for run, name in shown}
    probabilities = {name: read_run(run).held_out for run, name in shown}
    panels = []
    for subject in chosen:
        t1, mask, frame = _exam(subjects[subject], settings)
        panels.append(Panel(subject, t1, mask, {name: maps[name][subject] for _, name in shown}, frame.voxel_mm,
                            {name: probabilities[name][subject][2] for _, name in shown}, subjects[subject].label))
    return panels, settings.outcome


def held_out_maps(run: Path) -> dict[str, np.ndarray]:
    """{subject: (g, g, g) attention map in [0, 1] by the fold that held it out}."""
    found = {}
    for folder in files.done_folds(run):
        arrays, _ = read_arrays(folder / "cams.h5")
        found |= {name.decode(): one for name, one in zip(arrays["subject"], arrays["attention"], strict=True)}
    return found


def run_histories(runs: Sequence[Path], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """{model: {epoch, ce, dice}}, the folds' mean by epoch, for evaluation.figures.training_curves."""
    found = {}
    for run, name in zip(runs, names, strict=True):
        folds = [files.read_rows(folder / "history.csv") for folder in files.done_folds(run)]
        found[name] = {key: [float(np.mean([float(row[key]) for row in epoch])) for epoch in zip(*folds, strict=True)]
                       for key in ("epoch", "ce", "dice")}  # fmt: skip
    return found


def _exam(subject: Subject, settings: Settings) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
    t1, tumour = subject_mask(subject, settings.mask)
    return exam_cube(t1, tumour.mask, replace(settings, model="no-mask") if settings.uses_box else settings)
