"""Which of an exam's dynamic phases is T0 (pre), T1 (early) and T2 (late)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from mgkeras.settings import ImportSettings

DEFAULT = ImportSettings()
Kind = TypeVar("Kind")
RULE = (
    "pre is the first phase; where the phases' times are known, early is the phase after it nearest to "
    "{early:g} s and late the one after early nearest to {late:g} s (of equals the earlier); where they are not, early "
    "is the first phase after pre and late the last one"
)


class Phases(NamedTuple):
    """Places in the sequence of phases; ``late`` is None where no phase follows ``early``."""

    pre: int
    early: int
    late: int | None


def choose_phases(
    count: int,
    seconds: Sequence[float | None] | None = None,
    *,
    early: float = DEFAULT.early_seconds,
    late: float = DEFAULT.late_seconds,
) -> Phases | None:
    """T0, T1 and T2 of an exam of ``count`` phases in the order of time; None where there are fewer than two.

    Args:
        count: phases, the one before contrast included.
        seconds: when each was acquired, in seconds since any moment; None, or anything that is not a rising sequence
            of ``count`` numbers, where it is not known.
        early, late: seconds after the first phase that T1 and T2 should have.
    """
    if count < 2:
        return None
    if seconds is None or len(seconds) != count or None in seconds or any(not b > a for a, b in pairwise(seconds)):
        return Phases(0, 1, count - 1 if count > 2 else None)
    since = [value - seconds[0] for value in seconds]
    first = min(range(1, count), key=lambda place: abs(since[place] - early))
    rest = range(first + 1, count)
    return Phases(0, first, min(rest, key=lambda place: abs(since[place] - late)) if rest else None)


def phases_by_column(
    phases: Sequence[Kind],
    seconds: Sequence[float | None] | None = None,
    *,
    early: float = DEFAULT.early_seconds,
    late: float = DEFAULT.late_seconds,
) -> dict[str, Kind]:
    """Of an exam's phases in the order of time those that choose_phases takes, by 'pre', 'early' and 'late'.

    Empty where there are fewer than two; without 'late' where no phase follows 'early'.
    """
    chosen = choose_phases(len(phases), seconds, early=early, late=late)
    return (
        {}
        if chosen is None
        else {column: phases[place] for column, place in chosen._asdict().items() if place is not None}
    )


def rule(early: float = DEFAULT.early_seconds, late: float = DEFAULT.late_seconds) -> str:
    """The rule in words, for the data-sheet."""
    return RULE.format(early=early, late=late)
