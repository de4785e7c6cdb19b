"""Excel files that are broken, or hold what no text can be made of: told by name, within a table's time and memory."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mgkeras.importers.found import SourceError
from mgkeras.importers.tables import read_table

openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is of the extra import")
MOST_MEMORY = 1e9  # bytes, of a whole process
SHEET = "xl/worksheets/sheet1.xml"
START = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
BOOKS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
READ_ALONE = """
import resource, sys, time
from pathlib import Path
from mgkeras.importers.found import SourceError
from mgkeras.importers.tables import read_table
import openpyxl
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # so that a failure spares the machine
try:
    table = read_table(Path(sys.argv[1]))
    told = f"{len(table.columns)} columns, {len(table.rows)} rows"
except SourceError as error:
    told = str(error)
print(told.replace(chr(10), " "))
print(time.process_time())
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def book(path: Path, rows: list[list[object]] = (["id", "her2"], ["a", 1], ["b", 0]), title: str = "Data") -> Path:
    made = openpyxl.Workbook()
    made.active.title = title
    for row in rows:
        made.active.append(row)
    made.save(path)
    return path


def rewritten(path: Path, parts: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> None:
    """A good workbook with other bytes for some of its parts."""
    book(path)
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in {**old, **parts}.items():
            archive.writestr(name, content)


def sheet(rows: bytes, after: bytes = b"") -> Callable[[Path], None]:
    """A workbook whose sheet holds this XML."""
    content = START + b"<sheetData>" + rows + b"</sheetData>" + after + b"</worksheet>"
    return lambda path: rewritten(path, {SHEET: content})


def cut(path: Path) -> None:
    path.write_bytes(book(path).read_bytes()[:-200])


def flipped(path: Path) -> None:
    """A part that was changed; the zip's directory is whole."""
    rewritten(path, {}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"<sheetData>", b"<sheetDatA>"))


def lying(path: Path) -> None:
    """A part that says that it is smaller than it is, in both places that say it."""
    rewritten(path, {SHEET: START + b" " * 50_000_000})
    content = path.read_bytes()
    size = (len(START) + 50_000_000).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))


def entities(path: Path) -> None:
    """A billion laughs."""
    names = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10)]
    head = f'<!DOCTYPE x [<!ENTITY e0 "ha">{"".join(names)}]>'.encode()
    rewritten(path, {SHEET: head + START + b'<sheetData><row><c t="str"><v>&e9;</v></c></row></sheetData></worksheet>'})


BAD = {
    "folder": (Path.mkdir, "a folder"),
    "pipe": (os.mkfifo, "a pipe, device or socket"),
    "missing": (lambda path: None, "No such file"),
    "text": (lambda path: path.write_text("id,her2\na,1\n"), "not a zip file"),
    "old": (lambda path: path.write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600)), "not a zip file"),
    "truncated": (cut, "not a zip file"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").close(), "KeyError"),
    "flipped": (flipped, "CRC"),
    "lying": (lying, "CRC|BadZipFile|invalid|overlap"),
    "lzma": (lambda path: rewritten(path, {}, zipfile.ZIP_LZMA), "in another way than Excel packs"),
    "no-xml": (lambda path: rewritten(path, {SHEET: b"\x1f\x8b" + bytes(99)}), "not well-formed|syntax"),
    "entities": (entities, "amplification|entity|EntitiesForbidden"),
    "merged": (
        sheet(b'<row><c r="A1"><v>1</v></c></row>', b'<mergeCells><mergeCell ref="A1:B9"/></mergeCells>'),
        "merged cells A1:B9",
    ),
    "merged-all": (
        sheet(b'<row><c r="A1"><v>1</v></c></row>', b'<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'),
        "merged cells A1:XFD1048576",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_workbook_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, words = BAD[name]
    path = tmp_path / "clinical.xlsx"
    make(path)
    with pytest.raises(SourceError, match=f"(?s)expected a table. Received: .*({words})") as error:
        read_table(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 2000


def test_another_sheet_is_asked_for(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", title="Data  set")
    assert read_table(path, "DATA_SET").columns == ("id", "her2")
    with pytest.raises(SourceError, match="no sheet 'Outcome' among Data  set"):
        read_table(path, "Outcome")


def test_cells_of_every_kind(tmp_path: Path) -> None:
    """Dates, numbers, errors and calculated formulas; what is missing is empty, and an error is no value."""
    day = datetime.datetime(2020, 1, 31)
    path = book(tmp_path / "a.xlsx", [["date", "number", "whole", "flag", "text"], [day, 1.5, 3, True, " x "]])
    assert read_table(path).rows == (("2020-01-31 00:00:00", "1.5", "3", "True", "x"),)
    rows = (
        b'<row><c r="A1" t="str"><v>id</v></c><c r="B1" t="str"><v>y</v></c><c r="C1" t="str"><v>z</v></c></row>'
        b'<row><c r="A2" t="str"><f>T(1)</f><v>a</v></c><c r="B2" t="e"><v>#N/A</v></c>'
        b'<c r="C2" t="e"><f>1/0</f><v>#DIV/0!</v></c></row>'
        b'<row><c r="A3" t="str"><f>T(2)</f><v></v></c><c r="C3"><v>7</v></c></row>'
    )
    sheet(rows)(tmp_path / "b.xlsx")
    assert read_table(tmp_path / "b.xlsx").rows == (("a", "", "#DIV/0!"), ("", "", "7"))


def test_a_formula_that_was_never_calculated_is_no_missing_value(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", [["id", "her2"], ["a", '=IF("x"<>"y",1,0)'], ["b", None]])
    assert read_table(path).rows == (("a", '=IF("x"<>"y",1,0)'), ("b", ""))


def test_a_title_may_be_merged_and_rows_may_be_missing(tmp_path: Path) -> None:
    rows = (
        b'<row r="1"><c r="A1" t="str"><v>Title</v></c></row><row r="4"><c r="A4" t="str"><v>id</v></c></row>'
        b'<row r="900"><c r="A900" t="str"><v>a</v></c></row>'
    )
    sheet(rows, b'<mergeCells><mergeCell ref="A1:B2"/></mergeCells>')(tmp_path / "a.xlsx")
    assert read_table(tmp_path / "a.xlsx", header=2).rows == (("a",),)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (sheet(b"<row>" + b"<c/>" * 12_000_000 + b"</row>"), "more than 250,000 cells"),
        (sheet(b"<row>" + b"<c/>" * 900_000 + b"</row>"), "cells, where a table has 16,384 at most"),
        (sheet((b"<row>" + b"<c/>" * 300 + b"</row>") * 3_000), "no rows|rows"),
        (sheet(b'<row><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'), "rows or"),
        (sheet(b'<row><c r="A1"><v>1</v></c></row><row r="999999999"><c r="A999999999"><v>1</v></c></row>'), "rows"),
        (
            sheet(b'<row><c r="A1"><v>1</v></c></row>', b'<hyperlinks><hyperlink ref="A1:XFD1048576"/></hyperlinks>'),
            "1 columns, 0 rows",
        ),
        (lambda path: rewritten(path, {"xl/media/image1.png": bytes(80_000_000)}), "bytes unpacked"),
        (lambda path: rewritten(path, {SHEET: START + b" " * 60_000_000 + b"</worksheet>"}), "expected column names"),
    ],
    ids=["cells", "wide", "blank", "far-cell", "far-row", "links", "bomb", "spaces"],
)
def test_memory_stays_below_a_gigabyte(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "clinical.xlsx"
    make(path)
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(path)], capture_output=True, text=True, timeout=300, env=alone
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    told, seconds, peak = done.stdout.splitlines()
    print(f"\n{float(seconds):.2f} s of processor time, {int(peak) / 1e6:.0f} MB: {told[:300]}")
    assert any(word in told for word in words.split("|")) and int(peak) < MOST_MEMORY
