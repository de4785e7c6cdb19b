"""The phantom: files a scanner could have written, whose labels can be read where they are said to be, only there."""

from __future__ import annotations

import csv
import inspect
import json

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from mgkeras.data.volume import load_volume
from mgkeras.phantom.case import SPOT_GAP_MM, draw_case
from mgkeras.phantom.cohort import FORMAT, make_phantom, phantom_folder, phantom_traps, phases_with_trap

SUBJECTS = 60
SIDE = 48


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A trap with a strong texture: cohort.csv's path."""
    out = tmp_path_factory.mktemp("phantom")
    return make_phantom(out, subjects=SUBJECTS, side=SIDE, seed=3, traps=["spot"], texture=1.0)


@pytest.fixture(scope="module")
def exams(cohort):
    """(row of cohort.csv, row of truth.csv, pre, early, late, mask as nibabel images) of each subject."""
    out = cohort.parent
    return [
        (
            row,
            truth,
            *(nibabel.load(out / row[phase]) for phase in ("pre", "early", "late")),
            nibabel.load(out / "truth" / f"{row['subject']}.nii.gz"),
        )
        for row, truth in zip(rows(cohort), rows(out / "truth" / "truth.csv"), strict=True)
    ]


@pytest.fixture(scope="module")
def measured(exams):
    """What a person with a ruler reads off each exam: arrays by name."""
    found = []
    for row, truth, pre, early, _, mask in exams:
        inside = np.asarray(mask.dataobj) > 0
        before, after = (np.asarray(image.dataobj).astype(float) for image in (pre, early))
        enhancement = (after[inside] - before[inside]) / before[inside]
        found.append(
            {
                "recurrence": int(row["recurrence"]),
                "her2": int(truth["her2"]),
                "volume": float(truth["volume_mm3"]),
                "enhancement": enhancement.mean(),
                "intensity": after[inside].mean(),
                "above": (enhancement > 0.7).mean(),
                "rim": rim_contrast(inside, enhancement),
                "lobes": lobedness(inside, mask.affine),
            }
        )
    return {name: np.array([row[name] for row in found]) for name in found[0]}


def rim_contrast(inside, enhancement):
    """Enhancement of the outer half over that of the innermost fifth; 1 if homogeneous."""
    depth = ndimage.distance_transform_edt(inside)[inside]
    order = np.argsort(depth, kind="stable")
    outer, inner = order[: len(order) // 2], order[-len(order) // 5 :]
    return enhancement[outer].mean() / enhancement[inner].mean()


def lobedness(inside, affine):
    """How far the farthest points of the largest tumour are, against an ellipsoid's with the same moments: 1."""
    labels, _ = ndimage.label(inside)
    points = nibabel.affines.apply_affine(affine, np.argwhere(labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1))
    points = points - points.mean(0)
    distance = np.sqrt((points @ np.linalg.inv(np.cov(points.T)) * points).sum(1))
    return np.percentile(distance, 99) / np.sqrt(5)


def test_same_seed_same_bytes(tmp_path):
    first, second, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    for out, seed in ((first, 5), (second, 5), (other, 6)):
        make_phantom(out, subjects=2, side=16, seed=seed)
    assert files(first) == files(second)
    assert files(first).keys() == files(other).keys()
    assert files(first) != files(other)


def test_gzip_headers_hold_neither_time_nor_name(cohort):
    for path in (cohort.parent / "images").iterdir():
        header = path.read_bytes()[:8]
        assert header[3] == 0 and header[4:8] == bytes(4), path


def test_a_subject_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    make_phantom(few, subjects=2, side=16, seed=1)
    make_phantom(many, subjects=5, side=16, seed=1)
    for name, content in files(few).items():
        assert files(many)[name] == content or name.endswith(".csv")
    assert rows(many / "cohort.csv")[:2] == rows(few / "cohort.csv")


def test_a_finer_scan_is_of_the_same_patient(tmp_path):
    coarse = make_phantom(tmp_path / "coarse", subjects=3, side=32, seed=2)
    fine = make_phantom(tmp_path / "fine", subjects=3, side=64, seed=2)
    assert rows(coarse) == rows(fine)
    for a, b in zip(*(rows(path.parent / "truth" / "truth.csv") for path in (coarse, fine)), strict=True):
        assert float(a["volume_mm3"]) == pytest.approx(float(b["volume_mm3"]), rel=0.06)
        assert float(b["diameter_voxels"]) == pytest.approx(2 * float(a["diameter_voxels"]), abs=0.2)


def test_files_are_what_scanners_write(exams):
    for _, truth, pre, early, late, mask in exams:
        assert pre.get_data_dtype() == early.get_data_dtype() == late.get_data_dtype() == np.int16
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
        for image in (pre, late, mask):
            assert image.shape == early.shape
            np.testing.assert_array_equal(image.affine, early.affine)
        np.testing.assert_allclose(early.get_qform(), early.affine, atol=1e-3)
        assert "".join(nibabel.aff2axcodes(early.affine)) == truth["axes"]
        assert max(early.header.get_zooms()) > 1.2 * min(early.header.get_zooms())
        assert max(np.array(early.shape) * early.header.get_zooms()) == pytest.approx(96, abs=3)
        assert max(early.shape) == SIDE


def test_axis_orders_and_oblique_affines_differ(exams):
    assert {truth["axes"] for _, truth, *_ in exams} == {"LPS", "LAS", "PSR", "RSA"}
    oblique = 0
    for _, truth, _, early, *_ in exams:
        off_axis = np.sort(np.abs(early.affine[:3, :3] / early.header.get_zooms()), axis=0)[:2].max() > 0.01
        assert off_axis == (float(truth["oblique_degrees"]) > 0)
        oblique += off_axis
    assert oblique == SUBJECTS // 2


def test_the_whole_tumour_enhances_beyond_the_gate(measured):
    assert measured["above"].min() >= 0.95


def test_little_else_that_is_large_does(exams):
    for _, _, pre, early, _, mask in exams:
        before, after = (np.asarray(image.dataobj).astype(float) for image in (pre, early))
        tissue = (after > 0.3 * np.percentile(after, 99)) & ~ndimage.binary_dilation(np.asarray(mask.dataobj) > 0)
        gated = tissue & (after - before > 0.7 * before)
        assert 0 < gated.sum() < 0.02 * tissue.sum()  # vessels, but thin


def test_labels_are_in_texture_and_shape(measured):
    assert roc_auc_score(measured["recurrence"], measured["rim"]) > 0.95
    assert roc_auc_score(measured["her2"], measured["lobes"]) > 0.95


@pytest.mark.parametrize("what", ["volume", "enhancement", "intensity"])
@pytest.mark.parametrize("label", ["recurrence", "her2"])
def test_labels_are_not_in_size_or_mean_intensity(measured, label, what):
    assert 0.3 < roc_auc_score(measured[label], measured[what]) < 0.7


def test_texture_is_the_rims_contrast(tmp_path):
    contrast = []
    for texture in (0.0, 0.5, 1.0):
        path, ratios = make_phantom(tmp_path / str(texture), subjects=8, side=SIDE, seed=3, texture=texture), []
        for row in rows(path):
            mask, pre, early = (
                np.asarray(nibabel.load(path.parent / name).dataobj).astype(float)
                for name in (f"truth/{row['subject']}.nii.gz", row["pre"], row["early"])
            )
            if row["recurrence"] == "1":
                inside = mask > 0
                ratios.append(rim_contrast(inside, early[inside] / pre[inside] - 1))
        contrast.append(np.mean(ratios))
    assert contrast[0] == pytest.approx(1, abs=0.12)  # a voxel at the edge is half fat
    assert contrast[0] + 0.08 < contrast[1] < contrast[2] - 0.08


def test_washout_goes_with_her2(exams):
    for _, truth, _, early, late, mask in exams:
        inside = np.asarray(mask.dataobj) > 0
        later = np.asarray(late.dataobj)[inside].mean() / np.asarray(early.dataobj)[inside].mean()
        assert (later < 0.95) == (truth["her2"] == "1")


def test_spot_is_bright_before_and_after_contrast_and_far_from_the_tumour(exams):
    spots = 0
    for index, (row, truth, pre, early, _, mask) in enumerate(exams):
        case = draw_case(3, index, ["spot"])
        spot = case.traps["spot"]
        assert row["subject"] == case.name and int(truth["spot"]) == spot
        place = np.linalg.inv(early.affine) @ [*(case.spot_centre + case.place), 1]
        here = tuple(np.rint(place[:3]).astype(int))
        before, after = (float(np.asarray(image.dataobj)[here]) for image in (pre, early))
        bright = 1.4 * np.percentile(np.asarray(pre.dataobj), 98)
        assert (before > bright) == spot
        if spot:
            spots += 1
            assert after == pytest.approx(before, rel=0.1)
            tumour = nibabel.affines.apply_affine(early.affine, np.argwhere(np.asarray(mask.dataobj)))
            gap = np.linalg.norm(tumour - case.spot_centre - case.place, axis=1).min() - case.spot_radius
            assert gap > SPOT_GAP_MM - 3  # half a voxel's diagonal, since voxels' centres are measured
    assert 0.3 * SUBJECTS < spots < 0.6 * SUBJECTS


def test_shares_are_as_documented(exams):
    table = [row for row, *_ in exams]
    assert sum(row["her2"] == "" for row in table) == SUBJECTS // 20
    for outcome in ("recurrence", "her2"):
        known = [int(row[outcome]) for row in table if row[outcome]]
        assert 0.36 < np.mean(known) < 0.54
    two = [truth for _, truth, *_ in exams if truth["tumours"] == "2"]
    assert len(two) == 3 * SUBJECTS // 20
    assert all(ndimage.label(np.asarray(mask.dataobj))[1] == int(truth["tumours"]) for _, truth, *_, mask in exams)
    assert {row["site"] for row in table} == {"north", "south"}
    assert all(18 <= int(row["age"]) <= 90 for row in table)


def test_a_few_subjects_already_have_both_classes():
    for seed in range(10):
        for outcome in ("recurrence", "her2"):
            positive = sum(getattr(draw_case(seed, index), outcome) for index in range(8))
            assert 2 <= positive <= 4


def test_truth_is_beside_the_cohort(cohort):
    assert list(rows(cohort)[0]) == ["subject", "pre", "early", "late", "site", "age", "recurrence", "her2"]
    for truth in rows(cohort.parent / "truth" / "truth.csv"):
        assert float(truth["diameter_cells"]) == pytest.approx(float(truth["diameter_voxels"]) / 8, abs=0.02)
        assert 9 <= float(truth["diameter_voxels"]) <= 14


# --- what a phantom remembers


def test_a_phantom_remembers_what_it_was_made_from(cohort):
    made_from = json.loads((cohort.parent / "truth" / "phantom.json").read_text())
    assert made_from == {
        "format": FORMAT,
        "seed": 3,
        "side": SIDE,
        "traps": ["spot"],
        "agreement": 0.95,
        "texture": 1.0,
        "size_with_label": 0.0,
    }
    spots = {f"P{i:04d}": draw_case(3, i, ["spot"]).traps["spot"] for i in range(SUBJECTS)}
    assert phantom_traps(cohort.parent) == {"spot": spots}
    assert phantom_folder(cohort.parent / rows(cohort)[0]["early"]) == cohort.parent


def test_what_is_no_phantom_is_not_scanned_again(tmp_path):
    (tmp_path / "images").mkdir()
    assert phantom_traps(tmp_path) is None and phantom_folder(tmp_path / "images" / "P0000_early.nii.gz") is None
    cohort = make_phantom(tmp_path, subjects=1, side=16)
    assert phantom_folder(tmp_path / "elsewhere" / "P0000_early.nii.gz") is None
    assert phantom_traps(tmp_path) == {}
    shape = load_volume(tmp_path / rows(cohort)[0]["early"]).data.shape
    assert phases_with_trap(tmp_path, "P0000", "spot", True)["early"].data.shape == shape
    with pytest.raises(ValueError, match="Received: P0001"):
        phases_with_trap(tmp_path, "P0001", "spot", True)
    with pytest.raises(ValueError, match="must be of spot, marker, .*Received: 'ghost'"):
        phases_with_trap(tmp_path, "P0000", "ghost", True)
    path = tmp_path / "truth" / "phantom.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    assert phantom_traps(tmp_path) is None
    with pytest.raises(ValueError, match="that this version wrote"):
        phases_with_trap(tmp_path, "P0000", "spot", True)


def test_an_interrupted_phantom_does_not_say_what_it_was_made_from(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    make_phantom(tmp_path, subjects=2, side=16, seed=1)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path, subjects=2, side=16, seed=2, progress=stop)
    assert phantom_traps(tmp_path) is None and not (tmp_path / "cohort.csv").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": 0},
        {"side": 8},
        {"agreement": 1.5},
        {"texture": -0.1},
        {"seed": -1},
        {"size_with_label": 1.1},
        {"traps": ["ghost"]},
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*Received"):
        make_phantom(tmp_path, **wrong)


def test_another_cohort_is_not_overwritten(tmp_path):
    (tmp_path / "cohort.csv").write_text("subject,pre,early\n")
    with pytest.raises(FileExistsError, match="Name a new folder"):
        make_phantom(tmp_path, subjects=1, side=16)
    assert (tmp_path / "cohort.csv").read_text() == "subject,pre,early\n"


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    make_phantom(tmp_path, subjects=3, side=16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_command_writes_a_cohort_and_names_what_is_next(tmp_path):
    from cli.phantom import command

    runner = CliRunner()
    options = ["--subjects", "3", "--side", "16", "--trap", "site", "--trap", "spot", "--agreement", "1"]
    result = runner.invoke(command, [str(tmp_path / "out"), *options, "--size-with-label", "1"])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "cohort.csv") in result.output.splitlines()
    assert "mgkeras fit" in result.output
    for index, truth in enumerate(rows(tmp_path / "out" / "truth" / "truth.csv")):
        case = draw_case(0, index, ["spot", "site"], 1.0, 1.0)
        assert truth["spot"] == truth["site"] == str(case.recurrence)
        assert float(truth["diameter_mm"]) == pytest.approx(2 * case.tumours[0].radius, abs=0.06)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cohort.csv").write_text("subject\n")
    refused = runner.invoke(command, [str(tmp_path / "mine")])
    assert refused.exit_code == 1 and "Name a new folder" in refused.output


def test_command_has_every_option_of_the_library(tmp_path):
    from cli.phantom import command

    options = {parameter.name for parameter in command.params if parameter.expose_value}
    assert options == set(inspect.signature(make_phantom).parameters) - {"texture", "progress"}
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")


def test_the_command_says_what_became_of_shortcut(tmp_path):
    from cli.phantom import command

    for given in ("0.95", "often"):
        refused = CliRunner().invoke(command, [str(tmp_path / "out"), "--shortcut", given])
        assert refused.exit_code == 2 and "--shortcut is now --trap spot --agreement P" in refused.output
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(command, [str(tmp_path / "out"), "--trap", "ghost"])
    assert refused.exit_code == 2 and "spot" in refused.output and "enhancement" in refused.output
