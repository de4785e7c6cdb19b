"""From the files of runs to what the report shows: settings and tables, and exams with their maps as small NIfTI files.

TensorFlow-free: the maps were written when the folds were scored.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.arrays import read_shapes
from mgkeras.data.cohort import CohortError, Subject
from mgkeras.data.nifti import image_of
from mgkeras.data.phases import first_channel
from mgkeras.data.volume import CubeFrame, ExamError
from mgkeras.errors import InputError
from mgkeras.figures.figure3 import relative
from mgkeras.figures.pictures import figure3_panels, held_out_maps, run_histories
from mgkeras.phantom.cohort import phantom_folder
from mgkeras.report.facts import Case, Facts, RunFacts, Viewer, peak_of
from mgkeras.runs import store
from mgkeras.runs.exams import run_exam, run_subjects
from mgkeras.runs.forms import DONE, FORMS, check_form
from mgkeras.scores.comparison import read_run
from mgkeras.scores.metrics import THRESHOLD
from mgkeras.scores.summary import number
from mgkeras.settings import Settings

PICTURED = 3  # rows of Figure 3
STEPS, TINY = 127, 1e-30  # int8 on each side of 0, and what stands for the largest value of a map of 0
BRIGHT_PERCENTILE = 99.5  # ours, because Figure 3 is windowed so: brighter voxels are shown white
UNREADABLE = (ExamError, CohortError, OSError, KeyError)  # of exams that have moved, changed or gone
Progress = Callable[[int, int], None]


def report_facts(folders: Mapping[str, Path]) -> Facts:
    """Everything the report says of the runs that is not in evaluation.json, but for the viewer's volumes.

    Args:
        folders: {name: folder} of the networks, in evaluation.json's order.
    """
    runs = tuple(_run_facts(name, folder) for name, folder in folders.items())
    shown = _pictured(folders, runs)
    try:
        panels = figure3_panels(list(shown.values()), list(shown), PICTURED)[0] if shown else []
    except UNREADABLE:
        panels = []
    phantom = any(run.cohort and phantom_folder(folders[run.name] / run.cohort[0]["early"]) for run in runs)
    return Facts(runs, phantom, tuple(panels), chosen_subjects(folders, runs), version("mgkeras"))


def _run_facts(name: str, folder: Path) -> RunFacts:
    def loaded(file: str) -> Any:
        if not (path := folder / file).is_file():
            return {}
        check_form(path, found := store.read_json(path), FORMS.get(file, {}))
        return found

    def rows(file: str) -> tuple[dict[str, str], ...]:
        found = store.read_rows(folder / file) if (folder / file).is_file() else []
        if found and "subject" not in found[0]:
            raise InputError(f"expected the column subject in {folder / file}. Received: {', '.join(found[0])}")
        return tuple(found)

    done = store.done_folds(folder)
    for fold in done:
        check_form(fold / "done.json", store.read_json(fold / "done.json"), DONE)
    seconds: list[Any] = [store.read_json(fold / "done.json").get("seconds") for fold in done]
    return RunFacts(
        name,
        loaded("settings.json"),
        loaded("environment.json"),
        loaded("folds.json"),
        loaded("data.json"),
        rows("cohort.csv"),
        rows("masks.csv"),
        run_histories([folder], [name])[name] if done else {},
        sum(seconds) if seconds and None not in seconds else None,
        _weights(done[0] / "weights.h5") if done else None,
    )


def _weights(path: Path) -> int | None:
    """How many numbers an HDF5 file of weights holds; None where there is none."""
    if not path.is_file():
        return None
    return sum(math.prod(shape) for shape in read_shapes(path).values())


def _pictured(folders: Mapping[str, Path], runs: Sequence[RunFacts]) -> dict[str, Path]:
    """The networks whose maps lie on the whole volume's grid: all but mask-only ones."""
    return {run.name: folders[run.name] for run in runs if not run.boxed and run.settings}


def chosen_subjects(folders: Mapping[str, Path], runs: Sequence[RunFacts]) -> dict[str, tuple[str, ...]]:
    """The viewer's subjects by rule, {name: reasons}: best, median and worst map, then every error, worst first.

    Best, median and worst are by the mass in the tumour of the last guided network's held-out map (of the last one
    where none is guided); an error is the last network's at 0.5. Mask-only networks do not count.
    """
    shown = _pictured(folders, runs)
    if not shown:
        return {}
    guided = [run.name for run in runs if run.name in shown and run.guided] or list(shown)
    rows = _attention(shown[guided[-1]]).values()
    mass = {row["subject"]: value for row in rows if (value := number(row.get("mass_in_mask"))) is not None}
    ranked = sorted(mass, key=lambda name: (-mass[name], name))
    found: dict[str, list[str]] = {}
    for place, what in ((0, "best"), (len(ranked) // 2, "median"), (len(ranked) - 1, "worst")):
        if ranked:
            found.setdefault(ranked[place], []).append(f"{what} map of {guided[-1]}")
    last = list(shown)[-1]
    held_out = read_run(shown[last]).held_out
    wrong = {name: abs(p - label) for name, (_, label, p) in held_out.items() if (p >= THRESHOLD) != label}
    for name in sorted(wrong, key=lambda name: (-wrong[name], name)):
        found.setdefault(name, []).append(f"{'missed' if held_out[name][1] else 'false alarm'} by {last}")
    return {name: tuple(reasons) for name, reasons in found.items()}


def _attention(folder: Path) -> dict[str, dict[str, str]]:
    return {row["subject"]: row for row in read_run(folder).attention_rows()}


def viewer(folders: Mapping[str, Path], facts: Facts, max_bytes: float, progress: Progress | None = None) -> Viewer:
    """The chosen subjects' volumes, in order, until the next one would exceed ``max_bytes`` of the page.

    Args:
        folders: as for report_facts.
        facts: from report_facts.
        max_bytes: what the page has left for volumes.
        progress: called with (done, of).
    """
    shown, chosen = _pictured(folders, facts.runs), dict(facts.chosen or {})
    if not shown or not chosen:
        return Viewer()
    last = shown[list(shown)[-1]]
    settings = store.load_settings(last)
    try:
        cohort = run_subjects(last)
        sources = {
            name: (held_out_maps(path), read_run(path).held_out, _attention(path)) for name, path in shown.items()
        }
    except UNREADABLE as error:
        return Viewer(unread=dict.fromkeys(chosen, _without_folders(error, last)))
    cases, unread, used = [], {}, 0.0
    for place, (name, reasons) in enumerate(chosen.items()):
        try:
            case = _case(last, cohort[name], reasons, settings, sources)
        except UNREADABLE as error:
            unread[name] = (
                "a run has no map of it" if isinstance(error, KeyError) else _without_folders(error, last, cohort[name])
            )
            continue
        used += case.size
        if used > max_bytes:
            break
        cases.append(case)
        if progress:
            progress(place + 1, len(chosen))
    kept = {case.name for case in cases} | set(unread)
    return Viewer(tuple(cases), tuple(shown), tuple(name for name in chosen if name not in kept), unread)


def _without_folders(error: Exception, run: Path, *subjects: Subject) -> str:
    """An error's text with names of files and runs, but not where they are on this machine: the report is shared."""
    text, paths = str(error), [run, run.resolve(), run / "cohort.csv", run.resolve() / "cohort.csv"]
    paths += [path for subject in subjects for path in (subject.early, subject.pre, subject.late, subject.mask) if path]
    for folder in sorted({str(path.parent) for path in paths}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def _case(
    run: Path, subject: Subject, reasons: tuple[str, ...], settings: Settings, sources: Mapping[str, tuple]
) -> Case:
    early, cube, mask, frame = run_exam(run, subject, settings)
    image = first_channel(cube)
    affine, label = frame.affine(early.affine), 0
    maps, looks = {}, {}
    for model, (cells_of, held_out, attention) in sources.items():
        cells, row = cells_of[subject.name], attention.get(subject.name, {})
        label = held_out[subject.name][1]
        maps[model] = packed(
            np.round(STEPS * relative(cells)),
            cells_affine(frame, early.affine, cells.shape[0]),
            dtype=np.int8,
            slope=max(float(np.abs(cells).max()), TINY) / STEPS,
        )
        looks[model] = {
            "p": held_out[subject.name][2],
            "mass": number(row.get("mass_in_mask")),
            "chance": number(row.get("mass_chance")),
            "peak_mm": number(row.get("peak_distance_mm")),
            "peak": peak_of(cells),
        }
    bright = max(float(np.percentile(image, BRIGHT_PERCENTILE)), 1e-6)
    voxels = np.argwhere(mask)
    x, y, z = map(float, (voxels.mean(axis=0) + 0.5) / frame.side if len(voxels) else np.full(3, 0.5))
    return Case(
        subject.name,
        reasons,
        label,
        packed(np.round(255 * np.clip(image / bright, 0, 1)), affine),
        packed(mask, affine),
        maps,
        looks,
        (x, y, z),
        bool(len(voxels)),
        frame.side,
        frame.voxel_mm,
    )


def cells_affine(frame: CubeFrame, source: np.ndarray, grid: int) -> np.ndarray:
    """(4, 4) map cell -> mm of a map of grid^3 cells on the frame's cube, given the source grid's affine (4, 4)."""
    cell = frame.side / grid
    step = np.diag([cell, cell, cell, 1.0])
    step[:3, 3] = (cell - 1) / 2  # the first cell's centre in voxels of the cube
    return frame.affine(source) @ step


def packed(array: np.ndarray, affine: np.ndarray, *, dtype: type = np.uint8, slope: float = 1.0) -> str:
    """An (x, y, z) array of whole numbers as a gzipped NIfTI file in base64; the same bytes every time.

    Args:
        array: RAS+ order, in the range of dtype.
        affine: (4, 4) voxel -> mm.
        dtype: of a stored value.
        slope: what a stored 1 stands for.
    """
    image = image_of(np.ascontiguousarray(array, dtype), affine)
    image.header.set_slope_inter(slope, 0)
    return base64.b64encode(gzip.compress(image.to_bytes(), 9, mtime=0)).decode("ascii")
