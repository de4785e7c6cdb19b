"""Exams whose field of view is not like that of the exams a run was trained on: predict tells them."""

import json
import math
import warnings

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli

import mgkeras
from mgkeras.errors import InputError
from mgkeras.runs.exams import field_of_view, unlike
from mgkeras.runs.store import RunError, write_json
from mgkeras.serving.client import read_preprocessing
from mgkeras.serving.export import export_run


def predicted(run, table, out):
    found = CliRunner().invoke(cli, ["predict", str(run), "--cohort", str(table), "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    return found, json.loads(found.stdout)


def test_an_exam_of_another_field_of_view_is_named(plain, cohort, tmp_path):
    own = nib.load(cohort.subjects[0].early_file)
    for name, times in (("like", 1.05), ("small", 0.3), ("large", 2.0)):
        affine = own.affine @ np.diag([times, times, times, 1.0])
        nib.save(nib.Nifti1Image(np.asarray(own.dataobj), affine), tmp_path / f"{name}.nii.gz")
    table = tmp_path / "cohort.csv"
    table.write_text("subject,early\n" + "".join(f"{name},{name}.nii.gz\n" for name in ("like", "small", "large")))
    found, answer = predicted(plain[0], table, tmp_path / "out")
    low, high = field_of_view(plain[0])
    assert low == high == pytest.approx(96)
    assert answer["unlike"] == pytest.approx({"small": 28.8, "large": 192}, rel=1e-3)
    assert "field of view of 2 exams" in found.stderr and "small (29 mm), large (192 mm)" in found.stderr
    assert "trained on, 96 mm:" in found.stderr and "like (" not in found.stderr.replace("unlike", "")


def test_python_warns_of_one(plain, cohort):
    own, run = nib.load(cohort.subjects[0].early_file), mgkeras.load_run(plain[0])
    voxels, large = np.asarray(own.dataobj), own.affine @ np.diag([2.0, 2, 2, 1])
    with pytest.warns(UserWarning, match=r"192 mm.*trained on, 96 mm"):
        run.predict(voxels, affine=large)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run.predict(voxels, affine=own.affine)


def test_an_export_tells_it(plain, tmp_path):
    """So that a client of a server names such exams too."""
    made = export_run(plain[0], tmp_path / "served").path
    path = made / "preprocessing.json"
    assert read_preprocessing(path).trained_on == pytest.approx((96, 96))
    assert "trained on is 96 mm" in (made / "model-card.md").read_text()
    about = json.loads(path.read_text())
    for given, expected in (([60.0, 80.0], (60.0, 80.0)), (None, None)):
        about["cube"]["trained_on_mm"] = given
        write_json(path, about)
        assert read_preprocessing(path).trained_on == expected
    del about["cube"]["trained_on_mm"]  # as exports of before
    write_json(path, about)
    assert read_preprocessing(path).trained_on is None
    for wrong in ("wide", [1.0], [2.0, 1.0, 3.0], {"low": 1.0}, [3.0, 1.0], [0.0, 1.0], [1.0, math.inf]):
        about["cube"]["trained_on_mm"] = wrong
        path.write_text(json.dumps(about))
        with pytest.raises(RunError, match="preprocessing.json"):
            read_preprocessing(path)


def test_a_run_of_before_says_nothing(plain, tmp_path):
    fold = tmp_path / "fold_0"
    fold.mkdir()
    write_json(fold / "done.json", {"fold": 0})
    assert field_of_view(tmp_path) is None and not unlike(30.0, None)
    write_json(fold / "done.json", {"fold": 0, "field_of_view_mm": "wide"})
    with pytest.raises(InputError, match="done.json"):
        field_of_view(tmp_path)
    write_json(fold / "done.json", {"fold": 0, "field_of_view_mm": None})
    assert field_of_view(tmp_path) is None
    write_json(fold / "done.json", {"fold": 0, "field_of_view_mm": [None, 96.0]})
    with pytest.raises(InputError, match="done.json"):
        field_of_view(tmp_path)


@pytest.mark.parametrize(("mm", "expected"), [(89, True), (91, False), (100, False), (219, False), (221, True)])
def test_a_tenth_beyond_the_range_is_told(mm, expected):
    assert unlike(mm, (100.0, 200.0)) is expected
