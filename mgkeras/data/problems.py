"""What is wrong with a cohort, where, in words for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from mgkeras.data.checks import ERROR

LONGEST = 2000  # characters of a problem that are shown: a cell may hold a book


@dataclass(frozen=True)
class Problem:
    """What is wrong, where. Row 1 is the header or the table as a whole, and its subject is empty then."""

    row: int
    subject: str
    column: str
    expected: str
    found: str
    severity: str = ERROR  # 'error' or 'warning'

    def __str__(self) -> str:
        where = f"line {self.row}" + (f", subject {self.subject}" if self.subject else "")
        where += f", column {self.column}" if self.column else ""
        text = " ".join(f"{self.severity}: {where}: expected {self.expected}. Received: {self.found}".split())
        shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)  # a cell may hold a terminal's commands
