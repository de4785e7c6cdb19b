"""Which of an exam's dynamic phases is T0 (pre), T1 (early) and T2 (late)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mgkeras.settings import ImportSettings

DEFAULT = ImportSettings()
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


def choose_phases(count: int, seconds: Sequence[float] | None = None, *, early: float = DEFAULT.early_seconds,
                  late: float = DEFAULT.late_seconds) -> Phases | None:
    """T0, T1 and T2 of an exam of ``count`` phases in the order of time; None where there are fewer than two.

    Args:
        count: phases, the one before contrast included.
        seconds: when each was acquired, in seconds since the first; None, or anything that is not a rising sequence of
            ``count`` numbers, where it is not known.
        early, late: seconds after the first phase that T1 and T2 should have.
    """
    if count < 2:
        return None
    if seconds is None or len(seconds) != count or any(not b > a for a, b in zip(seconds, seconds[1:], strict=False)):
        return Phases(0, 1, count - 1 if count > 2 else None)
    since = [value - seconds[0] for value in seconds]
    first = min(range(1, count), key=lambda place: abs(since[place] - early))
    rest = range(first + 1, count)
    return Phases(0, first, min(rest, key=lambda place: abs(since[place] - late)) if rest else None)


def rule(early: float = DEFAULT.early_seconds, late: float = DEFAULT.late_seconds) -> str:
    """The rule in words, for the data-sheet."""
    return RULE.format(early=early, late=late)
