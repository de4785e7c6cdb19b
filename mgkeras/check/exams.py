"""One subject of `mgkeras cohort check` or `mgkeras mask`: what is wrong, or the mask that is made, and the pictures.

Both are worked on in other processes, so that an exam that cannot be read is a result and no error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.check.strip import Strip, on_grid, strip_of
from mgkeras.data.checks import ERROR, Checked, Finding, check_mask, checked_exam
from mgkeras.data.cohort import FILE_COLUMNS, Subject
from mgkeras.data.tumour import TumourMask, given_report, subject_mask
from mgkeras.data.volume import ExamError, Volume, load_volume, same_space, save_like
from mgkeras.settings import MaskSettings

COLUMNS = ("subject", "source", "volume_mm3", "components", "fraction_gated", "clusters_apart", "warning", "error")


def checked_subject(task: tuple[Subject, int, bool]) -> tuple[Checked, Strip | None]:
    """What is wrong with a subject's files, and pictures of what can be shown.

    Args:
        task: the subject, how many bytes its pictures may take (0 for none), and whether thin exams are allowed.
    """
    subject, room, thin = task
    files = {column: getattr(subject, column) for column in FILE_COLUMNS if getattr(subject, column)}
    try:
        found = checked_exam(files, allow_thin=thin)
        return found, _strip(files, found.findings, room) if room else None
    except Exception as error:  # one bad exam must not stop the others, whatever is wrong with it
        return uncheckable(f"{type(error).__name__}: {error}")


def uncheckable(why: str) -> tuple[Checked, None]:
    """As checked_subject, of a subject whose check failed."""
    return Checked([Finding("", "an exam that can be checked", why)], None, None), None


def _strip(files: dict[str, Path], findings: list[Finding], room: int) -> Strip | None:
    """The pictures; the early phase must be readable, the pre phase and mask on its grid."""
    try:
        early = load_volume(files["early"])
    except ExamError:
        return None
    bad = {finding.column for finding in findings if finding.severity == ERROR}
    mask = on_grid(files.get("mask"), early)
    inside = None if mask is None else mask.data > 0
    shown = inside if inside is not None and ("mask" not in bad or inside.any()) else None
    return strip_of(on_grid(files.get("pre"), early), early, shown, room)


def masked_subject(task: tuple[Subject, MaskSettings, Path, bool, int]) -> tuple[dict[str, Any], Strip | None]:
    """A subject's mask, written: its row of the report, of COLUMNS, and its pictures.

    Args:
        task: the subject, how masks are made, the folder of the masks, whether one there that differs is written over,
            and how many bytes the pictures may take.
    """
    subject, settings, out, overwrite, room = task
    path = out / f"{subject.name}.nii.gz"
    try:
        early, made = subject_mask(subject, settings)
        mask, report = (made.mask, made.report) if overwrite or subject.mask else _or_kept(path, early, made)
        if report["source"] != "kept":
            save_like(subject.early_file, mask, path)
        strip = strip_of(on_grid(subject.pre, early), early, mask, room)
        return {"subject": subject.name, **report, "error": ""}, strip
    except ExamError as error:
        return unmasked(subject, str(error))
    except Exception as error:  # one bad exam must not stop the others, whatever is wrong with it
        return unmasked(subject, f"{type(error).__name__}: {error}")


def unmasked(subject: Subject, why: str) -> tuple[dict[str, Any], None]:
    """As masked_subject, of a subject that has no mask."""
    return dict.fromkeys(COLUMNS, "") | {"subject": subject.name, "error": " ".join(why.split())}, None


def _or_kept(path: Path, early: Volume, made: TumourMask) -> tuple[np.ndarray, dict[str, Any]]:
    """The mask just made and its report, or those of the file that is there if it holds another mask."""
    if not path.exists():
        return made.mask, made.report
    there = load_volume(path)
    difference = same_space(early, there)
    unfit = [finding for finding in check_mask(there.data) if finding.severity == ERROR]
    if difference or unfit:
        found = difference or unfit[0].found
        raise ExamError(
            f"expected a binary mask on the early phase's grid. Received: {found}, in {path}; --overwrite replaces it"
        )
    mask = there.data > 0
    if (mask == made.mask).all():
        return made.mask, made.report
    report = given_report(mask, early.zooms)
    told = "kept: differs from the mask made now (--overwrite replaces it)"
    return mask, {**report, "source": "kept", "warning": "; ".join(filter(None, [told, report["warning"]]))}
