"""Names of tables, folders and files as Markdown text: nothing in them becomes a tag, a column or a line of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def escaped(text: Any) -> str:
    """A value on one line, with what Markdown would take for HTML or for a column's end spelt as entities."""
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table, a line a row; cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)


def escaped_all(values: Any) -> Any:
    """Nested dicts, lists and tuples of plain values with every text in them escaped, keys too."""
    if isinstance(values, dict):
        return {escaped_all(name): escaped_all(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(escaped_all(value) for value in values)
    return escaped(values) if isinstance(values, str) else values
