"""Masks changed and seeds changed: slow twins, what must not move, empty masks, dead maps, a run and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from mgkeras.data import context
from mgkeras.probes import robustness
from mgkeras.probes.robustness import mask_changes, mask_robustness, repeats, split_repeats
from mgkeras.scores.attention import attention_scores, overlap
from mgkeras.scores.comparison import ComparedRun, comparable

SIDE, GRID = 24, 6
NAMES = ("as it is", "dilated 2 mm", "dilated 4 mm", "eroded 2 mm", "shifted 4 mm")


def masks(count=4):
    """Two balls that run into each other each; the first is cut by the cube's border, the others keep 5 voxels off."""
    generator, index = np.random.default_rng(0), np.indices((SIDE,) * 3)
    found = []
    for place in range(count):
        centres = generator.uniform(9, 14, size=(2, 3)) - (8 if place == 0 else 0)
        found.append(((index[None] - centres[..., None, None, None]) ** 2).sum(1).min(0) < 3.6**2)
    return np.array(found)


def subject(mask, seed=0, voxel_mm=2.0):
    cam = np.random.default_rng(seed).normal(size=(GRID,) * 3)
    return cam, 1 / (1 + np.exp(-cam)), mask, voxel_mm


# --- the mask changed


def ball(radius):
    reach = int(radius)
    x, y, z = np.ogrid[(slice(-reach, reach + 1),) * 3]
    return x**2 + y**2 + z**2 <= radius**2 + 1e-9


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 2.7, 4.0])
def test_growing_and_shrinking_are_by_a_ball(radius):
    for mask in masks():
        np.testing.assert_array_equal(context.dilated(mask, 1.0, radius), ndimage.binary_dilation(mask, ball(radius)))
        np.testing.assert_array_equal(robustness.shrunk(mask, radius), ndimage.binary_erosion(mask, ball(radius)))


@pytest.mark.parametrize("voxels", [-30, -3, -1, 0, 1, 2, SIDE])
def test_a_shift_is_what_scipy_makes_of_it(voxels):
    mask = masks()[0]
    for axis in range(3):
        expected = ndimage.shift(mask.astype(np.uint8), [voxels * (axis == other) for other in range(3)], order=0)
        np.testing.assert_array_equal(robustness.shifted(mask, axis, voxels), expected.astype(bool))


@pytest.mark.parametrize(
    ("voxel_mm", "mm"),
    [(2.0, (0, 2, 4, 2, 4)), (0.75, (0, 2, 4, 2, 3.75)), (3.0, (0, 3, 4, 3, 3)), (9.0, (0, 9, 9, 9, 9))],
)
def test_a_change_is_a_voxel_at_least_and_says_how_much_it_was(voxel_mm, mm):
    mask = masks()[1]
    changes = mask_changes(mask, voxel_mm)
    assert tuple(change.name for change in changes) == NAMES and tuple(change.mm for change in changes) == mm
    same, two, four, eroded, moved = (change.masks for change in changes)
    assert same[0] is mask and eroded[0].sum() < mask.sum() < two[0].sum() <= four[0].sum()
    assert (mask & ~two[0]).sum() == (two[0] & ~four[0]).sum() == (eroded[0] & ~mask).sum() == 0
    assert len(moved) == 6 and len({moved_mask.tobytes() for moved_mask in moved} | {mask.tobytes()}) == 7
    centre = ndimage.center_of_mass(mask)
    lengths = [
        np.linalg.norm(np.subtract(ndimage.center_of_mass(moved_mask), centre)) * voxel_mm for moved_mask in moved
    ]
    if voxel_mm < 9:  # nothing left the cube
        assert lengths == pytest.approx([mm[-1]] * 6)
    np.testing.assert_allclose(np.mean([ndimage.center_of_mass(moved_mask) for moved_mask in moved], axis=0), centre)


def test_the_constants_say_what_a_ball_keeps():
    """The comment beside DILATED_MM: Dice of a ball of 20 mm with itself changed, on voxels of a quarter mm."""
    centres = (np.arange(120) - 59.5) / 4
    x, y, z = np.meshgrid(centres, centres, centres, indexing="ij")
    mask = x**2 + y**2 + z**2 < 100
    found = [
        np.mean([overlap(changed_mask, mask)[0] for changed_mask in change.masks])
        for change in mask_changes(mask, 0.25)
    ]
    assert found == pytest.approx([1, 0.73, 0.53, 0.68, 0.70], abs=0.012)


def test_rows_against_every_score_of_every_mask():
    subjects = [subject(mask, seed) for seed, mask in enumerate(masks())]
    rows = mask_robustness(iter(subjects), samples=50)
    assert tuple(row["change"] for row in rows) == NAMES
    for place, row in enumerate(rows):
        values = {name: [] for name in (*robustness.SCORES, "dice_with_mask", "mass_moved")}
        for cam, attention, mask, voxel_mm in subjects:
            before = attention_scores(cam, attention, mask, voxel_mm)["mass_in_mask"]
            changed = mask_changes(mask, voxel_mm)[place].masks
            scored = [attention_scores(cam, attention, changed_mask, voxel_mm) for changed_mask in changed]
            for name in robustness.SCORES:
                values[name].append(np.mean([scores[name] for scores in scored]))
            values["dice_with_mask"].append(
                np.mean(
                    [2 * (changed_mask & mask).sum() / (changed_mask.sum() + mask.sum()) for changed_mask in changed]
                )
            )
            values["mass_moved"].append(values["mass_in_mask"][-1] - before)
        assert row["subjects"] == 4 and row["empty"] == 0
        for name, column in values.items():
            found = row[name]
            assert found["mean"] == pytest.approx(np.mean(column), abs=1e-12) and found["subjects"] == 4, name
            assert min(column) - 1e-9 <= found["low"] <= found["mean"] <= found["high"] <= max(column) + 1e-9
    assert rows[0]["dice_with_mask"]["mean"] == 1 and rows[0]["mass_moved"]["mean"] == 0
    assert rows[1]["mass_in_mask"]["mean"] >= rows[0]["mass_in_mask"]["mean"] >= rows[3]["mass_in_mask"]["mean"]
    assert rows == mask_robustness(subjects, samples=50)
    json.dumps(rows, allow_nan=False)


def test_masks_that_are_empty_or_eroded_away_are_counted_and_dead_maps_left_out():
    thin, none = np.zeros((2, SIDE, SIDE, SIDE), bool)
    thin[5:8, 6, 7] = True
    cam, attention, *_ = subject(thin)
    dead = (0 * cam, 0 * attention, masks()[1], 2.0)
    rows = {row["change"]: row for row in mask_robustness([subject(thin), subject(none), dead], samples=50)}
    assert [rows[name]["empty"] for name in NAMES] == [1, 1, 1, 2, 1]
    assert rows["eroded 2 mm"]["dice_with_mask"]["subjects"] == 2
    away = {row["change"]: row for row in mask_robustness([subject(thin)], samples=50)}["eroded 2 mm"]
    assert away["dice_with_mask"] == {"mean": 0.0, "low": None, "high": None, "subjects": 1}
    assert away["mass_in_mask"]["mean"] is None and away["mass_moved"]["subjects"] == 0
    assert rows["as it is"]["mass_in_mask"]["subjects"] == rows["as it is"]["peak_within_10mm"]["subjects"] == 1
    assert rows["as it is"]["soft_dice"]["subjects"] == 2  # a dead map overlaps with nothing, which is defined
    assert mask_robustness([]) == []
    with pytest.raises(ValueError, match="multiple of g"):
        mask_robustness([(np.ones((5, 5, 5)), np.ones((5, 5, 5)), thin, 2.0)])


# --- the seed changed


LABELS = (0, 1, 0, 1, 1, 0, 0, 1)


def run(name="guided", seed=0, p=None, fold=0, folder=None, labels=LABELS, **settings) -> ComparedRun:
    moved = 0.2 * np.random.default_rng(seed).normal(size=len(labels))
    p = np.linspace(0.2, 0.8, len(labels)) + moved if p is None else p
    held = {f"s{i}": ((i + fold) % 2, label, float(p[i])) for i, label in enumerate(labels)}
    summary = {"map": "decision", "attention": {"all": {"mass_in_mask": {"mean": 0.5 + seed / 10}}}}
    values = {"model": name, "outcome": "recurrence", "seed": seed, "deterministic": False, **settings}
    return ComparedRun(name, Path(folder or f"runs/{name}-{seed}"), values, summary, held)


def maps(seed):
    generator = np.random.default_rng(seed)
    return {f"s{i}": generator.normal(size=(GRID,) * 3) for i in range(len(LABELS))}


def test_repeats_against_loops():
    runs, looks = [run(seed=seed) for seed in (0, 3, 7)], [maps(seed) for seed in (0, 3, 7)]
    runs[2] = replace(runs[2], held_out=dict(reversed(runs[2].held_out.items())))  # another order of the same subjects
    found = repeats(runs, looks, samples=50)
    p = {run.folder: [run.held_out[f"s{i}"][2] for i in range(8)] for run in runs}
    assert found["runs"] == ["guided", "guided (seed 3)", "guided (seed 7)"] and found["seeds"] == [0, 3, 7]
    assert found["auc"] == pytest.approx([roc_auc_score(LABELS, values) for values in p.values()])
    assert found["mean"] == pytest.approx(np.mean(found["auc"]))
    assert found["sd"] == pytest.approx(np.std(found["auc"], ddof=1))
    per_subject = list(zip(*p.values(), strict=True))
    assert found["probability_sd"]["mean"] == pytest.approx(np.mean([np.std(values, ddof=1) for values in per_subject]))
    assert found["flipped"] == np.mean([len({value >= 0.5 for value in values}) > 1 for values in per_subject])
    assert 0 < found["flipped"] < 1
    ranks = [
        [stats.spearmanr(a[f"s{i}"].ravel(), b[f"s{i}"].ravel()).statistic for a, b in combinations(looks, 2)]
        for i in range(8)
    ]
    assert found["map_correlation"]["mean"] == pytest.approx(np.mean(ranks))
    assert found["map_correlation"]["subjects"] == 8
    assert found["mass_in_mask"] == pytest.approx([0.5, 0.8, 1.2])
    json.dumps(found, allow_nan=False)


def test_a_run_repeats_itself():
    single, look = run(), maps(0)
    found = repeats([single, single], [look, {name: np.exp(3 * cam) for name, cam in look.items()}], samples=50)
    assert found["sd"] == found["flipped"] == found["probability_sd"]["mean"] == found["probability_sd"]["high"] == 0
    assert found["map_correlation"]["mean"] == pytest.approx(1)


def test_repeats_without_maps_classes_or_company():
    assert repeats([run()]) is None and repeats([]) is None
    found = repeats([run(), run(seed=1)])
    assert found["map_correlation"] == {"mean": None, "low": None, "high": None, "subjects": 0}
    dead = maps(1) | {"s0": np.zeros((GRID,) * 3)}
    del dead["s1"]
    assert repeats([run(), run(seed=1)], [maps(0), dead])["map_correlation"]["subjects"] == 6
    single = [replace(run(seed=seed, labels=(1,) * 4), summary={}) for seed in (0, 1)]
    found = repeats(single, samples=50)
    assert found["auc"] == [None, None] == found["mass_in_mask"] and found["mean"] is found["sd"] is None
    with pytest.raises(ValueError, match="maps of 2 runs. Received: of 1"):
        repeats([run(), run(seed=1)], [maps(0)])
    with pytest.raises(ValueError, match="same subjects and labels. Received: others in runs/guided-1"):
        repeats([run(), run(seed=1, labels=LABELS[::-1])])


def test_runs_that_differ_in_their_seed_are_repeats():
    guided, again, third = run(), run(seed=1, fold=1, deterministic=True), run(seed=2, fold=1)
    other, its = run("no-mask"), run("no-mask", seed=1, fold=1)
    primary, repeated = split_repeats([guided, other, again, its, third])
    assert primary == [guided, other] == comparable(primary)
    assert repeated == {guided.folder: [again, third], other.folder: [its]}
    assert split_repeats([]) == ([], {})


@pytest.mark.parametrize(
    "other",
    [
        run(folder="x"),
        run(seed=1, training={"epochs": 3}),
        run("no-mask", seed=1),
        run(seed=1, outcome="her2"),
        run(seed=1, labels=LABELS[::-1]),
        run(seed=1, labels=LABELS[:-1]),
    ],
)
def test_other_runs_stay_models(other):
    """The same seed, other settings, another model, outcome, other labels, other subjects."""
    assert split_repeats([run(), other]) == ([run(), other], {})


def test_a_seed_counts_once_among_a_models_runs():
    first, second, twin = run(), run(seed=1), run(seed=1, folder="twin")
    assert split_repeats([first, second, twin]) == ([first, twin], {first.folder: [second]})
