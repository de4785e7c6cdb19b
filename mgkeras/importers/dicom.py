"""A folder tree of DICOM files, as a hospital's archive gives it -> exams under pseudonyms, as NIfTI files.

Nothing that the files' headers tell of a patient is handed on: neither names, numbers and dates nor free texts. Times
are used relative to the first phase only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mgkeras.data.groups import grouped
from mgkeras.importers.conversion import program
from mgkeras.importers.dicom_header import Series
from mgkeras.importers.dynamic import RULE, NoDynamicSeries, dynamic_phases, why_not
from mgkeras.importers.found import Each, Exam, Found, LeftOut, SourceError, each_exam, told_if
from mgkeras.importers.participants import join
from mgkeras.importers.patients import join_labels, pseudonyms
from mgkeras.importers.phases import DEFAULT, PhaseRule, by_order, without_times
from mgkeras.importers.series import Headers, Phase, read_headers
from mgkeras.importers.tcia import write_phases

VISITS = "visits"  # LeftOut.of: studies of a subject that are not used
ORDER = (
    "phases are ordered by acquisition time, trigger time, temporal position, content time or instance number, "
    "the first that tells them apart"
)
NO_MAP = (
    "Subjects are numbered in the order of the patients' identifiers, so numbers change when patients are added "
    "or taken away: --keep-map FILE keeps them."
)
NO_MASKS = "There are no tumour masks here: `mgkeras mask` makes them."
BURNT = "Text that is burnt into the images, if any, is not removed: look at the check sheet."


def read(
    source: Path,
    *,
    nifti: Path,
    keep_map: Path | None = None,
    labels: Path | None = None,
    outcomes: Sequence[str] = (),
    covariates: Sequence[str] | None = None,
    series: str | None = None,
    visit: int = 1,
    site_tag: str | None = None,
    early_seconds: float = DEFAULT.early_seconds,
    late_seconds: float = DEFAULT.late_seconds,
    early_phase: int | None = None,
    late_phase: int | None = None,
    by_enhancement: bool = False,
    scanned: Callable[[int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    each: Each = map,
) -> Found:
    """Finds each patient's dynamic series, orders its phases by time, and converts the pre, early and late phases.

    Args:
        source: DICOM files in whatever folders, of whatever names. PatientID says whose they are; where it is empty
            each study counts as a patient.
        nifti: where NAME_pre.nii.gz, NAME_early.nii.gz and NAME_late.nii.gz are written. A file made of the same
            images by an earlier call is kept.
        keep_map: the table of pseudonyms, see patients.pseudonyms. It tells who is who: it may not lie in ``nifti``.
        labels: a table, a row a patient, see patients.join_labels.
        outcomes, covariates: its columns, see participants.read_participants.
        series: of the dynamic series' descriptions, protocols or image types, see dynamic.dynamic_phases; None for the
            rule RULE.
        visit: which of a patient's studies with a dynamic series, by date: 1 for the earliest, before treatment.
        site_tag: keyword of the header text that is the site, such as InstitutionName. None for no site: it may tell
            who a patient is.
        early_seconds, late_seconds, early_phase, late_phase, by_enhancement: see phases.PhaseRule.
        scanned: called with the number of files whose headers are read, after each.
        progress: called with (patients done, patients) after each.
        each: see found.each_exam; then ``source`` and ``nifti`` are absolute.

    Raises:
        SourceError: no folder, no DICOM images in it, a broken pattern or table, or dcm2niix or pydicom is missing.
    """
    _check(series, keep_map, nifti)
    rule = PhaseRule(early_seconds, late_seconds, early_phase, late_phase, by_enhancement)
    headers = read_headers(source, scanned, [site_tag] if site_tag else [])
    if not headers.series:
        raise SourceError(f"expected DICOM images in {source}. Received: {headers.skipped} files of other kinds")
    patients = grouped((scan.patient_id or scan.study_uid, scan) for scan in headers.series)
    names = pseudonyms(patients, keep_map)
    names = {patient: names[patient] for patient in sorted(patients, key=names.__getitem__)}
    exam_of = partial(_exam_of, nifti=nifti, rule=rule, pattern=series, visit=visit, site_tag=site_tag)
    exams, left_out = each_exam([(name, patients[patient]) for patient, name in names.items()], exam_of, progress, each)
    timeless = sum(by_order(exam.when["early_seconds"]) for exam in exams)
    notes = _notes(headers, series, keep_map, site_tag) + told_if((timeless, without_times(timeless, rule)))
    which = RULE if series is None else "the dynamic series are those on one grid that --series names"
    found = Found(
        "dicom",
        tuple(exams),
        tuple(left_out),
        notes=tuple(notes),
        phases=f"{which}; {ORDER}; {rule}",
    )
    if labels is None:
        return join(found, None)
    return join_labels(found, names, labels, outcomes=outcomes, covariates=covariates)


def _check(series: str | None, keep_map: Path | None, nifti: Path) -> None:
    program()  # its absence is told before an hour of reading headers
    if keep_map and nifti.resolve() in keep_map.resolve().parents:
        raise SourceError(f"expected a table of pseudonyms outside {nifti}, which others may see. Received: {keep_map}")
    try:
        re.compile(series or "")
    except re.error as error:
        raise SourceError(f"expected a regular expression. Received: --series {series!r}: {error}") from None


def _exam_of(
    name: str,
    series: Sequence[Series],
    *,
    nifti: Path,
    rule: PhaseRule,
    pattern: str | None,
    visit: int,
    site_tag: str | None,
) -> tuple[Exam, list[LeftOut]]:
    """A patient's exam, converted, and the studies that are not used."""
    phases, others = _visit(series, pattern, visit)
    taken = write_phases(phases, name, nifti, rule)
    more = [LeftOut(name, f"a study other than number {visit} of a dynamic series", VISITS)] * others
    uids = {image.uid for image in phases[0].slices}
    own = next(scan for scan in series if uids & {image.uid for image in scan.files})
    site = own.extra.get(site_tag, "") if site_tag else ""
    return Exam(name, taken.phases, site=site, scanner=own.scanner, when=taken.when), more


def _visit(series: Sequence[Series], pattern: str | None, visit: int) -> tuple[tuple[Phase, ...], int]:
    """The phases of a patient's visit, and how many other studies have a dynamic series.

    Raises:
        SourceError: no such visit, one whose dynamic series is broken or doubtful, or studies without dates.
    """
    studies = grouped((scan.study_uid, scan) for scan in series)
    found: list[tuple[tuple, tuple[Phase, ...] | SourceError]] = []
    for study in studies.values():
        start = min((s.acquisition for scan in study for s in scan.files if s.acquisition is not None), default=0.0)
        when = (min(scan.study_date for scan in study), start)
        try:
            found.append((when, dynamic_phases(study, pattern)))
        except NoDynamicSeries as error:
            last = error
        except SourceError as error:
            found.append((when, error))
    if not found:
        raise last
    if len(found) > 1 and not all(day for (day, _), _ in found):
        raise SourceError("several studies with a dynamic series, and no dates to order them by")
    if len(found) < visit:
        raise SourceError(f"fewer than {visit} studies with a dynamic series")
    found.sort(key=lambda visit: visit[0])
    phases = found[visit - 1][1]
    if isinstance(phases, SourceError):
        raise phases
    return phases, len(found) - 1


def _notes(headers: Headers, pattern: str | None, keep_map: Path | None, site_tag: str | None) -> list[str]:
    ignored = Counter(reason for scan in headers.series if (reason := why_not(scan, pattern)))
    reasons = ", ".join(f"{count} {why}" for why, count in ignored.most_common())
    return told_if(
        (True, NO_MASKS),
        (True, BURNT),
        (not keep_map, NO_MAP),
        (site_tag, f"The site is the headers' {site_tag}, which may help to tell who a patient is."),
        (ignored, f"Series not looked at: {reasons}."),
        (
            headers.skipped or headers.duplicates,
            f"Files that hold no DICOM image that can be read: {headers.skipped}; copies of an image that was "
            f"read: {headers.duplicates}.",
        ),
    )
