"""The files of a run as they are read: damage is an error with the file and row."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mgkeras.errors import InputError

MAP = "decision"  # the map that scores are of, as summary.json and done.json name it; before, it was the class map
SPLITS = ("held-out", "train")


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
