"""A file is there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside a file that is to be written, which takes its place if the writing succeeds.

    Raises:
        OSError: of the writing; of a full disk too it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")  # the end tells some writers the format
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def leftovers(folder: Path, pattern: str = ".*") -> list[Path]:
    """Temporary files of written_whole, and 'NAME.PID.part' as they were once named, that killed processes left."""
    return [path for path in folder.glob(pattern) if re.fullmatch(r"\.\d+-.+|\..+\.\d+\.part", path.name)]
