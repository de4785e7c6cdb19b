"""A cohort's tables, csv or Excel, with the columns that are wanted under names of ours.

Glossary:
    field: our name of a column; a table spells it in one of several ways, its aliases. Upper and lower case and
        everything but letters and digits do not matter: ``HR Pos``, ``hr_pos`` and ``HRPOS `` are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgkeras.data.table import TableError, read_lines
from mgkeras.errors import few
from mgkeras.importers.found import SourceError, Twice
from mgkeras.importers.workbook import excel_lines, plain


@dataclass(frozen=True)
class Table:
    """A table's text: ``columns`` as spelt in the file, ``rows`` of as many cells each, '' where a cell is empty."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def fields(
        self,
        wanted: Mapping[str, Sequence[str]],
        optional: Mapping[str, Sequence[str]] | None = None,
    ) -> list[dict[str, str]]:
        """The rows as {field: text}.

        Args:
            wanted: aliases by field, of the columns that the table must have; of several that it has the first counts.
            optional: the same of columns it may lack; their text is then ''.

        Raises:
            SourceError: columns that are missing (all are named, and those found), or of which there are several.
        """
        place: dict[str, int] = {}
        for place_of, column in enumerate(self.columns):
            name = plain(column)
            place[name] = -1 if name in place else place_of  # -1: there are several
        chosen, missing = {}, []
        for field, aliases in {**wanted, **(optional or {})}.items():
            there = next((plain(alias) for alias in (*aliases, field) if plain(alias) in place), None)
            if there is None and field in wanted:
                missing.append(" or ".join(dict.fromkeys(aliases or (field,))))
            if there is not None and place[there] < 0:
                raise SourceError(f"{self.path}: expected one column {there!r}. Received: several; remove all but one")
            chosen[field] = None if there is None else place[there]
        if missing:
            raise SourceError(
                f"{self.path}: expected the columns {', '.join(missing)}. Received: "
                f"{', '.join(filter(None, self.columns))}. Another release of this source has another "
                "table; the README names the one that is read."
            )
        return [{field: "" if at is None else row[at] for field, at in chosen.items()} for row in self.rows]


def read_table(path: Path, sheet: str | None = None, *, header: int = 1) -> Table:
    """A csv, tsv or Excel file.

    Args:
        path: told apart by its ending: .xlsx, or text in UTF-8 separated by comma, semicolon or tab.
        sheet: of an Excel file, whatever its case; None for the first.
        header: the row of the column names, 1 for the first row that is not blank.

    Raises:
        SourceError: no such file or sheet, a file that is no table, merged cells among names or data, rows that are
            longer than the names.
    """
    try:
        lines = excel_lines(path, sheet, header) if path.suffix.lower() == ".xlsx" else read_lines(path)
    except TableError as error:
        raise SourceError(f"expected a table. Received: {error}") from None
    if len(lines) < header:
        raise SourceError(f"{path}: expected column names in row {header}. Received: {len(lines)} rows")
    columns = lines[header - 1][1]
    rows = []
    for number, cells in lines[header:]:
        if any(cells[len(columns) :]):
            raise SourceError(f"{path}, line {number}: expected {len(columns)} cells. Received: {len(cells)}")
        rows.append(tuple([*cells, *[""] * len(columns)][: len(columns)]))
    return Table(path, tuple(columns), tuple(rows))


def find_file(folder: Path, *patterns: str) -> Path:
    """The file in a folder whose name matches one of the patterns, upper and lower case alike.

    Args:
        folder: searched itself, not what lies in it.
        patterns: regular expressions of whole names, in the order of preference.

    Raises:
        SourceError: no such folder or file, or several of the first pattern that matches at all.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for pattern in patterns:
        found = [name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)]
        if len(found) > 1:
            raise SourceError(f"expected one file {pattern} in {folder}. Received: {', '.join(found)}")
        if found:
            return folder / found[0]
    raise SourceError(f"expected a file {' or '.join(patterns)} in {folder}. Received: {few(names, 20) or 'no files'}")


def unique(rows: Iterable[dict[str, str]], field: str, path: Path) -> list[dict[str, str]]:
    """The rows whose field is not empty.

    Raises:
        SourceError: two rows with the same text in the field, upper and lower case alike.
    """
    seen: dict[str, dict[str, str]] = {}
    for row in rows:
        if not row[field]:
            continue
        if row[field].casefold() in seen:
            raise Twice(f"{path}: expected each subject once. Received: {row[field]} twice in column {field}")
        seen[row[field].casefold()] = row
    return list(seen.values())
