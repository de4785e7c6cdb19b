"""Which exams of the cache running processes use, so that none is removed under a training.

A process that opened exams has a file of their names in CACHE/in-use, and a lock on it, which ends with the process
however that ends. Where the file system has no locks the file alone counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "in-use"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one process is here, no other one begins to use exams of the cache at ``folder``, or removes them."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, or without those of folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
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
            used(folder)  # removes what killed processes left
            file = tempfile.NamedTemporaryFile("w", dir=folder / FOLDER, suffix=".lock", delete=False)
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    for path in (folder / FOLDER).glob("*.lock"):
        with suppress(FileNotFoundError, ValueError), open(path, encoding="utf-8") as file:
            if _left(file.fileno()):
                path.unlink()
                continue
            told = json.load(file)
            found |= dict.fromkeys(told["exams"], f"process {told['process']} on {told['host']}")
    return found


def _left(descriptor: int) -> bool:
    """Whether nobody holds an open file's lock any more; False where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
