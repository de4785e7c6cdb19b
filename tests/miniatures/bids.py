"""A BIDS data set with the layouts that are met for phases: runs of T1w with ce-, a plain T1w before them, 4D files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from mgkeras.data.cohort import Subject, read_cohort
from mgkeras.phantom.cohort import make_phantom

SECONDS = (0, 60, 140, 300, 450)  # of a series' phases; early and late are best at 140 and 450
SHOWN = (0, 0, 1, 1, 2)  # which of pre, early and late is stored at each of them
TABLE = """\
participant_id\tage\tsite\trecurrence\ther2\tgrade
sub-01\t51\tnorth\t1\t0\t2
sub-02\t47\tnorth\t0\t1\t3
sub-03\t60\tsouth\t1\tn/a\tn/a
04\t38\tsouth\t0\t1\t2
sub-05\t44\tnorth\t1\t0\t1
sub-06\tn/a\tsouth\t0\t0\t3
sub-07\t70\tnorth\t1\t1\t3
sub-08\t55\tsouth\t0\t0\t2
sub-09\t41\tsouth\tn/a\t1\t2
sub-10\t62\tnorth\t1\t0\t3
sub-11\t49\tnorth\t0\t1\t1
sub-77\t58\tnorth\t1\t0\t2
"""


def make_bids(folder: Path) -> Path:
    """12 subjects; of 01 to 08 all is known, 09 has no recurrence.

    01-03: runs of ce-gad with times, late ones renamed so that names and times disagree in 03. 04, 05: a plain T1w on
    the same grid, then runs without times. 06, 07: 4D files with times. 08: two sessions. 09: 4D without times.
    10: one phase. 11: a truncated 4D file. 12: no row, and two series. The row of sub-77 has no folder.
    """
    scans, source = folder / "phantom", folder / "dataset"
    subjects = read_cohort(make_phantom(scans, subjects=12, side=24, seed=9), "recurrence").subjects
    source.mkdir()
    (source / "dataset_description.json").write_text('{"Name": "miniature", "BIDSVersion": "1.9.0"}')
    (source / "participants.tsv").write_text(TABLE, encoding="utf-8")
    for number, subject in enumerate(subjects, 1):
        name = f"sub-{number:02d}"
        anat = source / name / "anat"
        if number == 8:
            _runs(subject, source / name / "ses-1" / "anat", f"{name}_ses-1")
            _runs(subject, source / name / "ses-2" / "anat", f"{name}_ses-2")
        elif number in (6, 7, 9, 11):
            sidecar = {6: {"FrameTimesStart": list(SECONDS)}, 7: {"VolumeTiming": [100 + t for t in SECONDS]}}
            _series(subject, source / name / "perf" / f"{name}_dce.nii.gz", sidecar.get(number, {}))
        elif number in (4, 5):
            _copy(subject, 0, anat / f"{name}_T1w.nii.gz")
            for run, phase in ((1, 1), (2, 2)):
                _copy(subject, phase, anat / f"{name}_ce-gad_run-{run}_T1w.nii.gz")
        elif number == 10:
            _copy(subject, 1, anat / f"{name}_ce-gad_run-1_T1w.nii.gz")
        else:
            _runs(subject, anat, name, backwards=number == 3)
        label = "label-tumor_mask" if number % 2 else "desc-Lesion_mask"
        mask = source / "derivatives" / "manual" / name / "anat" / f"{name}_{label}.nii.gz"
        mask.parent.mkdir(parents=True)
        shutil.copyfile(scans / "truth" / f"{subject.name}.nii.gz", mask)
    broken = source / "sub-11" / "perf" / "sub-11_dce.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    _series(subjects[11], source / "sub-12" / "perf" / "sub-12_dce.nii.gz", {})
    shutil.rmtree(scans)
    return source


def _copy(subject: Subject, phase: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile((subject.pre, subject.early, subject.late)[phase], path)


def _runs(subject: Subject, folder: Path, name: str, backwards: bool = False) -> None:
    """A file and its sidecar a phase, begun shortly before midnight; ``backwards`` numbers them against the time."""
    for place, (seconds, phase) in enumerate(zip(SECONDS, SHOWN, strict=True)):
        run = len(SECONDS) - place if backwards else place + 1
        path = folder / f"{name}_ce-Gad_run-{run}_T1w.nii.gz"
        _copy(subject, phase, path)
        clock = (86400 - 30 + seconds) % 86400
        time = f"{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}.500000"
        sidecar = {
            "AcquisitionTime": time,
            "Manufacturer": "SIEMENS",
            "ManufacturersModelName": "Avanto",
            "MagneticFieldStrength": 1.5,
        }
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))


def _series(subject: Subject, path: Path, sidecar: dict) -> None:
    images = [nib.load(phase) for phase in (subject.pre, subject.early, subject.late)]
    data = np.stack([np.asarray(images[phase].dataobj) for phase in SHOWN], axis=-1)  # (x, y, z, phases)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, images[0].affine), path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
