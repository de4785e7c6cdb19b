"""BreastDCEDL: tables of patients (pid, pCR, HR, HER2 ...) and NIfTI files that were written without their geometry.

Its arrays are (slices, rows, columns), under a header of 1 x 1 x 1 mm that takes slices for left to right. The true
spacing is in the tables, and copies with it are written. In which direction each axis runs no table tells.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mgkeras.data.checks import check_name
from mgkeras.data.groups import grouped
from mgkeras.data.nifti import ExamError, read_grid
from mgkeras.importers.found import Exam, Found, ImportStopped, LeftOut, SourceError, each_exam, told_if
from mgkeras.importers.labels import (
    MEANING,
    Label,
    coded,
    known,
    number_or_none,
    outcomes_of,
    split_of,
    triple_negative,
    whole,
)
from mgkeras.importers.listing import ENDING, by_phase, files_below
from mgkeras.importers.phases import phases_by_column, place_text
from mgkeras.importers.spacing import Spacing, affine_with, agrees, directions, is_unit, write_copy
from mgkeras.importers.tables import Table, read_table, unique

COHORTS = {
    "ispy1": (r"ispy1[_-].*", "spy1"),
    "ispy2": (r"(ispy2|acrin-6698)[_-].*", "spy2"),
    "duke": (r"(breast_mri|duke)[_-].*", "duke"),
}  # by the subject's name, and what the column dataset says
TABLES = (".csv", ".tsv", ".xlsx")
WANTED = {"pid": ("pid",), "pcr": ("pCR",), "hr": ("HR",), "her2": ("HER2", "HER2pos")}
COVARIATES = {
    "age": ("age",),
    "er": ("ER",),
    "pr": ("PR",),
    "grade": ("Nottingham_grade",),
    "menopause": ("menopause",),
    "mammaprint": ("MP",),
    "longest_diameter_mm": ("MRI_LD_Baseline",),
}
OPTIONAL = {
    **COVARIATES,
    "subtype": ("HR_HER2_STATUS",),
    "triple_negative": ("TripleNeg",),
    "dataset": ("dataset",),
    "site": ("center",),
    "manufacturer": ("manufacturer",),
    "split": ("test", "split"),
    "slices": ("n_z",),
    "pre": ("pre",),
    "early": ("post_early",),
    "late": ("post_late",),
    "in_plane": ("xy_spacing",),
    "gap": ("slice_space", "slice_scape", "voxel_z"),
    "thickness": ("slice_thick",),
}
DECISIVE = ("pcr", "hr", "her2", "subtype", "triple_negative", "split")  # tables must agree on these
SPLITS = {"0": "train", "1": "test", "2": "val"}  # of the column test
SUBTYPES = {"hrposher2neg": "0", "her2pos": "0", "tripleneg": "1"}  # code of triple negative
MEANINGS = {
    "pcr": "Pathological complete response: column pCR",
    "her2": MEANING["her2"],
    "hr": MEANING["hr"],
    "triple_negative": MEANING["triple_negative"],
}
VOLUME = re.compile(r"(.+)_(?:spy[12]|duke)(?:_vis1)?(?:_dce)?_a(?:cq|qc)_?(\d{1,3})" + ENDING)  # 'aqc' is theirs
MASK = re.compile(r"(.+)_(?:spy[12]|duke)(?:_vis1)?_mask" + ENDING)


def read(
    source: Path,
    *,
    nifti: Path | None = None,
    which: str = "all",
    axes: str | None = None,
    unit_spacing: str = "left-out",
    labels_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Reads a download of BreastDCEDL, of one cohort or of several.

    Args:
        source: a folder that holds tables and, anywhere in it, volumes and masks.
        nifti: where files of the right geometry are written; what is finished there is kept.
        which: 'all', 'ispy1', 'ispy2' or 'duke'.
        axes: toward what the arrays' three axes grow, such as 'SPL' (slices upward, rows backward, columns to the
            left), for who knows; None keeps the headers' axes.
        unit_spacing: what becomes of subjects whose spacing no table tells, under a header of 1 x 1 x 1 mm: 'left-out'
            or 'kept'.
        labels_only: look for no files.
        progress: called with (subjects done, subjects) after each whose files were looked at.

    Raises:
        SourceError: no table with the wanted columns, a subject twice in a table, axes that are none, or files to be
            written and no folder for them.
    """
    turned = directions(axes)
    files = files_below(source, without=nifti)
    rows, unused, disputed = _rows([path for path in files if path.suffix.casefold() in TABLES], source)
    chosen = [row for row in rows if which in ("all", _cohort(row))]
    volumes = by_phase(() if labels_only else files, VOLUME)
    masks = grouped((match[1], path) for path in files if (match := MASK.fullmatch(path.name.casefold())))
    told = [name for name in COVARIATES if any(known(row[name]) for row in chosen)]
    usual = _usual_early(rows)
    tally: Counter[str] = Counter()

    def exam_of(name: str, row: dict[str, str]) -> tuple[Exam, list[LeftOut]]:
        key, cohort = name.casefold(), _cohort(row)
        values, left_out = outcomes_of(name, _labels(row, disputed.get(key, ())))
        paths, when, how = _chosen(volumes.get(key, {}), masks.get(key, []), row, usual.get(cohort))
        if {"pre", "early"} <= paths.keys() and not check_name(name):
            paths, without = _with_spacing(paths, row, nifti, turned, unit_spacing, tally)
            left_out += [LeftOut(name, why, column) for column, why in without.items()]
        tally[how] += "early" in paths
        split = "" if "split" in disputed.get(key, ()) else SPLITS.get(whole(row["split"])) or split_of(row["split"])
        covariates = {"cohort": cohort, **{field: whole(row[field]) for field in told}}
        return Exam(
            name, paths, values, covariates, known(row["site"]), known(row["manufacturer"]), split, when
        ), left_out

    told_of = None if labels_only else progress
    exams, left_out = each_exam([(row["pid"], row) for row in chosen], exam_of, told_of)
    notes = _notes(rows, chosen, unused, which, axes, tally)
    return Found("breastdcedl", tuple(exams), tuple(left_out), MEANINGS, _rule(usual), tuple(notes))


def _rows(paths: Sequence[Path], source: Path) -> tuple[list[dict[str, str]], list[str], dict[str, set[str]]]:
    """Every subject of all tables once, the tables not used, and {subject: fields on which tables disagree}.

    What one table leaves open another fills. Of what none may disagree on, such as the spacing, the first counts.
    """
    merged: dict[str, dict[str, str]] = {}
    disputed: dict[str, set[str]] = defaultdict(set)
    unused, used, errors = [], 0, []
    for path in paths:
        try:
            table = read_table(path)
            rows = table.fields(WANTED, OPTIONAL)
        except SourceError as error:
            unused.append(path.name)
            errors.append(str(error))
            continue
        used += 1
        for row in unique(_trusted(table, rows), "pid", path):
            ours = merged.setdefault(row["pid"].casefold(), dict.fromkeys(row, "") | {"pid": row["pid"]})
            for field, text in row.items():
                if field in DECISIVE and known(text) and known(ours[field]) and whole(text) != whole(ours[field]):
                    disputed[row["pid"].casefold()].add(field)
                ours[field] = ours[field] if known(ours[field]) else text
    if not used and len(errors) == 1:
        raise SourceError(errors[0])
    if not used:
        wanted = ", ".join(" or ".join(aliases) for aliases in WANTED.values())
        raise SourceError(
            f"expected a table with the columns {wanted} in {source}. Received: "
            + ("; ".join(errors) if errors else "no csv, tsv or xlsx file")
        )
    return list(merged.values()), unused, disputed


def _trusted(table: Table, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows whose TripleNeg of 0 is dropped where the table names subtypes but not theirs: it writes 0 for unknown."""
    if not any(known(row["subtype"]) for row in rows):
        return rows
    return [
        row if known(row["subtype"]) or whole(row["triple_negative"]) == "1" else {**row, "triple_negative": ""}
        for row in rows
    ]


def _cohort(row: Mapping[str, str]) -> str:
    """'ispy1', 'ispy2', 'duke' or ''. The name decides: the column dataset says duke in the table of I-SPY1."""
    for cohort, (names, _) in COHORTS.items():
        if re.fullmatch(names, row["pid"].casefold()):
            return cohort
    return next((name for name, (_, said) in COHORTS.items() if row["dataset"].casefold() == said), "")


def _labels(row: dict[str, str], disputed: Sequence[str] | set[str]) -> dict[str, Label]:
    hr, her2 = coded(row["hr"], "HR"), coded(row["her2"], "HER2", unclear=("2",))
    subtype = known(row["subtype"]).casefold()
    told = SUBTYPES.get(subtype) or coded(row["triple_negative"], "TripleNeg").value
    labels = {
        "pcr": coded(row["pcr"], "pCR"),
        "her2": her2,
        "hr": hr,
        "triple_negative": triple_negative(hr, her2, told),
    }
    if {"hr", "her2", "subtype"} & set(disputed):
        disputed = {*disputed, "triple_negative"}
    return {
        name: Label("", f"{name}: the tables disagree") if name in disputed else label for name, label in labels.items()
    }


def _usual_early(rows: Sequence[dict[str, str]]) -> dict[str, int]:
    """By cohort the index that its tables name most often for the early phase, for subjects where they name none."""
    named = grouped((_cohort(row), index) for row in rows if (index := _index(row["early"])) is not None)
    return {cohort: Counter(indices).most_common(1)[0][0] for cohort, indices in named.items()}


def _chosen(
    volumes: Mapping[int, list[Path]], masks: list[Path], row: dict[str, str], usual: int | None
) -> tuple[dict[str, Path], dict[str, str], str]:
    """The files of pre, early, late and the mask; which phases these are; how chosen.

    Raises:
        SourceError: the subject cannot be had.
    """
    if len(masks) > 1 or any(len(paths) > 1 for paths in volumes.values()):
        raise SourceError("several files of one phase or several masks: import the full and the cropped release apart")
    order = sorted(volumes)
    told, how = [_index(row[name]) for name in ("pre", "early", "late")], "phases from the table"
    named = [index for index in told if index is not None]
    if len(named) == 3 and named[0] < named[1] < named[2] and set(named) <= set(order):
        pass
    elif len(order) > 1 and order[0] == 0 and usual in order[1:-1]:
        told, how = [0, usual, order[-1]], "phases as usual in the cohort"
    elif len(order) > 1 and order[0] == 0:
        chosen, how = phases_by_column(order).phases, "phases by order"
        told = [chosen.get(column) for column in ("pre", "early", "late")]
    else:  # nothing, a single phase, or none before contrast: the sheet says so
        told = [0 if order == [0] else None, order[0] if order and order[0] else None, None]
    taken = {c: index for c, index in zip(("pre", "early", "late"), told, strict=True) if index is not None}
    files = {column: volumes[index][0] for column, index in taken.items()}
    words = how.removeprefix("phases ")
    when = {
        f"{column}_seconds": place_text(order.index(index), len(order), words)
        for column, index in taken.items()
        if column != "pre"
    }
    return files | ({"mask": masks[0]} if masks and files else {}), when, how


def _with_spacing(
    paths: dict[str, Path],
    row: dict[str, str],
    nifti: Path | None,
    turned: np.ndarray | None,
    unit_spacing: str,
    tally: Counter,
) -> tuple[dict[str, Path], dict[str, str]]:
    """The subject's files, those of a wrong header replaced by copies; columns without a file, and why.

    All that is written of a subject lies on one grid, that of its pre phase or else the early phase.

    Raises:
        SourceError: the subject cannot be had. ImportStopped: a copy is to be written and there is no folder.
    """
    spacing, slices = _spacing(row), _positive(row["slices"])
    try:
        grids = {column: read_grid(path) for column, path in paths.items()}
        first = grids.get("pre", grids["early"])
        if spacing is None and is_unit(first) and unit_spacing == "left-out":
            raise SourceError("no table tells its spacing, and its header says 1 x 1 x 1 mm")
        without = {
            column: "its shape is not that of the volumes"
            for column, grid in grids.items()
            if grid.shape != first.shape
        }
        without |= {} if "mask" in paths else {"mask": "no mask found"}
        wrong = {
            column
            for column, grid in grids.items()
            if turned is not None or not agrees(grid, spacing, slices) or (is_unit(grid) and not is_unit(first))
        }
        affine = affine_with(first, spacing, slices, turned)
        kept = {column: path for column, path in paths.items() if column not in without}
        if wrong & kept.keys():
            if nifti is None:
                raise ImportStopped("expected a folder for files of the right spacing. Received: none")
            tally["corrected"] += 1
            tally["by thickness"] += spacing is not None and spacing.gap is None
            kept |= {column: write_copy(path, affine, nifti) for column, path in kept.items() if column in wrong}
        elif spacing is None:
            tally["headers believed"] += 1
        return kept, without
    except ExamError as error:
        told = str(error).replace(str(error.path), error.path.name) if error.path else str(error)
        raise SourceError(f"a file cannot be used: {told}") from None


def _spacing(row: Mapping[str, str]) -> Spacing | None:
    in_plane, gap, thickness = (_positive(row[name]) for name in ("in_plane", "gap", "thickness"))
    return Spacing(in_plane, gap, thickness) if in_plane and (gap or thickness) else None


def _positive(text: str) -> float | None:
    """A cell's number where it is finite and above 0, else None."""
    value = number_or_none(text)
    return value if value is not None and value > 0 else None


def _index(text: str) -> int | None:
    """A cell's whole number from 0 on, which may be written 2.0, else None."""
    text = whole(text)
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None


def _rule(usual: Mapping[str, int]) -> str:
    often = "".join(f", {index} in {cohort}" for cohort, index in sorted(usual.items()))
    return (
        "the volumes that the tables name in pre, post_early and post_late; where they name none, or some that "
        f"are not there, early is the one that they name most often{often}, and late the last; where that does not "
        "fit, early is the first volume after pre"
    )


def _notes(
    rows: Sequence[dict[str, str]],
    chosen: Sequence[dict[str, str]],
    unused: Sequence[str],
    which: str,
    axes: str | None,
    tally: Counter,
) -> list[str]:
    nameless = sum(not _cohort(row) for row in rows)
    how = [f"{name}: {count}" for name, count in sorted(tally.items()) if name.startswith("phases") and count]
    corrected, thickness, believed = (tally[name] for name in ("corrected", "by thickness", "headers believed"))
    return told_if(
        (which != "all", f"Subjects of other cohorts than {which}: {len(rows) - len(chosen)}."),
        (nameless, f"Subjects whose cohort is not known: {nameless}."),
        (unused, f"Tables not used, of other columns or unreadable: {', '.join(unused)}."),
        (how, f"Subjects with {'; '.join(how)}."),
        (
            corrected,
            f"Subjects whose headers had no true spacing, now in OUT/nifti with that of the tables: {corrected}.",
        ),
        (
            thickness,
            f"Of these the distance of slices is taken from their thickness: {thickness}. Slices of 2 mm may lie 1 mm "
            "apart in Duke, whose own table tells (voxel_z): put it beside.",
        ),
        (corrected and axes, f"The axes grow toward {(axes or '').upper()}, as told."),
        (
            corrected and not axes,
            "No table tells in which direction the axes run. They are the headers', which take slices for left to "
            "right: sizes are right, 'axial' and 'left' are not.",
        ),
        (believed, f"Subjects whose spacing no table tells; their headers are believed: {believed}."),
    )
