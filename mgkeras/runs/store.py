"""The files of a run: RUN/{settings,data,folds,summary,environment}.json, cohort.csv, predictions.csv, fold_k/."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.arrays import ArraysError, read_arrays, read_shapes
from mgkeras.data.io import leftovers, lock, written_whole
from mgkeras.data.table import write_lines
from mgkeras.errors import MgkerasError, few
from mgkeras.runs.checked import read_object, read_table
from mgkeras.runs.digests import check_run as check_run
from mgkeras.settings import Settings, as_dict, differences, from_dict

Row = Mapping[str, Any]


class RunError(MgkerasError, RuntimeError):
    """A run's folder cannot be used as asked; the message says why and what to do."""


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; where that fails nothing is left, and the error names the file."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, indented, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object of a JSON file.

    Raises:
        RunError: the file is missing, not JSON, or no object.
    """
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise RunError(f"expected a file of a run of `mgkeras fit` at {path}. Received: {error}") from None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes dicts as CSV, whole or not at all; None becomes an empty cell, floats their shortest exact text.

    A column that a row lacks is an empty cell in it: folds of before may stand beside those of today.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns] + [["" if (value := row.get(name)) is None else str(value) for name in columns] for row in rows]
    write_lines(path, lines)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file of write_rows; every value is text. Raises as checked.read_table."""
    return read_table(path)


def read_maps(folder: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """A fold's held-out maps: ``subject`` (n,) bytes, ``cam`` (n, g, g, g, 2) and ``attention`` (n, g, g, g) floats.

    Args:
        folder: of the fold.
        names: of the subjects that it held out.

    Raises:
        FileNotFoundError: no cams.h5. ArraysError: it cannot be used, see arrays.read_arrays, or is of other subjects.
    """
    path, n = folder / "cams.h5", len(names)
    shapes = read_shapes(path)
    grid = shapes["cam"][1] if len(shapes.get("cam", ())) == 5 else 0
    if grid > (side := load_settings(folder.parent).volume.side):
        raise ArraysError(f"expected maps of {side} cells a side or fewer in {path}. Received: {grid}")
    expected = {
        "subject": ("S", (n,)),
        "cam": ("f", (n, grid, grid, grid, 2)),
        "attention": ("f", (n, grid, grid, grid)),
    }
    arrays, _ = read_arrays(path, {name: expected[name] for name in expected if name in shapes or name != "attention"})
    if set(arrays["subject"].tolist()) != {name.encode() for name in names}:
        raise ArraysError(f"expected the subjects that {folder.name} held out in {path}. Received: others")
    return arrays


def claim_settings(run: Path, settings: Settings) -> None:
    """Writes settings.json, or checks that the run in this folder was begun with the same settings.

    Raises:
        RunError: other settings; the message lists each difference.
    """
    path = run / "settings.json"
    if not path.exists():
        write_json(path, as_dict(settings))
        return
    different = differences(load_settings(run), settings)
    if different:
        listed = "\n".join(f"  {name}: {there} in the folder, {now} asked for" for name, there, now in different)
        raise RunError(f"{run} holds a run with other settings:\n{listed}\nName another --out, or repeat that command.")


def claim_data(run: Path, data: dict[str, Any]) -> None:
    """Writes data.json (digests of each subject's files, its label), or checks that they are what the run began with.

    Raises:
        RunError: other data; the message names the subjects.
    """
    path = run / "data.json"
    if not path.exists():
        write_json(path, data)
        return
    before = known_subjects(run)
    changed = sorted(n for n in {**before, **data["subjects"]} if before.get(n) != data["subjects"].get(n))
    if changed:
        raise RunError(
            f"{run} was begun on other data: {few(changed, 10)} were added "
            "or left out since, or their early or pre file, mask or label changed. Name another --out."
        )


def known_subjects(run: Path) -> dict[str, dict[str, Any]]:
    """{name: digests of its files, and its label} of the subjects in data.json.

    Raises:
        RunError: data.json is missing or damaged.
    """
    found = read_json(run / "data.json").get("subjects")
    if not isinstance(found, dict) or not all(
        isinstance(digests, dict) and "early" in digests for digests in found.values()
    ):
        raise RunError(f"expected the subjects' digests in {run / 'data.json'}. Received: other values")
    return found


def load_settings(run: Path) -> Settings:
    """The settings of a run.

    Raises:
        RunError: settings.json is missing or damaged.
    """
    values = read_json(run / "settings.json")
    try:
        return from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"expected settings of a run in {run / 'settings.json'}. Received: {error}") from None


def done_folds(run: Path) -> list[Path]:
    """The folders of the folds that are finished, in order."""
    folders = [path.parent for path in run.glob("fold_*/done.json") if path.parent.name[5:].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.split("_")[1]))


def unfinished(run: Path, numbers: Iterable[int]) -> list[int]:
    """Those of a run's folds, by their numbers from 0, that are not finished."""
    return [number for number in numbers if not (run / f"fold_{number}" / "done.json").exists()]


def sweep(run: Path) -> None:
    """Removes what a killed process left in the folder of a run or of a fold, which this process must have locked.

    That is half-written files, and the state of a fold that is done.
    """
    for left in leftovers(run):
        left.unlink(missing_ok=True)
    if (run / "done.json").exists():
        (run / "state.h5").unlink(missing_ok=True)


@contextmanager
def locked(run: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the folder of a run or of a fold, so that no second process trains into it.

    A file system without locks, as some network file systems are, gives a warning and holds nothing.

    Args:
        run: the folder.
        wait: whether to wait for a process that holds it.

    Raises:
        RunError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "w") as file:
        refused = lock(file, wait=wait)
        if isinstance(refused, BlockingIOError):
            raise RunError(f"another process is working in {run}. Wait for it, or name another --out.")
        if refused:
            warnings.warn(f"{run} cannot be locked here ({refused}): start no second process in it", stacklevel=3)
        yield


def environment(device: str) -> dict[str, str]:
    """Versions and device, for environment.json."""
    packages = ("mgkeras", "tensorflow", "keras", "numpy", "scipy", "scikit-learn", "scikit-fuzzy", "nibabel", "h5py")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        **{package: version(package) for package in packages},
    }
