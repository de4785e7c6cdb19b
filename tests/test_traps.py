"""The traps of a phantom: each changes what it says and nothing else, and agrees with recurrence as often as asked."""

from __future__ import annotations

import csv
from dataclasses import fields

import nibabel
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mgkeras.data.volume import load_volume
from mgkeras.phantom import traps
from mgkeras.phantom.case import draw_case, stream, with_state
from mgkeras.phantom.cohort import make_phantom, phantom_traps, phases_with_trap
from mgkeras.phantom.scan import NOISE, scan
from mgkeras.phantom.traps import TRAPS

SIDE = 24


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def scanned(case, side=SIDE, seed=0):
    """Phases as float64 arrays, mask, affine, and each voxel's place in the patient (x, y, z, 3) mm."""
    phases, mask, affine = scan(case, side, 0.6, stream(seed, 0, int(case.name[1:]), 1))
    at = np.moveaxis(np.indices(mask.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - case.place
    return {name: volume.astype(float) for name, volume in phases.items()}, mask, affine, at


def pair(trap, index, side=SIDE):
    """The same patient with a trap off and on: (off, on) as scanned gives them, and the case with it on."""
    off, on = (with_state(draw_case(0, index, [trap]), trap, state) for state in (False, True))
    return scanned(off, side), scanned(on, side), on


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """cohort.csv of 8 phantoms that have all seven traps."""
    return make_phantom(tmp_path_factory.mktemp("traps"), subjects=8, side=16, seed=6, traps=TRAPS, agreement=0.75)


# --- which patients


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.95, 1.0])
def test_a_trap_agrees_with_recurrence_as_often_as_asked(agreement):
    cases = [draw_case(7, index, TRAPS, agreement) for index in range(40)]
    for trap in TRAPS:
        agrees = [case.traps[trap] == bool(case.recurrence) for case in cases]
        assert np.mean(agrees) == pytest.approx(agreement, abs=0.01)
    assert all((case.site == "south") == case.traps["site"] for case in cases)


def test_several_traps_agree_each_for_itself():
    cases = [draw_case(1, index, TRAPS, 0.8) for index in range(200)]
    agrees = np.array([[case.traps[trap] == bool(case.recurrence) for trap in TRAPS] for case in cases])
    assert np.abs(agrees.mean(0) - 0.8).max() < 0.01
    together = np.corrcoef(agrees.T)
    assert np.abs(together[~np.eye(len(TRAPS), dtype=bool)]).max() < 0.25
    alone = [draw_case(1, index, ["near"], 0.8) for index in range(20)]
    assert [case.traps["near"] for case in alone] == [case.traps["near"] for case in cases[:20]]


def test_traps_move_no_other_random_number():
    changed = {"traps", "site", "code", "slice_axis", "thickness"}
    for index in range(12):
        none, all_ = draw_case(0, index), draw_case(0, index, TRAPS, 1.0)
        for field in fields(none):
            if field.name not in changed:
                assert repr(getattr(none, field.name)) == repr(getattr(all_, field.name)), field.name


def test_the_order_in_which_traps_are_named_does_not_matter(tmp_path):
    first = make_phantom(tmp_path / "one", subjects=2, side=16, traps=["noise", "spot", "noise"])
    second = make_phantom(tmp_path / "two", subjects=2, side=16, traps=("spot", "noise"))
    assert files(first.parent) == files(second.parent)
    assert traps.in_order("spot") == ("spot",)


def test_same_seed_same_bytes_and_a_subject_for_itself(every, tmp_path):
    again = make_phantom(tmp_path, subjects=2, side=16, seed=6, traps=TRAPS, agreement=0.75)
    before = files(every.parent)
    assert all(content == before[name] or name.endswith(".csv") for name, content in files(again.parent).items())
    assert rows(again) == rows(every)[:2]


# --- what the files say


def test_truth_has_a_column_for_each_trap(every):
    found = phantom_traps(every.parent)
    assert tuple(found) == TRAPS
    for index, truth in enumerate(rows(every.parent / "truth" / "truth.csv")):
        case = draw_case(6, index, TRAPS, 0.75)
        assert {trap: truth[trap] == "1" for trap in TRAPS} == case.traps
        assert case.traps == {trap: found[trap][case.name] for trap in TRAPS}
        assert (truth["near_gap_mm"] != "") == case.traps["near"] and (truth["spot_gap_mm"] != "") == case.traps["spot"]


def test_a_phantom_without_traps_has_no_columns_of_them(tmp_path):
    make_phantom(tmp_path, subjects=1, side=16)
    assert not set(rows(tmp_path / "truth" / "truth.csv")[0]) & {*TRAPS, "spot_gap_mm", "near_gap_mm"}
    assert phantom_traps(tmp_path) == {}


@pytest.mark.parametrize("trap", TRAPS)
def test_scanned_again_as_it_was_a_subject_has_the_voxels_of_its_file(every, trap):
    states, axes = phantom_traps(every.parent)[trap], set()
    for row, truth in zip(rows(every), rows(every.parent / "truth" / "truth.csv"), strict=True):
        name, file = row["subject"], load_volume(every.parent / row["early"])
        again = phases_with_trap(every.parent, name, trap, states[name])["early"]
        assert again.data.dtype == file.data.dtype and again.data.strides == file.data.strides
        np.testing.assert_array_equal(again.data, file.data, err_msg=name)
        np.testing.assert_array_equal(again.affine, file.affine)
        other = phases_with_trap(every.parent, name, trap, not states[name])["early"]
        assert other.data.shape != file.data.shape or (other.data != file.data).any()
        axes.add(truth["axes"])
    assert axes == {"LPS", "LAS", "PSR", "RSA"}


# --- what each changes


@pytest.mark.parametrize("trap", ["spot", "near"])
def test_a_ball_changes_its_own_voxels_alone(trap):
    for index in range(8):
        (off, mask, affine, at), (on, same, _, _), case = pair(trap, index)
        centre, radius = (
            (case.spot_centre, case.spot_radius) if trap == "spot" else (case.near_centre, case.near_radius)
        )
        reach, voxel = np.linalg.norm(at - centre, axis=-1), np.cbrt(abs(np.linalg.det(affine[:3, :3])))
        assert np.array_equal(mask, same)
        for phase in off:
            changed = off[phase] != on[phase]
            assert changed[reach < radius - voxel / 2].all()
            assert not changed[reach > radius + voxel / 2 + 0.01].any()
            assert not changed[mask].any()
        inside = reach < radius - voxel / 2
        if inside.any():
            assert on["early"][inside].min() > 1.4 * np.percentile(off["early"], 98)
            assert on["early"][inside].mean() == pytest.approx(on["pre"][inside].mean(), rel=0.05)


def test_near_is_just_outside_the_tumour_and_in_the_breast():
    for index in range(40):
        case = draw_case(1, index)
        assert traps.NEAR_GAPS_MM[0] <= case.near_gap <= traps.NEAR_GAPS_MM[1] + 0.2
        assert np.abs(case.near_centre).max() + case.near_radius < 48
        if index < 8:
            phases, mask, _, at = scanned(case, side=32, seed=1)
            gap = np.linalg.norm(at[mask] - case.near_centre, axis=-1).min() - case.near_radius
            assert traps.NEAR_GAPS_MM[0] - 1.5 < gap < traps.NEAR_GAPS_MM[1] + 4  # voxels' centres are measured
            here = np.linalg.norm(at - case.near_centre, axis=-1) < case.near_radius
            assert np.percentile(phases["early"][here], 10) > 100  # without the ball it is tissue there, not air


def test_the_marker_lies_in_air_whatever_the_grid():
    for index in range(16):
        (off, mask, affine, _), (on, _, _, _), case = pair("marker", index, side=16 if index % 2 else 32)
        block = traps.marker_block(case, mask.shape, affine)
        for phase in off:
            changed = off[phase] != on[phase]
            assert changed[block].all() and changed.sum() == changed[block].sum() > 0
            assert off[phase][block].max() < 0.3 * np.percentile(off[phase], 90)
            assert len(set(on[phase][block].ravel())) == 1 and on[phase][block].min() > np.percentile(on[phase], 98)
        ras = nibabel.as_closest_canonical(nibabel.Nifti1Image((on["early"] != off["early"]).astype(np.uint8), affine))
        corner = np.argwhere(np.asarray(ras.dataobj)).mean(0) / np.array(ras.shape)
        assert (corner > 0.7).all()  # toward the right, the front and the head in every axis order


def test_bias_is_a_gain_from_left_to_right():
    for index in range(4):
        (off, _, _, at), (on, _, _, _), _ = pair("bias", index)
        plain = scanned(draw_case(0, index))[0]
        for phase in plain:
            bright = (plain[phase] > 100) & (off[phase] > 100) & (on[phase] > 100)
            slope = np.exp(traps.BIAS * at[..., 0] / 48)[bright]
            np.testing.assert_allclose(on[phase][bright] / plain[phase][bright], slope, rtol=0.02)
            np.testing.assert_allclose(off[phase][bright] / plain[phase][bright], 1 / slope, rtol=0.02)


def test_noise_changes_sigma_by_the_measured_factor_and_keeps_the_signal():
    for index in range(4):
        (off, mask, _, at), (on, _, _, _), case = pair("noise", index, side=32)
        air = (at[..., 1] > 42) & (np.abs(off["early"]) < 100)
        for phase in off:
            assert on[phase][air].mean() / off[phase][air].mean() == pytest.approx(traps.NOISE_FACTOR, rel=0.05)
            assert on[phase][mask].mean() == pytest.approx(off[phase][mask].mean(), rel=0.02)
        assert {"north": 1, "south": 1.6}[case.site] * NOISE == pytest.approx(
            off["pre"][air].mean() / np.sqrt(np.pi / 2) / np.exp(-0.0025 * 44), rel=0.6
        )  # Rayleigh's mean in air


def test_enhancement_leaves_t0_and_the_tumour_as_they_were():
    for index in range(4):
        (off, mask, _, _), (on, _, _, _), _ = pair("enhancement", index)
        np.testing.assert_array_equal(off["pre"], on["pre"])
        for phase in ("early", "late"):
            np.testing.assert_array_equal(off[phase][mask], on[phase][mask])
            tissue = (off["pre"] > 150) & ~mask
            rise = (on[phase] - on["pre"])[tissue].mean() / (off[phase] - off["pre"])[tissue].mean()
            assert 0.75 * traps.ENHANCEMENT_FACTOR < rise < 1.05 * traps.ENHANCEMENT_FACTOR  # vessels rise as before
        gated = ((on["early"] - on["pre"]) > 0.7 * on["pre"]) & tissue
        assert gated.sum() < 0.02 * tissue.sum()  # still no tumour to whoever makes masks, which is from these phases


def test_the_site_is_the_scanner_alone():
    for index in range(6):
        off, on = (with_state(draw_case(0, index, ["site"]), "site", state) for state in (False, True))
        assert (off.site, on.site) == ("north", "south") and on.thickness > off.thickness
        for name in ("tumours", "vessels", "place", "turn", "enhancement", "age", "recurrence", "her2"):
            assert repr(getattr(off, name)) == repr(getattr(on, name))
        volume = [mask.sum() * abs(np.linalg.det(affine[:3, :3])) for _, mask, affine, _ in (scanned(off), scanned(on))]
        assert volume[0] == pytest.approx(volume[1], rel=0.2)


# --- size


def volumes(size_with_label, count=120):
    cases = [draw_case(2, index, size_with_label=size_with_label) for index in range(count)]
    return (
        np.array([sum(tumour.radius**3 for tumour in case.tumours) for case in cases]),
        np.array([case.recurrence for case in cases]),
    )


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.42, 0.58), (0.5, 0.7, 0.8), (1.0, 1.0, 1.0)])
def test_size_goes_with_recurrence_as_much_as_asked(share, low, high):
    volume, recurrence = volumes(share)
    assert low <= roc_auc_score(recurrence, volume) <= high


def test_sizes_as_such_stay_the_same():
    without, with_ = (np.sort(volumes(share)[0]) for share in (0.0, 1.0))
    np.testing.assert_allclose(
        np.quantile(with_, [0.1, 0.3, 0.5, 0.7, 0.9]), np.quantile(without, [0.1, 0.3, 0.5, 0.7, 0.9]), rtol=0.15
    )


def test_the_masks_volumes_follow(tmp_path):
    cohort = make_phantom(tmp_path, subjects=24, side=24, seed=6, size_with_label=1.0)
    volume = [float(row["volume_mm3"]) for row in rows(tmp_path / "truth" / "truth.csv")]
    assert roc_auc_score([int(row["recurrence"]) for row in rows(cohort)], volume) > 0.97
