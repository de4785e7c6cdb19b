"""I-SPY1 (ACRIN 6657) as TCIA gives it: one workbook and a tree of DICOM files, ISPY1_1001/STUDY/SERIES/*.dcm.

Glossary:
    visit: T0 is the exam before treatment; T1 to T3 come under and after it and are not used.
    map: a series computed from a dynamic one: PE (percent enhancement), SER (signal enhancement ratio), and their
        segmentations. Its number is 10000 times that of the dynamic's first series plus 1001, 1000, 2001 or 2000; of a
        first series 100 or more (Philips numbers in hundreds) a hundredth counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mgkeras.data.groups import grouped
from mgkeras.importers.found import Exam, Found, LeftOut, SourceError, each_exam, told_if
from mgkeras.importers.labels import (
    MEANING,
    Label,
    coded,
    event_within,
    known,
    number_or_none,
    outcomes_of,
    triple_negative,
    within,
)
from mgkeras.importers.phases import DEFAULT, PhaseRule, Taken
from mgkeras.importers.series import Series, phases_of
from mgkeras.importers.tables import find_file, read_table
from mgkeras.importers.tcia import mr_series, numbered_rows, patient_folders, short_number, write_phases

WORKBOOK = r"I-?SPY.?1.All.Patient.Clinical.and.Outcome.Data.*\.xlsx"
CLINICAL, OUTCOMES = "TCIA Patient Clinical Subset", "TCIA Outcomes Subset"
PATIENT = r"(?:ISPY1[_-])?0*([0-9]{1,6})(?:\.0)?"
FOLDER = r"ISPY1[_-]0*([0-9]{1,6})"
CLINICAL_COLUMNS = {
    "id": ("SUBJECTID",),
    "age": (),
    "er": ("ERpos",),
    "pr": ("PgRpos",),
    "hr": ("HR Pos",),
    "her2": ("Her2MostPos",),
    "category": ("HR_HER2_CATEGORY",),
    "size": ("MRI LD Baseline",),
}
OUTCOME_COLUMNS = {"id": ("SUBJECTID",), "days": ("RFS",), "event": ("rfs_ind",), "pcr": ("PCR",)}
SITE, VISIT, VISIT_TEXT = "ClinicalTrialSiteID", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"
LOWEST_MAP = 10_000  # series numbers from here on are computed series'
MAPS = (1000, 1001, 2000, 2001)  # of a map's number, modulo LOWEST_MAP
COMPUTED = re.compile(r":\s*(ser|pe\d*)\b|segmentation|subtract|\bsub\b|\bmip\b", re.IGNORECASE)
FEWEST = 3  # phases of a dynamic series that no map points to: before, early and late
DYNAMIC = (
    "the exam is visit T0; its dynamic series is the one that the PE and SER maps name by their series numbers, with "
    "the later series of the same grid and the same echo and repetition time; without maps it is the only 3D "
    f"acquisition of {FEWEST} phases or more"
)
NO_MASKS = (
    "There are no tumour masks here: `mgkeras mask` makes them. The PE_SEG and SER_SEG series that some exams "
    "have are not used as masks, since what they outline is not documented."
)


def read(
    source: Path,
    *,
    nifti: Path,
    labels_only: bool = False,
    horizon_days: float = DEFAULT.horizon_days,
    early_seconds: float = DEFAULT.early_seconds,
    late_seconds: float = DEFAULT.late_seconds,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Reads the workbook and, of every patient in it, the DICOM files.

    Args:
        source: holds the workbook and, at whatever depth, the folders ISPY1_1001, ...
        nifti: where the phases are written; files that are there are kept.
        labels_only: read the workbook only.
        horizon_days: recurrence by then is 1.
        early_seconds, late_seconds: after the first phase, that T1 and T2 should have.
        progress: called with (subjects done, subjects) after each.

    Raises:
        SourceError: no workbook, or other columns or sheets than those above.
    """
    book = find_file(source, WORKBOOK)
    rows, left_out = _rows(book)
    folders = {} if labels_only else patient_folders(source, FOLDER)
    rule = PhaseRule(early_seconds, late_seconds)
    assumed: set[int] = set()

    def exam_of(name: str, patient: int) -> tuple[Exam, list[LeftOut]]:
        row = rows[patient]
        taken: Taken[Path] = Taken()
        site = scanner = ""
        if not labels_only:
            series, tagged = _baseline(folders.get(patient, []), patient)
            taken = write_phases(phases_of(_dynamic(series)), name, nifti, rule)
            site, scanner = series[0].extra.get(SITE, ""), series[0].scanner
            assumed.update(() if tagged else (patient,))
        values, unknown = outcomes_of(name, _labels(row, horizon_days))
        return Exam(name, taken.phases, values, _covariates(row), site, scanner, when=taken.when), unknown

    exams, without = each_exam([(f"ISPY1_{patient}", patient) for patient in rows], exam_of, progress)
    left_out += without
    left_out += [
        LeftOut(f"ISPY1_{patient}", f"it has a folder but no row in {book.name}")
        for patient in folders
        if patient not in rows
    ]
    notes = told_if(
        (not labels_only, NO_MASKS),
        (assumed, f"The headers of {len(assumed)} subjects name no visit; their earliest exam was taken for T0."),
    )
    phases = "" if labels_only else f"{rule}; {DYNAMIC}"
    return Found("ispy1", tuple(exams), tuple(left_out), _meanings(horizon_days), phases, tuple(notes))


def _rows(book: Path) -> tuple[dict[int, dict[str, str]], list[LeftOut]]:
    """Both sheets' fields by the patient's number, '' where a sheet lacks the patient; odd IDs are left out."""
    rows: dict[int, dict[str, str]] = {}
    left_out: list[LeftOut] = []
    empty = dict.fromkeys({**CLINICAL_COLUMNS, **OUTCOME_COLUMNS}, "")
    for sheet, columns in ((CLINICAL, CLINICAL_COLUMNS), (OUTCOMES, OUTCOME_COLUMNS)):
        found, odd = numbered_rows(read_table(book, sheet).fields(columns), PATIENT, "no number", book)
        rows |= {patient: {**rows.get(patient, empty), **row} for patient, row in found.items()}
        left_out += [subject for subject in odd if subject not in left_out]  # a row in each sheet is one subject
    return rows, left_out


def _labels(row: dict[str, str], horizon_days: float) -> dict[str, Label]:
    event, days = coded(row["event"], "rfs_ind").value, number_or_none(row["days"])
    hr, her2 = coded(row["hr"], "HR", unclear=("2",)), coded(row["her2"], "HER2")
    subtype = coded(row["category"], "HR_HER2_CATEGORY", positive=("3",), negative=("1", "2")).value
    return {
        "recurrence": event_within(event == "1" if event else None, days, horizon_days=horizon_days),
        "her2": her2,
        "pcr": coded(row["pcr"], "pCR"),
        "hr": hr,
        "triple_negative": triple_negative(hr, her2, subtype),
    }


def _meanings(horizon_days: float) -> dict[str, str]:
    what = "Recurrence, progression or death (RFS, rfs_ind), from the start of neoadjuvant chemotherapy,"
    return {
        "recurrence": within(horizon_days, what),
        "her2": "HER2 before treatment (Her2MostPos): 1 positive, 0 negative, empty where indeterminate or not done",
        "pcr": "Pathological complete response (PCR), no residual invasive disease in breast or nodes, in situ disease "
        "allowed: 1 yes, 0 no, empty where there was no surgery",
        "hr": "Hormone receptors before treatment (HR Pos): 1 where ER or PR is positive, 0 where both are negative, "
        "empty where indeterminate",
        "triple_negative": MEANING["triple_negative"] + " (HR_HER2_CATEGORY)",
    }


def _covariates(row: dict[str, str]) -> dict[str, str]:
    """``size`` is the longest diameter on the T0 exam in mm."""
    return {
        "age": short_number(row["age"]),
        "size": short_number(row["size"]),
        **{name: coded(row[name], name, unclear=("2",)).value for name in ("er", "pr")},
    }


def _baseline(folders: Sequence[Path], patient: int) -> tuple[list[Series], bool]:
    """The series of visit T0, and whether the headers name it; of several studies of T0 the one of most images.

    Raises:
        SourceError: no images, or none of T0.
    """
    scans = mr_series(folders, patient, PATIENT, (SITE, VISIT, VISIT_TEXT))
    studies = grouped((scan.study_uid, scan) for scan in scans)
    visits = {uid: {visit for scan in series if (visit := _visit(scan))} for uid, series in studies.items()}
    first = [uid for uid, names in visits.items() if names == {"t0"}]
    tagged = any(visits.values())
    if not tagged:
        day = {uid: min(scan.study_date or "9" for scan in series) for uid, series in studies.items()}
        first = [uid for uid in studies if day[uid] == min(day.values())]
    if not first:
        raise SourceError("no exam of visit T0")
    best = max(first, key=lambda uid: (sum(len(scan.files) for scan in studies[uid]), uid))
    return studies[best], tagged


def _visit(series: Series) -> str:
    """'t0', another visit, or '' where the header names none; words go before numbers, which may count from 1."""
    text = known(series.extra.get(VISIT_TEXT)).casefold()
    return "t0" if text.startswith("baseline") else text or known(series.extra.get(VISIT)).casefold()


def _dynamic(series: Sequence[Series]) -> list[Series]:
    """The dynamic series of an exam, in the order of their numbers.

    Raises:
        SourceError: none, or several of which no map says which one it is.
    """
    computed = [scan for scan in series if (scan.number or 0) >= LOWEST_MAP]
    taken = [scan for scan in series if scan not in computed and not COMPUTED.search(scan.description)]
    taken.sort(key=lambda scan: (scan.number or 0, scan.uid))
    if len(named := {n // LOWEST_MAP for scan in computed if (n := scan.number or 0) % LOWEST_MAP in MAPS}) > 1:
        raise SourceError("its maps name several dynamic series")
    first = next((scan for scan in taken if scan.number in named or (scan.number or 0) // 100 in named), None)
    if first:
        later = [scan for scan in taken if _grid(scan) == _grid(first) and (scan.number or 0) >= (first.number or 0)]
        return [first] if _phase_count(first) >= FEWEST else later
    groups = grouped((_grid(scan), scan) for scan in taken if scan.dimensions != "2D")
    found = [group for group in groups.values() if sum(map(_phase_count, group)) >= FEWEST]
    if len(found) != 1:
        raise SourceError("several dynamic series, and no map that names one" if found else "no dynamic series")
    return found[0]


def _grid(series: Series) -> tuple:
    """What the series of one dynamic have in common, and others do not all have."""
    image = series.files[0]
    cosines = tuple(round(cosine, 2) for cosine in image.orientation)
    return image.rows, image.columns, cosines, series.places, series.echo, series.repetition, series.image_type[:1]


def _phase_count(series: Series) -> int:
    return len(series.files) // series.places
