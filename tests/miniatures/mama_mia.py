"""A download of MAMA-MIA in miniature: 49 columns, folders in capitals over files in lower case, two kinds of masks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from mgkeras.phantom.case import draw_case, stream
from mgkeras.phantom.cohort import TEXTURE
from mgkeras.phantom.scan import scan

COLUMNS = tuple(
    "patient_id dataset bilateral_breast_cancer multifocal_cancer nac_agent endocrine_therapy anti_her2_neu_therapy "
    "pcr mastectomy_post_nac days_to_follow_up days_to_recurrence days_to_metastasis days_to_death hr er pr her2 "
    "mammaprint oncotype_score nottingham_grade tumor_subtype age menopause ethnicity has_implant weight patient_size "
    "bmi_group view bilateral_mri num_phases fat_suppressed field_strength image_rows image_columns num_slices "
    "pixel_spacing slice_thickness site manufacturer scanner_model high_bit window_center window_width echo_time "
    "repetition_time acquisition_times acquisition_date tcia_series_uid".split()
)
WHOLE = (
    "DUKE_001",
    "DUKE_002",
    "DUKE_003",
    "DUKE_004",
    "DUKE_005",
    "DUKE_006",
    "DUKE_007",
    "DUKE_008",
    "ISPY1_1001",
    "ISPY2_125418",
    "ISPY2_230030",
    "NACT_01",
)
BROKEN = ("DUKE_090", "DUKE_091", "DUKE_092")  # no volumes, no mask, no phase before contrast


def make_mama_mia(folder: Path, newer: bool = False) -> Path:
    """Writes the table, images, masks and splits below ``folder``, which is returned.

    In the newer schema menopause is menopausal_status, and there is breast_density.
    """
    rows = []
    for index, name in enumerate((*WHOLE, *BROKEN)):
        case = draw_case(3, index)
        phases, mask, affine = scan(case, 24, TEXTURE, stream(3, 0, index, 1))
        volumes = [phases["pre"], phases["early"], phases["late"]]
        if index % 2 == 0:
            volumes.insert(2, (volumes[1] + volumes[2]) // 2)
        if name != "DUKE_090":
            shown = name.lower() if index % 2 == 0 else name
            first = 1 if name == "DUKE_092" else 0
            for phase, volume in list(enumerate(volumes))[first:]:
                save(folder / "images" / name / f"{shown}_{phase:04d}.nii.gz", volume, affine)
            kinds = ("automatic",) if index == 2 else ("expert", "automatic") if index == 3 else ("expert",)
            for kind in kinds if name != "DUKE_091" else ():
                drawn = mask if kind == "expert" or index == 2 else np.zeros_like(mask)
                save(folder / "segmentations" / kind / f"{shown}.nii.gz", drawn.astype("u1"), affine)
        info = {"patient_id": name, "imaging_data": {"dataset": name.split("_")[0]}}
        (folder / "patient_info_files").mkdir(parents=True, exist_ok=True)
        (folder / "patient_info_files" / f"{name.lower()}.json").write_text(json.dumps(info), encoding="utf-8")
        rows.append(_row(name, index, case, len(volumes)))
    write_table(folder / "clinical_and_imaging_info.xlsx", rows, newer)
    names = (*WHOLE, *BROKEN)
    test = [*names[3::4], *[""] * len(names)]
    train = [name for name in names if name not in test]
    lines = ["train_split,test_split", *(f"{a},{b}" for a, b in zip(train, test, strict=False))]
    (folder / "train_test_splits.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _row(name: str, index: int, case, phases: int) -> dict:
    duke = name.startswith("DUKE")
    days = (
        {
            "days_to_recurrence": 400.0 if case.recurrence else 0.0 if index % 4 == 0 else "NaN",
            "days_to_follow_up": 900.0 if case.recurrence else 2940.0,
        }
        if duke
        else {}
    )
    return {
        "patient_id": name,
        "dataset": name.split("_")[0],
        "pcr": float(1 - case.recurrence),
        **days,
        "hr": float(not case.her2 or index % 3 == 0),
        "er": 1.0,
        "pr": None,
        "her2": float(case.her2),
        "nottingham_grade": "high",
        "age": 41.0 + index,
        "menopause": "pre",
        "num_phases": phases,
        "tumor_subtype": None,
        "view": "axial",
        "field_strength": 1.5,
        "pixel_spacing": "[4.0, 4.0]",
        "site": f"SITE {index % 3}",
        "manufacturer": "SIEMENS",
        "scanner_model": "Avanto",
        "acquisition_times": {4: "[0, 165, 288, 411]", 3: "[0, 150, 450]"}[phases] if duke else "NaN",
        "nac_agent": "AC-T",
        "tcia_series_uid": "1.3.6.1.4",
    }


def write_table(path: Path, rows: list[dict], newer: bool = False, columns: tuple[str, ...] = COLUMNS) -> Path:
    """The workbook: sheet dataset_info after another sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["read me first"])
    page = book.create_sheet("dataset_info")
    names = (
        [*("menopausal_status" if name == "menopause" else name for name in columns), "breast_density"]
        if newer
        else columns
    )
    page.append(list(names))
    for row in rows:
        page.append([{**row, "menopausal_status": row.get("menopause"), "breast_density": "c"}.get(n) for n in names])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path
