"""What lies in a download's folders. Names are compared, never joined: no text of a table leads outside of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mgkeras.importers.found import SourceError


def files_below(folder: Path, depth: int = 5) -> list[Path]:
    """The files in a folder and in those in it, ``depth`` levels deep, sorted; hidden ones such as ``._x`` are none."""
    files, folders = [], []
    for path in entries(folder):
        (folders if path.is_dir() else files).append(path)
    files = [path for path in files if path.is_file()]
    if depth > 1:
        for inner in folders:
            files += files_below(inner, depth - 1)
    return files


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
    """The folder of this name in another one, upper and lower case alike; None where there is none.

    Raises:
        SourceError: several, which differ in case only.
    """
    return only([path for path in entries(folder) if path.is_dir() and path.name.casefold() == name.casefold()])


def only(paths: Iterable[Path]) -> Path | None:
    """The one path of those given; None of none.

    Raises:
        SourceError: several.
    """
    paths = list(paths)
    if len(paths) > 1:
        raise SourceError(f"expected one of these, whose names mean the same. Received: {', '.join(map(str, paths))}")
    return paths[0] if paths else None
