"""HDF5 files whose first bytes hold a checksum of all others, compared before HDF5 reads anything of them.

A wrong bit in the structure of an HDF5 file can make HDF5 read for minutes. HDF5 leaves the first BLOCK bytes, its user
block, to whoever writes the file.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

BLOCK = 512  # bytes, the smallest user block of HDF5
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of HDF5, at the beginning of files without a user block


def sealed(arrays: Mapping[str, Any], attributes: Mapping[str, str], name: str = "") -> bytes:
    """The bytes of an HDF5 file; h5py never sees the disk, because it ends the process where the disk is full.

    Args:
        arrays: {name: array}, each is stored as one run of bytes.
        attributes: of the file.
        name: that the file must keep, or '' where it may be renamed.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=BLOCK) as file:
        for key, array in arrays.items():
            file[key] = array
        for key, text in attributes.items():
            file.attrs[key] = text
    rest = memoryview(content.getvalue())[BLOCK:]  # no getbuffer(): in a reference loop it ends Python 3.12.1
    content.seek(0)
    content.write(block_of(zlib.crc32(rest, zlib.crc32(name.encode()))))
    return content.getvalue()


def block_of(checksum: int) -> bytes:
    """The first BLOCK bytes of a file: text, then zeros. CRC-32 notices every flipped bit and reads GB in a second."""
    text = f"mgkeras: HDF5 from byte {BLOCK} on; CRC-32 of the file's name (if it has one) and those bytes: "
    return f"{text}{checksum:08x}\n".encode().ljust(BLOCK, b"\0")


def intact(path: Path, name: str = "") -> bool | None:
    """Whether a file is as :func:`sealed` wrote it under this name; None of HDF5 without a checksum, as it was before.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        block, checksum = file.read(BLOCK), zlib.crc32(name.encode())
        if block.startswith(SIGNATURE):
            return None
        part = memoryview(bytearray(1 << 20))
        while count := file.readinto(part):
            checksum = zlib.crc32(part[:count], checksum)
    return block == block_of(checksum)
