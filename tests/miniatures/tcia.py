"""Exams as DICOM files, for the miniatures of TCIA's downloads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from mgkeras.phantom.case import Case, draw_case, stream
from mgkeras.phantom.scan import scan

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
START = 10 * 3600  # 10 o'clock


def draw_exam(index: int, code: str, side: int = 24) -> tuple[Case, list[np.ndarray], np.ndarray]:
    """A phantom's case, its pre, early and late phases as (x, y, z) int16, and their affine, with axes ``code``."""
    case = dataclasses.replace(draw_case(11, index), code=code, slice_axis=2)
    phases, _, affine = scan(case, side, 0.6, stream(11, 0, index, 1))
    return case, list(phases.values()), affine


def uid(*parts: object) -> str:
    """The same UID for the same parts."""
    return pydicom.uid.generate_uid(entropy_srcs=[str(part) for part in parts])


def write_series(
    folder: Path,
    volumes: list[np.ndarray],
    affine: np.ndarray,
    patient: str,
    number: int,
    description: str,
    *,
    seconds: list[float],
    study: str = "baseline",
    timed_by: str = "AcquisitionTime",
    slope: int = 1,
    series: object = None,
    **header: object,
) -> Path:
    """Volumes of one grid as one series, a file a slice; the files' names go against both time and place.

    Args:
        folder: made; the files are FOLDER/1-001.dcm, ...
        volumes: (x, y, z) each, at most 32767; slices lie along z.
        affine: (4, 4) voxel -> RAS+ mm.
        patient: PatientID.
        number, description: of the series.
        seconds: of each volume, since 10 o'clock.
        study: names the study, with the patient.
        timed_by: 'AcquisitionTime', 'ContentTime' or 'TriggerTime'; with these two, acquisition times are equal.
        slope: RescaleSlope; the stored values are the given ones divided by it.
        series: names the series, where two of a study have the same number and description.
        header: further keywords.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = RAS_TO_LPS @ affine[:3, :3]
    zooms = np.linalg.norm(axes, axis=0)
    image = _image(header)
    image.PatientID, image.PatientName = patient, f"{patient}^6657^NAME"
    image.StudyInstanceUID, image.StudyDate = uid(patient, study), header.get("StudyDate", "19850102")
    image.SeriesInstanceUID = uid(patient, study, number, description, series)
    image.SeriesNumber, image.SeriesDescription = number, description
    image.Columns, image.Rows, slices = volumes[0].shape
    image.PixelSpacing = [_short(zooms[1]), _short(zooms[0])]
    image.SliceThickness = image.SpacingBetweenSlices = _short(zooms[2])
    image.ImageOrientationPatient = [_short(x) for x in (*axes[:, 0] / zooms[0], *axes[:, 1] / zooms[1])]
    image.RescaleSlope, image.RescaleIntercept = slope, 0
    for nth in range(len(volumes) * slices):
        phase, place = divmod(nth, slices)
        image.SOPInstanceUID = f"{image.SeriesInstanceUID[:56]}.{nth + 1}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = nth + 1
        time = START + seconds[phase]
        image.AcquisitionTime = _clock(time if timed_by == "AcquisitionTime" else START)
        image.ContentTime = _clock(START if timed_by == "TriggerTime" else time)
        if timed_by == "TriggerTime":
            image.TriggerTime = f"{1000 * seconds[phase]:.1f}"
        corner = RAS_TO_LPS @ affine[:3, 3] + axes[:, 2] * place
        image.ImagePositionPatient = [_short(x) for x in corner]
        image.PixelData = np.ascontiguousarray(volumes[phase][:, :, place].T // slope).astype(np.uint16).tobytes()
        image.save_as(folder / f"1-{len(volumes) * slices - nth:03d}.dcm", enforce_file_format=True)
    return folder


def _image(header: dict[str, object]) -> pydicom.Dataset:
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.Modality, image.Manufacturer, image.ManufacturerModelName = "MR", "SIEMENS", "Avanto"
    image.MagneticFieldStrength, image.MRAcquisitionType, image.ImageType = 1.5, "3D", ["ORIGINAL", "PRIMARY", "M"]
    image.ScanningSequence, image.EchoTime, image.RepetitionTime, image.FlipAngle = "GR", 1.6, 5.2, 10
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    for keyword, value in header.items():
        setattr(image, keyword, value)
    return image


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600:02d}{int(seconds) // 60 % 60:02d}{seconds % 60:09.6f}"


def _short(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{value:.9f}"[:16]
