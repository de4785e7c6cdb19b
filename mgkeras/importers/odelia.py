"""ODELIA 2025, configuration 'unilateral': INST/data_unilateral/UID/{Pre,Post_1,...}.nii.gz and tables, a breast each.

INST/metadata_unilateral holds annotation.csv (the labels, hidden for some institutions) and split.csv, which has a row
for each UID and fold. A subject is a breast, so a patient is two of them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mgkeras.importers.found import Exam, Found, LeftOut, SourceError, each_exam, told_if
from mgkeras.importers.labels import DAYS_A_YEAR, Label, coded, known, number_or_none, outcomes_of, split_of, whole
from mgkeras.importers.listing import ENDING, child, entries, file_named
from mgkeras.importers.phases import PhaseRule, Taken, phases_by_column
from mgkeras.importers.tables import read_table, unique

DATA, METADATA = "data_unilateral", "metadata_unilateral"
ANNOTATION = {"uid": ("UID",), "lesion": ("Lesion",)}
SPLIT = {"uid": ("UID",), "split": ("Split",)}
MEANING = (
    "Malignant lesion in this breast: 1 for Lesion 2 (malignant), 0 for Lesion 0 (none) and 1 (benign), empty "
    "where the label is hidden"
)
SIDE = re.compile(r"(.+)_(left|right)", re.IGNORECASE)
PHASE = re.compile(r"(pre|post_(\d{1,2}))" + ENDING)
OLDEST = 150.0  # years; a larger age is in days, as the real tables have it
Row = dict[str, str]
Breast = tuple[str, str, Path | None, Row | None, Row | None]  # institution, UID, folder, rows of annotation and split


def read(source: Path, *, fold: int = 0, labels_only: bool = False) -> Found:
    """Reads a download of ODELIA's challenge of 2025.

    Args:
        source: the folder that holds the institutions' folders, or ``data`` with them, or one institution's folder.
        fold: of the official splits, which one to keep.
        labels_only: look for no files.

    Raises:
        SourceError: no institution, only the bilateral configuration, another release's table, no such fold, or a UID
            twice in one of them.
    """
    institutions = _institutions(source)
    shared = _split_rows(file_named(source, "split_unilateral.csv"), fold)
    breasts: list[Breast] = []
    hidden = []
    for institution in institutions:
        tables = child(institution, METADATA)
        annotation, official = (tables and file_named(tables, name) for name in ("annotation.csv", "split.csv"))
        labels = _label_rows(annotation) if annotation else {}
        hidden += [] if annotation else [institution.name]
        splits = _split_rows(official, fold) or {
            key: row for key, row in shared.items() if row["institution"].casefold() == institution.name.casefold()
        }
        data = child(institution, DATA)
        folders = {} if labels_only or data is None else {path.name: path for path in entries(data) if path.is_dir()}
        spelt = {name.casefold(): name for name in (*folders, *(row["uid"] for row in (splits | labels).values()))}
        where = {name.casefold(): path for name, path in folders.items()}
        breasts += [
            (institution.name, spelt[key], where.get(key), labels.get(key), splits.get(key))
            for key in dict.fromkeys((*labels, *splits, *where))
        ]
    double = Counter(uid.casefold() for _, uid, *_ in breasts).most_common(1)[0][1] > 1 if breasts else False

    def exam_of(name: str, breast: Breast) -> tuple[Exam, list[LeftOut]]:
        place, uid, folder, label, split = breast
        taken = _files(folder)
        malignant = coded(label["lesion"] if label else "", "Lesion", positive=("2",), negative=("0", "1"))
        if place in hidden:
            malignant = Label("", "no annotation.csv: the institution's labels are hidden")
        values, unknown = outcomes_of(name, {"malignant": malignant})
        part = split_of(split["split"]) if split else ""
        return Exam(name, taken.phases, values, _covariates(uid, label), place, split=part, when=taken.when), unknown

    names = [f"{place}_{uid}" if double else uid for place, uid, *_ in breasts]
    exams, left_out = each_exam(list(zip(names, breasts, strict=True)), exam_of)
    return Found(
        "odelia",
        tuple(exams),
        tuple(left_out),
        {"malignant": MEANING},
        str(PhaseRule()),
        tuple(_notes(exams, hidden, fold, double)),
    )


def _institutions(source: Path) -> list[Path]:
    """The folders that hold the unilateral configuration."""
    for root in (source, child(source, "data")):
        folders = [path for path in entries(root) if path.is_dir()] if root else []
        if found := [path for path in folders if child(path, DATA) or child(path, METADATA)]:
            return found
    if child(source, METADATA):
        return [source]
    folders = [path for path in entries(source) if path.is_dir()]
    received = ", ".join(path.name for path in folders[:20]) or "no folders"
    if any(child(path, "metadata") for path in (source, *folders)):
        received = "the configuration 'default': metadata of both breasts in one volume (Lesion_Left, Lesion_Right)"
    raise SourceError(
        f"expected ODELIA's configuration 'unilateral', INST/{DATA} and INST/{METADATA}, in {source}. "
        f"Received: {received}. Download the configuration 'unilateral' of it."
    )


def _label_rows(path: Path) -> dict[str, dict[str, str]]:
    """{UID in lower case: its row}."""
    rows = read_table(path).fields(ANNOTATION, {"patient": ("PatientID",), "age": ("Age",)})
    return {row["uid"].casefold(): row for row in unique(rows, "uid", path)}


def _split_rows(path: Path | None, fold: int) -> dict[str, dict[str, str]]:
    """{UID in lower case: its row} of this fold; rows without a fold count in each."""
    if path is None:
        return {}
    rows = read_table(path).fields(SPLIT, {"fold": ("Fold",), "institution": ("Institution",)})
    folds = {whole(row["fold"]) for row in rows} - {""}
    if folds and str(fold) not in folds:
        raise SourceError(f"{path}: expected fold {fold}. Received: {', '.join(sorted(folds))}")
    rows = [row for row in rows if whole(row["fold"]) in ("", str(fold))]
    return {row["uid"].casefold(): row for row in unique(rows, "uid", path)}


def _files(folder: Path | None) -> Taken[Path]:
    """The pre, early and late phases of a breast; without Pre or Post_1 the other phase, and the sheet says so."""
    found: dict[int, Path] = {}
    for path in entries(folder) if folder else ():
        if match := PHASE.fullmatch(path.name.casefold()):
            found.setdefault(int(match[2] or 0), path)
    if 0 not in found or 1 not in found:
        return Taken({column: found[phase] for column, phase in (("pre", 0), ("early", 1)) if phase in found})
    return phases_by_column([found[phase] for phase in sorted(found)])


def _covariates(uid: str, label: dict[str, str] | None) -> dict[str, str]:
    side = SIDE.fullmatch(uid)
    patient = known(label["patient"]) if label else ""
    return {
        "patient": patient or (side[1] if side else uid),
        "side": side[2].lower() if side else "",
        "age": _years(label["age"]) if label else "",
    }


def _years(text: str) -> str:
    """An age in years or in days as years with a decimal; '' where it is missing, 0, or no number."""
    age = number_or_none(text) or 0.0
    age = age / DAYS_A_YEAR if age > OLDEST else age
    return f"{age:.1f}" if 0 < age <= OLDEST else ""


def _notes(exams: list[Exam], hidden: list[str], fold: int, double: bool) -> list[str]:
    patients = Counter((exam.site, exam.covariates["patient"]) for exam in exams)
    both = sum(count > 1 for count in patients.values())
    without = sum(not exam.split for exam in exams)
    return told_if(
        (
            True,
            f"A subject is a breast; {both} patients are in it with both, and column patient says which belong "
            "together. Folds hold them out together, and intervals draw patients with both breasts.",
        ),
        (True, f"The split is that of fold {fold}."),
        (without, f"Breasts without a split: {without}."),
        (hidden, f"Institutions without annotation.csv, whose labels are hidden: {', '.join(hidden)}."),
        (double, "Some UIDs occur in several institutions: subjects are named INST_UID."),
        (True, "Ages above 150 are taken for days, as the tables of this source have them."),
        (True, "ODELIA has no lesion masks: make them with mgkeras mask."),
    )
