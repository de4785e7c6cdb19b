"""Runs from Python: mgkeras.load_cohort, fit, load_run and Run, against the command line's files."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mgkeras
from mgkeras.data.augment import ORIENTATIONS, apply_variant, undone
from mgkeras.data.cohort import CohortError
from mgkeras.data.volume import ExamError
from mgkeras.inference.score import cube_of
from mgkeras.runs import store
from mgkeras.training import api

SETTINGS = {"folds": 2, "epochs": 1, "side": 16, "batch_size": 4, "shift_voxels": 1}


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """A run made from Python."""
    home = tmp_path_factory.mktemp("api")
    cohort = mgkeras.load_cohort(phantom, "recurrence")
    lines = []
    made = mgkeras.fit(
        cohort, "no-mask", out=home / "run", start="demo", cache=home / "cache", progress=lines.append, **SETTINGS
    )
    assert any("fold 2/2" in line for line in lines)
    return made


def test_a_run_is_read_as_numbers(run):
    assert {row["split"] for row in run.predictions} == {"held-out", "train"}
    held = [row for row in run.predictions if row["split"] == "held-out"]
    assert len(held) == 12 and all(0 <= row["probability"] <= 1 and row["label"] in (0, 1) for row in held)
    assert len(run.attention) == 12 and isinstance(run.attention[0]["mass_in_mask"], float)
    assert [(row["fold"], row["epoch"]) for row in run.history] == [(0, 1), (1, 1)]
    assert run.summary["subjects"] == 12 and run.settings.volume.side == 16
    assert "no-mask on recurrence" in repr(run)


def test_fit_again_trains_nothing_and_other_settings_are_refused(run, phantom, caplog, capfd):
    cohort = mgkeras.load_cohort(phantom, "recurrence")
    options = {"out": run.path, "start": "demo", "cache": run.path.parent / "cache"}
    before = (run.path / "fold_0/weights.h5").read_bytes()
    with caplog.at_level("INFO", logger="mgkeras"):
        assert mgkeras.fit(cohort, "no-mask", **options, **SETTINGS).path == run.path
    assert any("fold 1 was finished before" in line for line in caplog.messages)
    assert capfd.readouterr().out == ""
    assert (run.path / "fold_0/weights.h5").read_bytes() == before
    with pytest.raises(store.RunError, match="training.epochs: 1 in the folder, 2 asked for"):
        mgkeras.fit(cohort, "no-mask", **options, **SETTINGS | {"epochs": 2})
    with pytest.raises(TypeError, match="lambda_dice.*Received: lamda"):
        mgkeras.fit(cohort, lamda=3)
    with pytest.raises(ValueError, match="model must be one of"):
        mgkeras.fit(cohort, "resnet")
    with pytest.raises(ValueError, match="each of 50 folds"):  # before a folder is claimed
        mgkeras.fit(cohort, folds=50, out=run.path.parent / "many")
    assert not (run.path.parent / "many").exists()


def test_an_exam_is_predicted_as_the_command_line_does(run, cohort, tmp_path):
    subject = cohort.subjects[3]
    found = run.predict(subject.early)
    rows = run.predict_cohort(mgkeras.load_cohort(cohort.path, predict=True), tmp_path / "out")
    assert rows["subjects"] == 12
    theirs = {row["subject"]: row for row in store.read_rows(tmp_path / "out/predictions.csv")}[subject.name]
    assert found.probability == pytest.approx(float(theirs["probability"]), abs=1e-6)
    assert found.fold_probabilities.shape == (2,) and found.predicted == int(theirs["predicted"])
    image = nib.load(tmp_path / "out/maps" / f"{subject.name}.nii.gz")
    assert np.allclose(found.map, image.get_fdata(), atol=1e-5) and np.allclose(found.affine, image.affine)


def test_voxels_in_any_orientation_give_the_map_on_their_own_grid(run, cohort):
    image = nib.load(cohort.subjects[0].early)
    whole = run.predict(cohort.subjects[0].early)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
    turned = turned.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
    found = run.predict(np.asarray(turned.dataobj), affine=turned.affine)
    assert found.probability == pytest.approx(whole.probability, abs=1e-6)
    back = nib.as_closest_canonical(nib.Nifti1Image(found.map, found.affine)).get_fdata()
    there = nib.as_closest_canonical(nib.Nifti1Image(whole.map, whole.affine)).get_fdata()
    assert np.allclose(back, there, atol=1e-5)
    literal = run.predict(cohort.subjects[0].early, kind="class")
    assert np.abs(literal.map - whole.map).max() > 0


def test_the_mean_over_rotations_is_the_same_of_a_rotated_exam(run, cohort):
    """Rotating a cube permutes its 24 rotations: mean and spread stay, and the map turns with it."""
    image = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    each, cells = api.score_cube(image, run._forwards, tta=True)
    assert each.shape == (2, 24) and np.ptp(each) > 0
    for variant in ORIENTATIONS[::5]:
        turned, back = api.score_cube(apply_variant(image[None], variant, 0), run._forwards, tta=True)
        assert np.allclose(np.sort(turned, axis=1), np.sort(each, axis=1), atol=1e-5)
        assert np.allclose(back, apply_variant(cells[None], variant, 0), atol=1e-4 * np.abs(cells).max())
        assert np.array_equal(undone(apply_variant(cells[None], variant, 0), variant), cells)
    found = run.predict(cohort.subjects[0].early, tta=True)
    assert found.fold_probabilities.shape == (2, 24) and found.spread == pytest.approx(found.fold_probabilities.std())
    plain = run.predict(cohort.subjects[0].early)
    assert plain.fold_probabilities == pytest.approx(found.fold_probabilities[:, 0], abs=1e-6)


def test_what_predict_cannot_use_is_said(run, cohort, small):
    voxels = np.ones((4, 4, 4), np.float32)
    with pytest.raises(ExamError, match=r"affine=.*Received: shape \(4, 4, 4\), affine None"):
        run.predict(voxels)
    with pytest.raises(ExamError, match="mask on the exam's grid"):
        run.predict(cohort.subjects[0].early, mask=voxels, affine=np.eye(4))
    with pytest.raises(ValueError, match="kind must be"):
        run.predict(cohort.subjects[0].early, kind="heat")
    with pytest.raises(store.RunError, match="expected a file of a run"):
        mgkeras.load_run("nowhere")


def test_a_cohort_is_checked_when_it_is_loaded(phantom, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("subject,pre,early,recurrence\na,missing.nii.gz,missing.nii.gz,1\n")
    with pytest.raises(CohortError):
        mgkeras.load_cohort(table, "recurrence")


def test_a_mask_only_run_needs_a_mask(phantom, tmp_path):
    cohort = mgkeras.load_cohort(phantom, "recurrence")
    made = mgkeras.fit(cohort, "mask-only", out=tmp_path / "run", start="demo", cache=tmp_path / "cache", **SETTINGS)
    with pytest.raises(ExamError, match="a mask-only run needs the tumour's mask"):
        made.predict(cohort.subjects[0].early)
    truth = phantom.parent / "truth" / f"{cohort.subjects[0].name}.nii.gz"
    found = made.predict(cohort.subjects[0].early, mask=truth)
    subject = cohort.subjects[0]
    image, _ = cube_of(type(subject)(subject.name, subject.early, mask=truth), made.settings)
    assert found.fold_probabilities == pytest.approx(api.score_cube(image, made._forwards)[0], abs=1e-6)


def test_the_examples_in_docstrings_run(run, phantom, tmp_path):
    names = {"mgkeras": mgkeras, "RUN": run.path, "COHORT": phantom, "OUT": tmp_path / "fitted"}
    tests = [test for test in doctest.DocTestFinder().find(api, extraglobs=names) if test.examples]
    assert len(tests) == 2
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


PAGES = Path(__file__).resolve().parents[1] / "README.md", Path(__file__).resolve().parents[1] / "docs/python.md"
SMALLER = {  # what a test cannot wait for, and what it does instead
    "(64, 64, 64, 1)": "(16, 16, 16, 1)",
    "(32, 32, 32, 1)": "(16, 16, 16, 1)",
    "batch_size=8, epochs=20": "batch_size=2, epochs=1",
    'model="guided", epochs=60': 'model="no-mask", epochs=1, start="demo", side=16, folds=2, out="runs/made"',
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_python_that_is_told_runs(page, run, phantom, cohort, tmp_path, monkeypatch):
    """Every block of a page, in order, with data and a run of their names in the working folder."""
    import keras
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, "runs/recurrence-guided")
    shutil.copy(cohort.subjects[0].early, "A001_early.nii.gz")
    shutil.copytree(phantom.parent, ".", dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    volumes, masks = rng.random((4, 16, 16, 16, 1)).astype("float32"), rng.random((4, 16, 16, 16)) < 0.1
    labels = np.array([0, 1, 0, 1])
    data = tf.data.Dataset.from_tensor_slices(({"volume": volumes, "mask": masks}, labels)).batch(2)
    inputs = keras.Input((16, 16, 16, 1))
    x = keras.layers.Activation("relu", name="conv5_out")(keras.layers.Conv3D(4, 3)(inputs))
    x = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling3D()(x))
    names = {
        "train": data,
        "val": data,
        "volumes": volumes,
        "masks": masks,
        "labels": labels,
        "resnet": keras.Model(inputs, x),
        "array": np.asarray(nib.load("A001_early.nii.gz").dataobj),
        "affine": nib.load("A001_early.nii.gz").affine,
    }
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        for long, short in SMALLER.items():
            block = block.replace(long, short)
        exec(compile(block, page.name, "exec"), names)
    assert names["maps"].shape == (4, 2, 2, 2, 2) and isinstance(names["own"], mgkeras.MaskGuided)
    assert isinstance(names["run"], mgkeras.Run)
