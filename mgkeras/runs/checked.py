"""The files of a run as they are read: damage is an error with the file and row, a later edit is noticed.

`mgkeras fit` writes SHA-256 digests of each fold's files, and of what all folds share, into fold_k/done.json, and of
the run's own scores into RUN/done.json. What other commands add to a run has digests in a JSON file of its own, see
PARTS. Runs of before have none there and are read without.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mgkeras.data.io import digest_of
from mgkeras.errors import InputError, MgkerasError

MAP = "decision"  # the map that scores are of, as summary.json and done.json name it; before, it was the class map
FOLD_FILES = ("weights.h5", "predictions.csv", "attention.csv", "history.csv", "cams.h5")
SHARED = ("settings.json", "folds.json")  # of the run, in each fold's done.json
RUN_FILES = (
    "predictions.csv",
    "attention.csv",
    "summary.json",
    "masks.csv",
    "cohort.csv",
    "data.json",
    "environment.json",
)
PROBES, TUNE, RADIOMICS = "probes/probes.json", "tune.json", "radiomics.json"
TRIAL = "tune/fold_*/trial_*/"
PARTS = {  # a JSON file of a run, with digests of itself and of these files; their names are relative to its folder
    PROBES: ("[!.]*",),
    TUNE: ("tune/search.json", "tune/trials.csv", f"{TRIAL}result.json", f"{TRIAL}values.json", f"{TRIAL}inner_*.csv"),
    RADIOMICS: ("radiomics.csv",),
}
SPLITS = ("held-out", "train")


class EditedRun(MgkerasError, ValueError):
    """A run's files are not those that its fit wrote; the message names them and says what to do."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or no object; the message names the file.
    """
    found = read_value(path)
    if not isinstance(found, dict):
        raise InputError(f"expected a JSON object in {path}. Received: {type(found).__name__}")
    return found


def read_value(path: Path) -> Any:
    """A JSON file's value, whose numbers are finite and, where they are whole, under 2^63. Raises as read_object."""

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise InputError(f"a number that is not finite: {text[:20]}")
        return value

    def whole(text: str) -> int:
        if len(text) > 19 or not -(2**63) <= (value := int(text)) < 2**63:
            raise InputError(f"a whole number of {len(text)} digits: {text[:20]}")
        return value

    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_float=finite, parse_int=whole, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}. Received: {error!s:.200}") from None


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file of a run; every value is text.

    Raises:
        FileNotFoundError: no such file; the message says what it is a part of.
        ValueError: it is no table of text, or a row has more or fewer cells than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a finished run in {path.parent}. Received: no {path.name}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a table in {path}. Received: {error}") from None
    for place, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(
                f"expected as many cells as the header has in {path}, row {place}. Received: more or fewer"
            )
    return rows


def read_predictions(run: Path, folds: int | None) -> list[dict[str, str]]:
    """The rows of RUN/predictions.csv, once check_predictions has found each to be possible.

    Raises:
        FileNotFoundError: no such file. ValueError: as check_predictions.
    """
    rows = read_table(run / "predictions.csv")
    check_predictions(run, rows, folds)
    return rows


def check_predictions(run: Path, rows: Iterable[Mapping[str, str]], folds: int | None) -> None:
    """Makes sure that each row of RUN/predictions.csv can be true.

    Args:
        run: its folder.
        rows: of the file, every value as text.
        folds: how many the run has, None where that is not known.

    Raises:
        ValueError: a cell out of its range, a subject twice in a fold or held out twice, one that folds.json does not
            name or has in another fold; the message names file and row.
    """
    path, place_of = run / "predictions.csv", _folds(run)
    seen: set[tuple[str, int]] = set()
    held_out: set[str] = set()
    for place, row in enumerate(rows, 1):
        try:
            name, split, fold = row["subject"], row["split"], _count(row, "fold", folds)
            _count(row, "label", 2)
            _number(row, "probability", 1.0)
            for column in ("p_outside_blurred", "p_inside_blurred"):
                if row.get(column):
                    _number(row, column, 1.0)
            if split not in SPLITS:
                raise InputError(f"expected split to be {' or '.join(SPLITS)}. Received: {split!r}")
            if (name, fold) in seen or (split == "held-out" and name in held_out):
                raise InputError(f"expected each subject once a fold, held out once. Received: {name!r} again")
            if place_of and name not in place_of:
                raise InputError(f"expected subjects of {run / 'folds.json'}. Received: {name!r}")
            if place_of and (place_of[name] == fold) != (split == "held-out"):
                raise InputError(
                    f"expected the folds of {run / 'folds.json'}. Received: {name!r} {split} in fold {fold}"
                )
        except KeyError as error:
            raise InputError(f"expected the column {error.args[0]} in {path}. Received: {', '.join(row)}") from None
        except ValueError as error:
            raise InputError(f"{path}, row {place}: {error}") from None
        seen.add((name, fold))
        if split == "held-out":
            held_out.add(name)


def read_attention(run: Path, held_out: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of RUN/attention.csv: numbers or empty cells, each of a held-out subject and of none twice.

    Raises:
        ValueError: other rows; the message names file and row.
    """
    path, seen = run / "attention.csv", set()
    rows = read_table(path)
    for place, row in enumerate(rows, 1):
        try:
            if (name := row.get("subject")) not in held_out or name in seen:
                raise InputError(f"expected only held-out subjects here, each once. Received: {name}")
            for column in row.keys() - {"subject"}:
                if row[column]:
                    _number(row, column)
        except ValueError as error:
            raise InputError(f"{path}, row {place}: {error}") from None
        seen.add(name)
    return rows


def _folds(run: Path) -> dict[str, Any]:
    """{subject: fold} of folds.json, {} where there is none."""
    if not (run / "folds.json").is_file():
        return {}
    found = read_object(run / "folds.json").get("held_out_in")
    if not isinstance(found, dict) or not all(type(fold) is int for fold in found.values()):
        raise InputError(
            f"expected held_out_in, the fold of each subject, in {run / 'folds.json'}. Received: other values"
        )
    return found


def _count(row: Mapping[str, str], column: str, end: int | None) -> int:
    if not re.fullmatch(r"\d{1,6}", row[column]) or (end is not None and int(row[column]) >= end):
        among = "a whole number" if end is None else f"0 to {end - 1}"
        raise InputError(f"expected {column} to be {among}. Received: {row[column]!r}")
    return int(row[column])


def _number(row: Mapping[str, str], column: str, most: float | None = None) -> None:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (most is not None and not 0 <= value <= most):
        among = "a number" if most is None else f"from 0 to {most:g}"
        raise InputError(f"expected {column} to be {among}. Received: {row[column]!r}")


def fold_digests(folder: Path) -> dict[str, str]:
    """{name: SHA-256 in hex} of a fold's files and of those that all folds share; what is missing is left out."""
    paths = [*(folder / name for name in FOLD_FILES), *(folder.parent / name for name in SHARED)]
    return {path.name: digest_of(path, "sha256") for path in paths if path.is_file()}


def fold_with_digests(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a fold's done.json: ``about``, and the digests of fold_digests and of itself."""
    return {**about, "sha256": {**fold_digests(folder), "done.json": _own_digest(about)}}


def _own_digest(about: Mapping[str, Any]) -> str:
    """SHA-256 in hex of a JSON object but for its digests."""
    own = json.loads(json.dumps({**about, "sha256": None}))  # as it will be read
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def run_digests(run: Path) -> dict[str, str]:
    """{name: SHA-256 in hex} of the scores of a whole run."""
    return {name: digest_of(run / name, "sha256") for name in RUN_FILES if (run / name).is_file()}


def with_digests(
    run: Path, part: str, about: Mapping[str, Any], files: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """The content of a JSON file of PARTS: ``about``, and SHA-256 digests of it and of its files.

    Args:
        run: folder of the run.
        part: of PARTS.
        about: JSON-able.
        files: by name, where they are not there yet under their names.
    """
    path = run / part
    if files is None:
        found = {
            file for pattern in PARTS[part] for file in path.parent.glob(pattern) if file.is_file() and file != path
        }
        files = {file.relative_to(path.parent).as_posix(): file for file in found}
    digests = {name: digest_of(files[name], "sha256") for name in sorted(files)}
    return {**about, "sha256": {**digests, path.name: _own_digest(about)}}


def check_run(run: Path, *, trust: bool = False, resuming: bool = False) -> tuple[str, ...]:
    """Makes sure that a run's files are those that its fit wrote, as far as its done.json hold digests.

    Args:
        run: its folder.
        trust: whether to go on where they are not.
        resuming: whether fit goes on with the run, which writes anew what it makes of the folds.

    Returns:
        With ``trust`` a sentence for each file that differs, for who reads what is made of them.

    Raises:
        EditedRun: without ``trust``, a file differs.
        ValueError: a done.json is damaged.
    """
    run = Path(run)
    folders = sorted(path.parent for path in run.glob("fold_*/done.json"))
    found = [problem for folder in folders for problem in _edited_fold(folder, resuming)]
    if not resuming:
        found += _edited_scores(run, folders)
    found += [problem for part in ((TUNE,) if resuming else PARTS) for problem in _edited_part(run, part)]
    if found and not trust:
        raise EditedRun(
            f"expected {run} as `mgkeras fit` wrote it. Received: {'; '.join(found)}. Put the files back; remove a "
            "fold's folder and repeat the fit command, which trains it again; or go on with --trust, if the "
            "edit was on purpose"
        )
    return tuple(f"{run.resolve().name} was edited after it was trained: {problem}" for problem in found)


def _edited_fold(folder: Path, resuming: bool) -> Iterator[str]:
    done = read_object(folder / "done.json")
    if folder.name != f"fold_{done.get('fold')}":
        yield f"{folder.name}/done.json is of fold {done.get('fold', 'none')}"
    there = done.get("sha256")
    if there is None:  # of a run of before
        return
    now = fold_digests(folder)
    if isinstance(there, dict) and "done.json" in there:  # not of before
        now["done.json"] = _own_digest(done)
    if resuming and done.get("map") != MAP:
        now.pop("attention.csv", None)  # is made anew
        there = {name: digest for name, digest in dict(there).items() if name != "attention.csv"}
    yield from _differences(there, now, f"{folder.name}/")


def _edited_scores(run: Path, folders: list[Path]) -> Iterator[str]:
    if (run / "done.json").is_file():
        there, now = read_object(run / "done.json").get("sha256"), run_digests(run)
        known = dict.fromkeys(there) if isinstance(there, dict) else {}  # of before, it names three
        yield from _differences(there, {name: now[name] for name in now if name in known}, "")
    elif (run / "summary.json").is_file() and any("sha256" in read_object(folder / "done.json") for folder in folders):
        yield "done.json of the run is missing: the same fit command writes its scores anew and trains nothing"


def _edited_part(run: Path, part: str) -> Iterator[str]:
    about = read_object(run / part) if (run / part).is_file() else {}
    if "sha256" not in about or (part == RADIOMICS and not (run / "radiomics.csv").exists()):
        return  # of a run of before, or of a process that was killed
    folder = f"{Path(part).parent}/" if "/" in part else ""
    yield from _differences(about["sha256"], with_digests(run, part, about)["sha256"], folder)


def _differences(there: Any, now: Mapping[str, str], where: str) -> Iterator[str]:
    if not isinstance(there, dict):
        yield f"{where}done.json holds no digests"
        return
    for name in dict.fromkeys([*there, *now]):
        path = name if name in SHARED else where + name
        if name not in now:
            yield f"{path} is missing"
        elif there.get(name) != now[name]:
            yield f"{path} is another one"
