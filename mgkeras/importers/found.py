"""What every importer hands over: the exams it found, what it left out and why, and what its outcomes mean.

An importer is a function of a folder as it was downloaded and of plain options; it writes nothing but, where the source
is DICOM or its headers are wrong, NIfTI files. :mod:`mgkeras.importers.sheet` writes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SUBJECT = "subject"  # LeftOut.of: the whole subject


class SourceError(ValueError):
    """A source that cannot be imported: what was expected, what was received, and where."""


@dataclass(frozen=True)
class Exam:
    """One subject of a source.

    Attributes:
        name: of the subject, as the source spells it; checked when it is written.
        files: paths by column: pre (T0), early (T1), late (T2), mask. Without ``early`` only labels are known.
        outcomes: '0', '1' or '' (not known) by the outcome's name.
        covariates: text by column; '' where it is not known.
        site, scanner, split: '' where the source does not tell. The split is 'train', 'val' or 'test'.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    covariates: dict[str, str] = field(default_factory=dict)
    site: str = ""
    scanner: str = ""
    split: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A subject that is not in the cohort, or whose outcome or file of a column is not; ``of`` says which."""

    name: str
    reason: str
    of: str = SUBJECT


@dataclass(frozen=True)
class Found:
    """A source, read.

    Attributes:
        kind: 'mama-mia', 'duke', ...
        exams: in the source's order.
        left_out: with the reason, in words that count well: the same reason in the same words.
        outcomes: what each outcome means, in a sentence, by its name.
        phases: by which rule pre, early and late were chosen, in a sentence.
        notes: whatever else a user must know, a sentence each.
    """

    kind: str
    exams: tuple[Exam, ...]
    left_out: tuple[LeftOut, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    phases: str = ""
    notes: tuple[str, ...] = ()
