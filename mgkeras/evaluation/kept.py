"""An evaluation that is there already: whether it is of these runs as they are, and what it holds.

evaluation.json, and the same in report.html, says what it was made from (``made_from``) and has a digest of all that it
says (``sha256``). An evaluation that was edited, or made of other files, columns or by another version, is not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgkeras import __version__
from mgkeras.data.cache import file_digest
from mgkeras.errors import InputError

# of a run, what scores are made from; not the hidden files that a killed process was writing
FILES = ("[!.]*.json", "[!.]*.csv", "fold_*/done.json", "fold_*/cams.h5", "probes/[!.]*")
SCRIPT = re.compile(r'<script type="application/json" id="evaluation">(.*?)</script>', re.S)


def made_from(
    folders: Sequence[str | Path], *, clinical: Sequence[str] = (), samples: int, seed: int, maps: bool
) -> dict[str, Any]:
    """What an evaluation of these runs is made from: version, columns, draws, and a digest of each run's files."""
    return {
        "version": __version__,
        "clinical": list(clinical),
        "samples": samples,
        "seed": seed,
        "maps": maps,
        "folds": [file_digest(path) for folder in folders[:1] if (path := Path(folder) / "folds.json").is_file()],
        "runs": [[Path(folder).resolve().name, _digest(Path(folder))] for folder in folders],
    }


def _digest(run: Path) -> str:
    paths = sorted(path for pattern in FILES for path in run.glob(pattern) if path.is_file())
    found = [[path.relative_to(run).as_posix(), file_digest(path)] for path in paths]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def seal(results: Mapping[str, Any]) -> str:
    """SHA-256 in hex of all that an evaluation says, but for its own ``sha256``."""
    text = json.dumps({key: value for key, value in results.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def found_in(path: Path) -> dict[str, Any] | None:
    """The evaluation that evaluation.json or report.html holds; None where there is none, or it was edited."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".json":
            text = match.group(1) if (match := SCRIPT.search(text)) else ""
        found = json.loads(text)
        return found if isinstance(found, dict) and found.get("sha256") == seal(found) else None
    except (OSError, ValueError, RecursionError):
        return None


def kept(paths: Sequence[Path], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first of these files' evaluations that was made from what is wanted, see made_from."""
    return next((found for path in paths if (found := found_in(path)) and found.get("made_from") == wanted), None)


def check_same_runs(path: Path, folders: Sequence[str | Path]) -> None:
    """Makes sure that a report may be written over: it is not there, or of the same runs on the same folds.

    Raises:
        InputError: it is of other runs, or does not say of which.
    """
    if not path.exists():
        return
    there = (found_in(path) or {}).get("made_from")
    now = made_from(folders, samples=0, seed=0, maps=False)
    if there and (_names(there), there["folds"]) == (_names(now), now["folds"]):
        return
    of = f"a report of {', '.join(sorted(_names(there)))}" if there else "a file that does not say of which runs it is"
    raise InputError(
        f"expected {path} to be free, or a report of {', '.join(sorted(_names(now)))} on the same folds. Received: "
        f"{of}. Name another --out, or replace it with --overwrite"
    )


def _names(made: Mapping[str, Any]) -> set[str]:
    return {name for name, _ in made["runs"]}
