"""What `mgkeras predict` found, as DICOM beside the source series: maps as Parametric Maps, masks as Segmentations.

Both lie on the series' own planes, which must be those of the early phase, and refer to its images. Patient and study
are the source images', names and dates included: a reader's archive files the results beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras import __version__
from mgkeras.data.cohort import Subject
from mgkeras.data.io import written_whole
from mgkeras.data.volume import ExamError, Volume, load_volume, same_space
from mgkeras.importers.dicom_header import Series, Slice
from mgkeras.importers.found import SourceError, required
from mgkeras.importers.patients import patients_of_names
from mgkeras.importers.series import read_headers, split

# pydicom data sets in the order of places; (n, rows, columns, 3) voxels of the early phase
Images = tuple[list[Any], np.ndarray]
SAME_VOXEL = 0.05  # of a voxel: planes that lie farther from the early phase's are another grid
SAME_IMAGE = 0.99  # correlation: it is 1 of the same voxels, whatever their slope and intercept
MAY_BE_EMPTY = (  # of patient and study; files without identifiers lack them, which highdicom does not expect
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
MAKER, MODEL = "mgkeras", "mask-guided 3D convolutional network"


def highdicom_or_error() -> Any:
    """The module highdicom, with what is used of it. Raises NotInstalled."""
    found, *_ = (
        required(module, "DICOM results", "dicom") for module in ("highdicom", "highdicom.pm", "highdicom.seg")
    )
    return found


def write_results(
    subjects: Iterable[Subject],
    maps: Path,
    source: Path,
    out: Path,
    *,
    about: str,
    keep_map: Path | None = None,
    scanned: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes OUT/SUBJECT-map.dcm and, where the cohort has a mask, OUT/SUBJECT-mask.dcm.

    Args:
        subjects: those that were scored.
        maps: the folder of their maps, SUBJECT.nii.gz on the early phase's grid.
        source: the folder of the DICOM series that the early phase was made from, in whatever folders. A subject's
            series are those below a folder of its name, else those of its patient in ``keep_map``, else those whose
            PatientID is its name; of these the one on the early phase's grid with the early phase's voxels.
        out: folder to write to.
        about: what the maps are.
        keep_map: the table of pseudonyms that `mgkeras import dicom --keep-map` wrote.
        scanned: called with the number of files whose headers are read, after each.

    Returns:
        A message for each subject that could not be written.

    Raises:
        SourceError: no folder, no DICOM images in it, a broken table, or highdicom or pydicom is missing.
    """
    highdicom_or_error()
    series = read_headers(source, scanned).series
    if not series:
        raise SourceError(f"expected DICOM images in {source}. Received: none")
    patients, failed = patients_of_names(keep_map) if keep_map else {}, []
    for subject in subjects:
        try:
            own = _series_of(subject.name, series, source, patients)
            early = load_volume(subject.early_file)
            images = _images_of(own, early)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they quote what the headers hold
                _save(
                    parametric_map(images, _on_grid(maps / f"{subject.name}.nii.gz", early), about), subject, "map", out
                )
                if subject.mask:
                    _save(segmentation(images, _on_grid(subject.mask, early) > 0), subject, "mask", out)
        except (SourceError, ExamError) as error:
            failed.append(f"{subject.name}: {error}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a header that lacks what results must have
            failed.append(f"{subject.name}: highdicom cannot refer to this series: {error}")
    return failed


def parametric_map(images: Images, values: np.ndarray, about: str) -> Any:
    """A data set of the Parametric Map of values (x, y, z) float on the early phase's RAS+ grid; the unit is 1, as of
    log-odds."""
    highdicom = highdicom_or_error()
    from pydicom.sr.codedict import codes

    frames = np.ascontiguousarray(values[tuple(np.moveaxis(images[1], -1, 0))], np.float32)
    top = float(np.abs(frames).max()) or 1.0
    meaning = highdicom.pm.RealWorldValueMapping(
        lut_label="evidence",
        lut_explanation=about[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(-top, top),
        slope=1.0,
        intercept=0.0,
    )
    found = highdicom.pm.ParametricMap(
        images[0],
        frames,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        window_center=0.0,
        window_width=2 * top,
        content_label="EVIDENCE",
        content_description=about[:64],
        **_made_by(highdicom, 1),
    )
    found.Laterality = images[0][0].get("Laterality")  # of paired organs it must be there, if empty
    return found


def segmentation(images: Images, mask: np.ndarray) -> Any:
    """A data set of the Segmentation of a tumour mask (x, y, z) bool on the early phase's RAS+ grid.

    Raises:
        SourceError: the mask is empty.
    """
    highdicom = highdicom_or_error()
    from pydicom.sr.codedict import codes

    if not mask.any():
        raise SourceError("expected a mask with a tumour. Received: an empty one, of which DICOM has no Segmentation")
    how = highdicom.AlgorithmIdentificationSequence(
        name="mask of the cohort's table", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    tumour = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="tumour",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=how,
    )
    return highdicom.seg.Segmentation(
        images[0],
        mask[tuple(np.moveaxis(images[1], -1, 0))],
        highdicom.seg.SegmentationTypeValues.BINARY,
        [tumour],
        content_label="TUMOUR",
        content_description="tumour mask as it was given",
        **_made_by(highdicom, 2),
    )


def _made_by(highdicom: Any, number: int) -> dict[str, Any]:
    return {
        "series_instance_uid": highdicom.UID(),
        "series_number": 9000 + number,
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MODEL,
        "software_versions": __version__,
        "device_serial_number": __version__,
    }


def _save(dataset: Any, subject: Subject, kind: str, out: Path) -> None:
    with written_whole(out / f"{subject.name}-{kind}.dcm") as part:
        dataset.save_as(part)


def _on_grid(path: Path, early: Volume) -> np.ndarray:
    found = load_volume(path)
    if differs := same_space(early, found):
        raise ExamError(f"expected {path} on the grid of the early phase. Received: {differs}")
    return found.data


def _series_of(name: str, series: Sequence[Series], source: Path, patients: dict[str, str]) -> list[Series]:
    """A subject's series; see write_results."""
    own = [scan for scan in series if name in scan.files[0].path.relative_to(source).parts[:-1]]
    own = own or [scan for scan in series if scan.patient_id == patients.get(name, name)]
    if not own:
        raise SourceError(
            f"expected a folder {name} in {source}, or series whose PatientID is {name} or is that of {name} in "
            "--keep-map. Received: none"
        )
    return own


def _images_of(series: Sequence[Series], early: Volume) -> Images:
    """The images that the early phase was made from, and for each pixel the voxel of the early phase that it is."""
    found: list[tuple[float, Images]] = []
    for phase in (phase for scan in series if scan.files[0].frame is None for phase in _phases(scan)):
        voxels = _voxels(phase, early)
        if voxels is not None:
            found.append((_likeness(phase, voxels, early), ([_header(image) for image in phase], voxels)))
    if not found:
        enhanced = sum(scan.files[0].frame is not None for scan in series)
        raise SourceError(
            f"expected a series on the early phase's grid, an image a file. Received: none in {len(series)} series"
            f"{f', of which {enhanced} are enhanced files of many frames' if enhanced else ''}"
        )
    likeness, images = max(found, key=lambda candidate: candidate[0])
    if not likeness >= SAME_IMAGE:
        raise SourceError(
            f"expected the series that the early phase was made from. Received: {len(found)} on its grid, "
            "whose voxels are others "
            f"(correlation of the middle slice {likeness:.3f})"
        )
    return images


def _phases(series: Series) -> list[tuple[Slice, ...]]:
    try:
        return split(series)
    except SourceError:  # slices without place, a localizer: none that the early phase was made from
        return []


def _voxels(phase: Sequence[Slice], early: Volume) -> np.ndarray | None:
    """(n, rows, columns, 3) int: the voxel of the early phase at each pixel; None where these are not all the voxels of
    the early phase."""
    rows, columns = np.meshgrid(np.arange(phase[0].rows), np.arange(phase[0].columns), indexing="ij")
    if len(phase) * rows.size != early.data.size:
        return None
    to_voxel, stacks = np.linalg.inv(early.affine), []
    for image in phase:
        along, down = np.array(image.orientation[:3]), np.array(image.orientation[3:])  # of a row, of a column
        place = (
            np.array(image.position)
            + rows[..., None] * image.spacing[0] * down
            + columns[..., None] * image.spacing[1] * along
        )
        stacks.append((place * (-1, -1, 1)) @ to_voxel[:3, :3].T + to_voxel[:3, 3])  # DICOM is LPS+, early RAS+
    exact = np.stack(stacks)
    voxels = np.rint(exact).astype(int)
    inside = (voxels >= 0).all() and (voxels < early.data.shape).all()
    return voxels if inside and np.abs(exact - voxels).max() < SAME_VOXEL else None


def _likeness(phase: Sequence[Slice], voxels: np.ndarray, early: Volume) -> float:
    """The correlation of the middle slice with the early phase there; NaN where either is constant."""
    import pydicom

    middle = len(phase) // 2
    pixels = pydicom.dcmread(phase[middle].path).pixel_array.astype(float).ravel()
    there = early.data[tuple(np.moveaxis(voxels[middle], -1, 0))].astype(float).ravel()
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(pixels, there)[0, 1])


def _header(image: Slice) -> Any:
    import pydicom

    header = pydicom.dcmread(image.path, stop_before_pixels=True)
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    return header
