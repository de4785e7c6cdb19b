"""How a number is written for people, wherever a table or a sentence shows one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(value: float | None, digits: int = 2) -> str:
    """'0.80', or '-' for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def cell(values: Mapping[str, Any], digits: int = 2) -> str:
    """'0.80 (0.71 to 0.88)' of {value or mean, low, high}, or '0.80' without an interval, or '-'."""
    value = values.get("value", values.get("mean"))
    low, high = values.get("low"), values.get("high")
    return text(value, digits) + ("" if low is None else f" ({text(low, digits)} to {text(high, digits)})")
