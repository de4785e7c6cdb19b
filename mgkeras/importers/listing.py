"""What lies in a download's folders. Names are compared, never joined: no text of a table leads outside of them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mgkeras.importers.found import SourceError

ENDING = r"\.nii(?:\.gz)?"  # of a NIfTI file


def stem(path: Path) -> str:
    """A NIfTI file's name without its ending."""
    return re.sub(ENDING + "$", "", path.name, flags=re.IGNORECASE)


def files_below(folder: Path, without: Path | None = None) -> list[Path]:
    """The files in a folder and in all folders in it, sorted by name, a folder's own first.

    Hidden files and folders are left out. Links are followed, no folder is entered twice.

    Args:
        folder: must exist.
        without: a folder that is passed over, such as that of an earlier call's output.
    """
    files: list[Path] = []
    seen = {os.path.realpath(without)} if without else set()

    def enter(inner: Path) -> None:
        if (real := os.path.realpath(inner)) in seen:
            return
        seen.add(real)
        held = entries(inner)
        files.extend(path for path in held if path.is_file())
        for path in held:
            if path.is_dir():
                enter(path)

    enter(folder)
    return files


def by_phase(paths: Iterable[Path], pattern: re.Pattern[str]) -> dict[str, dict[int, list[Path]]]:
    """{subject in lower case: {phase: its files}}; several are several copies, which the caller refuses.

    Args:
        paths: of files, of which those count whose name in lower case is the pattern's.
        pattern: its first group is the subject, the second the phase's number.
    """
    found: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        if match := pattern.fullmatch(path.name.casefold()):
            found[match[1]][int(match[2])].append(path)
    return found


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, hidden files and folders left out.

    Raises:
        SourceError: no such folder, or one that cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SourceError(f"expected a folder that can be read. Received: {folder}: {error.strerror}") from None


def child(folder: Path, name: str) -> Path | None:
    """The folder of this name in another folder, upper and lower case alike; None where there is none.

    Raises:
        SourceError: several, which differ in case only.
    """
    return _only([path for path in entries(folder) if path.is_dir() and path.name.casefold() == name.casefold()])


def file_named(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, upper and lower case alike; None where there is none.

    Raises:
        SourceError: several, which differ in case only.
    """
    return _only([path for path in entries(folder) if path.is_file() and path.name.casefold() == name.casefold()])


def _only(paths: list[Path]) -> Path | None:
    if len(paths) > 1:
        raise SourceError(f"expected one of these, whose names mean the same. Received: {', '.join(map(str, paths))}")
    return paths[0] if paths else None
