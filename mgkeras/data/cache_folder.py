"""What lies in the cache's folder, and what of it can go.

Files are known by their names: exams as cache.exam_path names them, what killed processes left of them, and files of
other versions: exams of another FORMAT, and those of before there was a file an exam. Nothing else is removed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgkeras.data import in_use
from mgkeras.data.cache import EXAMS, FORMAT
from mgkeras.data.io import lock

EXAM, LEFT, OTHER = "exam", "left", "other"
PATTERNS = (  # folder, name, kind
    (EXAMS, rf"(\d+)-v{FORMAT}-[0-9a-f]{{24}}\.h5", EXAM),
    (EXAMS, r"(\d+)-v\d+-[0-9a-f]{24}\.h5", OTHER),
    (EXAMS, r"\.(\d+)-v\d+-[0-9a-f]{24}\.h5\.part(?:\.[0-9a-f]{8})?", LEFT),
    (".", r"()[0-9a-f]{24}\.(?:h5|lock)|()\.[0-9a-f]{24}\.\d+\.part", OTHER),
)


@dataclass(frozen=True)
class Kept:
    """A file of the cache: its kind (EXAM, LEFT, OTHER), its cube's side (0 where unknown), bytes, days since it was
    last used."""

    path: Path
    kind: str
    side: int
    size: int
    days: float


def kept_files(folder: Path) -> list[Kept]:
    """The files of the cache at ``folder``, in the order of their names."""
    now, found = time.time(), {}
    for place, pattern, kind in PATTERNS:
        inside = folder / place
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            match = re.fullmatch(pattern, path.name)
            if match and path not in found and path.is_file() and not path.is_symlink():
                status, side = path.stat(), int(match[1] or 0)
                found[path] = Kept(path, kind, side, status.st_size, (now - status.st_mtime) / 86400)
    return list(found.values())


def prunable(
    files: Sequence[Kept],
    *,
    older: float = 0.0,
    unread: bool = False,
    only: Collection[str] | None = None,
    keep: Collection[str] = (),
) -> list[Kept]:
    """The files that may go.

    Args:
        files: from kept_files.
        older: days since they were last used, at least.
        unread: only what this version does not read.
        only: names of exams, as cache.exam_name gives them; nothing else goes then.
        keep: names of exams that stay.
    """
    return [
        file
        for file in files
        if file.days >= older
        and not (unread and file.kind == EXAM)
        and (only is None or (file.kind == EXAM and file.path.stem in only))
        and not (file.kind == EXAM and file.path.stem in keep)
    ]


def prune(folder: Path, files: Sequence[Kept]) -> tuple[list[Kept], dict[Path, str]]:
    """Removes files of the cache at ``folder`` but for those that a process writes or uses.

    Returns:
        Those that are gone, and {path of an exam: who uses it}, see in_use.used.
    """
    if not files:
        return [], {}
    with in_use.alone(folder):
        used = in_use.used(folder)
        held = {file.path: used[file.path.stem] for file in files if file.kind == EXAM and file.path.stem in used}
        return [file for file in files if file.path not in held and _removed(file)], held


def _removed(file: Kept) -> bool:
    try:
        with open(file.path, "rb+" if os.access(file.path, os.W_OK) else "rb") as held:  # NFS locks what may be written
            if isinstance(lock(held), BlockingIOError):
                return False
            file.path.unlink()
    except FileNotFoundError:
        return False
    return True
