"""Which of an exam's dynamic phases are pre, early and late, and when each of them was acquired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from mgkeras.errors import InputError
from mgkeras.importers.found import SourceError
from mgkeras.settings import ImportSettings

DEFAULT = ImportSettings()
Kind = TypeVar("Kind")
MOST_WITHOUT_TIMES = 8  # phases: of more, contrast has often not arrived at the second one
BY_TIME = (
    "where the phases' times are known, early is the phase after pre nearest to {early:g} s and late the one after "
    f"early nearest to {{late:g}} s (of equals the earlier); where they are not, early is, of at most "
    f"{MOST_WITHOUT_TIMES} phases, the first after pre and late the last one"
)
AS_TOLD = "early is phase {early} as told, pre being phase 1, and late {late}"
BY_ENHANCEMENT = (
    "early is the peak of the curve, the mean over what enhances, and late the phase after it nearest to {late:g} s, "
    "or the last one where the phases' times are not known"
)


@dataclass(frozen=True)
class PhaseRule:
    """By what the early and late phases are chosen.

    Attributes:
        early_seconds, late_seconds: after the first phase, that the early and late phases should have where times are
            known.
        early_phase, late_phase: the phases that the early and late phases are, the first being 1; None to choose.
        by_enhancement: the early phase is the peak of the curve in what enhances.

    Raises:
        ValueError: the late phase not after the early phase, the early phase not after the pre phase, or the early
            phase both named and sought.
    """

    early_seconds: float = DEFAULT.early_seconds
    late_seconds: float = DEFAULT.late_seconds
    early_phase: int | None = None
    late_phase: int | None = None
    by_enhancement: bool = False

    def __post_init__(self) -> None:
        if self.by_enhancement and self.early_phase is not None:
            raise InputError("expected early_phase or by_enhancement, not both. Received: both; give one of them")
        first = 2 if self.early_phase is None else self.early_phase
        if first < 2 or (self.late_phase is not None and self.late_phase <= first):
            raise InputError(
                "expected phase 1 before early_phase, and late_phase after early_phase. "
                f"Received: early phase {self.early_phase}, late phase {self.late_phase}"
            )

    def __str__(self) -> str:
        late = (
            f"phase {self.late_phase}" if self.late_phase else f"the one nearest to {self.late_seconds:g} s or the last"
        )
        if self.early_phase:
            return f"pre is the first phase; {AS_TOLD.format(early=self.early_phase, late=late)}"
        text = BY_ENHANCEMENT if self.by_enhancement else BY_TIME
        told = f"; late is phase {self.late_phase} as told" if self.late_phase else ""
        return f"pre is the first phase; {text.format(early=self.early_seconds, late=self.late_seconds)}{told}"


@dataclass(frozen=True)
class Taken(Generic[Kind]):
    """The phases of an exam that were chosen, and the cells that say when they were acquired.

    Attributes:
        phases: by 'pre', 'early' and 'late'; empty where there are fewer than two, without 'late' where none follows.
        when: text by 'early_seconds' and 'late_seconds': seconds after the first phase, or the rule where times are
            not known.
    """

    phases: dict[str, Kind] = field(default_factory=dict)
    when: dict[str, str] = field(default_factory=dict)


def choose_phases(
    count: int,
    seconds: Sequence[float | None] | None = None,
    *,
    rule: PhaseRule | None = None,
    curve: Callable[[], Iterable[float]] | None = None,
    listed: str = "",
) -> tuple[int, int, int | None] | None:
    """The places of the pre, early and late phases of an exam of ``count`` phases in the order of time.

    None where there are fewer than two phases; the late phase is None where none follows the early phase.

    Args:
        count: phases, the one before contrast included.
        seconds: when each was acquired, in seconds since any moment; None, or anything that is not a rising sequence
            of ``count`` numbers, where it is not known.
        rule: by what the early and late phases are chosen; None for PhaseRule().
        curve: makes the signal of what enhances, (count,), see enhancement.enhancement_curve; asked only where the rule
            is by enhancement.
        listed: which phases these are, for the error.

    Raises:
        SourceError: more than MOST_WITHOUT_TIMES phases without times and no phase named, or no phase of that number.
    """
    if count < 2:
        return None
    rule, since = rule or PhaseRule(), _since_first(count, seconds)
    for option, wanted in (("--early-phase", rule.early_phase), ("--late-phase", rule.late_phase)):
        if wanted is not None and wanted > count:
            raise SourceError(f"expected a phase of the number that {option} {wanted} says. Received: {count} phases")
    if rule.early_phase:
        early = rule.early_phase - 1
    elif rule.by_enhancement and curve is not None:
        values = list(curve())
        early = max(range(1, count), key=values.__getitem__)
    elif since:
        early = min(range(1, count), key=lambda place: abs(since[place] - rule.early_seconds))
    elif count > MOST_WITHOUT_TIMES:
        raise SourceError(
            f"expected times of the phases, or at most {MOST_WITHOUT_TIMES} phases without times; the second of "
            f"{count} phases may lie before contrast. Name early and late by --early-phase N --late-phase N, or add "
            f"--by-enhancement. Received: {count} phases{': ' + listed if listed else ''}"
        )
    else:
        early = 1
    return 0, early, _late(early, count, since, rule)


def _since_first(count: int, seconds: Sequence[float | None] | None) -> list[float] | None:
    known = [value for value in seconds or () if value is not None]
    if seconds is None or not len(seconds) == len(known) == count or any(not b > a for a, b in pairwise(known)):
        return None
    return [value - known[0] for value in known]


def _late(early: int, count: int, since: list[float] | None, rule: PhaseRule) -> int | None:
    if rule.late_phase:
        if rule.late_phase - 1 <= early:
            raise SourceError(
                f"expected the late phase after the early phase, which is phase {early + 1}. "
                f"Received: --late-phase {rule.late_phase}"
            )
        return rule.late_phase - 1
    rest = range(early + 1, count)
    if not rest or since is None:
        return rest[-1] if rest else None
    return min(rest, key=lambda place: abs(since[place] - rule.late_seconds))


def phases_by_column(
    phases: Sequence[Kind],
    seconds: Sequence[float | None] | None = None,
    *,
    rule: PhaseRule | None = None,
    curve: Callable[[], Iterable[float]] | None = None,
    listed: str = "",
) -> Taken[Kind]:
    """Of an exam's phases in the order of time those that choose_phases takes; arguments and errors are its own."""
    rule, count = rule or PhaseRule(), len(phases)
    chosen = choose_phases(count, seconds, rule=rule, curve=curve, listed=listed)
    if chosen is None:
        return Taken()
    since = _since_first(count, seconds)
    early = "as told" if rule.early_phase else "by enhancement" if rule.by_enhancement else "by order"
    how = {"early": early, "late": "as told" if rule.late_phase else "by order"}
    places = zip(("pre", "early", "late"), chosen, strict=True)
    taken = {column: place for column, place in places if place is not None}
    return Taken(
        {column: phases[place] for column, place in taken.items()},
        {
            f"{column}_seconds": f"{round(since[place], 1):g}" if since else place_text(place, count, how[column])
            for column, place in taken.items()
            if column != "pre"
        },
    )


def place_text(place: int, count: int, how: str) -> str:
    """The cell that says which phase was taken where its time is not known; ``place`` counts from 0."""
    return f"phase {place + 1} of {count}, {how}"


def by_order(when: str) -> bool:
    """Whether a cell of Taken.when holds no time, but which phase was taken, as place_text writes it."""
    return when.startswith("phase ")


def runs_of(names: Sequence[str]) -> str:
    """Which phases these are, for an error: 'phases 1 to 40 of NAME', or one part for each run of equal names."""
    starts = [n for n in range(len(names)) if n == 0 or names[n] != names[n - 1]]
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        numbers = f"phase {start + 1}" if stop - start == 1 else f"phases {start + 1} to {stop}"
        parts.append(f"{numbers} of {names[start]}")
    return ", ".join(parts)


def without_times(subjects: int, rule: PhaseRule) -> str:
    """The note on subjects whose phases' times are not known."""
    by_time = not (rule.early_phase or rule.by_enhancement)
    unused = " --early-seconds and --late-seconds chose nothing there." if by_time else ""
    return f"Subjects the times of whose phases are not known, only their order: {subjects}.{unused}"
