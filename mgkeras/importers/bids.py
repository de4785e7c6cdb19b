"""A cohort in BIDS, which has no word for the phases of dynamic contrast: they are found by what BIDS does have.

Glossary:
    entity: ``ce-gad`` or ``run-2`` in a file's name; the suffix is its last word, such as ``T1w``.
    phase: a 3D file, or a volume of a 4D file, at one time before or after contrast.
    series: the files whose entities are the same but for ``ce``, ``run`` and ``echo``; a subject's phases are the
        volumes of one series, of suffix ``dce``, or of ``T1w`` with ``ce``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mgkeras.data.groups import grouped
from mgkeras.importers.bids_series import (
    Phase,
    curve_of,
    dynamic_series,
    entities_of,
    phases_of,
    scan_of,
    sidecar_of,
    write_volume,
)
from mgkeras.importers.found import Exam, Found, LeftOut, SourceError, each_exam, scanner_text, told_if
from mgkeras.importers.listing import ENDING, child, entries, files_below, stem
from mgkeras.importers.participants import join, read_participants
from mgkeras.importers.phases import DEFAULT, PhaseRule, phases_by_column, runs_of, without_times
from mgkeras.importers.tables import find_file

MASKS = (r".*_label-tumou?r_mask", r".*(tumou?r|lesion).*_(mask|roi|dseg)", r".*_roi")  # the first that fits counts
ORDER = (
    "the phases are the volumes of one dynamic series, in the order of acquisition time where every file's is "
    "known, else those without ce- first, then by run- and echo-"
)


def read(
    source: Path,
    *,
    nifti: Path,
    session: str | None = None,
    labels: Path | None = None,
    outcomes: Sequence[str] = (),
    covariates: Sequence[str] | None = None,
    labels_only: bool = False,
    early_seconds: float = DEFAULT.early_seconds,
    late_seconds: float = DEFAULT.late_seconds,
    early_phase: int | None = None,
    late_phase: int | None = None,
    by_enhancement: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Finds phases and masks of each ``sub-*`` and joins them to participants.tsv.

    Args:
        source: the data set, with its derivatives.
        nifti: where volumes of 4D files are written, one file each; those that are newer than their source are kept.
        session: of each subject, with or without ``ses-``; None takes the first that the subject has.
        labels: a table in place of participants.tsv.
        outcomes, covariates: its columns, see participants.read_participants.
        labels_only: read the table alone.
        early_seconds, late_seconds, early_phase, late_phase, by_enhancement: see phases.PhaseRule.
        progress: called with (subjects done, subjects) after each.

    Raises:
        SourceError: no subjects, or labels only and no table.
    """
    table = None
    if labels_only or labels or (source / "participants.tsv").is_file():
        path = labels or find_file(source, r"participants\.tsv")
        table = read_participants(path, outcomes=outcomes, covariates=covariates)
    if labels_only and table is not None:
        return replace(table, kind="bids")
    folders = [path for path in entries(source) if re.fullmatch(r"sub-[a-z0-9]+", path.name, re.IGNORECASE)]
    if not folders:
        raise SourceError(f"expected folders sub-* in {source}. Received: none")
    derived = _derived(source)
    several: set[Path] = set()
    timeless: set[Path] = set()
    rule = PhaseRule(early_seconds, late_seconds, early_phase, late_phase, by_enhancement)

    def exam_of(name: str, folder: Path) -> tuple[Exam, list[LeftOut]]:
        visit, others = _visit(folder, session)
        several.update((folder,) if others else ())
        exam, reasons, timed = _exam(name, visit, derived.get(name.casefold(), ()), nifti, rule)
        timeless.update(() if timed else (folder,))
        return exam, reasons

    exams, left_out = each_exam([(folder.name, folder) for folder in folders], exam_of, progress)
    which = f"ses-{_bare(session)}" if session else "the first"
    notes = told_if(
        (several, f"Subjects with several sessions: {len(several)}; {which} is used."),
        (timeless, without_times(len(timeless), rule)),
    )
    phases = f"{ORDER}; {rule}"
    return join(Found("bids", tuple(exams), tuple(left_out), phases=phases, notes=tuple(notes)), table)


def _bare(session: str) -> str:
    return session.casefold().removeprefix("ses-")


def _is_nifti(path: Path) -> bool:
    return re.search(ENDING + "$", path.name, re.IGNORECASE) is not None


def _visit(folder: Path, session: str | None) -> tuple[Path, list[str]]:
    """The folder of a subject's session, or its own if it has none; the names of the other sessions."""
    visits = {
        _bare(path.name): path for path in entries(folder) if path.is_dir() and path.name.casefold().startswith("ses-")
    }
    if session is None:
        name = min(visits, key=lambda name: (len(name) if name.isdigit() else 0, name), default=None)
    elif (name := _bare(session)) not in visits:
        raise SourceError(f"no session ses-{name}")
    return (folder, []) if name is None else (visits[name], [other for other in visits if other != name])


def _derived(source: Path) -> dict[str, list[Path]]:
    """NIfTI files of derivatives by subject: {'sub-x': files}."""
    folder = child(source, "derivatives")
    paths = filter(_is_nifti, files_below(folder)) if folder else ()
    return grouped((f"sub-{name}", path) for path in paths if (name := entities_of(path.name)[0].get("sub")))


def _exam(
    name: str, visit: Path, derived: Sequence[Path], nifti: Path, rule: PhaseRule
) -> tuple[Exam, list[LeftOut], bool]:
    """The exam, what of it is left out, and whether the times of its phases are known."""
    paths = [path for path in files_below(visit) if _is_nifti(path)]
    series = dynamic_series([scan_of(path) for path in paths if entities_of(path.name)[1] in ("t1w", "dce")])
    phases, reasons = phases_of(name, series, visit)
    seconds, listed = [phase.seconds for phase in phases], runs_of([phase.path.name for phase in phases])
    taken = phases_by_column(phases, seconds, rule=rule, curve=lambda: curve_of(phases), listed=listed)
    picked = taken.phases
    files = {column: _file(phase, nifti) for column, phase in picked.items()}
    masks = [path for path in (*derived, *paths) if entities_of(path.name)[0].get("ses", "") in ("", _session(visit))]
    mask, doubt = _mask(masks, entities_of(picked["early"].path.name)[0].get("run"))
    if mask:
        files["mask"] = mask
    else:
        reasons.append(LeftOut(name, doubt, "mask"))
    scanner = _scanner(sidecar_of(picked["early"].path)[0])
    return Exam(name, files, scanner=scanner, when=taken.when), reasons, None not in seconds


def _session(visit: Path) -> str:
    return _bare(visit.name) if visit.name.casefold().startswith("ses-") else ""


def _scanner(sidecar: dict[str, Any]) -> str:
    strength = sidecar.get("MagneticFieldStrength")
    return scanner_text(
        str(sidecar.get("Manufacturer", "")),
        str(sidecar.get("ManufacturersModelName", "")),
        strength if isinstance(strength, int | float) else None,
    )


def _mask(paths: Sequence[Path], run: str | None) -> tuple[Path | None, str]:
    """The mask by the first of MASKS that fits a file, of several the one of the early phase's run; else why there is
    none."""
    for pattern in MASKS:
        found = [path for path in paths if re.fullmatch(pattern + ENDING, path.name, re.IGNORECASE)]
        if len(found) > 1 and run is not None:
            found = [path for path in found if entities_of(path.name)[0].get("run") == run] or found
        if len(found) > 1:
            return None, f"several masks: {', '.join(sorted(path.name for path in found))}"
        if found:
            return found[0], ""
    return None, "no mask found"


def _file(phase: Phase, nifti: Path) -> Path:
    """The phase's file: the source's own where it is 3D, else its volume, written below ``nifti``."""
    if phase.place is None:
        return phase.path
    written = nifti / f"{stem(phase.path)}_volume-{phase.place:03d}.nii.gz"
    if written.is_file() and written.stat().st_mtime >= phase.path.stat().st_mtime:
        return written
    return write_volume(phase.path, phase.place, written)
