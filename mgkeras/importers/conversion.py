"""The DICOM slices of one volume -> a NIfTI file, by the program dcm2niix, with nothing in it that the headers tell."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib

from mgkeras.data.io import written_whole
from mgkeras.importers.dicom_header import Slice, pydicom_or_error
from mgkeras.importers.found import NotInstalled, SourceError
from mgkeras.importers.series import Phase

LONGEST_SECONDS = 600  # for one volume, which takes a second or two
HEADER_BYTES = 352
DESCRIP = slice(148, 228)
TEXTS = (slice(4, 32), DESCRIP, slice(228, 252), slice(328, 344))  # data_type, db_name; descrip; aux_file; intent_name
ARGUMENTS = ("-g", "i", "-b", "n", "-z", "n", "-w", "1", "-m", "y", "-l", "o", "-x", "n", "-i", "n", "-f", "phase")
FRAME_WORDS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def convert(phase: Phase, path: Path) -> Path:
    """Writes a phase as NIfTI with dcm2niix, voxels and affine as it makes them, without any text of the headers.

    Args:
        phase: of :func:`mgkeras.importers.series.phases_of`.
        path: a name that ends in .nii.gz; its folder is made. A file made of the same slices is kept (the file holds a
            hash of their UIDs); another is replaced.

    Returns:
        ``path``.

    Raises:
        SourceError: dcm2niix is missing, fails, takes too long, or makes anything but one 3D volume.
    """
    slices = phase.slices
    digest = hashlib.sha256("|".join(f"{image.uid} {image.frame}" for image in slices).encode()).hexdigest()
    mark = f"slices {digest[:32]}".encode()
    if _marked(path, mark):
        return path
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "slices"
        folder.mkdir()
        for number, image in enumerate(slices):
            _place(image, number, slices, folder / f"{number:05d}.dcm")
        content = _without_texts(_run(folder, slices), mark)
    with written_whole(path) as part:
        part.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
    return path


def program() -> str:
    """The path of dcm2niix: of its package, else on PATH.

    Raises:
        NotInstalled: it is not.
    """
    try:
        import dcm2niix

        found = shutil.which(dcm2niix.bin)
    except (ImportError, AttributeError):
        found = None
    if found := found or shutil.which("dcm2niix"):
        return found
    raise NotInstalled(
        "expected the program dcm2niix, which turns DICOM into NIfTI. Received: none; pip install 'mgkeras[import]'"
    )


def _run(folder: Path, slices: Sequence[Slice]) -> bytes:
    """The .nii that dcm2niix makes of the files in a folder."""
    out = folder.with_name("out")
    out.mkdir()
    command = [program(), *ARGUMENTS, "-o", str(out), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise SourceError(f"dcm2niix took longer than {LONGEST_SECONDS} s") from None
    made = sorted(out.glob("*.nii"))
    if done.returncode or len(made) != 1:
        told = _told(done.stdout + done.stderr, folder.parent, slices[0].path)
        how = f"failed (exit code {done.returncode})" if done.returncode else f"made {len(made)} volumes of one phase"
        raise SourceError(f"dcm2niix {how}{': ' + told if told else ''}")
    shape = cast(nib.Nifti1Image, nib.load(made[0])).shape
    expected = sorted((slices[0].columns, slices[0].rows, len(slices)))
    if sorted(shape if len(shape) > 2 else (*shape, 1)) != expected:
        raise SourceError(f"dcm2niix made a volume of {shape} voxels of {len(slices)} slices")
    return made[0].read_bytes()


def _told(output: bytes, temporary: Path, path: Path) -> str:
    """The last warnings and errors of dcm2niix, without paths, numbers that may be dates, and the header's texts."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if re.match(r"(error|warning|unable|unsupported|no valid)", line, re.IGNORECASE)]
    text = "; ".join(lines[-3:]).replace(str(temporary), "")
    for value in _texts(path):
        text = text.replace(value, "...")
    return re.sub(r"\S*/\S*|\d{6,}", "...", text)[:300]


def _texts(path: Path) -> list[str]:
    """Every text of three letters or more in a header, the longest first."""
    texts: list[str] = []

    def note(_, element) -> None:
        if element.VR not in ("SQ", "OB", "OW", "UN", "US", "SS", "FD", "FL", "AT", "UL", "SL", "CS"):
            texts.extend(re.split(r"[\\^]", str(element.value)))

    try:
        pydicom_or_error().dcmread(path, stop_before_pixels=True, force=True).walk(note)
    except Exception:  # a broken header; what was read so far counts
        pass
    return sorted({text.strip() for text in texts if len(text.strip()) > 2}, key=len, reverse=True)


def _without_texts(content: bytes, mark: bytes) -> bytes:
    """A NIfTI file whose header holds no text but the mark, and no extension."""
    header = bytearray(content[:HEADER_BYTES])
    for part in TEXTS:
        header[part] = bytes(part.stop - part.start)
    header[DESCRIP] = mark.ljust(DESCRIP.stop - DESCRIP.start, b"\0")
    start = int(nib.Nifti1Header(bytes(header[:348]), check=False)["vox_offset"])
    if start != HEADER_BYTES or any(header[348:]):
        raise SourceError("dcm2niix made a NIfTI file with a header extension")
    return bytes(header) + content[HEADER_BYTES:]


def _marked(path: Path, mark: bytes) -> bool:
    """Whether a file that was written whole holds the mark."""
    try:
        with gzip.open(path) as file:
            return file.read(HEADER_BYTES)[DESCRIP].rstrip(b"\0") == mark
    except (OSError, EOFError, zlib.error):
        return False


def _place(image: Slice, number: int, slices: Sequence[Slice], path: Path) -> None:
    """A link to a slice's file under a name that says nothing, or a copy where links are not to be had."""
    try:
        if image.frame is not None:
            _write_frame(image, number, slices, path)
            return
        try:
            path.symlink_to(image.path.resolve())
        except OSError:
            shutil.copyfile(image.path, path)
    except OSError as error:
        raise SourceError(f"a DICOM file cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=1)  # its frames are asked for one after the other
def _enhanced(path: Path) -> Any:
    return pydicom_or_error().dcmread(path, force=True)


def _write_frame(source: Slice, number: int, slices: Sequence[Slice], path: Path) -> None:
    """A frame of an enhanced file as a file of one image, with its geometry, its scaling and nothing else."""
    assert source.frame is not None
    pydicom = pydicom_or_error()
    whole = _enhanced(source.path)
    image, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    image.SOPClassUID = meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    meta.TransferSyntaxUID = syntax = whole.file_meta.TransferSyntaxUID
    image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.4"
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 1, number + 1, 1
    image.PixelSpacing = list(source.spacing)
    image.ImageOrientationPatient, image.ImagePositionPatient = list(source.orientation), list(source.position)
    step = [b - a for a, b in zip(slices[0].position, slices[-1].position, strict=True)]
    image.SliceThickness = sum(d * d for d in step) ** 0.5 / max(len(slices) - 1, 1) or 1.0
    for name in FRAME_WORDS:
        if name in whole:
            setattr(image, name, whole[name].value)
    groups = [whole.PerFrameFunctionalGroupsSequence[source.frame], *whole.get("SharedFunctionalGroupsSequence", [])]
    for scaling in [
        group.PixelValueTransformationSequence[0] for group in groups if "PixelValueTransformationSequence" in group
    ][:1]:
        image.RescaleSlope, image.RescaleIntercept = scaling.RescaleSlope, scaling.RescaleIntercept
    data = whole.PixelData
    if syntax.is_compressed:
        frame = pydicom.encaps.get_frame(data, source.frame, number_of_frames=whole.NumberOfFrames)
        image.PixelData = pydicom.encaps.encapsulate([frame])
    else:
        size = source.rows * source.columns * image.BitsAllocated // 8 * image.get("SamplesPerPixel", 1)
        image.PixelData = data[source.frame * size : (source.frame + 1) * size]
    image["PixelData"].VR = "OB" if syntax.is_compressed or image.BitsAllocated == 8 else "OW"
    image.file_meta = meta
    image.save_as(
        path, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
