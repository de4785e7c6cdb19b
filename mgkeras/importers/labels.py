"""Outcomes from what a table says: each is '0', '1', or '' together with the reason why it is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mgkeras.errors import InputError
from mgkeras.importers.found import LeftOut
from mgkeras.settings import ImportSettings

DAYS_A_YEAR = 365.25
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

MISSING = frozenset(
    {  # in lower case; the last are what Excel shows of a formula that failed
        "",
        "na",
        "n/a",
        "nan",
        "nc",
        "np",
        "none",
        "null",
        "not available",
        ".",
        "#n/a",
        "#ref!",
        "#value!",
        "#div/0!",
        "#name?",
        "#null!",
        "#num!",
    }
)


# of outcomes that follow from hormone receptors (HR: ER or PR) and HER2
MEANING = {
    "hr": "Hormone receptors: 1 positive (ER or PR), 0 negative, else empty",
    "her2": "HER2: 1 positive, 0 negative, else (equivocal included) empty",
    "triple_negative": "Triple negative: 1 where HR and HER2 are negative, 0 where one of them is positive; where that "
    "leaves it open, as the subtype says; empty where subtype and receptors disagree",
}


class Label(NamedTuple):
    """``value`` is '0', '1' or ''; ``reason`` says why it is '' and is None otherwise."""

    value: str
    reason: str | None = None


def known(text: str | None) -> str:
    """A cell's text without surrounding space; '' for None and for the ways in which tables say 'missing'."""
    text = (text or "").strip()
    return "" if text.casefold() in MISSING else text


def whole(text: str | None) -> str:
    """What is known of a cell; a whole number without the '.0' that spreadsheets write."""
    return re.sub(r"(?<=\d)\.0$", "", known(text))


def number(text: str | None) -> float | None:
    """A cell as a finite number; None where it is missing.

    Raises:
        ValueError: another text.
    """
    if not (text := known(text)):
        return None
    if not math.isfinite(value := float(text)):
        raise InputError(f"expected a finite number. Received: {text!r}")
    return value


def number_or_none(text: str | None) -> float | None:
    """A cell as a finite number; None where it is missing or another text."""
    try:
        return number(text)
    except ValueError:
        return None


def split_of(text: str | None) -> str:
    """'train', 'val' or 'test' from a cell that says it in one of the usual ways, else ''."""
    return SPLITS.get(known(text).casefold(), "")


def coded(
    text: str | None,
    name: str,
    *,
    positive: Collection[str] = ("1",),
    negative: Collection[str] = ("0",),
    unclear: Collection[str] = (),
) -> Label:
    """A label from a cell that holds a code; whole numbers may be written 1 or 1.0.

    Args:
        text: the cell.
        name: of what is coded, for the reason: 'HER2'.
        positive, negative, unclear: codes of 1, of 0, and of an answer that is neither, such as equivocal.

    Returns:
        Label: '' where the cell is missing, unclear, or holds another code (which the reason quotes).
    """
    text = whole(text).casefold()
    if text in positive:
        return Label("1")
    if text in negative:
        return Label("0")
    if not text:
        return Label("", f"{name} is missing")
    return Label("", f"{name} is equivocal or indeterminate" if text in unclear else f"{name} has the code {text!r}")


def event_within(
    event: bool | None, days: float | None, name: str = "recurrence", horizon_days: float = ImportSettings.horizon_days
) -> Label:
    """Whether an event occurred within the horizon, from time and event with censoring.

    Args:
        event: whether it occurred at ``days``; False where ``days`` is the end of follow-up. None where neither is
            known.
        days: from the start of follow-up to the event, or to its end.
        name: of the event.
        horizon_days: an event on the last day counts.

    Returns:
        Label: '1' for an event at or before the horizon; '0' for follow-up past it, an event after it included; ''
        where follow-up ended before without one.
    """
    if event is None or days is None:
        return Label("", f"{name}: time or event is missing")
    if days < 0:
        return Label("", f"{name}: the time is negative")
    if event and days <= horizon_days:
        return Label("1")
    if days > horizon_days:
        return Label("0")
    return Label("", f"{name}: follow-up ended within {horizon_days:g} days without it")


def outcomes_of(name: str, labels: Mapping[str, Label]) -> tuple[dict[str, str], list[LeftOut]]:
    """A subject's labels as values by outcome, and those that are not known with their reasons."""
    return (
        {outcome: label.value for outcome, label in labels.items()},
        [LeftOut(name, label.reason, outcome) for outcome, label in labels.items() if label.reason],
    )


def within(horizon_days: float, what: str) -> str:
    """The definition in words: ``what`` within the horizon, as event_within decides it."""
    return (
        f"{what} within {horizon_days:g} days ({horizon_days / DAYS_A_YEAR:.2g} years): 1 where it occurred by "
        "then, 0 where follow-up without it is longer, else empty"
    )


def triple_negative(hr: Label, her2: Label, subtype: str = "") -> Label:
    """Whether a tumour is triple negative.

    Args:
        hr, her2: the receptors.
        subtype: '1' or '0' where the table tells it as well, else ''. It decides only what the receptors leave open.
    """
    follows = "0" if "1" in (hr.value, her2.value) else "1" if hr.value == her2.value == "0" else ""
    if follows and subtype and follows != subtype:
        return Label("", "triple_negative: subtype and receptors disagree")
    if value := follows or subtype:
        return Label(value)
    return Label("", "triple_negative: neither the subtype nor both receptors are known")
