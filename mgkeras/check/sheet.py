"""The check sheet: one HTML file to leaf through a whole cohort before anything is trained on it.

Every subject is a card: pictures, what the table says, what is wrong. Cards are written as they come, so that a sheet
of thousands takes no more memory than one of ten; the page opens from a disk without network.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgkeras.check.strip import PANELS, Strip
from mgkeras.data.io import written_whole
from mgkeras.figures.figure3 import OUTLINE
from mgkeras.report.page import inline, template

MOST_BYTES = 20_000_000  # of a sheet of 1000 subjects; mail and browsers take it
BEST = 90_000  # bytes that a subject's pictures take at most, where there are few subjects
LEAST = 2_500  # and at least, where there are many: what is smaller shows nothing
SPARE = 4_000  # bytes of a card beside its pictures: names, outlines, problems
RULES = "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
CARDS = "@cards@"


@dataclass(frozen=True)
class Card:
    """A subject on the sheet.

    Attributes:
        name: the subject.
        facts: what the table says: (name, value), such as ('site', 'north').
        problems: (severity, text), the severity 'error' or 'warning'.
        strip: its pictures; None where the early phase cannot be read.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    problems: tuple[tuple[str, str], ...]
    strip: Strip | None

    @property
    def state(self) -> str:
        """'error', 'warning' or 'fine'."""
        severities = {severity for severity, _ in self.problems}
        return next((state for state in ("error", "warning") if state in severities), "fine")


def room_for(subjects: int) -> int:
    """Bytes that a subject's picture may take so that a sheet of so many subjects stays within MOST_BYTES."""
    share = (MOST_BYTES / max(1, subjects) - SPARE) * 3 / 4  # base64 writes 4 bytes for 3
    return int(min(BEST, max(LEAST, share)))


def write_sheet(out: Path, title: str, cards: Iterable[Card], *, problems: Sequence[tuple[str, str]] = ()) -> Path:
    """Writes the sheet through a temporary name and a rename.

    Args:
        out: .html; its folder is made.
        title: of the page.
        cards: taken one by one, in this order.
        problems: of the table as a whole, as Card has them.
    """
    of_card = template("check_card.html")
    states = {"error": 0, "warning": 0, "fine": 0}
    choices: dict[str, None] = {}  # in the order of the cards
    with written_whole(out) as temporary:
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=out.parent) as spool:
            for card in cards:
                jpeg = base64.b64encode(card.strip.jpeg).decode() if card.strip else ""
                spool.write(of_card.render(card=card, jpeg=jpeg, panels=PANELS))
                states[card.state] += 1
                choices |= dict.fromkeys(f"{name} {value or 'not known'}" for name, value in card.facts)
            head, _, tail = (
                template("check.html")
                .render(
                    title=title,
                    states=states,
                    problems=problems,
                    choices=sorted(choices),
                    cards=CARDS,
                    rules=RULES,
                    style=inline("check.css"),
                    script=inline("check.js"),
                    outline=OUTLINE,
                )
                .rpartition(CARDS)
            )
            spool.seek(0)
            with open(temporary, "w", encoding="utf-8") as page:
                page.write(head)
                shutil.copyfileobj(spool, page)
                page.write(tail)
    return out
