"""The errors of this package: every problem that a user can mend is a MgkerasError, and what they all hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class MgkerasError(Exception):
    """A problem that a user can mend.

    Args:
        message: what was expected, what was received, what to do; made from the parts below where it is empty.
        expected: what should have been there, as a noun phrase.
        received: what was there.
        subject: whose exam it is, if one's.
        path: which file it is, if one.
    """

    def __init__(
        self,
        message: str = "",
        *,
        expected: str = "",
        received: Any = None,
        subject: str = "",
        path: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(message or f"expected {expected}. Received: {received}")
        self.expected, self.received, self.subject = expected, received, subject
        self.path = Path(path) if path else None


class InputError(MgkerasError, ValueError):
    """A value that a caller gave cannot be used."""


def few(names: Iterable[str], limit: int = 5) -> str:
    """The first of many names, for a message: 'a, b, c, d, e and 7 more'."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
