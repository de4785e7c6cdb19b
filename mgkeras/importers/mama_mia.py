"""MAMA-MIA: clinical_and_imaging_info.xlsx, images/ID/ID_000k.nii.gz, segmentations/{expert,automatic}/ID.nii.gz.

Files and folders are matched whatever their case: real copies have upper-case folders with lower-case files.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from mgkeras.importers.found import Exam, Found, LeftOut, SourceError, each_exam, scanner_text, told_if
from mgkeras.importers.labels import (
    MEANING,
    Label,
    coded,
    event_within,
    known,
    number,
    number_or_none,
    outcomes_of,
    triple_negative,
    whole,
    within,
)
from mgkeras.importers.listing import ENDING, by_phase, child, file_named, files_below
from mgkeras.importers.phases import DEFAULT, PhaseRule, Taken, phases_by_column
from mgkeras.importers.tables import find_file, read_table, unique

SHEET = "dataset_info"
EVENTS, FOLLOW_UP = ("days_to_recurrence", "days_to_metastasis", "days_to_death"), "days_to_follow_up"
WANTED = {
    name: (name,)
    for name in ("patient_id", "dataset", "pcr", "hr", "er", "pr", "her2", "tumor_subtype", FOLLOW_UP, *EVENTS)
}
COVARIATES = {
    "age": ("age",),
    "er": ("er",),
    "pr": ("pr",),
    "mammaprint": ("mammaprint",),
    "grade": ("nottingham_grade",),
    "menopause": ("menopause", "menopausal_status"),
    "breast_density": ("breast_density",),
}
OPTIONAL = {
    **{name: aliases for name, aliases in COVARIATES.items() if name not in WANTED},
    "site": ("site",),
    "manufacturer": ("manufacturer", "scanner_manufacturer"),
    "model": ("scanner_model",),
    "tesla": ("field_strength",),
    "times": ("acquisition_times",),
    "phases": ("num_phases",),
}
SUBTYPES = ("luminal", "luminal_a", "luminal_b", "her2_enriched", "her2_pure", "triple_negative")
PHASE = re.compile(r"(.+)_(\d{4})" + ENDING)
MASK = re.compile(r"(.+)" + ENDING)
LONGEST_SECONDS = 3600.0  # of an exam; more is no time in seconds
LONGEST_LIST = 1000  # characters


def read(
    source: Path,
    *,
    zero_days: str = "no-event",
    death: str = "event",
    times: str = "seconds",
    automatic_masks: bool = True,
    horizon_days: float = DEFAULT.horizon_days,
    early_seconds: float = DEFAULT.early_seconds,
    late_seconds: float = DEFAULT.late_seconds,
    labels_only: bool = False,
) -> Found:
    """Reads a download of MAMA-MIA.

    Args:
        source: the folder that holds the table.
        zero_days: what 0 days to recurrence, metastasis or death means: 'no-event', as the workbook's sheet `legend`
            says, or 'missing' (then recurrence is not known unless another event decides it).
        death: 'event', death counts as in recurrence-free survival; or 'censor', follow-up ends with it.
        times: 'seconds', as the sheet `legend` says of acquisition_times; or 'ignore', phases are chosen by their
            order.
        automatic_masks: whether they do where there is no expert's mask.
        horizon_days: of recurrence.
        early_seconds, late_seconds: when the early and late phases should have been acquired.
        labels_only: look for no files.

    Raises:
        SourceError: no table, another release's table, a subject in two rows or in both splits.
    """
    path = find_file(source, r"clinical_and_imaging_info\.xlsx", r"clinical_and_imaging_info\.csv")
    rows = unique(read_table(path, SHEET).fields(WANTED, OPTIONAL), "patient_id", path)
    splits = _splits(source)
    counted = EVENTS if death == "event" else EVENTS[:2]
    followed = {row["dataset"].casefold() for row in rows if any(_is_positive(row[name]) for name in counted)}
    told = [name for name in COVARIATES if any(known(row[name]) for row in rows)]
    folder = None if labels_only else child(source, "images")
    images = by_phase(files_below(folder), PHASE) if folder else {}
    masks = {} if labels_only else masks_in(child(source, "segmentations"), automatic_masks)
    rule = PhaseRule(early_seconds, late_seconds)
    tally: Counter[str] = Counter()

    def exam_of(name: str, row: dict[str, str]) -> tuple[Exam, list[LeftOut]]:
        taken = _phase_files(images.get(name.casefold(), {}), row, times, rule, tally)
        labels = _labels(row, zero_days, death, horizon_days, row["dataset"].casefold() in followed)
        values, left_out = outcomes_of(name, labels)
        files = taken.phases
        covariates = {"dataset": known(row["dataset"]), **{field: whole(row[field]) for field in told}}
        if files and (mask := masks.get(name.casefold())):
            files["mask"], covariates["mask_source"] = mask
            tally[f"{mask[1]} masks"] += {"pre", "early"} <= files.keys()
        elif files:
            left_out.append(LeftOut(name, "no mask found", "mask"))
        scanner = scanner_text(known(row["manufacturer"]), known(row["model"]), number_or_none(row["tesla"]))
        split = splits.get(name.casefold(), "")
        return Exam(name, files, values, covariates, whole(row["site"]), scanner, split, taken.when), left_out

    exams, left_out = each_exam([(row["patient_id"], row) for row in rows], exam_of)
    return Found(
        "mama-mia",
        tuple(exams),
        tuple(left_out),
        _meanings(zero_days, death, horizon_days),
        _rule(times, rule),
        tuple(_notes(rows, followed, zero_days, bool(splits), exams, tally)),
    )


def number_list(text: str) -> list[float] | None:
    """'[0, 165, 288]' as numbers; None for anything but a list of finite numbers. No code in it is run."""
    if len(text) > LONGEST_LIST:
        return None
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(values, list | tuple) or any(type(value) not in (int, float) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except OverflowError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _labels(row: dict[str, str], zero_days: str, death: str, horizon_days: float, followed: bool) -> dict[str, Label]:
    hr, her2 = coded(row["hr"], "HR"), coded(row["her2"], "HER2")
    subtype = known(row["tumor_subtype"]).casefold()
    told = str(int(subtype == "triple_negative")) if subtype in SUBTYPES else ""
    return {
        "recurrence": _recurrence(row, zero_days, death, horizon_days, followed),
        "her2": her2,
        "pcr": coded(row["pcr"], "pCR"),
        "hr": hr,
        "triple_negative": triple_negative(hr, her2, told),
    }


def _recurrence(row: dict[str, str], zero_days: str, death: str, horizon_days: float, followed: bool) -> Label:
    """``followed``: whether the table knows an event of anybody in the subject's dataset.

    Where it knows none, follow-up without an event would make everybody of a dataset free of recurrence.
    """
    wrong = Label("", "recurrence: a time is negative or no number")
    try:
        days = {name: number(row[name]) for name in (*EVENTS, FOLLOW_UP)}
    except ValueError:
        return wrong
    if any((value or 0) < 0 for value in days.values()):
        return wrong
    ends = [days[FOLLOW_UP]] + ([days["days_to_death"] or None] if death == "censor" else [])
    counted = EVENTS if death == "event" else EVENTS[:2]
    events = [value for name in counted if (value := days[name])]
    end = min((value for value in ends if value is not None), default=None)
    label = (
        event_within(True, min(events), horizon_days=horizon_days)
        if events
        else event_within(None if end is None else False, end, horizon_days=horizon_days)
    )
    if label.value == "1":
        return label
    if zero_days == "missing" and any(days[name] == 0 for name in counted):
        return Label("", "recurrence: 0 days to it, which --zero-days missing takes for not known")
    if label.value == "0" and not followed:
        return Label("", "recurrence: the table knows no event in this dataset, so follow-up alone tells nothing")
    return label


def _is_positive(text: str) -> bool:
    return (number_or_none(text) or 0) > 0


def _splits(source: Path) -> dict[str, str]:
    """{subject in lower case: 'train' or 'test'}; empty where there is no such file."""
    path = file_named(source, "train_test_splits.csv")
    if path is None:
        return {}
    rows = read_table(path).fields({"train": ("train_split",), "test": ("test_split",)})
    train, test = ({known(row[name]).casefold() for row in rows} - {""} for name in ("train", "test"))
    if both := sorted(train & test):
        raise SourceError(f"{path}: expected each subject in one split. Received: {', '.join(both[:5])} in both")
    return dict.fromkeys(train, "train") | dict.fromkeys(test, "test")


def masks_in(folder: Path | None, automatic: bool = True) -> dict[str, tuple[Path, str]]:
    """{subject in lower case: (its mask, 'expert' or 'automatic')}, an expert's before an automatic one.

    Args:
        folder: `segmentations`; None holds none.
        automatic: whether automatic ones count.
    """
    found: dict[str, tuple[Path, str]] = {}
    for kind in ("automatic", "expert") if automatic else ("expert",):
        inner = child(folder, kind) if folder else None
        for path in files_below(inner) if inner else []:
            if match := MASK.fullmatch(path.name.casefold()):
                found[match[1]] = (path, kind)
    return found


def _phase_files(
    phases: Mapping[int, list[Path]], row: dict[str, str], times: str, rule: PhaseRule, tally: Counter
) -> Taken[Path]:
    """The files of the pre, early and late phases, as far as there are any; a SourceError for any other reason than
    missing files."""
    if any(len(paths) > 1 for paths in phases.values()):
        raise SourceError("several files of one phase")
    if not phases:
        return Taken()
    order = sorted(phases)
    if order[0] != 0:
        return Taken({"early": phases[order[0]][0]})  # without a pre phase: the sheet says so
    tally["fewer"] += len(order) < (number_or_none(row["phases"]) or 0)
    seconds = _seconds(row["times"], order) if times == "seconds" else None
    taken = phases_by_column([phases[phase][0] for phase in order], seconds, rule=rule)
    tally["in order" if seconds is None else "timed"] += bool(taken.phases)
    return taken if taken.phases else Taken({"pre": phases[0][0]})


def _seconds(text: str, phases: list[int]) -> list[float] | None:
    """The times of these phases; None where the text is no list of rising times of one exam that has them all."""
    times = number_list(text)
    if times is None or len(times) <= phases[-1] or times[-1] - times[0] > LONGEST_SECONDS:
        return None
    return [times[phase] for phase in phases] if all(a < b for a, b in pairwise(times)) else None


def _meanings(zero_days: str, death: str, horizon_days: float) -> dict[str, str]:
    what = "Recurrence or metastasis" if death == "censor" else "Recurrence, metastasis or death"
    zero = "does not tell" if zero_days == "missing" else "means that there was none"
    return {
        "recurrence": f"{within(horizon_days, what)}. Times are days_to_recurrence, days_to_metastasis, days_to_death "
        f"and days_to_follow_up; no time of an event means that there was none, and 0 days {zero}",
        "her2": MEANING["her2"],
        "pcr": "Pathological complete response: column pcr",
        "hr": MEANING["hr"],
        "triple_negative": MEANING["triple_negative"],
    }


def _rule(times: str, rule: PhaseRule) -> str:
    return str(rule) + (
        "; times are acquisition_times, seconds after the phase before contrast"
        if times == "seconds"
        else "; the times in the table are not used"
    )


def _notes(
    rows: list[dict[str, str]], followed: set[str], zero_days: str, split: bool, exams: list[Exam], tally: Counter
) -> list[str]:
    zeros = Counter(known(row["dataset"]) for row in rows if any(number_or_none(row[name]) == 0 for name in EVENTS))
    shown = ", ".join(f"{name} {count}" for name, count in sorted(zeros.items()))
    silent = sorted({known(row["dataset"]) for row in rows if row["dataset"].casefold() not in followed} - {""})
    images = tally["timed"] or tally["in order"]
    without = sum(not exam.split for exam in exams)
    return told_if(
        (
            zeros,
            f"0 days to recurrence, metastasis or death: {zeros.total()} subjects ({shown}). The workbook's "
            f"sheet legend says that 0 means none; here it counts as {zero_days}.",
        ),
        (
            silent,
            f"The table knows no recurrence, metastasis or death in {', '.join(silent)}: follow-up without "
            "an event is no outcome there.",
        ),
        (images, f"Phases chosen by time: {tally['timed']} subjects; by order: {tally['in order']}."),
        (images, f"Masks: {tally['expert masks']} by experts, {tally['automatic masks']} automatic."),
        (tally["fewer"], f"Subjects with fewer volumes than num_phases says: {tally['fewer']}."),
        (not split, "No train_test_splits.csv: there is no official split."),
        (split and without, f"Subjects in neither column of train_test_splits.csv: {without}."),
    )
