"""Duke-Breast-Cancer-MRI as TCIA gives it: one workbook and a tree of DICOM files, Breast_MRI_001/STUDY/SERIES/*.dcm.

Glossary:
    rank: of a dynamic series, 0 before contrast and k for the k-th after it, as its folder (pre, post_1, ...) or its
        description says: 'ax dyn pre', 'ax dyn 1st pass'; 'ax 3d dyn' (before) and 'Ph1/ax 3d dyn'; '1st ax dyn'.
    legend: the workbook's third row, which spells the codes out: 'Avanto=0, Optima MR450w=1'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mgkeras.data.groups import grouped
from mgkeras.errors import InputError
from mgkeras.importers.found import Exam, Found, LeftOut, SourceError, each_exam, scanner_text, told_if
from mgkeras.importers.labels import (
    DAYS_A_YEAR,
    MEANING,
    Label,
    coded,
    event_within,
    number_or_none,
    outcomes_of,
    triple_negative,
    whole,
    within,
)
from mgkeras.importers.listing import ENDING, files_below
from mgkeras.importers.mama_mia import masks_in
from mgkeras.importers.phases import DEFAULT, PhaseRule, Taken
from mgkeras.importers.series import Phase, Series, phases_of
from mgkeras.importers.tables import find_file, read_table
from mgkeras.importers.tcia import (
    mr_series,
    number_in,
    numbered_rows,
    patient_folders,
    short_number,
    write_phases,
)

WORKBOOK = r"Clinical.and.Other.Features.*\.xlsx"
PATIENT = r"(?:MR_)?Breast_MRI_([0-9]{1,4})"
MASK = r"duke_([0-9]{1,4})" + ENDING
IN_SITU = {"left-out": "", "complete": "1", "not-complete": "0"}  # what codes 3 and 4 of the response become
COLUMNS = {
    "id": ("Patient ID",),
    "birth": ("Date of Birth (Days)",),
    "er": ("ER",),
    "pr": ("PR",),
    "her2": ("HER2",),
    "subtype": ("Mol Subtype",),
    "grade": ("Nottingham grade",),
    "metastatic": ("Metastatic at Presentation (Outside of Lymph Nodes)",),
    "response": ("Pathologic Response to Neoadjuvant Therapy",),
    "event": ("Recurrence event(s)",),
    "local": ("Days to local recurrence (from the date of diagnosis)",),
    "distant": ("Days to distant recurrence(from the date of diagnosis)",),
    "local_free": ("Days to last local recurrence free assessment (from the date of diagnosis)",),
    "distant_free": (
        "Days to last distant recurrence free assemssment(from the date of diagnosis)",
        "Days to last distant recurrence free assessment(from the date of diagnosis)",
    ),
}
SCANNER_COLUMNS = {
    "maker": ("Manufacturer",),
    "model": ("Manufacturer Model Name",),
    "tesla": ("Field Strength (Tesla)",),
}
MAKERS = "GE MEDICAL SYSTEMS=0, MPTronic software=1, SIEMENS=2"  # where a workbook has no legend
RANKED = (
    "pre and the k-th phase after contrast are what the series' folders or descriptions call them, and their times "
    "must agree"
)
NO_MASKS = (
    "There are no tumour masks here: `mgkeras mask` makes them, and MAMA-MIA has some for 291 of these "
    "patients. The boxes of Annotation_Boxes.xlsx are not used: a box is not a tumour's outline."
)


def read(
    source: Path,
    *,
    nifti: Path,
    labels_only: bool = False,
    horizon_days: float = DEFAULT.horizon_days,
    early_seconds: float = DEFAULT.early_seconds,
    late_seconds: float = DEFAULT.late_seconds,
    in_situ: str = "left-out",
    masks: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Reads the workbook and, of every patient in it, the DICOM files.

    Args:
        source: holds the workbook and, at whatever depth, the folders Breast_MRI_001, ...
        nifti: where the phases are written; files that are there are kept.
        labels_only: read the workbook only.
        horizon_days: recurrence by then is 1.
        early_seconds, late_seconds: after the first phase, that the early and late phases should have.
        in_situ: what the pCR of a patient is of whom DCIS or LCIS alone remained: 'left-out' (not known), 'complete'
            (1, as ypT0/is has it) or 'not-complete' (0).
        masks: MAMA-MIA's folder `segmentations`, or one of expert and automatic in it.
        progress: called with (subjects done, subjects) after each.

    Raises:
        SourceError: no workbook, other columns than those above, or no such folder of masks.
        ValueError: another ``in_situ``.
    """
    if in_situ not in IN_SITU:
        raise InputError(f"in_situ must be one of {', '.join(IN_SITU)}. Received: {in_situ!r}")
    book = find_file(source, WORKBOOK)
    rows, legend, left_out = _rows(book)
    folders = {} if labels_only else patient_folders(source, PATIENT)
    rule = PhaseRule(early_seconds, late_seconds)
    outlines = {} if labels_only or masks is None else _masks(masks)

    def exam_of(name: str, patient: int) -> tuple[Exam, list[LeftOut]]:
        row = rows[patient]
        taken: Taken[Path] = Taken()
        scanner = _scanner(row, legend)
        if not labels_only:
            series = _ranked(folders.get(patient, []), patient)
            taken = write_phases(_phases(series), name, nifti, rule)
            scanner = scanner or series[0][0].scanner
        values, unknown = outcomes_of(name, _labels(row, horizon_days, in_situ))
        files = taken.phases | ({"mask": outlines[patient]} if patient in outlines else {})
        return Exam(name, files, values, _covariates(row), scanner=scanner, when=taken.when), unknown

    exams, without = each_exam([(f"Breast_MRI_{patient:03d}", patient) for patient in rows], exam_of, progress)
    left_out += without
    left_out += [
        LeftOut(f"Breast_MRI_{patient:03d}", f"it has a folder but no row in {book.name}")
        for patient in folders
        if patient not in rows
    ]
    phases = "" if labels_only else f"{rule}; {RANKED}"
    notes = _notes(exams, labels_only, masks)
    return Found("duke", tuple(exams), tuple(left_out), _meanings(horizon_days, in_situ), phases, tuple(notes))


def _rows(book: Path) -> tuple[dict[int, dict[str, str]], dict[str, str], list[LeftOut]]:
    """Fields by the patient's number; the legend's, '' where there is none; odd IDs, which are left out."""
    records = read_table(book, "Data", header=2).fields(COLUMNS, SCANNER_COLUMNS)
    legend = records.pop(0) if records and not records[0]["id"] else dict.fromkeys(SCANNER_COLUMNS, "")
    rows, left_out = numbered_rows(records, PATIENT, "not of the form Breast_MRI_001", book)
    return rows, legend, left_out


def _labels(row: dict[str, str], horizon_days: float, in_situ: str) -> dict[str, Label]:
    her2 = coded(row["her2"], "HER2", unclear=("2",))
    hr = coded(row["subtype"], "Mol Subtype", positive=("0", "1"), negative=("2", "3"))
    subtype = coded(row["subtype"], "Mol Subtype", positive=("3",), negative=("0", "1", "2")).value
    return {
        "recurrence": _recurrence(row, horizon_days),
        "her2": her2,
        "pcr": _response(row["response"], in_situ),
        "hr": hr,
        "triple_negative": triple_negative(hr, her2, subtype),
    }


def _recurrence(row: dict[str, str], horizon_days: float) -> Label:
    event = coded(row["event"], "event").value
    times = [
        [value for name in names if (value := number_or_none(row[name])) is not None]
        for names in (("local", "distant"), ("local_free", "distant_free"))
    ]
    if event == "0" and times[0]:
        return Label("", "recurrence: no event, but a day of one")
    time = min(times[0], default=None) if event == "1" else max(times[1], default=None)
    return event_within(event == "1" if event else None, time, horizon_days=horizon_days)


def _response(text: str, in_situ: str) -> Label:
    code = whole(text)
    if code in ("3", "4"):
        return Label(IN_SITU[in_situ], None if IN_SITU[in_situ] else "pCR: in situ carcinoma alone remained")
    if code == "5":
        return Label("", "pCR: the response is not available")
    return coded(code, "pCR", negative=("2",))


def _meanings(horizon_days: float, in_situ: str) -> dict[str, str]:
    what = "Local or distant recurrence, from diagnosis (a death without one ends the follow-up),"
    return {
        "recurrence": within(horizon_days, what),
        "her2": "HER2: 1 positive, 0 negative, empty where borderline",
        "pcr": f"Pathological complete response: 1 complete, 0 not complete, {IN_SITU[in_situ] or 'empty'} where DCIS "
        "or LCIS alone remained; empty without neoadjuvant therapy or a response",
        "hr": "Hormone receptors (Mol Subtype): 1 luminal-like or HR and HER2 positive, 0 HER2 or triple negative",
        "triple_negative": MEANING["triple_negative"] + " (Mol Subtype)",
    }


def _covariates(row: dict[str, str]) -> dict[str, str]:
    """``age`` at diagnosis in years; ``metastatic`` is at presentation, outside of lymph nodes."""
    birth = number_or_none(row["birth"])
    age = "" if birth is None else f"{abs(birth) / DAYS_A_YEAR:.2f}"
    codes = {name: coded(row[name], name).value for name in ("er", "pr", "metastatic")}
    return {
        "age": age,
        "er": codes["er"],
        "pr": codes["pr"],
        "grade": short_number(row["grade"]),
        "metastatic": codes["metastatic"],
    }


def _scanner(row: dict[str, str], legend: dict[str, str]) -> str:
    """'SIEMENS Avanto 1.5 T', as far as the codes can be spelt out."""
    maker = _spelt(row["maker"], legend["maker"] or MAKERS)
    tesla = number_or_none(_spelt(row["tesla"], legend["tesla"]))
    return scanner_text(maker, _spelt(row["model"], legend["model"]), tesla)


def _spelt(code: str, legend: str) -> str:
    pairs = (part.rpartition("=") for part in legend.split(","))
    return {key.strip(): name.strip() for name, _, key in pairs}.get(whole(code), "")


def _notes(exams: Sequence[Exam], labels_only: bool, masks: Path | None) -> list[str]:
    metastatic = sum(exam.covariates["metastatic"] == "1" for exam in exams)
    return told_if(
        (not labels_only and not masks, NO_MASKS),
        (
            not labels_only and masks,
            "Masks are those of MAMA-MIA, expert before automatic; `mgkeras fit` checks that they lie on the grids of "
            "these files.",
        ),
        (
            metastatic,
            f"Metastatic at presentation (column metastatic): {metastatic} of the subjects in cohort.csv. "
            "Whether recurrence means anything for them is for you to decide.",
        ),
    )


def _masks(folder: Path) -> dict[int, Path]:
    """Masks by the patient's number; an expert's before an automatic one."""
    if not folder.is_dir():
        raise SourceError(f"expected the folder `segmentations` of MAMA-MIA. Received: {folder}, which is none")
    paths = [path for path, _ in masks_in(folder).values()] or files_below(folder)
    return {patient: path for path in paths if (patient := number_in(path.name, MASK)) is not None}


def _ranked(folders: Sequence[Path], patient: int) -> list[tuple[Series, int]]:
    """The dynamic series of a patient with their ranks, from 0.

    Raises:
        SourceError: no folder, no images, or ranks that do not tell which series is which phase.
    """
    scans = mr_series(folders, patient, PATIENT)
    by_rank = grouped((rank[0], (scan, rank[1])) for scan in scans if (rank := _rank(scan)) is not None)
    if not by_rank:
        raise SourceError("no dynamic series")
    for place, found in by_rank.items():  # 'ax dyn pre' goes before a bare 'ax dyn'
        by_rank[place] = [pair for pair in found if pair[1]] or found
    if any(len(found) > 1 for found in by_rank.values()):
        raise SourceError("several series of the same phase")
    if 0 not in by_rank:
        raise SourceError("no series before contrast")
    if len(by_rank) > 1 and 1 not in by_rank:
        raise SourceError("no first series after contrast")
    return [(by_rank[rank][0][0], rank) for rank in sorted(by_rank)]


def _rank(series: Series) -> tuple[int, bool] | None:
    """(rank, whether it is said in words rather than by their absence); None for a series that is not dynamic."""
    folder = series.files[0].path.parent.name
    if token := re.fullmatch(r"pre|post[ _-]?([0-9])", folder, re.IGNORECASE):
        return int(token[1] or 0), True
    text = series.description.casefold()
    dynamic = re.search(r"dyn|multiphase|vibrant", text) is not None
    if token := re.match(r"ph *([0-9])", text) or re.search(r"([1-9])(?:st|nd|rd|th)\b", text):
        return int(token[1]), True
    if re.search(r"\bpre\b", text) and not re.search(r"\bt1\b", text):
        return 0, True
    return (0, False) if dynamic else None


def _phases(ranked: Sequence[tuple[Series, int]]) -> tuple[Phase, ...]:
    """The phases in the order of time.

    Raises:
        SourceError: where their ranks are not in that order, or phases_of finds no phases.
    """
    rank = {image.uid: rank for series, rank in ranked for image in series.files}
    phases = phases_of([series for series, _ in ranked])
    ranks = [rank[phase.slices[0].uid] for phase in phases]
    if ranks != sorted(ranks) or (len(ranked) > 1 and ranks.count(0) > 1):
        raise SourceError("the phases' times contradict their descriptions")
    return phases
