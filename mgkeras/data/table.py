"""Tables as text: the lines of a csv file that is read, from whichever spreadsheet, or written."""

from __future__ import annotations

import csv
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mgkeras.data.io import written_whole
from mgkeras.errors import MgkerasError

MOST_BYTES = 64_000_000  # of a table; a longer file is no table
MOST_ROWS = 50_000  # no cohort has as many subjects; of blank ones, twenty times as many
MOST_COLUMNS = 16_384  # as Excel has it
MOST_CELLS = 2_000_000  # a thousand features of two thousand subjects; half a GB once each is text of its own
ZIP, GZIP, OLE = b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0"
OTHER_KINDS = ((ZIP, "an Excel or zip file"), (GZIP, "a gzip file"), (OLE, "an old Excel file"))
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
AS_TEXT = "save it as 'CSV UTF-8'"


class TableError(MgkerasError, ValueError):
    """A file that is no table; the message tells the file and what is wrong."""


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank: (number of the line in the file, from 1; its cells without surrounding space).

    Args:
        path: a csv file in UTF-8, with or without a byte order mark, separated by comma, semicolon or tab. With a
            semicolon, as where the comma is the decimal sign, a cell 39,5 is the number 39.5.

    Raises:
        TableError: a file that cannot be read, or is of another kind, too large, or empty.
    """
    try:
        check_file(path)
        _check_kind(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.read(1 << 16))
            file.seek(0)
            rows = _rows(_text(path, file), delimiter)
            lines = bounded(path, map(_with_points, rows) if delimiter == ";" else rows)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x}"
        raise TableError(f"{path}: no text in utf-8 ({found}): {AS_TEXT}") from None
    except TableError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise TableError(f"{path}: {error}") from None
    if not lines:
        raise TableError(f"{path}: an empty file")
    return lines


def write_lines(path: Path, lines: Iterable[Sequence[str]]) -> None:
    """Writes a csv file, whole or not at all, that :func:`read_lines` reads as the same cells (less space around them).

    Raises:
        TableError: a cell that no csv file can hold.
    """
    with written_whole(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        file.writelines(",".join(_quoted(path, cell) for cell in cells) + "\n" for cells in lines)


def _quoted(path: Path, cell: str) -> str:
    """Quotes cells that hold the separator of any table: readers take the first in the header."""
    if "\0" in cell or len(cell) > csv.field_size_limit():
        raise TableError(
            f"{path}: a cell must be text of {csv.field_size_limit():,} characters at most, without NUL. "
            f"Received: {cell[:50]!r}, {len(cell):,} characters"
        )
    return '"' + cell.replace('"', '""') + '"' if re.search('[,;\t"\r\n]', cell) else cell


def bounded(path: Path, lines: Iterable[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The lines in which any cell holds text, read one after the other and only while they are no more than a table's.

    Raises:
        TableError: more than MOST_ROWS, MOST_COLUMNS or MOST_CELLS.
    """
    kept, cells = [], 0
    for count, (number, line) in enumerate(lines, 1):
        if len(line) > MOST_COLUMNS:
            raise TableError(f"{path}, line {number}: {len(line):,} cells, where a table has {MOST_COLUMNS:,} at most")
        if any(line):
            kept.append((number, line))
            cells += len(line)
        if len(kept) > MOST_ROWS or count > 20 * MOST_ROWS or cells > MOST_CELLS:
            raise TableError(f"{path}: more than {MOST_ROWS:,} rows or {MOST_CELLS:,} cells, which no table here has")
    return kept


def check_file(path: Path) -> None:
    """Raises TableError for what is no regular file, as reading a pipe may wait for ever, and for one of MOST_BYTES."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise TableError(f"{path}: {'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe, device or socket'}")
    if status.st_size > MOST_BYTES:
        raise TableError(f"{path}: {status.st_size:,} bytes, which no table has")


def _check_kind(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    for magic, kind in OTHER_KINDS:
        if start.startswith(magic):
            raise TableError(f"{path}: no text but {kind}: {AS_TEXT}")


def _rows(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader, line = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        for cells in reader:
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1  # a quoted cell may hold line ends
    except csv.Error as error:
        raise csv.Error(f"the row that starts in line {line}: {error}") from None


def _with_points(row: tuple[int, list[str]]) -> tuple[int, list[str]]:
    number, cells = row
    return number, [cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells]


def _text(path: Path, file: Iterable[str]) -> Iterator[str]:
    for line in file:
        if "\0" in line:  # some versions of csv take it for text
            raise TableError(f"{path}: a NUL byte, which no text has: {AS_TEXT}")
        yield line


def _delimiter(start: str) -> str:
    """The first separator of the header, outside quotes; a file from a German Excel has semicolons."""
    plain = re.sub(r'"[^"]*("|$)', "x", start)
    header = next((line for line in plain.splitlines() if line.strip()), "")
    found = re.search("[,;\t]", header)
    return found.group() if found else ","
