"""Tables from odd and broken files: told by name, never waited for, never more memory than a table takes."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgkeras.data import table
from mgkeras.data.cohort import CohortError, Subject, open_cohort, read_cohort, write_cohort
from mgkeras.data.table import TableError, read_lines, write_lines

HEADER = "subject,pre,early,age,y\n"
TEXT = HEADER + "a,x,z,51,0\nb,x,z,47,1\n"
MOST_MEMORY = 1e9  # bytes, of a whole process
READ_ALONE = """
import resource, sys, time
from mgkeras.data.cohort import CohortError, read_cohort
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # so that a failure spares the machine
try:
    told = f"{len(read_cohort(sys.argv[1], 'y').subjects)} subjects"
except CohortError as error:
    told = str(error)
print(*told.splitlines()[:9])
print(time.process_time())
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def written(content: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


BAD = {
    "missing": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "a folder"),
    "pipe": (os.mkfifo, "a pipe, device or socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a pipe, device or socket"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "circle": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "empty": (written(b""), "an empty file"),
    "only-mark": (written("\ufeff\n"), "an empty file"),
    "gzip": (written(gzip.compress(TEXT.encode())), "a gzip file: save it as 'CSV UTF-8'"),
    "excel": (written(b"PK\x03\x04" + bytes(50)), "an Excel or zip file: save it as 'CSV UTF-8'"),
    "old-excel": (written(b"\xd0\xcf\x11\xe0" + bytes(50)), "an old Excel file: save it"),
    "latin-1": (written(TEXT.replace("51", "é").encode("latin-1")), "no text in utf-8 .byte 0xe9.: save it"),
    "utf-16": (written(TEXT.encode("utf-16")), "no text in utf-8 .byte 0xff.: save it"),
    "utf-16-unmarked": (written(TEXT.encode("utf-16-le")), "a NUL byte"),
    "nul": (written(TEXT.replace("47", "4\x007")), "a NUL byte"),
    "long-cell": (written(TEXT.replace("47", "4" * 200_000)), "the row that starts in line 3: field larger"),
    "open-quote": (written(TEXT.replace("51", '"51')), "the row that starts in line 2: unexpected end"),
    "text-after-quote": (written(TEXT.replace("51", '"5"1')), "the row that starts in line 2: ',' expected"),
    "wide": (written("x," * 1_000_000 + "\n"), "line 1: 1,000,001 cells"),
    "wide-row": (written(TEXT + "," * 20_000), "line 4: 20,001 cells"),
    "two-of-a-name": (written(TEXT.replace("age", "pre")), "one column of this name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_table_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, words = BAD[name]
    path = tmp_path / "cohort.csv"
    make(path)
    with pytest.raises(CohortError, match=words) as error:
        read_cohort(path, "y")
    assert str(path) in str(error.value) and len(str(error.value)) < 5000
    assert [left.name for left in tmp_path.iterdir()] in ([], ["cohort.csv"])


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
        TEXT.replace(",", ";"),
        TEXT.replace(",", "\t"),
        "\n\n" + TEXT.replace("\n", "\n\n,,,,\n"),
        TEXT.replace(",", " , "),
        TEXT.rstrip("\n"),
        '"' + TEXT.replace(",", '","').replace("\n", '"\n"').rstrip('"'),
        TEXT.replace(",", ";").replace("age", '"a,g,e,,,,,"'),
        TEXT.replace("age", "a;g;e;;;;;"),
    ],
)
def test_every_way_to_write_the_same_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "cohort.csv").write_bytes(content.encode())
    subjects = read_cohort(tmp_path / "cohort.csv", "y").subjects
    assert [(s.name, s.pre, *s.covariates.values(), s.label) for s in subjects] == [
        ("a", tmp_path / "x", "51", 0),
        ("b", tmp_path / "x", "47", 1),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc",
        "..",
        "a/../b",
        "=1+1",
        "@sum",
        "-1",
        "+1",
        "ä",
        "а",
        "a\u200bb",
        "a\x1b[2J",
        "x" * 101,
        "nul",
        "a b",
        "a\\b",
        "C:",
        "$(x)",
        "`x`",
        "a;b",
    ],
)
def test_no_name_leaves_the_folder_that_it_names_files_in(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "cohort.csv", [["subject", "early"], [name, "z"]])
    with pytest.raises(CohortError, match="a name that can name files") as error:
        read_cohort(tmp_path / "cohort.csv", predict=True)
    assert str(error.value).replace("\n", "").isprintable()


def test_a_table_may_name_files_anywhere(tmp_path: Path) -> None:
    """A cohort's table is its user's own: absolute paths and those upward are read as they are, and written nowhere."""
    paths = [str(tmp_path / "elsewhere" / "z.nii"), "../z.nii", "/etc/passwd"]
    write_lines(tmp_path / "cohort.csv", [["subject", "early"], *([f"s{i}", path] for i, path in enumerate(paths))])
    subjects = read_cohort(tmp_path / "cohort.csv", predict=True).subjects
    assert [subject.early for subject in subjects] == [Path(paths[0]), tmp_path / "../z.nii", Path("/etc/passwd")]
    with pytest.raises(CohortError, match="subject s2, column early: .* Received: /etc/passwd, whose name"):
        open_cohort(tmp_path / "cohort.csv", predict=True)


def test_an_error_shows_no_more_than_one_can_read(tmp_path: Path) -> None:
    columns = [f"a column with a long name, which is number {i}" for i in range(9000)]
    write_lines(tmp_path / "cohort.csv", [columns, [""] * 8999 + ["1"]])
    with pytest.raises(CohortError) as error:
        read_cohort(tmp_path / "cohort.csv", "z")
    assert max(map(len, str(error.value).splitlines())) < 2100


def test_what_is_written_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    subject = Subject("a", tmp_path / "z", covariates={"note": 'one\rtwo;three\t"four"'})
    write_cohort(path, [subject])
    assert read_cohort(path, predict=True).subjects[0].covariates == subject.covariates
    before = path.read_bytes()
    for cell in ("nul\0", "x" * 200_000):
        with pytest.raises(TableError, match=r"cohort.csv: a cell must be .* Received: '"):
            write_cohort(path, [subject, Subject("b", tmp_path / "z", covariates={"note": cell})])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_links_that_go_in_circles_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = write_cohort(tmp_path / "cohort.csv", [Subject("a", tmp_path / "loop" / "z.nii")])
    assert read_cohort(path, predict=True).subjects[0].early == tmp_path / "loop" / "z.nii"


def test_a_full_disk_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # Python ignores the signal: writing fails
    try:
        with pytest.raises(OSError):
            write_lines(path, [["x" * 100_000]] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: HEADER + "a,x,z,51,0\n" * 49_999, "49998 errors"),
        (lambda: HEADER + "a\n" * 5_000_000, "more than 50,000 rows"),
        (lambda: HEADER + "\n" * 60_000_000, "more than 50,000 rows"),
        (lambda: HEADER + ("," * 16_000 + "1\n") * 3_000, "or 2,000,000 cells"),
        (lambda: HEADER + "".join(f"{i:05}{f',t{i}' * 190}\n" for i in range(10_000)), "10001 errors"),
        (lambda: HEADER + f"s,x,z,{'y' * 100_000}\U0001f600,1\n" * 600, "599 errors"),
        (lambda: HEADER + "s,x,z,51,0\n" * 6_000_000, "66,000,024 bytes"),
    ],
    ids=["rows", "too-many-rows", "blank", "commas", "cells", "wide-text", "too-long"],
)
def test_memory_stays_below_a_gigabyte(tmp_path: Path, content: Callable[[], str], words: str) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(content(), encoding="utf-8")
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALONE, str(path)], capture_output=True, text=True, timeout=300, env=alone
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    told, seconds, peak = done.stdout.splitlines()
    print(f"\n{float(seconds):.2f} s of processor time, {int(peak) / 1e6:.0f} MB: {told[:300]}")
    assert words in told and int(peak) < MOST_MEMORY


def test_limits_are_for_what_no_table_is() -> None:
    assert table.MOST_CELLS >= 1500 * 1000 and table.MOST_ROWS >= 50_000  # radiomics of a cohort, and a registry


def test_the_line_of_a_row_is_that_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufeffa;b\r\n\r\n"1\r\n2";3\r\n4;5\r\n'.encode())
    assert read_lines(tmp_path / "t.csv") == [(1, ["a", "b"]), (3, ["1\r\n2", "3"]), (5, ["4", "5"])]
