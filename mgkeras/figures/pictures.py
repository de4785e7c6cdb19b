"""From the files of runs to what the figures draw."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from mgkeras.data.phases import first_channel
from mgkeras.errors import InputError, few
from mgkeras.figures.figure3 import Panel
from mgkeras.runs import store
from mgkeras.runs.exams import run_exam, run_subjects
from mgkeras.scores.attention import centred
from mgkeras.scores.comparison import read_run
from mgkeras.scores.metrics import THRESHOLD
from mgkeras.scores.summary import number

SUGGESTED = 6  # names that an error about an unknown one lists


def figure3_panels(
    runs: Sequence[Path], names: Sequence[str], count: int, *, subjects: Sequence[str] = ()
) -> tuple[list[Panel], str]:
    """The subjects of Figure 3: those named, else by rule the best, the median and the worst of the last run's maps.

    By rule they are ordered by the mass of the last run's held-out map in the tumour. Mask-only runs are left out:
    their maps lie on the box's grid, not the volume's. Where there are only such runs, the first is shown on its box.

    Args:
        runs: folders of runs on the same folds.
        names: what each is called.
        count: how many subjects at most, by rule.
        subjects: to show instead, in this order.

    Returns:
        The panels, and the outcome's name.

    Raises:
        RunError: a subject that the runs did not hold out; the message names some that they did. ExamError: an exam
            is gone, or is not the one that the run was trained on.
    """
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if not store.load_settings(run).uses_box]
    if not shown:
        shown = list(zip(runs, names, strict=True))[:1]
    last = shown[-1][0]
    settings = store.load_settings(last)
    maps = {name: held_out_maps(run) for run, name in shown}
    chosen = _named(subjects, last, maps[shown[-1][1]]) if subjects else _by_rule(last, count)
    cohort = run_subjects(last)
    probabilities = {name: read_run(run).held_out for run, name in shown}
    panels = []
    for subject in chosen:
        _, image, mask, frame = run_exam(last, cohort[subject], settings)
        panels.append(
            Panel(
                subject,
                first_channel(image),
                mask,
                {name: maps[name][subject] for _, name in shown},
                frame.voxel_mm,
                {name: probabilities[name][subject][2] for _, name in shown},
                cohort[subject].label,
            )
        )
    return panels, settings.outcome


def _by_rule(run: Path, count: int) -> list[str]:
    """At most ``count`` subjects, evenly from the most to the least mass in the tumour."""
    mass = {row["subject"]: float(row["mass_in_mask"]) for row in read_run(run).attention_rows() if row["mass_in_mask"]}
    ranked = sorted(mass, key=lambda name: (-mass[name], name)) or list(store.known_subjects(run))
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return [ranked[place] for place in places]


def _named(subjects: Sequence[str], run: Path, known: Collection[str]) -> list[str]:
    """The named subjects, each once; an error where the run has no held-out map of one."""
    unknown = [name for name in subjects if name not in known]
    if unknown:
        near = [close for name in unknown for close in get_close_matches(name, sorted(known), n=3)]
        some = few(dict.fromkeys([*near, *sorted(known)]), SUGGESTED)
        raise store.RunError(f"expected subjects that {run} held out: {some}. Received: {', '.join(unknown)}")
    return list(dict.fromkeys(subjects))


def held_out_maps(run: Path) -> dict[str, np.ndarray]:
    """{subject: (g, g, g) decision map of the predicted class by the fold that held it out}, in log-odds, any sign.

    Made from the class maps that a fold stores, so that runs which were scored on those are shown by this map too.
    """
    return {name: cam for name, cam, _ in decision_maps(run)}


def decision_maps(run: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """(subject, decision map of the predicted class, map that the Dice term sees) of each held-out subject.

    Both are (g, g, g); the latter is None in runs of before, which do not store it.
    """
    held_out = read_run(run).held_out
    for folder in store.done_folds(run):
        of = int(folder.name.split("_")[1])
        arrays = store.read_maps(folder, [name for name, (fold, *_) in held_out.items() if fold == of])
        seen = arrays.get("attention", [None] * len(arrays["subject"]))
        for subject, maps, attention in zip(arrays["subject"], centred(arrays["cam"]), seen, strict=True):
            name = subject.decode()
            yield name, maps[..., int(held_out[name][2] >= THRESHOLD)], attention


def run_histories(runs: Sequence[Path], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """{model: {epoch, ce, dice}}, the folds' mean by epoch, for figures.figure3.training_curves."""
    found = {}
    for run, name in zip(runs, names, strict=True):
        folds = [store.read_rows(folder / "history.csv") for folder in store.done_folds(run)]
        try:
            found[name] = {
                key: [float(np.mean([number(row[key]) for row in epoch])) for epoch in zip(*folds, strict=True)]
                for key in ("epoch", "ce", "dice")
            }
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected epoch, ce and dice, numbers and as many in each fold, in {run}/fold_*/history.csv. "
                f"Received: {error!s:.100}"
            ) from None
    return found
