"""How numbers and tables are written for people, wherever a table or a sentence shows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgkeras.data.markdown import markdown_table


def text(value: float | None, digits: int = 2, sign: str = "") -> str:
    """'0.80', with sign '+' '+0.80', or '-' for None."""
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def span(values: Mapping[str, Any], digits: int = 2, sign: str = "") -> str:
    """'0.71 to 0.88' of {low, high}, or '-' without an interval."""
    low, high = values.get("low"), values.get("high")
    return "-" if low is None or high is None else f"{text(low, digits, sign)} to {text(high, digits, sign)}"


def cell(values: Mapping[str, Any], digits: int = 2, sign: str = "") -> str:
    """'0.80 (0.71 to 0.88)' of {value or mean, low, high}, or '0.80' without an interval, or '-'."""
    value = text(values.get("value", values.get("mean")), digits, sign)
    return value if values.get("low") is None else f"{value} ({span(values, digits, sign)})"


def with_sd(moments: Mapping[str, Any], digits: int = 3) -> str:
    """'0.800 (0.050)' of {mean, sd}, '0.800' without a deviation, or '-'."""
    deviation = "" if moments["sd"] is None else f" ({text(moments['sd'], digits)})"
    return text(moments["mean"], digits) + deviation


def signed(values: Mapping[str, Any], digits: int = 2) -> str:
    """'+0.05 (-0.02 to +0.12)' of a difference {value, low, high}, or '-'."""
    return cell(values, digits, "+")


def as_markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows of one set of columns as a Markdown table; '' for none."""
    return markdown_table(list(rows[0]), (row.values() for row in rows)) + "\n" if rows else ""


def as_text(rows: Sequence[dict[str, str]]) -> str:
    """Rows of one set of columns as aligned plain text, for a terminal; '' for none."""
    if not rows:
        return ""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return (
        "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        + "\n"
    )
