"""A download of I-SPY1 in miniature: the workbook, and twelve folders of DICOM files in four layouts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miniatures.tcia import draw_exam, write_series

NAME = "I-SPY 1 All Patient Clinical and Outcome Data.xlsx"
CLINICAL = (
    "SUBJECTID",
    "DataExtractDt",
    "age",
    "race_id",
    "ERpos",
    "PgRpos",
    "HR Pos",
    "Her2MostPos",
    "HR_HER2_CATEGORY",
    "HR_HER2_STATUS",
    "BilateralCa",
    "Laterality",
    "MRI LD Baseline",
    "MRI LD 1-3dAC",
    "MRI LD InterReg",
    "MRI LD PreSurg",
)
OUTCOMES = ("SUBJECTID", "DataExtractDt", "sstat", "survDtD2 (tx)", "RFS", "rfs_ind", "PCR", "RCBClass")
STATUS = {1: "HRposHER2neg", 2: "HER2pos", 3: "TripleNeg", None: None}
WHOLE = range(1001, 1009)  # subjects whose exam is whole
# id: ER, PR, HR, HER2, category, LD, RFS, rfs_ind, PCR
ROWS = {
    1001: (1, 0, 1, 0, 1, 88, 751, 1, 0),
    1002: (0, 0, 0, 0, 3, 29, 1826, 1, 1),  # an event on the horizon's last day
    1003: (0, 0, 0, 1, 2, 50, 1827, 0, 0),  # followed a day past it
    1004: (2, 2, 2, 1, 2, None, 2387, 0, 1),  # indeterminate receptors
    1005: (1, 1, 1, None, None, 44, 1827, 1, 0),  # an event a day past it
    1006: (1, 1, 1, 0, 1, 61, 300.0, 1, None),
    1007: (0, 0, 0, 0, 3, 35, 2500, 0, 1),
    1008: (1, 1, 1, 1, 2, 70, 1826, 0, 0),  # censored on the last day
    1009: (2, 0, 2, 0, None, 40, None, None, 0),  # no folder, no follow-up, no subtype
    1010: (1, 1, 1, 0, 1, 40, 900, 1, 0),  # no exam before treatment
    1011: (1, 1, 1, 0, 1, 40, 900, 1, 0),  # files that are no DICOM
    1012: (1, 1, 1, 0, 1, 40, 900, 1, 0),  # another patient's files
    1013: (1, 1, 1, 0, 1, 40, 900, 1, 0),  # one phase only
    1014: (1, 1, 1, 0, 1, 40, 900, 1, 0),  # maps of two dynamics
}


def make_ispy1(folder: Path, name: str = NAME, whole: Sequence[int] = WHOLE, broken: bool = True) -> Path:
    """Writes the workbook and the DICOM files, of the ``whole`` and of the broken, below ``folder``: returned."""
    write_workbook(folder / name)
    images = folder / "manifest-1541091840112" / "ISPY1"
    layouts = (_one_series, _hundreds, _pre_and_posts, _without_maps)
    for subject in whole:
        index = subject - WHOLE[0]
        patient = images / f"{'ISPY1' if index else 'ispy1'}_{subject}"  # the first in lower case
        layouts[index % 4](patient, index, f"ISPY1_{subject}", tagged=index < 4)
    if broken:
        _broken(images)
    return folder


def write_workbook(path: Path, rows: dict = ROWS, clinical: tuple = CLINICAL, outcomes: tuple = OUTCOMES) -> Path:
    """The workbook with its four sheets; a row of a stray space, an ID that is a formula, an ID that is a path."""
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.title = "Clinical Data Dictionary"
    book.active.append([None, "I-SPY 1 TRIAL: ", "ACRIN 6657"])
    book.active.merge_cells("B1:D1")
    first, day = book.create_sheet("TCIA Patient Clinical Subset"), datetime.datetime(2009, 9, 3)
    book.create_sheet("Outcome Data Dictionary").append(["x"])
    second = book.create_sheet("TCIA Outcomes Subset")
    first.append(clinical)
    second.append(outcomes)
    for subject, (er, pr, hr, her2, category, size, days, event, pcr) in rows.items():
        subject = float(subject) if subject == 1002 else subject
        first.append([subject, day, 38.73, 1, er, pr, hr, her2, category, STATUS[category], 0, 1, size, 1, 1, 1])
        second.append([subject, day, 7, 1264, days, event, pcr, 2])
    first.append([" "])
    first.append(["=1000+21", day, 50, 1, 1, 1, 1, 1, 2])  # was never computed
    second.append(["../../1020", day, 7, 1264, 900, 1, 0, 2])
    book.save(path)
    return path


def exam(index: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The pre, early and late phases of the index-th whole subject, sagittal, and their affine."""
    return draw_exam(index, "PSR")[1:]


def _thin(volumes: list[np.ndarray]) -> list[np.ndarray]:
    return [volume[:, :, :2] for volume in volumes]


def _visit(name: str, tagged: bool, number: str = "") -> dict[str, str]:
    """Header texts of a visit; ``number`` is what the header calls it, where that is another."""
    site = {"ClinicalTrialSiteID": "5", "StudyDate": "19850102" if name == "T0" else "19850301"}
    words = {"T0": "baseline", "T1": "early-treatment"}
    visit = {"ClinicalTrialTimePointID": number or name, "ClinicalTrialTimePointDescription": words[name]}
    return site | (visit if tagged else {})


def _maps(study: Path, volume: np.ndarray, affine: np.ndarray, patient: str, first: int, text: str, **header) -> None:
    """PE, SER and a segmentation, whose numbers are made from that of the dynamic's first series."""
    for number, what in ((1001, ": PE1"), (1000, ": SER"), (2001, " PE Segmentation thresh=70")):
        nth, shown = first * 10000 + number, f"{text}{what.replace(':', '')}"
        write_series(
            study / f"{nth}.000000-{shown}-1",
            _thin([volume]),
            affine,
            patient,
            nth,
            text + what,
            seconds=[900],
            **header,
        )


def _one_series(folder: Path, index: int, patient: str, tagged: bool) -> None:
    """GE: one multiphase series whose slices differ in trigger time only; a later visit beside it."""
    (volumes, affine), header = exam(index), _visit("T0", tagged)
    study = folder / "01-02-1985-485859-MR BREASTUNI UE-34504"
    write_series(
        study / "3.000000-Dynamic-3dfgre-57141",
        volumes,
        affine,
        patient,
        3,
        "Dynamic-3dfgre",
        seconds=[0, 150, 450],
        timed_by="TriggerTime",
        **header,
    )
    _maps(study, volumes[0], affine, patient, 3, "Dynamic-3dfgre", **header)
    later = folder / "03-01-1985-485860-MR BREASTUNI UE-11111"
    more = _thin(volumes) if tagged else [*volumes[::-1], volumes[0]]
    write_series(
        later / "3.000000-Dynamic-3dfgre-57142",
        more,
        affine,
        patient,
        3,
        "Dynamic-3dfgre",
        seconds=[0, 150, 450, 600],
        study="T1",
        **_visit("T1", tagged),
    )


def _hundreds(folder: Path, index: int, patient: str, tagged: bool) -> None:
    """Philips: numbers in hundreds, a series a phase, rescaled values; visits that count from T1; others beside it."""
    (volumes, affine), header = exam(index), _visit("T0", tagged, "T1")
    study = folder / "01-02-1985-485859-MR BREAST-34504"
    for number, volume, seconds in zip((301, 401, 1001), volumes, (0, 160, 470), strict=True):
        write_series(
            study / f"{number}.000000-T1 SAG-1",
            [volume],
            affine,
            patient,
            number,
            "T1 SAG",
            seconds=[seconds],
            slope=2,
            **header,
        )
    write_series(
        study / "901.000000-T2 SAG-1",
        [volumes[0]],
        affine,
        patient,
        901,
        "T2 SAG",
        seconds=[150],
        EchoTime=90,
        **header,
    )
    write_series(
        study / "1201.000000-T1 map-1",
        _thin(volumes),
        affine,
        patient,
        1201,
        "T1 map",
        seconds=[700, 720, 740],
        **header,
    )
    _maps(study, volumes[0], affine, patient, 3, "T1 SAG", **header)


def _pre_and_posts(folder: Path, index: int, patient: str, tagged: bool) -> None:
    """One series before contrast, one of both phases after it; an earlier and a computed series are no phases."""
    (volumes, affine), header = exam(index), _visit("T0", tagged)
    study = folder / "01-02-1985-485859-MR BREAST-34504"
    write_series(study / "3.000000-test shot-1", volumes[:1], affine, patient, 3, "test shot", seconds=[-200], **header)
    write_series(study / "4.000000-pre-1", volumes[:1], affine, patient, 4, "sag pre", seconds=[0], **header)
    write_series(study / "5.000000-post-1", volumes[1:], affine, patient, 5, "sag post", seconds=[140, 440], **header)
    write_series(
        study / "400.000000-post minus pre-1",
        volumes[2:],
        affine,
        patient,
        400,
        "post minus pre",
        seconds=[150],
        ImageType=["DERIVED", "SECONDARY"],
        **header,
    )
    _maps(study, volumes[0], affine, patient, 4, "sag pre", **header)


def _without_maps(folder: Path, index: int, patient: str, tagged: bool) -> None:
    """Three series without maps, a 2D series of three images a place, and a subtraction."""
    (volumes, affine), header = exam(index), _visit("T0", tagged)
    study = folder / "01-02-1985-485859-MR BREAST-34504"
    for number, volume, seconds in zip((7, 8, 9), volumes, (0, 150, 450), strict=True):
        write_series(
            study / f"{number}.000000-fl3d_t1_sag_ca-1",
            [volume],
            affine,
            patient,
            number,
            "fl3d_t1_sag_ca",
            seconds=[seconds],
            **header,
        )
    write_series(study / "10.000000-SUB-1", [volumes[1] // 2], affine, patient, 10, "SUB 8-7", seconds=[460], **header)
    write_series(
        study / "2.000000-dwi-1",
        _thin(volumes),
        affine,
        patient,
        2,
        "dwi",
        seconds=[-90, -60, -30],
        **header,
        MRAcquisitionType="2D",
        EchoTime=80,
    )


def _broken(images: Path) -> None:
    volumes, affine = exam(0)
    small = _thin(volumes)

    def write(subject: int, number: int, description: str, parts: list, patient: int | None = None, visit="T0") -> None:
        folder = images / f"ISPY1_{subject}" / "study" / str(number)
        write_series(
            folder,
            parts,
            affine,
            f"ISPY1_{patient or subject}",
            number,
            description,
            study=visit,
            seconds=[0, 150, 450][: len(parts)],
            **_visit(visit, True),
        )

    write(1010, 3, "Dynamic-3dfgre", small, visit="T1")
    (images / "ISPY1_1011" / "study").mkdir(parents=True)
    (images / "ISPY1_1011" / "study" / "1-001.dcm").write_bytes(b"DICM no header")
    write(1012, 3, "Dynamic-3dfgre", small, patient=1001)
    write(1013, 3, "Dynamic-3dfgre", small[:1])
    for number in (3, 5):
        write(1014, number, "Dynamic-3dfgre", small)
        write(1014, number * 10000 + 1001, "Dynamic-3dfgre: PE1", small[:1])
    write(1015, 3, "Dynamic-3dfgre", small)  # no row in the workbook
