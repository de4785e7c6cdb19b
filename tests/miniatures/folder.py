"""A hospital's own export: a folder a patient, names in whatever case, a table from a German Excel."""

from __future__ import annotations

import shutil
from pathlib import Path

from mgkeras.data.cohort import read_cohort
from mgkeras.phantom.cohort import make_phantom

PATTERNS = {"pre": "*_dyn0.nii.gz", "early": "*_dyn1.nii.gz", "late": "*_dyn[23].nii.gz", "mask": "roi/*tumor*.nii.gz"}
TABLE = """\
PatientID;Centre;Age at diagnosis;Recurrence;HER2;Menopause;Split;mask
1;north;51;1;0;post;training;old.nii
2;north;47;0;1;pre;training;
3;south;60;1;NA;post;training;
4;south;38;0;1;n/a;Training;
5;north;44;1;0;pre;training;
6;south;NA;0;0;post;training;
7;north;70;1;1;post;test;
8;south;55;0;0;post;test;
9;south;41;;1;pre;test;
11;north;62;1;0;post;test;
12;north;49;0;1;pre;holdout;
13;north;58;1;0;post;test;
99;south;66;0;0;post;training;
"""


def make_folder(folder: Path) -> Path:
    """13 patients' folders and labels.csv; read it with PATTERNS.

    001 to 009 are whole (009 without recurrence), 010 has no row, 011 has two pre phases, 012 no early phase, 013 no
    late phase and two masks; the row 99 has no folder. Leading zeros are lost in the table, as spreadsheets lose them.
    """
    scans = folder / "phantom"
    subjects = read_cohort(make_phantom(scans, subjects=13, side=24, seed=7), "recurrence").subjects
    source = folder / "export"
    for number, subject in enumerate(subjects, 1):
        own = source / f"{number:03d}"
        (own / "roi").mkdir(parents=True)
        stem = f"{number:03d}" if number % 2 else f"Pat{number:03d}_T1"
        for place, path in enumerate((subject.pre, subject.early, subject.late)):
            ending = f"DYN{place}.nii.gz" if number % 3 == 0 else f"dyn{place}.nii.gz"
            shutil.copyfile(path, own / f"{stem}_{ending}")
        shutil.copyfile(scans / "truth" / f"{subject.name}.nii.gz", own / "roi" / "Tumor.nii.gz")
        (own / f"._{stem}_dyn0.nii.gz").write_bytes(b"\0\5\26\7")  # what macOS leaves on other disks
    shutil.copyfile(source / "011" / "011_dyn0.nii.gz", source / "011" / "repeat_dyn0.nii.gz")
    (source / "012" / "Pat012_T1_DYN1.nii.gz").unlink()
    (source / "013" / "013_dyn2.nii.gz").unlink()
    shutil.copyfile(source / "013" / "roi" / "Tumor.nii.gz", source / "013" / "roi" / "tumor_2.nii.gz")
    (source / ".cache").mkdir()
    (source / "labels.csv").write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    shutil.rmtree(scans)
    return source
