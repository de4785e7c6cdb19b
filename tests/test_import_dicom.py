"""DICOM headers to series, to phases, to NIfTI: the right voxels at the right place and time, under any file names."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from miniatures import dicom as made
from pydicom.uid import RLELossless

from mgkeras.data.volume import Volume, load_volume, same_space
from mgkeras.importers import conversion
from mgkeras.importers.conversion import convert
from mgkeras.importers.dicom_header import seconds_of
from mgkeras.importers.dynamic import NoDynamicSeries, dynamic_phases, why_not
from mgkeras.importers.found import SourceError
from mgkeras.importers.series import phases_of, read_headers, scan

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
GE = SHARED / "dicom_ge"


def canonical(volume: np.ndarray, affine: np.ndarray) -> Volume:
    image = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)


def assert_is(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """The file shows the volume's voxels where the volume has them in the patient."""
    found, expected = load_volume(path), canonical(volume, affine)
    assert same_space(found, expected, tolerance_mm=0.01) is None
    np.testing.assert_array_equal(found.data, expected.data)


@pytest.fixture(scope="module")
def phantom_exam():
    return made.phantom_phases(1)[1:]


@pytest.mark.skipif(not GE.is_dir(), reason=f"no {GE}: set MGKERAS_SHARED_DATA")
def test_a_real_series_becomes_the_reference_voxel_for_voxel(tmp_path):
    reference = nib.load(GE / "reference.nii")
    voxels = np.asanyarray(reference.dataobj)  # (64, 64, 15, 10)
    phases = phases_of(scan(GE))
    assert len(phases) == 10 and {len(phase.files) for phase in phases} == {15}
    for n, phase in enumerate(phases):
        image = nib.load(convert(phase, tmp_path / f"{n}.nii.gz"))
        assert image.get_data_dtype() == reference.get_data_dtype()
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), voxels[..., n])
        np.testing.assert_array_equal(image.affine, reference.affine)
        np.testing.assert_array_equal(image.header["pixdim"][:4], reference.header["pixdim"][:4])


@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_every_layout_gives_the_phases_in_the_order_of_time(tmp_path, phantom_exam, layout):
    volumes, affine = phantom_exam
    made.save(made.exam("A1", volumes, affine, layout), tmp_path / "in", seed=4)
    phases = dynamic_phases(scan(tmp_path / "in"))
    known = layout != "temporal"
    assert [phase.seconds for phase in phases] == (list(made.TIMES) if known else [None] * 3)
    for phase, volume in zip(phases, volumes, strict=True):
        assert_is(convert(phase, tmp_path / "out.nii.gz"), volume, affine)


@pytest.mark.parametrize("index", range(6))
def test_every_orientation_lies_where_the_phantom_lies(tmp_path, index):
    case, volumes, affine = made.phantom_phases(index)
    made.save(made.exam("A1", volumes, affine), tmp_path / "in")
    for phase, volume in zip(phases_of(scan(tmp_path / "in")), volumes, strict=True):
        assert_is(convert(phase, tmp_path / f"{case.code}.nii.gz"), volume, affine)


def test_the_phantoms_of_that_test_are_axial_sagittal_and_oblique():
    cases = [made.phantom_phases(index)[0] for index in range(6)]
    assert len({case.code for case in cases}) >= 3
    assert any(np.trace(case.turn) < 2.999 for case in cases)


@pytest.mark.parametrize("slope, offset", [(2.0, -5.0), (0.5, 100.0)])
def test_slope_and_intercept_are_applied(tmp_path, phantom_exam, slope, offset):
    volumes, affine = phantom_exam
    even = [2 * (volume // 2) + 1 for volume in volumes]  # (v + 5) / 2 is whole
    files = made.exam("A1", even, affine, RescaleSlope=slope, RescaleIntercept=offset)
    made.save(files, tmp_path / "in")
    for phase, volume in zip(phases_of(scan(tmp_path / "in")), even, strict=True):
        assert_is(convert(phase, tmp_path / "out.nii.gz"), volume, affine)


@pytest.mark.parametrize("packed", [False, True])
def test_frames_of_an_enhanced_file_are_phases_too(tmp_path, phantom_exam, packed):
    volumes, affine = phantom_exam
    even = [2 * (volume // 2) + 1 for volume in volumes]
    image = made.enhanced("A1", even, affine, slope=2.0, offset=-5.0)
    made.save([image], tmp_path / "in")
    if packed:
        image.compress(RLELossless)
        image.save_as(tmp_path / "in" / "IM00000", enforce_file_format=True)
    phases = dynamic_phases(scan(tmp_path / "in"))
    assert [phase.seconds for phase in phases] == list(made.TIMES)
    for phase, volume in zip(phases, even, strict=True):
        assert_is(convert(phase, tmp_path / "out.nii.gz"), volume, affine)


@pytest.mark.parametrize("seed", range(4))
def test_names_and_folders_of_files_change_nothing(tmp_path, phantom_exam, seed):
    volumes, affine = phantom_exam
    files = made.exam("A1", volumes, affine, made.LAYOUTS[seed])
    made.save(files, tmp_path / "a", seed=1)
    rng = random.Random(seed)
    rng.shuffle(files)
    for n in range(4):
        made.save(files[n::4], tmp_path / "b" / str(rng.random()), seed=seed, suffix=rng.choice(["", ".dcm", ".txt"]))
    made.save(files[::3], tmp_path / "b" / "again", seed=9)  # copies
    first, other = read_headers(tmp_path / "a"), read_headers(tmp_path / "b")
    assert (first.duplicates, other.duplicates) == (0, len(files[::3]))
    for a, b in zip(phases_of(first.series), phases_of(other.series), strict=True):
        assert [s.uid for s in a.slices] == [s.uid for s in b.slices]
        assert (a.seconds, a.description) == (b.seconds, b.description)
        written = [convert(x, tmp_path / f"{n}.nii.gz").read_bytes() for n, x in enumerate((a, b))]
        assert written[0] == written[1]


def test_files_that_are_no_images_are_counted_and_nothing_else(tmp_path, phantom_exam):
    volumes, affine = phantom_exam
    made.save(made.exam("A1", volumes, affine), tmp_path / "in")
    whole = (tmp_path / "in" / "IM00000").read_bytes()
    (tmp_path / "in" / "notes.txt").write_text("DICM")
    (tmp_path / "in" / "empty.dcm").touch()
    (tmp_path / "in" / "short.dcm").write_bytes(whole[:140])
    (tmp_path / "in" / "zeros.dcm").write_bytes(bytes(128) + b"DICM" + bytes(5000))
    (tmp_path / "in" / "gone.dcm").symlink_to(tmp_path / "nowhere")
    headers = read_headers(tmp_path / "in")
    assert (headers.skipped, headers.duplicates, len(headers.series)) == (5, 0, 1)


def test_an_exam_at_midnight_keeps_its_order(tmp_path, phantom_exam, monkeypatch):
    volumes, affine = phantom_exam
    monkeypatch.setattr(made, "START", 86400 - 100)
    files = made.exam("A1", volumes, affine)
    for image in files:
        if image.AcquisitionTime < "12":
            image.AcquisitionDate = image.ContentDate = "20190305"
    made.save(files, tmp_path)
    assert [phase.seconds for phase in phases_of(scan(tmp_path))] == list(made.TIMES)


def test_phases_23_hours_apart_are_a_midnight_where_no_date_says_so(tmp_path, phantom_exam, monkeypatch):
    volumes, affine = phantom_exam
    monkeypatch.setattr(made, "START", 86400 - 100)
    for layout in ("one-series", "several-series", "content"):
        files = made.exam("A1", volumes, affine, layout)
        for image in files:
            image.AcquisitionDate = image.ContentDate = ""
        made.save(files, tmp_path / layout)
        phases = phases_of(scan(tmp_path / layout))
        assert [phase.seconds for phase in phases] == list(made.TIMES)


def test_content_times_two_seconds_apart_are_no_times(tmp_path, phantom_exam):
    volumes, affine = phantom_exam
    for name, order in (("shuffled", (2, 0, 1)), ("rising", (0, 1, 2))):
        files = []
        for n, volume in enumerate(volumes):
            base = made.header("A1", AcquisitionTime=made.clock(0), ContentTime=made.clock(2 * order[n]))
            files += made.slices(volume, affine, base, 1 + n * volume.shape[2], AcquisitionNumber=n + 1)
        made.save(files, tmp_path / name)
        phases = phases_of(scan(tmp_path / name))
        assert [phase.seconds for phase in phases] == [None] * 3
        assert [phase.slices[0].acquisition_number for phase in phases] == [1, 2, 3]


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("091307", 33187),
        ("091307.25", 33187.25),
        ("09:13:07", 33187),
        ("09", 32400),
        ("", None),
        ("9.5", None),
        ("nonsense", None),
    ],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


def broken_exams(volumes, affine):
    """(reason, files) of exams that must not be used."""
    count = volumes[0].shape[2]

    def fresh(layout="one-series", **tags):
        return made.exam("A1", volumes, affine, layout, **tags)

    yield "different numbers of slices", fresh()[:-1]
    yield "different numbers of slices", fresh("several-series")[:-1]
    yield "a gap between neighbours", [image for n, image in enumerate(fresh()) if n % count != 5]
    same = {"AcquisitionTime": made.clock(0), "ContentTime": made.clock(0)}
    yield (
        "no time and no number tells apart",
        [_with(image, InstanceNumber=n % count, **same) for n, image in enumerate(fresh())],
    )
    yield (
        "overlap in time",
        [
            _with(image, AcquisitionTime=made.clock(10.0 * ((n * 5) % 7) + 5 * (n // count)))
            for n, image in enumerate(fresh())
        ],
    )
    yield (
        "differ in repetition time",
        [_with(image, RepetitionTime=9.0 if image.SeriesNumber == 7 else 5.2) for image in fresh("pre-and-posts")],
    )
    copies = [
        _with(image, SeriesInstanceUID="1.9", SOPInstanceUID=f"1.9.{n}", ImageType=["ORIGINAL", "PRIMARY", "DIS2D"])
        for n, image in enumerate(fresh())
    ]
    yield "several image types of the same times", [*fresh(), *copies]
    moved = affine.copy()
    moved[0, 3] += 300
    other = [
        _with(image, SeriesInstanceUID="1.8", SOPInstanceUID=f"1.8.{n}")
        for n, image in enumerate(made.exam("A1", volumes, moved))
    ]
    yield "several grids have the same number of phases", [*fresh(), *other]


def _with(image, **tags):
    for name, value in tags.items():
        setattr(image, name, value)
    return image


@pytest.mark.parametrize("which", range(8))
def test_what_is_broken_or_doubtful_is_refused_with_the_reason(tmp_path, phantom_exam, which):
    reason, files = list(broken_exams(*phantom_exam))[which]
    made.save(files, tmp_path)
    with pytest.raises(SourceError, match=reason):
        dynamic_phases(scan(tmp_path))


def test_the_rule_picks_the_dynamic_series_among_others(tmp_path, phantom_exam):
    volumes, affine = phantom_exam
    files = made.exam("A1", volumes, affine, "several-series")
    others = [
        ("t2_tse", {"RepetitionTime": 4000, "EchoTime": 90}),
        ("dwi", {"ScanningSequence": "EP"}),
        ("t1 2d", {"MRAcquisitionType": "2D"}),
        ("ct", {"Modality": "CT"}),
        ("dyn_SUB1", {}),
        ("MIP", {}),
        ("SER", {}),
        ("dyn", {"ImageType": ["DERIVED", "PRIMARY"]}),
    ]
    for n, (description, tags) in enumerate(others, 20):
        base = made.header("A1", series=n, description=description, AcquisitionTime=made.clock(10 * n), **tags)
        files += made.slices(volumes[0], affine, base)
    water = made.exam("A1", volumes, affine, "several-series", ImageType=["ORIGINAL", "PRIMARY", "W"])
    made.save(files, tmp_path)
    found = scan(tmp_path)
    assert [phase.seconds for phase in dynamic_phases(found)] == list(made.TIMES)
    assert len(dynamic_phases(found, "^t1_fl3d")) == 3
    with pytest.raises(NoDynamicSeries):
        dynamic_phases(found, "no such description")
    with pytest.raises(NoDynamicSeries):
        dynamic_phases([series for series in found if series.description != "t1_fl3d_dyn"])
    for n, image in enumerate(water):
        image.SeriesInstanceUID += ".7"
        image.SOPInstanceUID = f"1.7.{n}"
    made.save(water, tmp_path / "water")
    phases = dynamic_phases(scan(tmp_path))
    assert all(plane.uid.startswith("1.7.") for phase in phases for plane in phase.slices)


def test_series_are_named_by_protocol_too_and_a_direction_is_no_map(tmp_path, phantom_exam):
    volumes, affine = phantom_exam
    files = made.exam("A1", volumes, affine)
    for image in files:
        del image.SeriesDescription
        image.ProtocolName = "DCE_FLASH_3D"
    made.save(files, tmp_path / "bruker")
    (series,) = scan(tmp_path / "bruker")
    assert why_not(series, "dce.*3d") == "" and why_not(series, "t2") != ""
    assert len(dynamic_phases([series], "flash")) == 3
    for text, derived in (("EPI PE=AP", False), ("dyn PE = LR", False), ("dyn PE", True), ("PE_map", True)):
        assert (why_not(replace(series, description=text)) == "localizers and derived images") == derived, text


def test_a_file_of_the_same_slices_is_kept_and_another_replaced(tmp_path, phantom_exam):
    volumes, affine = phantom_exam
    made.save(made.exam("A1", volumes, affine), tmp_path / "in")
    pre, early, _ = phases_of(scan(tmp_path / "in"))
    path = convert(pre, tmp_path / "out" / "x.nii.gz")
    written = path.stat().st_mtime_ns
    assert convert(pre, path).stat().st_mtime_ns == written
    assert_is(convert(early, path), volumes[1], affine)
    path.write_bytes(b"half")
    assert_is(convert(early, path), volumes[1], affine)
    assert os.listdir(path.parent) == ["x.nii.gz"]


def test_failures_of_the_program_leave_nothing_and_name_nobody(tmp_path, phantom_exam, monkeypatch):
    volumes, affine = phantom_exam
    files = made.exam("Doe4711", volumes, affine, "several-series")
    made.save(files, tmp_path / "Doe4711")
    phase = phases_of(scan(tmp_path / "Doe4711"))[0]
    monkeypatch.setattr(conversion.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for path in phase.files:
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(SourceError, match="dcm2niix") as told:
        convert(phase, tmp_path / "out" / "x.nii.gz")
    assert "Doe" not in str(told.value) and str(tmp_path) not in str(told.value)
    phase.files[0].unlink()
    with pytest.raises(SourceError):
        convert(phase, tmp_path / "out" / "x.nii.gz")
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path / "tmp") == []
    monkeypatch.setattr(conversion.subprocess, "run", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(replace(phase, slices=phase.slices[1:]), tmp_path / "out" / "x.nii.gz")
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path / "tmp") == []


def test_what_the_program_says_of_the_patient_is_not_repeated(tmp_path, phantom_exam, monkeypatch):
    volumes, affine = phantom_exam
    made.save(made.exam("Doe4711", volumes, affine, description="dyn for Jane"), tmp_path / "in")
    says = tmp_path / "program"
    says.write_text("#!/bin/sh\necho Convert Doe4711\necho Error: no 20190304 of dyn for Jane, /a/Doe4711/x\nexit 3\n")
    says.chmod(0o755)
    monkeypatch.setattr(conversion, "program", lambda: str(says))
    with pytest.raises(SourceError) as told:
        convert(phases_of(scan(tmp_path / "in"))[0], tmp_path / "out" / "x.nii.gz")
    assert str(told.value) == "dcm2niix failed (exit code 3): Error: no ... of ..., ..."
    says.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(conversion, "LONGEST_SECONDS", 0.1)
    with pytest.raises(SourceError, match="took longer"):
        convert(phases_of(scan(tmp_path / "in"))[0], tmp_path / "out" / "x.nii.gz")


def _interrupted(*_, **__):
    raise KeyboardInterrupt
