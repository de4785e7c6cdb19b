"""One DICOM file's header -> :class:`Series` of the images in it; voxels are never read.

Glossary:
    slice: one image of one place, a file or, in an enhanced file, a frame.
    position: ImagePositionPatient, (3,) LPS+ mm.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from mgkeras.importers.found import required, scanner_text

DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that packs the whole file, and that dcm2niix does not read
SHORTEST_STEP_MS, LONGEST_STEP_MS = 500.0, 600_000.0  # from phase to phase; other values are no such spacing
KEYWORDS = (
    "SOPInstanceUID StudyInstanceUID SeriesInstanceUID PatientID PatientName StudyDate Modality SeriesNumber "
    "SeriesDescription ProtocolName ImageType MRAcquisitionType ScanningSequence ScanOptions RepetitionTime EchoTime "
    "FlipAngle Manufacturer ManufacturerModelName MagneticFieldStrength Rows Columns PixelSpacing "
    "ImageOrientationPatient ImagePositionPatient InstanceNumber AcquisitionNumber TemporalPositionIdentifier "
    "AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime TriggerTime TemporalResolution "
    "NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split()


@dataclass(frozen=True)
class Slice:
    """What the header of an image says.

    Attributes:
        path: of the file; ``frame`` is its place in an enhanced file (from 0), None in a file of one image.
        uid: SOPInstanceUID.
        rows, columns, spacing: the image's; (row spacing, column spacing) in mm.
        orientation: (6,) direction cosines of a row and of a column, LPS+.
        position: (3,) centre of the first pixel, LPS+ mm. Orientation and position are () where the header has none.
        instance, acquisition_number, temporal: numbers as the header has them, None where it has none.
        acquisition, content: seconds since midnight of the study's day, None where not known.
        trigger: TriggerTime, ms.
    """

    path: Path
    uid: str
    rows: int
    columns: int
    spacing: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    instance: int | None = None
    acquisition_number: int | None = None
    temporal: int | None = None
    acquisition: float | None = None
    trigger: float | None = None
    content: float | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Series:
    """The slices of one SeriesInstanceUID that show the same thing: one orientation, matrix, image type, echo time.

    A localizer in three planes, or water and fat in one series, are several of these with the same ``uid``.

    Attributes:
        uid, study_uid, patient_id, description, modality: texts, '' where the header has none.
        number: SeriesNumber.
        study_date: YYYYMMDD or ''. To choose a visit by; it must not travel.
        image_type: ('ORIGINAL', 'PRIMARY', ...).
        dimensions: MRAcquisitionType, '3D' or '2D'.
        sequence: ScanningSequence, ('GR',) or so.
        repetition, echo: ms; ``flip``: degrees; None where not known. ``options``: ScanOptions, sorted.
        scanner: manufacturer, model and field strength, 'SIEMENS Avanto 1.5 T'; '' where they hold the patient's name.
        extra: texts by keyword, of the keywords that were asked for.
        protocol: ProtocolName, which some scanners write where others write the description.
        step: seconds from phase to phase that the header tells, None where it tells none.
        files: its slices, duplicates dropped, in an order that does not depend on the files' names.
    """

    uid: str
    study_uid: str
    patient_id: str
    number: int | None
    description: str
    modality: str
    study_date: str = ""
    image_type: tuple[str, ...] = ()
    dimensions: str = ""
    sequence: tuple[str, ...] = ()
    repetition: float | None = None
    echo: float | None = None
    flip: float | None = None
    options: tuple[str, ...] = ()
    scanner: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    protocol: str = ""
    step: float | None = None
    files: tuple[Slice, ...] = ()

    @property
    def places(self) -> int:
        """At how many positions, to a tenth of a mm, there are slices."""
        return len({tuple(round(mm, 1) for mm in image.position) for image in self.files})


def pydicom_or_error() -> Any:
    """The module pydicom. Raises NotInstalled."""
    return required("pydicom", "DICOM files")


def read_header(path: Path, extra: Sequence[str] = ()) -> list[Series]:
    """The images of a file, a Series of one slice each; none for a file that is no DICOM image or cannot be read.

    Args:
        path: a file of any name.
        extra: keywords of further texts to be read.
    """
    pydicom = pydicom_or_error()
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if DEFLATED in head or not (head[128:132] == b"DICM" or head[:2] in (b"\x08\0", b"\x02\0")):
                return []
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they quote what the header holds
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*KEYWORDS, *extra])
                return _images(header, path, extra)
    except Exception:  # a broken header can make its reader fail anywhere
        return []


def seconds_of(time: str, day: str = "", first_day: str = "") -> float | None:
    """Seconds since midnight of ``first_day`` of a DICOM time (HHMMSS.F or HH:MM:SS); None where there is none.

    Args:
        time: 'HH' at the shortest.
        day, first_day: YYYYMMDD; where one is missing, or they are over a day apart, the day does not count.
    """
    match = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d)?(\.\d*)?", time.strip())
    if not match:
        return None
    hours, minutes, whole, part = (float(text or 0) if text != "." else 0.0 for text in match.groups())
    try:
        later = (date.fromisoformat(day) - date.fromisoformat(first_day)).days if day and first_day else 0
    except ValueError:
        later = 0
    return 86400.0 * (later == 1) + 3600 * hours + 60 * minutes + whole + part


def _images(header: Any, path: Path, extra: Sequence[str]) -> list[Series]:
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    if not rows or not columns or min(rows, columns) < 1:
        return []
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if (_whole(header, "NumberOfFrames") or 1) == 1 and not groups:
        return [_series(header, path, [header], None, extra)]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [
        _series(
            header, path, [*_parts(group), *(part for group in shared for part in _parts(group)), header], frame, extra
        )
        for frame, group in enumerate(groups)
    ]


def _parts(group: Any) -> list[Any]:
    """The data sets in a functional group's sequences."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def _series(header: Any, path: Path, parts: list[Any], frame: int | None, extra: Sequence[str]) -> Series:
    """An image; a value is taken from the first of the parts that has it."""

    def text(*keywords: str) -> str:
        return next((text for name in keywords for part in parts if (text := _text(part, name))), "")

    def number(*keywords: str) -> float | None:
        return next((value for name in keywords for part in parts if (value := _number(part, name)) is not None), None)

    def whole(keyword: str) -> int | None:
        return next((value for part in parts if (value := _whole(part, keyword)) is not None), None)

    def numbers(keyword: str, count: int) -> tuple[float, ...]:
        return next((values for part in parts if (values := _numbers(part, keyword, count))), ())

    def words(*keywords: str) -> tuple[str, ...]:
        return tuple(word for word in text(*keywords).split("\\") if word)

    day = _text(header, "StudyDate")
    moment = text("FrameAcquisitionDateTime", "AcquisitionDateTime")
    when = seconds_of(text("AcquisitionTime"), text("AcquisitionDate"), day)
    if frame is not None or when is None:
        when = seconds_of(re.split("[&+-]", moment[8:])[0], moment[:8], day) if moment else when
    trigger, offset = number("NominalCardiacTriggerDelayTime", "TriggerTime"), number("TemporalPositionTimeOffset")
    image = Slice(
        path,
        _text(header, "SOPInstanceUID"),
        _whole(header, "Rows") or 0,
        _whole(header, "Columns") or 0,
        numbers("PixelSpacing", 2),
        numbers("ImageOrientationPatient", 6),
        numbers("ImagePositionPatient", 3),
        whole("InstanceNumber") if frame is None else frame + 1,
        whole("AcquisitionNumber"),
        whole("TemporalPositionIdentifier") if frame is None else whole("TemporalPositionIndex"),
        when,
        1000 * offset if trigger is None and offset is not None else trigger,
        seconds_of(text("ContentTime"), text("ContentDate"), day) if frame is None else None,
        frame,
    )
    return Series(
        _text(header, "SeriesInstanceUID"),
        _text(header, "StudyInstanceUID"),
        _text(header, "PatientID"),
        _whole(header, "SeriesNumber"),
        _text(header, "SeriesDescription"),
        _text(header, "Modality"),
        day,
        words("FrameType", "ImageType"),
        text("MRAcquisitionType"),
        words("ScanningSequence"),
        number("RepetitionTime"),
        number("EffectiveEchoTime", "EchoTime"),
        number("FlipAngle"),
        tuple(sorted(words("ScanOptions"))),
        _scanner(header),
        {name: _text(header, name) for name in extra},
        text("ProtocolName"),
        _step(number("TemporalResolution"), words("ScanningSequence"), number("RepetitionTime")),
        (image,),
    )


def _step(resolution: float | None, sequence: tuple[str, ...], repetition: float | None) -> float | None:
    """Seconds from phase to phase, of TemporalResolution in ms, or of the repetition time of echo planar images.

    Echo planar imaging takes a whole volume in one repetition; other sequences repeat for every line.
    """
    for ms in (resolution, repetition if "EP" in sequence else None):
        if ms is not None and SHORTEST_STEP_MS <= ms <= LONGEST_STEP_MS:
            return ms / 1000
    return None


def _scanner(header: Any) -> str:
    words = scanner_text(
        _text(header, "Manufacturer"), _text(header, "ManufacturerModelName"), _number(header, "MagneticFieldStrength")
    )
    return "" if _holds_identity(words, header) else words


def _holds_identity(text: str, header: Any) -> bool:
    """Whether a text holds the patient's identifier or a part of the name, of three letters or more."""
    pieces = [_text(header, "PatientID"), *re.split(r"[\^= ,]+", _text(header, "PatientName"))]
    return any(len(piece) > 2 and piece.casefold() in text.casefold() for piece in pieces)


def _text(header: Any, keyword: str) -> str:
    """A value as text, several values joined by backslashes; '' where it is missing or broken."""
    try:
        value = header.get(keyword)
        if value is None:
            return ""
        several = not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "family_name")
        return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")
    except Exception:  # a value that cannot be decoded
        return ""


def _number(header: Any, keyword: str) -> float | None:
    values = _numbers(header, keyword, 1)
    return values[0] if values else None


def _whole(header: Any, keyword: str) -> int | None:
    value = _number(header, keyword)
    return None if value is None else int(value)


def _numbers(header: Any, keyword: str, count: int) -> tuple[float, ...]:
    """``count`` finite numbers, or ()."""
    try:
        values = tuple(float(part) for part in _text(header, keyword).split("\\"))
    except ValueError:
        return ()
    return values if len(values) == count and all(map(math.isfinite, values)) else ()
