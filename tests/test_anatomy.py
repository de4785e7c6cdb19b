"""Masks, cubes, a fit and its maps on real anatomy (anatomy.py says what of it is real)."""

from __future__ import annotations

import csv

import anatomy
import nibabel as nib
import numpy as np
import pytest

from mgkeras.data.cache import exam_cube
from mgkeras.data.checks import ERROR
from mgkeras.data.cohort import open_cohort
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import load_volume
from mgkeras.settings import preset

pytestmark = pytest.mark.skipif(bool(anatomy.missing()), reason=anatomy.missing())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """cohort.csv of 20 subjects."""
    return anatomy.make_anatomy(tmp_path_factory.mktemp("anatomy") / "cohort", subjects=20)


@pytest.fixture(scope="module")
def exams(table):
    """(early phase, mask that was made, true mask) of each subject."""
    cohort, _ = open_cohort(table)
    truth = [load_volume(table.parent / "truth" / f"{subject.name}.nii.gz").data > 0 for subject in cohort.subjects]
    made = [subject_mask(subject, preset("demo").mask) for subject in cohort.subjects]
    return [(early, mask.mask, true) for (early, mask), true in zip(made, truth, strict=True)]


def test_measured_enhancement_is_that_of_a_breast():
    measured = anatomy.measured_enhancement(anatomy.SHARED / anatomy.CURVES)
    assert measured.shape == (15,)
    assert 0.4 < measured[0] < 0.7 < np.median(measured) < measured[-1] < 1.5  # the weakest voxel is below the gate


def test_cohort_has_no_errors(table):
    cohort, problems = open_cohort(table, folds=2)
    assert not [problem for problem in problems if problem.severity == ERROR]
    assert [subject.label for subject in cohort.subjects] == [0, 1] * 10


def test_tumours_have_the_size_that_they_should(exams):
    for early, _, true in exams:
        sides = [np.ptp(places) + 1 for places in np.nonzero(true)] * early.zooms
        assert 15 <= sides.max() <= 30


def test_masks_find_the_true_tumours(exams):
    dice = np.array([2 * (made & true).sum() / (made.sum() + true.sum()) for _, made, true in exams])
    print(f"Dice {dice.mean():.3f} (SD {dice.std():.3f}, lowest {dice.min():.3f})")
    assert dice.mean() >= 0.78
    assert dice.min() >= 0.5


def test_cube_keeps_the_tumour(exams):
    settings = preset("demo")
    for early, made, _ in exams:
        image, inside, frame = exam_cube(early, made, settings)
        assert image.shape == inside.shape == (settings.volume.side,) * 3
        kept = inside.sum() * frame.voxel_mm**3 / (made.sum() * np.prod(early.zooms))
        assert 0.6 < kept < 1.4
        assert image[inside].mean() > image[image > 0.5].mean()  # it is where the image enhances
        centre = (
            np.argwhere(inside).mean(axis=0) @ frame.affine(early.affine)[:3, :3].T + frame.affine(early.affine)[:3, 3]
        )
        expected = np.argwhere(made).mean(axis=0) @ early.affine[:3, :3].T + early.affine[:3, 3]
        assert np.linalg.norm(centre - expected) < frame.voxel_mm


# ---- the whole way by the command line: minutes ----------------------------------------------------------------------


@pytest.mark.slow
def test_mask_fit_predict_on_real_anatomy(table, tmp_path):
    from click.testing import CliRunner
    from mgkeras.cli.main import cli

    def run(*words):
        outcome = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output

    masks, fitted, predicted = tmp_path / "m", tmp_path / "run", tmp_path / "p"
    run("mask", table, "--out", masks)
    run(
        "fit",
        "--model",
        "guided",
        "--cohort",
        masks / "cohort.csv",
        "--preset",
        "demo",
        "--folds",
        2,
        "--epochs",
        2,
        "--side",
        32,
        "--out",
        fitted,
        "--cache",
        tmp_path / "c",
    )
    run("predict", fitted, "--cohort", masks / "cohort.csv", "--out", predicted)
    with open(predicted / "predictions.csv", encoding="utf-8", newline="") as file:
        names = [row["subject"] for row in csv.DictReader(file)]
    cohort, _ = open_cohort(table)
    assert names == [subject.name for subject in cohort.subjects]
    for subject in cohort.subjects:
        found, early = nib.load(predicted / "maps" / f"{subject.name}.nii.gz"), nib.load(subject.early)
        assert found.shape == early.shape
        np.testing.assert_allclose(found.affine, early.affine, atol=1e-4)
        values = found.get_fdata()
        assert np.isfinite(values).all() and np.ptp(values) > 0  # signed: for the predicted class, or against it
