"""A study's file: which cohorts, outcomes, models and seeds; each combination is a run with a folder of its own.

Glossary:
    group: a cohort and an outcome, whose runs are set side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mgkeras.data.io import read_toml
from mgkeras.errors import InputError
from mgkeras.settings import MODELS

KEYS = ("cohorts", "outcomes", "models", "seeds", "preset", "out", "settings")
PAPER_MODELS = MODELS[:3]  # paper: no-mask, mask-only and guided
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Study:
    """What a study.toml asks for.

    Attributes:
        path: of the file.
        out: the study's folder.
        cohorts: {name: path of its table}.
        outcomes, models, seeds: of each cohort's runs.
        preset: of the settings; '' where the file names none.
        settings: {option of fit without its dashes: value}, not checked yet.
    """

    path: Path
    out: Path
    cohorts: Mapping[str, Path]
    outcomes: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    settings: Mapping[str, Any]

    @property
    def groups(self) -> list[tuple[str, str]]:
        """The cohort and the outcome of each group, in the file's order."""
        return list(product(self.cohorts, self.outcomes))

    def folder(self, cohort: str, outcome: str) -> Path:
        """The folder of a group: OUT/COHORT-OUTCOME."""
        return self.out / f"{cohort}-{outcome}"

    def run(self, cohort: str, outcome: str, seed: int, model: str) -> Path:
        """The folder of a run: OUT/COHORT-OUTCOME/seed-SEED/MODEL."""
        return self.folder(cohort, outcome) / f"seed-{seed}" / model


def read_study(path: Path) -> Study:
    """Reads a study.toml; paths in it are relative to its folder.

    Raises:
        ValueError: no TOML, an unknown key, a value of another kind or that is not there; with the file and the key.
    """
    try:
        values = read_toml(path)
    except ValueError as error:  # of TOML, or of UTF-8
        raise InputError(f"expected {path} to be TOML. Received: {error}") from None
    if unknown := [key for key in values if key not in KEYS]:
        raise InputError(f"expected keys among {', '.join(KEYS)} in {path}. Received: {', '.join(unknown)}")
    models = _listed(path, values, "models", str, list(PAPER_MODELS))
    if wrong := [name for name in models if name not in MODELS]:
        raise _refused(path, "models", f"some of {', '.join(MODELS)}", wrong)
    seeds = _listed(path, values, "seeds", int, [0])
    if wrong := [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]:
        raise _refused(path, "seeds", f"numbers from 0 to {LARGEST_SEED}", wrong)
    outcomes = _listed(path, values, "outcomes", str)
    if wrong := [name for name in outcomes if not name or Path(name).name != name or name in (".", "..")]:
        raise _refused(path, "outcomes", "names of columns that can name a folder", wrong)
    preset, out, settings = values.get("preset", ""), values.get("out", path.stem), values.get("settings", {})
    for key, value, kind, what in (
        ("preset", preset, str, "a name in quotes"),
        ("out", out, str, "a path in quotes"),
        ("settings", settings, dict, "a table of options of mgkeras fit"),
    ):
        if not isinstance(value, kind):
            raise _refused(path, key, what, value)
    return Study(path, path.parent / out, _cohorts(path, values), outcomes, models, seeds, preset, settings)


def _cohorts(path: Path, values: Mapping[str, Any]) -> dict[str, Path]:
    """{name: table}: as the file names them, else by the table's folder where the table is called cohort.csv."""
    given = values.get("cohorts")
    if isinstance(given, dict) and given and all(isinstance(table, str) for table in given.values()):
        named = [(name, path.parent / table) for name, table in given.items()]
    else:
        tables = [path.parent / table for table in _listed(path, values, "cohorts", str)]
        named = [((table.resolve().parent.name if table.stem == "cohort" else table.stem), table) for table in tables]
    found = dict(named)
    if len(found) < len(named):
        raise _refused(
            path, "cohorts", "tables of different names; name them, {first = 'a.csv', second = 'b.csv'}", given
        )
    if wrong := [name for name in found if not name or Path(name).name != name or name in (".", "..")]:
        raise _refused(path, "cohorts", "names that can name a folder", wrong)
    if missing := [str(table) for table in found.values() if not table.is_file()]:
        raise _refused(path, "cohorts", "tables that exist", missing)
    return found


def _listed(
    path: Path, values: Mapping[str, Any], key: str, kind: type, default: list[Any] | None = None
) -> tuple[Any, ...]:
    given = values.get(key, default)
    if not isinstance(given, list) or not given or any(type(value) is not kind for value in given):
        raise _refused(path, key, f"a list of {'numbers' if kind is int else 'texts'}", given)
    if len(set(given)) < len(given):
        raise _refused(path, key, "each once", given)
    return tuple(given)


def _refused(path: Path, key: str, expected: str, received: Any) -> InputError:
    shown = "nothing" if received is None else repr(received)
    return InputError(f"{path}: {key} must be {expected}. Received: {shown}")
