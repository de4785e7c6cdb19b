"""Files that are written whole or not at all, locks on them, their digests, and TOML."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside a file that is to be written, which takes its place if the writing succeeds.

    Its bytes are on the disk before it has its name, so that a loss of power leaves the file of before or the new one.

    Raises:
        OSError: of the writing; of a full disk too it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")  # the end tells some writers the format
    part.unlink(missing_ok=True)  # of a killed process of this number: in a container each is 1
    try:
        yield part
        _keep(part)
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def _keep(path: Path) -> None:
    """Waits until a file's bytes are on the disk, 2 to 8 ms on a solid state disk; network disks tell here first that
    they are full."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def leftovers(folder: Path, pattern: str = ".*") -> list[Path]:
    """Temporary files of written_whole, and 'NAME.PID.part' as they were once named, that killed processes left."""
    return [path for path in folder.glob(pattern) if re.fullmatch(r"\.\d+-.+|\..+\.\d+\.part", path.name)]


def lock(file: IO | int, *, wait: bool = False, shared: bool = False) -> OSError | None:
    """Locks an open file, or a folder, until it is closed or this process ends; why that failed, or None.

    Args:
        file: or its descriptor.
        wait: for another process that holds the lock.
        shared: whether others may have a shared lock too; for a file that is open for reading, since NFS locks alone
            only what may be written.

    Returns:
        None: the lock is held. BlockingIOError: another process holds it. Another OSError: the file system has no
        locks, as some network file systems have none.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error
    return None


@contextmanager
def claimed(part: Path, wait: bool) -> Iterator[Path | None]:
    """A file to write to that no other process writes to; None where one does and is not to be waited for.

    What a killed process left is written over. Where the file system has no locks, several processes may write the
    same, each to a file of its own name.
    """
    while True:
        with open(part, "ab") as file:
            refused = lock(file, wait=wait)
            if isinstance(refused, BlockingIOError):
                yield None
                return
            held = part.with_name(f"{part.name}.{secrets.token_hex(4)}") if refused else part
            if held == part and not _same(part, file.fileno()):  # whoever held it has finished: look again
                continue
            try:
                yield held
            finally:
                if held != part or _same(part, file.fileno()):
                    held.unlink(missing_ok=True)
                if held != part:
                    part.unlink(missing_ok=True)
            return


def _same(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        OSError: it cannot be read. ValueError: it is no UTF-8, or no TOML.
    """
    return tomllib.loads(path.read_text(encoding="utf-8"))


def digest_of(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes; a file that has not changed (size, time) is read once in a process.

    Args:
        path: of the file.
        algorithm: 'sha256', or 'blake2b' for one of 16 bytes.
    """
    key = (algorithm, *_version(path.stat()))
    if key not in _digests:
        digest = _hash(algorithm)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        _digests[key] = digest.hexdigest()
    return _digests[key]


@contextmanager
def opened_to_hash(path: str | os.PathLike) -> Iterator[io.BufferedIOBase]:
    """A file opened for reading; where it is read to its end, digest_of(path, 'blake2b') does not read it again."""
    with _Hashed(path) as raw, io.BufferedReader(raw, 1 << 20) as file:
        key = ("blake2b", *_version(os.fstat(raw.fileno())))
        yield file
        after = os.fstat(raw.fileno())
        if raw.count == after.st_size and key[1:] == _version(after):
            _digests[key] = raw.digest.hexdigest()


class _Hashed(io.FileIO):
    """Hashes bytes that are read one after the other, each once."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self.digest, self.count = _hash("blake2b"), 0

    def readinto(self, buffer: Any) -> int | None:
        begin, size = self.tell(), super().readinto(buffer)
        if size and begin <= self.count < begin + size:
            self.digest.update(memoryview(buffer)[self.count - begin : size])
            self.count = begin + size
        return size


_digests: dict[tuple, str] = {}  # by algorithm and version of the file


def _hash(algorithm: str) -> Any:
    return hashlib.sha256() if algorithm == "sha256" else hashlib.blake2b(digest_size=16)


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
