"""Tables as text: the lines of a csv file, from whichever spreadsheet it comes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

MOST_BYTES = 200_000_000  # of a table; a longer file is no table


class TableError(ValueError):
    """A file that is no table; the message tells the file and what is wrong."""


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank: (number of the line in the file, from 1; its cells without surrounding space).

    Args:
        path: a csv file in UTF-8, with or without a byte order mark, separated by comma, semicolon or tab.

    Raises:
        TableError: a file that cannot be read, or is of another kind, or empty.
    """
    lines = []
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise TableError(f"{path}: {size:,} bytes, which no table has")
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        line = 1
        for cells in reader:
            lines.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1  # a quoted cell may hold line ends
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: {error}") from None
    if not (lines := [(line, cells) for line, cells in lines if any(cells)]):
        raise TableError(f"{path}: an empty file")
    return lines


def _delimiter(text: str) -> str:
    """The separator that the header has most of; a file from a German Excel has semicolons."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=header.count)
