"""What every importer hands over: the exams it found, what it left out and why, and what its outcomes mean.

An importer is a function of a folder as it was downloaded and of plain options; it writes nothing but, where the source
is DICOM or its headers are wrong, NIfTI files. :mod:`mgkeras.importers.sheet` writes the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mgkeras.errors import MgkerasError

Patient = TypeVar("Patient")
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]  # as map: of each in order, here or elsewhere

SUBJECT = "subject"  # LeftOut.of: the whole subject


class SourceError(MgkerasError, ValueError):
    """A source, or an exam of it, that cannot be imported: what was expected, what was received, and where."""


class Twice(SourceError):
    """A table names a subject in several rows."""


class ImportStopped(SourceError):
    """What no exam can be read without; a SourceError of an exam leaves that exam out instead."""


class NotInstalled(ImportStopped):
    """A package or program that this source needs is missing; the message names the extra that has it."""


def required(module: str, what: str, extra: str = "import") -> Any:
    """A module that an extra of mgkeras brings.

    Args:
        module: its name.
        what: what needs it, in the plural, for the message.
        extra: that has it.

    Raises:
        NotInstalled: it is not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        advice = f"pip install 'mgkeras[{extra}]'"
        raise NotInstalled(f"{what} need {module}: {advice}. Received: {error}") from error


@dataclass(frozen=True)
class Exam:
    """One subject of a source.

    Attributes:
        name: of the subject, as the source spells it; checked when it is written.
        files: paths by column: pre, early, late, mask. Without ``early`` only labels are known.
        outcomes: '0', '1' or '' (not known) by the outcome's name.
        covariates: text by column; '' where it is not known.
        when: seconds after the first phase at which the early and late phases were acquired, or the rule by which they
            were chosen, as text by 'early_seconds' and 'late_seconds'.
        site, scanner, split: '' where the source does not tell. The split is 'train', 'val' or 'test'.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    covariates: dict[str, str] = field(default_factory=dict)
    site: str = ""
    scanner: str = ""
    split: str = ""
    when: dict[str, str] = field(default_factory=dict)


def scanner_text(maker: str, model: str, tesla: float | None) -> str:
    """'SIEMENS Avanto 1.5 T', as far as it is known; rounded, for 1.494 T is 1.5, and some headers write gauss."""
    tesla = tesla / 10_000 if tesla and tesla > 100 else tesla
    return " ".join(f"{maker} {model} {f'{tesla:.2g} T' if tesla else ''}".split())


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
        kind: 'mama-mia', 'duke', ..., or the name of a table.
        exams: in the source's order.
        left_out: with the reason, in words that count well: the same reason in the same words.
        outcomes: what each outcome means, in a sentence, by its name.
        phases: by which rule pre, early and late were chosen, in a sentence.
        notes: whatever else a user must know, a sentence each.
        without_pre: the pre phase was not asked for, since every exam is to have a mask.
    """

    kind: str
    exams: tuple[Exam, ...]
    left_out: tuple[LeftOut, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    phases: str = ""
    notes: tuple[str, ...] = ()
    without_pre: bool = False


def told_if(*notes: tuple[object, str]) -> list[str]:
    """Of notes, each with what must be true or not empty where it is to be told, those that are."""
    return [text for wanted, text in notes if wanted]


def each_exam(
    patients: Sequence[tuple[str, Patient]],
    exam_of: Callable[[str, Patient], tuple[Exam, list[LeftOut]]],
    progress: Callable[[int, int], None] | None = None,
    each: Each = map,
) -> tuple[list[Exam], list[LeftOut]]:
    """The exams of all patients, and who and what is left out.

    Args:
        patients: the subject's name, and whatever else tells the patient, both handed to exam_of.
        exam_of: a patient's exam, and what of it is left out; its SourceError is a reason to leave the patient out.
        progress: called with (patients done, patients) after each.
        each: where patients are worked on in other processes; a SourceError of theirs is a result.

    Raises:
        ImportStopped: by the first exam that needs what is missing.
    """
    exams, left_out = [], []
    for done, ((name, _), found) in enumerate(zip(patients, each(partial(_tried, exam_of), patients), strict=True), 1):
        if isinstance(found, ImportStopped):
            raise found
        if isinstance(found, SourceError):
            left_out.append(LeftOut(name, str(found)))
        else:
            exams.append(found[0])
            left_out += found[1]
        if progress:
            progress(done, len(patients))
    return exams, left_out


def _tried(exam_of: Callable[[str, Any], tuple[Exam, list[LeftOut]]], patient: tuple[str, Any]) -> Any:
    """What exam_of gives, or its SourceError."""
    try:
        return exam_of(*patient)
    except SourceError as error:
        return error
