"""A download of BreastDCEDL in miniature: arrays of slices under headers of 1 x 1 x 1 mm, and four tables."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

from mgkeras.phantom.case import draw_case, stream
from mgkeras.phantom.cohort import TEXTURE
from mgkeras.phantom.scan import scan

SPY2 = (
    "ACRIN-6698-102212",
    "ACRIN-6698-103939",
    "ISPY2-550421",
    "ISPY2-208265",
    "ISPY2-388581",
    "ISPY2-239061",
    "ISPY2-100899",
    "ISPY2-941926",
)
SPY1 = ("ISPY1_1001", "ISPY1_1002", "ISPY1_1144", "ISPY1_1224")
DUKE = ("Breast_MRI_003", "Breast_MRI_005")
WITHOUT = {
    "spacing": "ISPY2-208265",
    "phases": "ISPY2-388581",
    "mask": "ISPY2-239061",
    "volumes": "ISPY2-941926",
    "receptors": "ISPY1_1144",
}
UNIFIED = (
    "pid,pCR,n_xy,n_z,n_times,pre,post_early,post_late,slice_thick,xy_spacing,age,menopause,HR,HER2,"
    "HR_HER2_STATUS,TripleNeg,HER2pos,HRposHER2neg,dataset,test"
).split(",")
TABLES = {
    "metadata_spy2_vis1_for_modeling.csv": (
        SPY2,
        (
            "pid,n_xy,n_z,n_times,pre,post_early,post_late,pix_type,slice_thick,slice_space,xy_spacing,age,pCR,HR,MP,"
            "HRposHER2neg,HER2pos,TripleNeg,test"
        ).split(","),
    ),
    "BreastDCEDL_spy1_metadata.csv": (
        SPY1,
        ("pid,age,ER,PR,HR,HER2,HR_HER2_STATUS,MRI_LD_Baseline,pCR,rcb_class,dataset,center,manufacturer").split(","),
    ),
    "BreastDCEDL_duke_metadata.csv": (
        DUKE,
        (
            "pid,n_xy,ER,PR,HER2,Nottingham_grade,slice_thick,age,pCR,HR,HR_HER2_STATUS,TripleNeg,n_z,xy_spacing,voxel_z,"
            "pre,post_early,post_late"
        ).split(","),
    ),
    "BreastDCEDL_metadata.csv": ((*SPY2, *SPY1, *DUKE), UNIFIED),
}
SUFFIX = {
    "spy2": ("_spy2_vis1_dce_aqc_", "_spy2_vis1_mask"),
    "spy1": ("_spy1_vis1_acq", "_spy1_vis1_mask"),
    "duke": ("_duke_aqc_", "_duke_mask"),
}
SPLITS = ("0.0", "1.0", "0.0", "2.0", "0.0")


def make_breastdcedl(folder: Path, tables: tuple[str, ...] = tuple(TABLES)) -> Path:
    """Writes volumes, masks and these tables below ``folder``, which is returned."""
    rows = {}
    for index, name in enumerate((*SPY2, *SPY1, *DUKE)):
        kind = "spy2" if name in SPY2 else "spy1" if name in SPY1 else "duke"
        case = draw_case(3, index)
        phases, mask, affine = scan(case, 24, TEXTURE, stream(3, 0, index, 1))
        stacks = [np.moveaxis(phases[column], case.slice_axis, 0) for column in ("pre", "early", "late")]
        if kind == "spy2":
            stacks.insert(1, (stacks[0] + stacks[1]) // 2)
        gap = float(np.linalg.norm(affine[:3, case.slice_axis]))
        in_plane = float(np.linalg.norm(affine[:3, case.slice_axis - 1]))
        home = folder / f"BreastDCEDL_{kind.upper().replace('SPY', 'ISPY')}"
        shown = name.lower() if index % 3 == 0 else name
        for place, stack in enumerate(stacks if name != WITHOUT["volumes"] else ()):
            save(home / "dce" / f"{shown}{SUFFIX[kind][0]}{place}.nii.gz", stack.astype(float))
        if kind != "duke" and name not in (WITHOUT["mask"], WITHOUT["volumes"]):
            save(
                home / "mask" / f"{shown}{SUFFIX[kind][1]}.nii.gz",
                np.moveaxis(mask, case.slice_axis, 0).astype(np.int32),
            )
        rows[name] = _row(name, kind, index, case, stacks, in_plane, gap)
    for table in tables:
        names, columns = TABLES[table]
        with (folder / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows([_said(rows[name], table) for name in names])
    (folder / "BreastDCEDL_vit_pcr_predictions.csv").write_text("pid,pred\nISPY2-550421,0.4\n", encoding="utf-8")
    return folder


def _row(name: str, kind: str, index: int, case, stacks: list, in_plane: float, gap: float) -> dict[str, str]:
    known = name != WITHOUT["receptors"]
    hr, her2 = int(index % 3 == 0), case.her2
    status = "HER2pos" if her2 else "HRposHER2neg" if hr else "TripleNeg"
    early, late = (2, 3) if kind == "spy2" else (1, 2)
    return {
        "pid": name,
        "pCR": f"{case.recurrence}",
        "n_xy": str(stacks[0].shape[1]),
        "n_z": f"{stacks[0].shape[0]}.0",
        "n_times": str(len(stacks)),
        "pre": "0.0",
        "post_early": f"{early}.0",
        "post_late": f"{late}.0",
        "pix_type": "uint16",
        "slice_thick": str(2 * gap if kind == "duke" else gap),
        "slice_space": str(gap),
        "voxel_z": str(gap),
        "xy_spacing": str(in_plane),
        "age": f"{41 + index}.0",
        "HR": f"{hr}" if known else "",
        "HER2": f"{her2}.0" if known else "",
        "HR_HER2_STATUS": status if known else "",
        "TripleNeg": str(int(known and not hr and not her2)),
        "HER2pos": str(int(known and her2)),
        "HRposHER2neg": str(int(known and bool(hr) and not her2)),
        "MP": "1",
        "ER": "1.0",
        "PR": "0.0",
        "test": SPLITS[index % len(SPLITS)],
        "dataset": kind,
        "center": "Site AAI",
        "manufacturer": "GE MEDICAL SYSTEMS",
        "rcb_class": "0.0",
        "MRI_LD_Baseline": "88.0",
        "Nottingham_grade": "2.0",
    }


def _said(row: dict[str, str], table: str) -> dict[str, str]:
    """What a table says of a subject: the table of I-SPY1 says duke, and each leaves something open."""
    if "spy1" in table:
        return row | {"dataset": "duke"}
    if row["pid"] == WITHOUT["phases"]:
        return row | {"pre": "", "post_early": "", "post_late": ""}
    return row | {"xy_spacing": ""} if row["pid"] == WITHOUT["spacing"] else row


def save(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path
