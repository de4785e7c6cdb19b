"""Which exams of the cache running processes use, so that none is removed under a training.

A process that opened exams has a file of their names in CACHE/in-use, and a lock on it, which ends with the process
however that ends. Where the file system has no locks the file alone counts.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mgkeras.data.io import lock

FOLDER = "in-use"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one process is here, no other one begins to use exams of the cache at ``folder``, or removes them."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        lock(descriptor, wait=True)  # where the file system has no locks, or none of folders, nobody is kept out
        yield
    finally:
        os.close(descriptor)


def hold(folder: Path, names: Iterable[str]) -> Callable[[], None]:
    """Says that this process uses exams, until the function that is returned is called, or the process ends.

    Where the cache may not be written to, or the disk is full, nothing is said.

    Args:
        folder: of the cache.
        names: of the exams, as cache.exam_name gives them.
    """
    try:
        with alone(folder):
            _held(folder)  # removes what killed processes left
            file = tempfile.NamedTemporaryFile("w", dir=folder / FOLDER, suffix=".lock", delete=False)
            lock(file.fileno())
            json.dump({"process": os.getpid(), "host": platform.node(), "exams": sorted(set(names))}, file)
            file.flush()
    except OSError:
        return lambda: None
    owner = os.getpid()

    def let_go() -> None:
        if os.getpid() == owner:  # not of a fork of it
            Path(file.name).unlink(missing_ok=True)
        file.close()

    return let_go


def used(folder: Path) -> dict[str, str]:
    """{name of an exam: 'process 4711 on node3'} of those that running processes use; call it :func:`alone`.

    Files of processes that have ended are removed.
    """
    found: dict[str, str] = {}
    for path in _held(folder):
        with suppress(FileNotFoundError, ValueError):
            told = json.loads(path.read_text(encoding="utf-8"))
            found |= dict.fromkeys(told["exams"], f"process {told['process']} on {told['host']}")
    return found


def _held(folder: Path) -> list[Path]:
    """The files of running processes, of all where there are no locks; those of processes that ended are removed."""
    held = []
    for path in (folder / FOLDER).glob("*.lock"):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if lock(file, shared=True):
                held.append(path)
            else:
                path.unlink()
    return held
