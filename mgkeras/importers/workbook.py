"""A sheet of an Excel file as text, streamed, so that what the file claims takes no memory before it is seen."""

from __future__ import annotations

import functools
import html
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mgkeras.data.table import MOST_BYTES, TableError, bounded, check_file
from mgkeras.importers.found import required

MOST_TAGS = 1_000_000  # in a file: a quarter as many cells, which take openpyxl 2 s
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what Excel writes, and what is unpacked no further than claimed
MERGED = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref\s*=\s*[\"']([A-Z]+\d+:[A-Z]+(\d+))")
NO_VALUE = re.compile(  # a cell's attributes and formula, where it has one and no value or an empty one
    rb"<(?:\w+:)?c\s([^>]*)>\s*<(?:\w+:)?f(?:\s[^>]*)?(?:/>|>([^<]*)</(?:\w+:)?f>)\s*"
    rb"(?:<(?:\w+:)?v\s*(?:/>|></(?:\w+:)?v>)\s*)?</(?:\w+:)?c>"
)


def excel_lines(path: Path, sheet: str | None, header: int) -> list[tuple[int, list[str]]]:
    """The rows that are not blank: (number of the row, from 1; its cells' text without surrounding space).

    Excel's ``#N/A`` is an empty cell; its other errors stay as they are spelt. A formula that was never calculated, as
    programs write them, is its own text, so that it does not pass for a missing value.

    Args:
        path: an .xlsx file.
        sheet: its name, whatever the case; None for the first.
        header: the row of the column names, 1 for the first row that is not blank.

    Raises:
        NotInstalled: openpyxl is missing.
        TableError: no such sheet, no Excel file, a damaged or far too large one, cells merged in or below the header.
    """
    openpyxl = required("openpyxl", "Excel tables")
    try:
        check_file(path)
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions of Excel that openpyxl does not know
            _check_size(path, archive)
            page = _page(path, openpyxl.load_workbook(file, read_only=True, data_only=True), sheet)
            xml = archive.read(page._worksheet_path)  # openpyxl, where it tells merged cells, makes an object of each
            page.reset_dimensions()  # what a sheet says of its size is often wrong
            lines = bounded(path, _rows(page, _uncalculated(xml)))
    except TableError:
        raise
    except Exception as failed:  # a broken workbook can make its reader fail anywhere
        error = failed.__cause__ or failed  # openpyxl puts some errors in words of its own
        raise TableError(f"{path}: {type(error).__name__}: {error}") from None
    if len(lines) >= header:
        merged = [area.decode() for area, last in MERGED.findall(xml) if int(last) >= lines[header - 1][0]]
        if merged:
            raise TableError(
                f"{path}: merged cells {', '.join(merged[:5])}, whose value belongs to one row only; unmerge them"
            )
    return lines


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Unpacks every part once, which compares the checksums, and counts what openpyxl would have to look at."""
    entries, tags = archive.infolist(), 0
    if (size := sum(entry.file_size for entry in entries)) > MOST_BYTES:
        raise TableError(f"{path}: {size:,} bytes unpacked, which no table has")
    if any(entry.compress_type not in PACKED for entry in entries):
        raise TableError(f"{path}: packed in another way than Excel packs; save it anew")
    for entry in entries:
        with archive.open(entry) as part:
            while block := part.read(1 << 20):
                tags += block.count(b"<") * entry.filename.endswith((".xml", ".rels"))
    if tags > MOST_TAGS:
        raise TableError(f"{path}: more than {MOST_TAGS // 4:,} cells, or styles of empty ones; save the sheet as csv")


def plain(name: str) -> str:
    """A name's letters and digits, in lower case: 'hrpos' of 'HR Pos', 'hr_pos' and 'HRpos'."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _page(path: Path, book: Any, sheet: str | None) -> Any:
    pages = {plain(page.title): page for page in book.worksheets}
    if not pages or sheet is not None and plain(sheet) not in pages:
        raise TableError(
            f"{path}: no sheet {'of cells' if sheet is None else repr(sheet)} among {', '.join(book.sheetnames)}"
        )
    return book.worksheets[0] if sheet is None else pages[plain(sheet)]


def _uncalculated(xml: bytes) -> dict[tuple[int, int], str]:
    """The formulas without a value, by row and column from 1."""
    found = {}
    for attributes, formula in NO_VALUE.findall(xml):
        where = re.search(rb"\br\s*=\s*[\"']([A-Z]+)(\d+)", attributes)
        if where and not re.search(rb"\bt\s*=\s*[\"']str", attributes):  # else its value is an empty text
            column = functools.reduce(lambda number, letter: 26 * number + letter - 64, where.group(1), 0)
            found[int(where.group(2)), column] = f"={html.unescape(formula.decode(errors='replace'))}"
    return found


def _rows(page: Any, formulas: dict[tuple[int, int], str]) -> Iterator[tuple[int, list[str]]]:
    for number, cells in enumerate(page.iter_rows(values_only=True), 1):
        yield number, [_text(cell) or formulas.get((number, column), "") for column, cell in enumerate(cells, 1)]


def _text(value: object) -> str:
    return "" if value is None or value == "#N/A" else str(value).strip()
