"""A download of ODELIA in miniature: three institutions, a folder a breast, one institution with hidden labels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from mgkeras.phantom.case import draw_case, stream
from mgkeras.phantom.cohort import TEXTURE
from mgkeras.phantom.scan import scan

PATIENTS = {"CAM": ("0158_1", "0177_1", "0201_1"), "RUMC": ("0301_1", "0302_1"), "RSH": ("0401_1",)}
FOLDS = 5


def make_odelia(folder: Path) -> Path:
    """Writes institutions below ``folder``, which is returned; RSH has no annotation.csv.

    One breast lacks Post_1, one has Post_3 as well, one folder's files are in capitals; T2 is a weighting, no phase.
    """
    index = 0
    for place, patients in PATIENTS.items():
        labels, splits = ["UID,PatientID,Age,Lesion,__index_level_0__"], ["UID,Fold,Split"]
        for number, patient in enumerate(patients):
            for side in ("left", "right"):
                uid = f"ODELIA_BRAID1_{patient}_{side}"
                case = draw_case(3, index)
                phases, _, affine = scan(case, 24, TEXTURE, stream(3, 0, index, 1))
                _write(folder / place / "data_unilateral" / uid, phases, affine, index)
                age = "24410" if number == 0 else "58" if number == 1 else "0"
                labels.append(f"{uid},{uid.rpartition('_')[0]},{age},{2 if case.recurrence else index % 2},{index}")
                for fold in range(FOLDS):
                    split = "test" if place == "RSH" else ("train", "val", "test")[(number + fold) % 3]
                    splits.append(f"{uid},{fold},{split}")
                index += 1
        tables = folder / place / "metadata_unilateral"
        tables.mkdir(parents=True)
        if place != "RSH":
            (tables / "annotation.csv").write_text("\n".join(labels) + "\n", encoding="utf-8")
        (tables / "split.csv").write_text("\n".join(splits) + "\n", encoding="utf-8")
    return folder


def _write(folder: Path, phases: dict[str, np.ndarray], affine: np.ndarray, index: int) -> None:
    files = {
        "Pre": phases["pre"],
        "Post_1": phases["early"],
        "Post_2": phases["late"],
        "T2": 400 - phases["pre"] // 9,
        "Sub_1": phases["early"] - phases["pre"],
    }
    if index == 1:
        files["Post_3"] = phases["late"] - 1
    if index == 3:
        del files["Post_1"]
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / f"{name.upper() if index == 2 else name}.nii.gz"
        nib.save(nib.Nifti1Image(data.astype(np.int16), affine), path)
