"""Maps against masks: slow twins, invariants, and maps that are perfect, dead, constant or without a tumour."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mgkeras.data import context
from mgkeras.data.context import body_of
from mgkeras.data.volume import load_volume, normalise
from mgkeras.phantom.case import BREAST_AXES, BREAST_CENTRE, chest_wall, draw_case
from mgkeras.scores import attention
from mgkeras.scores.attention import attention_scores, enlarge, own_grid_scores, pool

SIDE, GRID, MM = 24, 6, 2.5


@pytest.fixture
def mask():
    found = np.zeros((SIDE,) * 3, bool)
    found[5:10, 12:17, 8:12] = True
    return found


@pytest.fixture
def cam():
    return np.random.default_rng(0).normal(size=(GRID,) * 3)


def _sigmoid(cam: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-cam))


def test_enlarge_against_a_loop(cam):
    large = enlarge(cam, SIDE)
    generator = np.random.default_rng(1)
    for voxel in generator.integers(SIDE, size=(40, 3)):
        place = np.clip((voxel + 0.5) * GRID / SIDE - 0.5, 0, GRID - 1)
        low = np.minimum(place.astype(int), GRID - 2)
        part = place - low
        value = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([p if c else 1 - p for p, c in zip(part, corner, strict=True)])
            value += weight * cam[tuple(low + corner)]
        assert large[tuple(voxel)] == pytest.approx(value, abs=1e-5)
    assert large.mean() == pytest.approx(cam.mean(), abs=1e-6)
    assert large.max() <= cam.max() + 1e-6 and large.min() >= cam.min() - 1e-6
    np.testing.assert_allclose(enlarge(large, SIDE), large)


def test_pool_and_soft_dice_against_loops(cam, mask):
    cell, pooled = SIDE // GRID, np.zeros((GRID,) * 3)
    for index in np.ndindex(pooled.shape):
        pooled[index] = mask[tuple(slice(i * cell, (i + 1) * cell) for i in index)].mean()
    np.testing.assert_allclose(pool(mask, GRID), pooled)
    a, m = _sigmoid(cam), pooled / pooled.max()
    assert attention.soft_dice(a, mask) == pytest.approx(2 * (a * m).sum() / (a.sum() + m.sum()))
    with pytest.raises(ValueError, match="multiple of 5"):
        pool(mask, 5)


def test_mass_by_hand(cam, mask):
    found = attention_scores(cam, _sigmoid(cam), mask, MM)
    inside = total = touched = inside_for = total_for = 0.0
    for index in np.ndindex(cam.shape):
        block = mask[tuple(slice(4 * i, 4 * i + 4) for i in index)]
        total += abs(cam[index])
        inside += abs(cam[index]) * block.any()
        total_for += max(cam[index], 0)
        inside_for += max(cam[index], 0) * block.any()
        touched += block.any()
    assert found["mass_for_class"] == pytest.approx(inside_for / total_for)
    assert found["mass_in_mask"] == pytest.approx(inside / total)
    assert found["mass_chance"] == pytest.approx(touched / GRID**3)
    assert found["mass_enrichment"] == pytest.approx(inside / total / touched * GRID**3)
    large = enlarge(np.abs(cam), SIDE)
    assert found["mass_voxelwise"] == pytest.approx(large[mask].sum() / large.sum(), rel=1e-5)


def test_perfect_map(mask):
    pooled = pool(mask, GRID)
    found = attention_scores(pooled, pooled / pooled.max(), mask, MM)
    assert found["mass_in_mask"] == found["peak_in_mask"] == found["peak_within_10mm"] == 1
    assert found["peak_distance_mm"] == 0
    assert found["mass_voxelwise"] == pytest.approx(found["mass_voxelwise_ceiling"], rel=1e-5)
    assert 0 < found["mass_voxelwise"] < 0.6
    fine = attention_scores(mask.astype(float), mask.astype(float), mask, MM, body=mask)  # a map on the cube itself
    for key in (
        "mass_in_mask",
        "mass_voxelwise",
        "mass_voxelwise_ceiling",
        "rank_accuracy",
        "soft_dice",
        "dice_50",
        "iou_50",
        "dice_otsu",
        "iou_otsu",
    ):
        assert fine[key] == pytest.approx(1), key
    assert fine["mass_in_ring"] == fine["mass_outside_body"] == 0


def test_invariants(cam, mask):
    found = attention_scores(cam, _sigmoid(cam), mask, MM)
    scaled = attention_scores(7 * cam, _sigmoid(cam), mask, MM)
    against = attention_scores(-cam, _sigmoid(cam), mask, MM)  # the other class's map, of two
    against["mass_for_class"] = found["mass_for_class"]
    around = {"k": 1, "axes": (0, 2)}
    turned = attention_scores(np.rot90(cam, **around), np.rot90(_sigmoid(cam), **around), np.rot90(mask, **around), MM)
    for other in (scaled, against, turned):
        assert other == pytest.approx(found, rel=1e-4, abs=1e-6)
    assert attention_scores(cam, _sigmoid(cam), mask, 2 * MM)["peak_distance_mm"] == 2 * found["peak_distance_mm"]


def test_constant_map_scores_chance(mask):
    found = attention_scores(np.ones((GRID,) * 3), np.ones((GRID,) * 3), mask, MM)
    assert found["mass_in_mask"] == pytest.approx(found["mass_chance"]) == pytest.approx(found["peak_in_mask"])
    assert found["mass_enrichment"] == pytest.approx(1)
    assert found["mass_voxelwise"] == pytest.approx(found["mass_voxelwise_chance"])
    assert found["rank_accuracy"] == pytest.approx(found["mass_voxelwise_chance"])
    assert found["dice_otsu"] is None


def test_dead_map_and_empty_mask_are_undefined(cam, mask):
    dead = attention_scores(np.zeros_like(cam), np.zeros_like(cam), mask, MM)
    chance = {"mass_chance", "mass_voxelwise_chance", "mass_voxelwise_ceiling", "soft_dice"}
    assert {key for key, value in dead.items() if value is not None} == chance and dead["soft_dice"] == 0
    empty = attention_scores(cam, _sigmoid(cam), np.zeros_like(mask), MM, body=~mask)
    assert set(empty.values()) == {None}
    assert set(empty) == set(dead) | {"mass_outside_body", "mass_chance_body"}
    assert attention.soft_dice(cam, np.zeros_like(mask)) is None
    assert attention.rank_accuracy(cam, np.zeros(cam.shape, bool)) is None
    assert attention.peak_distance_mm(cam, np.zeros_like(mask), MM) is None
    assert attention.overlap(np.zeros(3, bool), np.zeros(3, bool)) == (None, None)


def test_the_quick_scores_are_those_of_all(cam, mask):
    for values, against in ((cam, mask), (-np.abs(cam), mask), (cam, np.zeros_like(mask))):
        every = attention_scores(values, _sigmoid(values), against, MM)
        assert own_grid_scores(values, _sigmoid(values), against, MM) == {key: every[key] for key in attention.OWN_GRID}


# --- chances of maps that know something, not the label


def test_chance_in_the_body_and_a_map_of_t1_by_hand(cam, mask):
    body, image = np.zeros((SIDE,) * 3, bool), np.random.default_rng(0).random((SIDE,) * 3).astype(np.float32)
    body[4:, :, :20] = True
    inside = tissue = bright = total = 0.0
    for index in np.ndindex(cam.shape):
        where = tuple(slice(4 * i, 4 * i + 4) for i in index)
        inside += mask[where].any() and body[where].any()
        tissue += body[where].any()
        bright += image[where].mean() * mask[where].any()
        total += image[where].mean()
    found = attention_scores(cam, _sigmoid(cam), mask, MM, body=body)
    assert found["mass_chance_body"] == pytest.approx(inside / tissue) and inside / tissue > found["mass_chance"]
    assert attention.mass_of_image(image, mask, GRID) == pytest.approx(bright / total, rel=1e-5)
    assert attention.chance_in_body(mask, np.zeros_like(body), GRID) is None
    assert attention.mass_of_image(image, np.zeros_like(mask), GRID) is None


# --- the body


def test_the_body_of_a_phantom_is_its_breast_and_chest(phantom):
    """The phantom's geometry written out: half an ellipsoid on the chest's wall; air elsewhere."""
    for index in range(0, 12, 3):
        case = draw_case(5, index, ["spot"])
        early = load_volume(phantom.parent / "images" / f"{case.name}_early.nii.gz")
        points = (
            np.moveaxis(np.indices(early.data.shape), 0, -1) @ early.affine[:3, :3].T + early.affine[:3, 3] - case.place
        )
        within = (((points - BREAST_CENTRE) / BREAST_AXES) ** 2).sum(-1) < 1
        body = within | (points[..., 1] < chest_wall(points[..., 0], points[..., 2]) + 7)
        found = body_of(normalise(early.data, 4.0))
        dice, _ = attention.overlap(found, body)
        assert dice > 0.95 and 0.2 < body.mean() < 0.8
        depth = ndimage.distance_transform_edt(np.pad(body, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
        assert found[depth > 2].mean() > 0.98  # lungs too, but for what is open in every plane


@pytest.fixture
def head():
    """A ball of tissue in noisy air: a dark cavity within, another that the field of view cuts open, and a speck."""
    generator = np.random.default_rng(0)
    x, y, z = np.indices((40, 40, 40)) - 19.5
    ball = x**2 + y**2 + (z + 12) ** 2 < 17**2
    image = np.where(ball, 1.0, 0.05) + 0.03 * generator.random(ball.shape)
    image[(x**2 + y**2 + z**2 < 4**2) | (np.abs(x) + np.abs(y) + np.abs(z + 19.5) < 6)] = 0.02
    image[36:39, 36:39, 36:39] = 2.0
    return image.astype(np.float32), ball


def test_cavities_are_body_and_specks_are_not(head):
    image, ball = head
    body = body_of(image)
    distance = ndimage.distance_transform_edt(~ball) + ndimage.distance_transform_edt(ball)
    assert (body == ball)[distance > 1.5].all()
    np.testing.assert_array_equal(body_of(1000 * image), body)
    np.testing.assert_array_equal(body_of(image[::-1].transpose(0, 2, 1)), body[::-1].transpose(0, 2, 1))
    padded = np.pad(image, ((0, 0), (8, 8), (0, 0)))  # what lies beyond the field of view is no body
    assert (body_of(padded)[:, 8:-8] != body)[:, 3:-3].sum() < 0.001 * body.sum()  # and does not move the limit
    assert not body_of(padded)[:, :8].any()


def test_filled_cavities_against_scipy(head):
    image, _ = head
    smooth = ndimage.gaussian_filter(image, 1.0)
    labels, _ = ndimage.label(smooth > context.BODY_SHARE * smooth[smooth >= smooth.mean()].mean())
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    expected = ndimage.binary_fill_holes(largest)
    for axis in range(3):
        slices = [ndimage.binary_fill_holes(layer) for layer in np.moveaxis(largest, axis, 0)]
        expected |= np.moveaxis(np.array(slices), 0, axis)
    np.testing.assert_array_equal(body_of(image), expected)
    assert expected.sum() > ndimage.binary_fill_holes(largest).sum() > largest.sum()


def test_without_a_body_the_mass_outside_it_is_undefined(cam, mask):
    for empty in (np.zeros(mask.shape), np.full(mask.shape, 0.7, np.float16)):
        assert not body_of(empty).any()
        assert attention_scores(cam, _sigmoid(cam), mask, MM, body=body_of(empty))["mass_outside_body"] is None
    half = np.arange(SIDE)[:, None, None] < SIDE // 2
    left = attention_scores(cam, _sigmoid(cam), mask, MM, body=np.broadcast_to(half, mask.shape))
    large = enlarge(np.abs(cam), SIDE)
    assert left["mass_outside_body"] == pytest.approx(large[SIDE // 2 :].sum() / large.sum(), rel=1e-5)


def test_refuses(cam, mask):
    with pytest.raises(ValueError, match="multiple of g"):
        attention_scores(np.ones((5, 5, 5)), np.ones((5, 5, 5)), mask, MM)
    with pytest.raises(ValueError, match="body mask"):
        attention_scores(cam, cam, mask, MM, body=mask[:4])
    with pytest.raises(ValueError, match="diverged"):
        attention_scores(cam * np.nan, cam, mask, MM)


def test_peak_and_distance(mask):
    cam = np.zeros((GRID,) * 3)
    cam[5, 3, 2] = 1  # cell centre (21.5, 13.5, 9.5): beyond the last mask voxel 9 along axis 0, whose box ends at 9.5
    found = attention_scores(cam, cam, mask, MM)
    assert found["peak_in_mask"] == 0 and found["peak_distance_mm"] == pytest.approx((21.5 - 9.5) * MM)
    assert found["peak_within_10mm"] == 0
    cam[1, 3, 2] = 1  # a second, equal peak inside the tumour
    found = attention_scores(cam, cam, mask, MM)
    assert found["peak_in_mask"] == 0.5 and found["peak_distance_mm"] == pytest.approx((21.5 - 9.5) * MM / 2)


def test_ring_against_a_whole_distance_map(mask):
    mask[0, 0, 0] = True  # a second component at the cube's corner
    distance = ndimage.distance_transform_edt(~mask) * MM
    np.testing.assert_array_equal(attention.ring(mask, MM, 7.5), (distance > 0) & (distance <= 7.5))
    assert not attention.ring(np.zeros_like(mask), MM).any()


def test_rank_accuracy_and_overlap_against_sorting():
    generator = np.random.default_rng(2)
    values, mask = generator.normal(size=500), generator.random(500) < 0.2
    best = set(np.argsort(-values)[: mask.sum()])
    inside = set(np.flatnonzero(mask))
    assert attention.rank_accuracy(values, mask) == pytest.approx(len(best & inside) / len(inside))
    binary = values > 0.5
    chosen = set(np.flatnonzero(binary))
    dice, iou = attention.overlap(binary, mask)
    assert dice == pytest.approx(2 * len(chosen & inside) / (len(chosen) + len(inside)))
    assert iou == pytest.approx(len(chosen & inside) / len(chosen | inside))


def test_otsu_against_every_threshold():
    generator = np.random.default_rng(3)
    values = np.concatenate([generator.normal(0, 1, 800), generator.normal(6, 1, 200)])
    within = {
        t: np.var(values[values < t]) * (values < t).mean() + np.var(values[values >= t]) * (values >= t).mean()
        for t in np.linspace(values.min() + 0.1, values.max() - 0.1, 300)
    }
    assert min(within.values()) == pytest.approx(
        np.var(values[values < (t := attention.otsu_threshold(values))]) * (values < t).mean()
        + np.var(values[values >= t]) * (values >= t).mean(),
        rel=0.01,
    )
    assert attention.otsu_threshold(np.ones(5)) is None
