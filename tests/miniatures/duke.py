"""A download of Duke-Breast-Cancer-MRI in miniature: the workbook with its three header rows, boxes, DICOM files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miniatures.tcia import draw_exam, uid, write_series

NAME = "Clinical_and_Other_Features.xlsx"
# group, name, legend, as the workbook spells them; a column follows its group until the next
HEADER = (
    ("Patient Information", "Patient ID", None),
    ("MRI Technical Information", "Days to MRI (From the Date of Diagnosis)", None),
    (None, "Manufacturer", "GE MEDICAL SYSTEMS=0, MPTronic software=1, SIEMENS=2"),
    (None, "Manufacturer Model Name", "Avanto=0, Optima MR450w=1, SIGNA EXCITE=2, SIGNA HDx=3, Signa HDxt=4"),
    (None, "Field Strength (Tesla)", "1.494=0,1.5=1,2.8936=2,3=3"),
    ("Demographics", "Date of Birth (Days)", "(Taking date of diagnosis as day 0) numeric entries will be negative"),
    (None, "Metastatic at Presentation (Outside of Lymph Nodes)", "{0 = no\n1 = yes}"),
    ("Tumor Characteristics", "ER", "{0 = neg,\n1 = pos}"),
    (None, "PR", "{0 = neg,\n1 = pos}"),
    (None, "HER2", "{0 = neg,\n1 = pos, 2 = borderline}"),
    (None, "Mol Subtype", "{0 = luminal-like,\n1 = ER/PR pos, HER2 pos,\n2 = her2,\n3 = trip neg}"),
    (None, "Tumor Grade", "Tumor Grade(T)\n(Tubule)"),
    (None, None, "Tumor Grade(N)\n(Nuclear)"),
    (None, "Nottingham grade", "1=low 2=intermediate 3=high\n"),
    (
        "Tumor Response",
        "Pathologic Response to Neoadjuvant Therapy",
        " {1=complete response, 2=not complete response, 3=DCIS only remaining, 4=LCIS only remaining, 5=unavailable}",
    ),
    ("Recurrence", "Recurrence event(s)", "{0 = no, 1 = yes}"),
    (None, "Days to local recurrence (from the date of diagnosis) ", None),
    (None, "Days to distant recurrence(from the date of diagnosis) ", None),
    ("Follow Up", "Days to death (from the date of diagnosis) ", None),
    (None, "Days to last local recurrence free assessment (from the date of diagnosis) ", None),
    (None, "Days to last distant recurrence free assemssment(from the date of diagnosis) ", None),
    ("Mammography Characteristics", "Shape", "{0=oval, 1=irregular}"),
    ("US features", "Shape", "{0=oval, 1=irregular}"),
    (
        "Pathologic Response to Neoadjuvant Therapy",
        "Pathologic response to Neoadjuvant therapy: Pathologic stage (T) following neoadjuvant therapy ",
        "{ -1 = TX;  0 = T0;  NA = not applicable}",
    ),
)
WHOLE = range(1, 9)  # patients whose exam is whole
# id: ER, PR, HER2, subtype, grade, response, event, local, distant, death, last local, last distant, metastatic
ROWS = {
    1: (1, 1, 0, 0, 2, 1, 1, "NP", 751, 1200, 700, 700, 0),
    2: (0, 0, 0, 3, 3, 2, 1, 1826, 1900, "NP", 1700, 1700, 0),  # the earlier of two, on the horizon's last day
    3: (0, 0, 1, 2, None, 3, 0, "NP", "NP", "NP", 1700, 1827.0, 0),  # the later of two, a day past the horizon
    4: (1, 0, 1, 1, "NA", 4, 0, "NP", "NP", "NP", "NC", 2940, 0),
    5: (1, 1, 2, 0, 1, 5, 1, "NP", 1827, "NP", "#REF!", "#REF!", 1),  # an event a day past it; borderline; M1
    6: (1, 1, 0, 0, 2, "NA", 1, 300, "NP", "NP", 200, 200, 0),
    7: (0, 0, 0, 3, 3, 1, 0, "NP", "NP", "NP", 2500, 2500, 0),
    8: (1, 1, 1, 1, 2, 2, 0, "NP", "NP", 1826, 1826, 1826, 0),  # dead on the last day: censored
    9: (1, 1, 0, 0, 2, 2, None, "NP", "NP", "NP", 2500, 2500, 0),  # event missing; no folder
    10: (1, 1, 0, 0, 2, 2, 0, "NP", 400, "NP", 2500, 2500, 0),  # no event, but a day of one; times and names disagree
    11: (1, 1, 0, 0, 2, 2, 0, "NP", "NP", "NP", "NC", "NC", 0),  # no follow-up; no first phase after contrast
    12: (1, 1, 0, 0, 2, 2, 1, "NP", "NP", "NP", 900, 900, 0),  # an event without a day; two series before contrast
    13: (1, 1, 0, 0, 2, 2, 0, "NP", "NP", "NP", 2500, 2500, 0),  # no dynamic series
    14: (1, 1, 0, 0, 2, 2, 0, "NP", "NP", "NP", 2500, 2500, 0),  # no series before contrast
}
PASSES = ("pre", "1st pass", "2nd pass", "3rd pass")


def make_duke(folder: Path, name: str = NAME, whole: Sequence[int] = WHOLE, broken: bool = True) -> Path:
    """Writes the workbooks and the DICOM files, of the ``whole`` and of the broken, below ``folder``: returned."""
    write_workbook(folder / name)
    _write_boxes(folder / "Annotation_Boxes.xlsx")
    images = folder / "manifest-1654812109500" / "Duke-Breast-Cancer-MRI"
    layouts = (_classic, _descriptive, _original, _one_series)
    for patient in whole:
        index = patient - WHOLE[0]
        prefix = "MR_" if patient == 6 else ""
        root = folder / "DICOM_Images" if index % 4 == 2 else images
        layouts[index % 4](root / f"{prefix}Breast_MRI_{patient:03d}", index, f"Breast_MRI_{patient:03d}")
    if broken:
        _broken(images)
    volumes, affine = exam(0)
    write_series(
        folder / "manifest-2" / "Duke-Breast-Cancer-MRI" / "Breast_MRI_001" / "s" / "300.000000-Segmentation",
        [volumes[0][:, :, :2]],
        affine,
        "Breast_MRI_001",
        300,
        "ax dyn pre Segmentation",
        seconds=[0],
        Modality="SEG",
    )
    return folder


def write_workbook(path: Path, rows: dict = ROWS, header: tuple = HEADER, legend: bool = True) -> Path:
    """The workbook with its three sheets; the ID of a late row leads out of the folder."""
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    page = book.active
    page.title = "Data"
    for line in range(3 if legend else 2):
        page.append([column[line] for column in header])
    starts = [at for at, column in enumerate(header, 1) if column[0]] + [len(header) + 1]
    for start, end in zip(starts, starts[1:], strict=False):
        if end - start > 1:
            page.merge_cells(start_row=1, end_row=1, start_column=start, end_column=end - 1)
    for patient, (er, pr, her2, subtype, grade, response, event, *days, metastatic) in rows.items():
        maker = (0, 3, 1) if patient % 2 == 0 else (2, 0, 0)
        page.append(
            [
                f"Breast_MRI_{patient:03d}",
                6,
                *maker,
                -15209,
                metastatic,
                er,
                pr,
                her2,
                subtype,
                3,
                2,
                grade,
                response,
                event,
                *days,
                "NC",
                "NC",
                -1,
            ]
        )
    page.append(["../Breast_MRI_021", 6, 0, 3, 1, -15209, 0, 1, 1, 0, 0, 3, 2, 1, 2, 0, *["NP"] * 3, 2500, 2500])
    book.create_sheet("Legend").append(["NP", "not pertinent"])
    book.create_sheet("Column Explanations").append(["x"])
    book.save(path)
    return path


def exam(index: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The pre, early and late phases of the index-th whole patient, axial, and their affine."""
    return draw_exam(index, "LPS")[1:]


def _write_boxes(path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["Patient ID", "Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice"])
    book.active.append(["Breast_MRI_001", 4, 9, 5, 10, 6, 9])
    book.save(path)


def _classic(folder: Path, index: int, patient: str) -> None:
    """Siemens: folders named by UIDs, a series a phase, timed by acquisition; T1-weighted before and after contrast."""
    volumes, affine = exam(index)
    for number, volume, text, seconds in zip((7, 8, 9), volumes, PASSES, (0, 140, 460), strict=False):
        write_series(
            folder / uid(patient) / uid(patient, number),
            [volume],
            affine,
            patient,
            number,
            f"ax dyn {text}",
            seconds=[seconds],
        )
    for number, text in ((3, "ax t1 pre"), (12, "ax t1 tse +c")):
        write_series(
            folder / uid(patient) / uid(patient, number),
            [volumes[0][:, :, :2]],
            affine,
            patient,
            number,
            text,
            seconds=[100 * number - 500],
        )


def _descriptive(folder: Path, index: int, patient: str) -> None:
    """GE: the first phase has a bare name, all acquisition times are the same, and numbers fall with time."""
    volumes, affine = exam(index)
    study = folder / "01-01-1990-NA-MRI BREAST BILATERAL WWO-97538"
    for number, volume, text, seconds in zip(
        (800, 801, 802), volumes, ("", "Ph1/", "Ph2/"), (0, 150, 450), strict=True
    ):
        shown = f"{text}ax 3d dyn MP"
        write_series(
            study / f"{number}.000000-{shown.replace('/', '')}-25442",
            [volume],
            affine,
            patient,
            number,
            shown,
            seconds=[seconds],
            timed_by="ContentTime",
        )


def _original(folder: Path, index: int, patient: str) -> None:
    """As the providers' own folders name the phases; the descriptions say nothing."""
    volumes, affine = exam(index)
    for number, volume, text, seconds in zip(
        (3, 4, 5), volumes, ("pre", "post_1", "post_2"), (0, 130, 400), strict=True
    ):
        write_series(folder / text, [volume], affine, patient, number, "T1w", seconds=[seconds])
    write_series(folder / "T1", [volumes[0][:, :, :2]], affine, patient, 2, "T1w", seconds=[-100])


def _one_series(folder: Path, index: int, patient: str) -> None:
    """All phases in one series."""
    volumes, affine = exam(index)
    write_series(
        folder / "study" / "600.000000-Ax Vibrant MultiPhase-1",
        volumes,
        affine,
        patient,
        600,
        "Ax Vibrant MultiPhase",
        seconds=[0, 150, 450],
        timed_by="TriggerTime",
    )


def _broken(images: Path) -> None:
    volumes, affine = exam(0)
    small = [volume[:, :, :4] for volume in volumes]

    def write(patient: int, *series: tuple[str, float]) -> None:
        name = f"Breast_MRI_{patient:03d}"
        for number, (text, seconds) in enumerate(series, 3):
            write_series(
                images / name / "study" / str(number), small[:1], affine, name, number, text, seconds=[seconds]
            )

    write(10, ("ax dyn pre", 300), ("ax dyn 1st pass", 150), ("ax dyn 2nd pass", 0))
    write(11, ("ax dyn pre", 0), ("ax dyn 2nd pass", 300), ("ax dyn 3rd pass", 450))
    write(12, ("ax dyn", 0), ("ax dynamic", 100), ("ax dyn 1st pass", 200))
    write(13, ("ax t1", 0), ("Ax 3D T1 NON FS", 100))
    write(14, ("ax dyn 1st pass", 100), ("ax dyn 2nd pass", 200))
    write(15, ("ax dyn pre", 0), ("ax dyn 1st pass", 150))  # no row in the workbook
