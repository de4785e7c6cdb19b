"""A hospital's archive in miniature: real DICOM files of phantoms, in the layouts that scanners write."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from mgkeras.phantom.case import Case, draw_case, stream
from mgkeras.phantom.cohort import TEXTURE
from mgkeras.phantom.scan import scan

SIDE = 16
TIMES = (0.0, 150.0, 450.0)  # s, of pre, early and late
START = 9 * 3600 + 13 * 60 + 7  # s since midnight
DAY = "20190304"
LAYOUTS = ("one-series", "several-series", "trigger", "content", "temporal", "pre-and-posts", "restarts")
IDENTITY = ("Doe^Jane", "MRN4711", "19610203", "Mercy Hospital")
TEXTS = (
    "AccessionNumber",
    "InstitutionName",
    "InstitutionAddress",
    "ReferringPhysicianName",
    "StationName",
    "StudyDescription",
    "SeriesDescription",
    "InstitutionalDepartmentName",
    "PhysiciansOfRecord",
    "OperatorsName",
    "Manufacturer",
    "ManufacturerModelName",
    "OtherPatientNames",
    "PatientAddress",
    "AdditionalPatientHistory",
    "PatientComments",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "ProtocolName",
    "ReceiveCoilName",
    "StudyID",
    "ImageComments",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "SequenceName",
    "ContrastBolusAgent",
    "PatientTelephoneNumbers",
    "PatientBirthName",
)


def phantom_phases(index: int, seed: int = 3) -> tuple[Case, list[np.ndarray], np.ndarray]:
    """A phantom's case, its pre, early and late phases (int16, in the case's axis order) and the affine, RAS+."""
    case = draw_case(seed, index)
    phases, _, affine = scan(case, SIDE, TEXTURE, stream(seed, 0, index, 1))
    return case, [phases[name] for name in ("pre", "early", "late")], affine


def header(
    patient: str, *, study: str = "1", series: int = 1, description: str = "t1_fl3d_dyn", day: str = DAY, **tags: object
) -> Dataset:
    """A header without image; ``tags`` are set last, and those that are None taken away."""
    image = Dataset()
    image.SOPClassUID, image.Modality = MRImageStorage, "MR"
    image.PatientID, image.PatientName = patient, f"{patient}^Name"
    image.StudyInstanceUID = f"1.2.826.{sum(map(ord, patient))}.{study}"
    image.SeriesInstanceUID = f"{image.StudyInstanceUID}.{series}"
    image.StudyDate = image.AcquisitionDate = image.ContentDate = day
    image.SeriesNumber, image.SeriesDescription = series, description
    image.ImageType, image.MRAcquisitionType = ["ORIGINAL", "PRIMARY", "M", "ND"], "3D"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "SP", "FS"
    image.RepetitionTime, image.EchoTime, image.FlipAngle = 5.2, 2.4, 10
    image.Manufacturer, image.ManufacturerModelName, image.MagneticFieldStrength = "SIEMENS", "Avanto", 1.5
    for name, value in tags.items():
        setattr(image, name, value)
    return image


def clock(seconds: float) -> str:
    """A DICOM time, so many seconds after START."""
    whole, part = divmod(round((START + seconds) * 100), 100)
    return f"{whole // 3600 % 24:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{part:02d}"


def slices(volume: np.ndarray, affine: np.ndarray, base: Dataset, first: int = 1, **tags: object) -> list[Dataset]:
    """The files of a volume (i, j, k): k counts slices, j rows and i columns. Stored values are (v - b) / m."""
    turned = np.diag([-1, -1, 1, 1]) @ affine  # RAS+ -> LPS+
    zooms = np.linalg.norm(turned[:3, :3], axis=0)
    files = []
    for k in range(volume.shape[2]):
        image = copy.deepcopy(base)
        for name, value in tags.items():
            setattr(image, name, value)
        image.InstanceNumber = first + k
        image.SOPInstanceUID = f"{image.SeriesInstanceUID}.{first + k}"
        image.ImageOrientationPatient = [f"{v:.10g}" for v in (turned[:3, :2] / zooms[:2]).T.ravel()]
        image.ImagePositionPatient = [f"{v:.10g}" for v in (turned @ [0, 0, k, 1])[:3]]
        image.PixelSpacing = [f"{zooms[1]:.10g}", f"{zooms[0]:.10g}"]
        image.SliceThickness = f"{zooms[2]:.10g}"
        set_pixels(image, volume[:, :, k].T[None])
        files.append(image)
    return files


def set_pixels(image: Dataset, frames: np.ndarray) -> None:
    """Frames (n, rows, columns) of int16."""
    image.Rows, image.Columns, image.SamplesPerPixel = *frames.shape[1:], 1
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
    image.PixelData = np.rint((frames - intercept) / slope).astype("<i2").tobytes()


def save(images: Sequence[Dataset], folder: Path, seed: int = 0, suffix: str = "") -> None:
    """Writes files under names whose order says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"IM{n:05d}{suffix}" for n in range(len(images))]
    random.Random(seed).shuffle(names)
    for image, name in zip(images, names, strict=True):
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / name, enforce_file_format=True)


def exam(
    patient: str, volumes: Sequence[np.ndarray], affine: np.ndarray, layout: str = "one-series", **tags: object
) -> list[Dataset]:
    """An exam's files; only what the layout's name says tells the phases apart, whose series numbers may mislead."""
    files, count = [], volumes[0].shape[2]
    for n, (volume, seconds) in enumerate(zip(volumes, TIMES, strict=False)):
        number = {"several-series": 9 - n, "restarts": 9 - n, "pre-and-posts": 7 if n == 0 else 3}.get(layout, 1)
        base = header(patient, series=number, **tags)
        base.AcquisitionTime = base.ContentTime = clock(0)
        if layout in ("one-series", "several-series", "pre-and-posts"):
            base.AcquisitionTime = base.ContentTime = clock(seconds)
        elif layout == "trigger":
            base.TriggerTime = 1000 * seconds
        elif layout in ("content", "restarts"):
            base.ContentTime = clock(seconds)
            del base.AcquisitionTime
            base.TriggerTime = {"content": None, "restarts": n}[layout]
        elif layout == "temporal":
            base.TemporalPositionIdentifier = n + 1
        files += slices(volume, affine, base, 1 + count * n)
        for image in files[-count:][::2]:  # at every second place instance numbers fall with time
            image.InstanceNumber += count * (len(volumes) - 1 - 2 * n)
    return files


def enhanced(
    patient: str,
    volumes: Sequence[np.ndarray],
    affine: np.ndarray,
    slope: float = 1.0,
    offset: float = 0.0,
) -> Dataset:
    """One file of all frames, the slices of a place together, the last phase first."""
    parts = exam(patient, volumes, affine)
    parts.sort(
        key=lambda part: (part.ImagePositionPatient[2], part.ImagePositionPatient[0], -float(part.AcquisitionTime))
    )
    image = header(patient)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedMRImageStorage, f"{image.SeriesInstanceUID}.1"
    image.NumberOfFrames = len(parts)
    image.RescaleSlope, image.RescaleIntercept = slope, offset
    frames = [np.frombuffer(part.PixelData, "<i2").reshape(part.Rows, part.Columns) for part in parts]
    set_pixels(image, np.stack(frames))
    del image.RescaleSlope, image.RescaleIntercept
    shared, groups = Dataset(), []
    shared.PlaneOrientationSequence = [_of(parts[0], "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_of(parts[0], "PixelSpacing", "SliceThickness")]
    shared.PixelValueTransformationSequence = [Dataset()]
    scaling = shared.PixelValueTransformationSequence[0]
    scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = slope, offset, "US"
    for part in parts:
        group = Dataset()
        group.PlanePositionSequence = [_of(part, "ImagePositionPatient")]
        group.FrameContentSequence = [Dataset()]
        group.FrameContentSequence[0].FrameAcquisitionDateTime = DAY + part.AcquisitionTime
        groups.append(group)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], groups
    return image


def _of(image: Dataset, *names: str) -> Dataset:
    part = Dataset()
    for name in names:
        setattr(part, name, image[name].value)
    return part


def identifying(image: Dataset) -> None:
    """Writes a patient's name, number, birth date and hospital into every text of a header."""
    image.PatientName, image.PatientID, image.PatientBirthDate = IDENTITY[:3]
    for name in TEXTS:
        short = pydicom.datadict.dictionary_VR(name) in ("SH", "CS")
        setattr(image, name, " ".join(IDENTITY[:2])[: 16 if short else 64])
    image.InstitutionName = IDENTITY[3]
    image.BodyPartExamined = "DOE"
    private = image.private_block(0x0019, "MGKERAS TEST", create=True)
    private.add_new(0x01, "LO", " ".join(IDENTITY))


def make_dicom(folder: Path, subjects: int = 8) -> Path:
    """An archive of patients, FOLDER/archive, and what is known of them, FOLDER/labels.csv.

    The patients' exams are in the layouts of LAYOUTS by turns, each with a localizer, a subtraction and a report
    beside it. Two more are broken: one of a single phase, one that lacks a slice.
    """
    rows = ["PatientID;recurrence;age;exam_date"]
    for n in range(subjects + 2):
        patient = f"H{9000 - 7 * n}"
        case, volumes, affine = phantom_phases(n)
        files = exam(patient, volumes[: 1 if n == subjects else 3], affine, LAYOUTS[n % len(LAYOUTS)])
        files = files[:-1] if n == subjects + 1 else files
        scout = header(patient, series=90, description="localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        minus = header(patient, series=91, description="t1_fl3d_dyn_SUB", ImageType=["DERIVED", "PRIMARY", "M"])
        files += slices(volumes[0][:, :, :1], affine, scout)
        files += slices(np.clip(volumes[1] - volumes[0], 0, None), affine, minus, AcquisitionTime=clock(150))
        save(files, folder / "archive" / f"{n % 3}" / f"exam {n}", seed=n, suffix=(".dcm", "", ".IMA")[n % 3])
        (folder / "archive" / f"{n % 3}" / f"exam {n}" / "report.txt").write_text("no image\n")
        rows.append(f"{patient};{case.recurrence};{case.age};2019-03-04")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "archive"
