"""Maps and masks as DICOM: the right values at the right places of the patient, and whom they refer to."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli
from miniatures import dicom as made

from mgkeras.data.cohort import Cohort, Subject
from mgkeras.data.volume import load_volume, save_like
from mgkeras.importers.dicom_results import write_results
from mgkeras.importers.found import SourceError
from mgkeras.importers.series import read_headers, split

hd = pytest.importorskip("highdicom", reason="DICOM results need highdicom: pip install 'mgkeras[dicom]'")

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
GE = SHARED / "dicom_ge"
MM = np.array([0.01, -0.1, 1.0])  # per mm to the right, front and top: no two axes can be exchanged unseen


def exam(home, early, name="A1"):
    """A subject with an early phase, a map that is linear in the patient's mm, and a mask off the middle."""
    affine = early.affine
    home.mkdir(parents=True, exist_ok=True)
    nib.save(early, home / "early.nii.gz")
    volume = load_volume(home / "early.nii.gz")
    index = np.stack(np.indices(volume.data.shape), -1)
    places = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    save_like(home / "early.nii.gz", (places @ MM).astype(np.float32), home / "maps" / f"{name}.nii.gz")
    mask = np.zeros(volume.data.shape, bool)
    mask[2:5, 3:9, 1:3] = True
    save_like(home / "early.nii.gz", mask, home / "mask.nii.gz")
    assert np.allclose(np.abs(np.linalg.det(affine)), np.abs(np.linalg.det(volume.affine)))
    return Subject(name, home / "early.nii.gz", mask=home / "mask.nii.gz"), volume, mask


def assert_right(home, subject, volume, mask, phase):
    """Frame by frame: places, values, units, references; and the files' geometry as highdicom reads it."""
    source = {image.uid: pydicom.dcmread(image.path, stop_before_pixels=True) for image in phase}
    first = next(iter(source.values()))
    for kind in ("map", "mask"):
        found = pydicom.dcmread(home / "out" / f"{subject.name}-{kind}.dcm")
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert found[name].value == first[name].value
        named = {
            reference.ReferencedSOPInstanceUID
            for reference in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        }
        assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
        assert named == set(source)
        pixels = found.pixel_array if kind == "mask" else np.frombuffer(found.FloatPixelData, "<f4")
        pixels = pixels.reshape(-1, found.Rows, found.Columns)
        shared = found.SharedFunctionalGroupsSequence[0]
        rows, columns = np.meshgrid(np.arange(found.Rows), np.arange(found.Columns), indexing="ij")
        for frame, own in zip(pixels, found.PerFrameFunctionalGroupsSequence, strict=True):
            groups = [group for group in (own, shared) if "PlaneOrientationSequence" in group]
            turned = np.array(groups[0].PlaneOrientationSequence[0].ImageOrientationPatient, float)
            start = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
            spacing = [float(number) for number in shared.PixelMeasuresSequence[0].PixelSpacing]
            step = columns[..., None] * spacing[1] * turned[:3] + rows[..., None] * spacing[0] * turned[3:]
            place = (start + step) * (-1, -1, 1)  # LPS+ to RAS+
            if kind == "map":
                assert np.abs(frame - place @ MM).max() < 2e-2  # positions are decimal strings of 16 characters
                continue
            inverse = np.linalg.inv(volume.affine)
            index = np.rint(place @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
            assert np.array_equal(frame > 0, mask[tuple(np.moveaxis(index, -1, 0))])
        image = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.allclose(source[image].ImagePositionPatient, start, atol=1e-3)
    units = pydicom.dcmread(home / "out" / f"{subject.name}-map.dcm").SharedFunctionalGroupsSequence[0]
    meaning = units.RealWorldValueMappingSequence[0]
    assert meaning.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert meaning.RealWorldValueSlope == 1 and meaning.LUTExplanation == "log-odds"
    geometry = hd.imread(home / "out" / f"{subject.name}-map.dcm").get_volume_geometry()
    assert np.isclose(abs(np.linalg.det(geometry.affine)), abs(np.linalg.det(volume.affine)), rtol=1e-3)
    segment = pydicom.dcmread(home / "out" / f"{subject.name}-mask.dcm").SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning.startswith("Neoplasm")


@pytest.mark.skipif(not GE.is_dir(), reason=f"no {GE}: set MGKERAS_SHARED_DATA")
def test_a_real_series_gets_a_map_and_a_mask_of_the_phase_that_t1_is(tmp_path):
    reference = nib.load(GE / "reference.nii")
    early = nib.Nifti1Image(np.asanyarray(reference.dataobj)[..., 3], reference.affine)
    subject, volume, mask = exam(tmp_path, early)
    shutil.copytree(GE / "series", tmp_path / "source" / "A1")
    assert not write_results([subject], tmp_path / "maps", tmp_path / "source", tmp_path / "out", about="log-odds")
    (series,) = read_headers(GE).series
    assert_right(tmp_path, subject, volume, mask, split(series)[3])


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy: it is of Debian's dicom3tools")
def test_a_validator_finds_no_error(tmp_path):
    _, volumes, affine = made.phantom_phases(0)
    files = made.exam("A1", volumes[:1], affine)
    for file in files:
        file.FrameOfReferenceUID = "1.2.3"
    made.save(files, tmp_path / "source")
    subject, *_ = exam(tmp_path, nib.Nifti1Image(volumes[0], affine))
    assert not write_results([subject], tmp_path / "maps", tmp_path / "source", tmp_path / "out", about="log-odds")
    for kind in ("map", "mask"):
        found = subprocess.run(["dciodvfy", tmp_path / "out" / f"A1-{kind}.dcm"], capture_output=True, text=True)
        assert {"map": "ParametricMap", "mask": "Segmentation"}[kind] in found.stderr
        assert not [line for line in found.stderr.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("index", [0, 3, 5])
def test_every_orientation_lies_where_the_source_does(tmp_path, index):
    """Found by the table of pseudonyms; several series, of which the second phase is the early phase."""
    _, volumes, affine = made.phantom_phases(index)
    files = made.exam("77", volumes, affine, "several-series")
    for file in files:
        file.FrameOfReferenceUID = "1.2.3"
    made.save(files, tmp_path / "source" / "any")
    subject, volume, mask = exam(tmp_path, nib.Nifti1Image(2.0 * volumes[1] + 7, affine))
    (tmp_path / "map.csv").write_text("pseudonym,patient_id\nA1,77\n")
    options = {"about": "log-odds", "keep_map": tmp_path / "map.csv"}
    assert not write_results([subject], tmp_path / "maps", tmp_path / "source", tmp_path / "out", **options)
    phases = [
        split(series)[0]
        for series in sorted(read_headers(tmp_path / "source").series, key=lambda series: -series.number)
    ]
    assert_right(tmp_path, subject, volume, mask, phases[1])


def test_what_is_not_the_exams_series_is_told(tmp_path):
    _, volumes, affine = made.phantom_phases(0)
    made.save(made.exam("A1", volumes, affine), tmp_path / "source")
    rng = np.random.default_rng(0)
    cases = {
        "A1": (rng.normal(size=volumes[0].shape), affine, "whose voxels are others"),
        "B2": (volumes[1], affine, "expected a folder B2"),
    }
    shifted = affine.copy()
    shifted[:3, 3] += 1.0
    for name, (data, grid, told) in cases.items():
        subject, *_ = exam(tmp_path / name, nib.Nifti1Image(data.astype(np.float32), grid), name)
        (found,) = write_results(
            [subject], tmp_path / name / "maps", tmp_path / "source", tmp_path / "out", about="log-odds"
        )
        assert told in found and found.startswith(name)
    subject, *_ = exam(tmp_path / "C", nib.Nifti1Image(volumes[1], shifted))
    (found,) = write_results([subject], tmp_path / "C" / "maps", tmp_path / "source", tmp_path / "out", about="x")
    assert "expected a series on the early phase's grid" in found and not list(tmp_path.glob("out/*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="expected DICOM images in"):
        write_results([subject], tmp_path, tmp_path / "empty", tmp_path / "out", about="x")


def test_predict_writes_them_beside_the_maps_and_tells_whom_it_could_not(tmp_path, monkeypatch):
    _, volumes, affine = made.phantom_phases(0)
    files = made.exam("A1", volumes, affine)
    for file in files:
        file.FrameOfReferenceUID = "1.2.3"
    made.save(files, tmp_path / "source")
    subject, *_ = exam(tmp_path / "out", nib.Nifti1Image(volumes[1], affine))
    found = {"failed": [], "seen": [], "unlike": {}, "scores": None, "subjects": 1, "map": "log-odds"}

    def predicted(*subjects):
        cohort = Cohort(tmp_path / "cohort.csv", "recurrence", subjects)
        found["scored"] = [subject.name for subject in subjects]
        monkeypatch.setattr("mgkeras.cli.predict._by_run", lambda *arguments: (cohort, found))
        (tmp_path / "cohort.csv").touch()
        options = [str(tmp_path), str(tmp_path / "cohort.csv"), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(cli, ["predict", *options, "--dicom", str(tmp_path / "source")])

    told = predicted(subject)
    assert told.exit_code == 0 and "which name the patients as it does" in told.output, told.output
    assert sorted(file.name for file in (tmp_path / "out" / "dicom").iterdir()) == ["A1-map.dcm", "A1-mask.dcm"]
    told = predicted(subject, replace(subject, name="B2"))
    assert told.exit_code == 1 and "error: no DICOM of B2: expected a folder B2" in told.output
    told = CliRunner().invoke(cli, ["predict", str(tmp_path), "x.csv", "--out", "y", "--keep-map", __file__])
    assert told.exit_code == 2
