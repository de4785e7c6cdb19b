"""SHA-256 digests of a run's files, by which a later edit is noticed.

`mgkeras fit` writes digests of each fold's files, and of what all folds share, into fold_k/done.json, and of the run's
own scores into RUN/done.json. What other commands add to a run has digests in a JSON file of its own, see PARTS. Runs
of before have none there and are read without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgkeras.data.io import digest_of
from mgkeras.errors import MgkerasError
from mgkeras.runs.checked import MAP, read_object

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


class EditedRun(MgkerasError, ValueError):
    """A run's files are not those that its fit wrote; the message names them and says what to do."""


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
