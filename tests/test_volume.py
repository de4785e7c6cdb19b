"""Volumes: every file order ends at the same mm, cubes and the way back keep places, and slow twins in loops."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mgkeras.data.volume import (
    ExamError,
    Volume,
    axis_weights,
    box_frame,
    frame_of,
    from_cube,
    load_volume,
    mask_to_cube,
    normalise,
    same_space,
    save_like,
    to_cube,
)

CODES = ("RAS", "LPS", "LAS", "PSR", "RSA", "ASL", "IPR", "SRA")
TURNS = {"straight": (0.0, 0.0, 0.0), "oblique": (8.0, -6.0, 11.0)}
GRIDS = [((12, 12, 12), (2.0, 2.0, 2.0), 12), ((18, 14, 10), (1.0, 1.2, 2.5), 16), ((9, 16, 20), (3.0, 1.5, 1.1), 20)]
GRIDS_BY_NAME = pytest.mark.parametrize(("shape", "zooms", "side"), GRIDS, ids=("equal", "thick", "odd"))
SPACINGS = [
    (9, 1.0, 9, 1.0, 0.0),
    (8, 2.0, 15, 0.9, 0.3),
    (20, 0.7, 8, 1.9, -1.1),
    (5, 3.0, 12, 2.0, 7.0),
    (13, 1.0, 6, 2.0, 0.0),
    (1, 4.0, 6, 1.0, 0.0),
    (7, 1.0, 4, 1.0, 100.0),
]


def affine_of(code="RAS", zooms=(1.0, 1.2, 2.5), turn="straight", origin=(-31.0, 12.5, 40.0)):
    """(4, 4) voxel -> RAS+ mm of a file whose axes grow toward the code's letters, turned by degrees about x, y, z."""
    axes = np.zeros((3, 3))
    for column, letter in enumerate(code):
        axes["RLAPSI".index(letter) // 2, column] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", TURNS[turn], degrees=True).as_matrix() @ axes * zooms
    affine[:3, 3] = origin
    return affine


def write(path, data, affine):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def numbered(shape=(8, 9, 10)):
    """A file whose every voxel has another value."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def place_mm(affine, shape):
    """(x, y, z, 3) mm of the voxels' centres."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def centroid_mm(weight, affine):
    return (place_mm(affine, weight.shape) * weight[..., None]).sum((0, 1, 2)) / weight.sum()


def blob(shape, affine, offset=(0.0, 0.0, 0.0), sigma=3.0):
    """A Gaussian of `sigma` mm, `offset` mm (along the grid's axes) from the field of view's middle."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    middle = (np.array(shape) - 1) / 2 + np.asarray(offset) / zooms
    distance = np.linalg.norm(place_mm(affine, shape) - apply_affine(affine, middle), axis=-1)
    return np.exp(-0.5 * (distance / sigma) ** 2).astype(np.float32)


def slow_weights(n_in, zoom_in, n_out, zoom_out, offset):
    """A triangle as wide as the coarser spacing around each written sample, in loops."""
    weights = np.zeros((n_out, n_in))
    for o in range(n_out):
        here = (o - (n_out - 1) / 2) * zoom_out + offset
        if abs(here) > n_in * zoom_in / 2 * (1 + 1e-6):
            continue
        for i in range(n_in):
            away = abs(here - (i - (n_in - 1) / 2) * zoom_in)
            weights[o, i] = max(0.0, 1 - away / max(zoom_in, zoom_out))
        weights[o] /= weights[o].sum()
    return weights


def slow_cube(data, frame, background):
    """Voxel by voxel: the weighted mean of what lies around it, background outside."""
    tables = [
        slow_weights(n, z, frame.side, frame.voxel_mm, c)
        for n, z, c in zip(frame.shape, frame.zooms, frame.centre_mm, strict=True)
    ]
    cube = np.full((frame.side,) * 3, background)
    for index in np.ndindex(cube.shape):
        rows = [table[i] for table, i in zip(tables, index, strict=True)]
        weight = rows[0][:, None, None] * rows[1][:, None] * rows[2]
        cube[index] = (weight * data).sum() + (1 - weight.sum()) * background
    return cube


# Loading


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("code", CODES)
def test_every_voxel_stays_at_its_mm(tmp_path, code, turn):
    data, affine = numbered(), affine_of(code, turn=turn)
    volume = load_volume(write(tmp_path / "a.nii.gz", data, affine))
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.data.dtype == np.float32 and volume.data.size == data.size
    index = apply_affine(np.linalg.inv(volume.affine), place_mm(affine, data.shape))
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    np.testing.assert_array_equal(volume.data[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))], data)
    np.testing.assert_allclose(np.sort(volume.zooms), [1.0, 1.2, 2.5], rtol=1e-5)


def test_slope_and_intercept_are_applied_and_a_last_axis_of_one_is_dropped(tmp_path):
    image = nib.Nifti1Image(numbered()[..., None], affine_of("LPS"))
    image.header.set_slope_inter(2.0, -5.0)
    stored = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    nib.save(stored, tmp_path / "a.nii")
    raw = nib.load(tmp_path / "a.nii")
    volume = load_volume(tmp_path / "a.nii")
    assert volume.data.shape == (8, 9, 10)
    expected = np.asarray(raw.dataobj.get_unscaled()) * raw.dataobj.slope + raw.dataobj.inter
    np.testing.assert_allclose(volume.data, expected[::-1, ::-1, :, 0], rtol=1e-6)


def header_with(position, content):
    def damage(path):
        data = bytearray(nib.Nifti1Image(numbered(), np.eye(4)).to_bytes())
        data[position : position + len(content)] = content
        path.write_bytes(gzip.compress(bytes(data)))

    return damage


def truncated(path):
    write(path, np.random.default_rng(0).integers(0, 9999, (16, 16, 16), dtype=np.int16), np.eye(4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sheared(path):
    affine = affine_of("LPS")
    affine[0, 1] += 0.2
    write(path, numbered(), affine)


def another_kind(path):
    nib.save(nib.gifti.GiftiImage(), path.with_name("surface.gii"))
    return path.with_name("surface.gii")


BAD = {
    "missing": (lambda path: None, "no file at"),
    "truncated": (truncated, "fails with"),
    "sheared": (sheared, "a cosine of 0.1.* between two axes"),
    "4d": (lambda path: write(path, np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), r"shape \(4, 4, 4, 3\)"),
    "2d": (lambda path: write(path, np.zeros((4, 4), np.int16), np.eye(4)), r"shape \(4, 4\)"),
    "text": (lambda path: path.write_text("not an image"), "not packed by gzip"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "data type": (header_with(70, (9999).to_bytes(2, "little")), "data type 9999"),
    "data offset": (header_with(108, np.float32(1e30).tobytes()), r"voxels start at byte 1e\+30"),
    "surface": (another_kind, "does not end in .nii"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_exam_error_that_names_it(tmp_path, case):
    damage, message = BAD[case]
    path = tmp_path / "bad.nii.gz"
    made = damage(path)
    path = made if case == "surface" else path
    with pytest.raises(ExamError, match=f"(?s)expected .*Received: .*{message}") as error:
        load_volume(path)
    assert path.name in str(error.value)


def test_same_space_says_what_differs():
    volume = Volume(np.zeros((8, 9, 10), np.float32), affine_of(turn="oblique"))
    near, far = volume.affine.copy(), volume.affine.copy()
    near[0, 3] += 0.05
    far[0, 3] += 3
    assert same_space(volume, volume) is None
    assert same_space(volume, Volume(volume.data, near)) is None
    assert same_space(volume, Volume(volume.data, far)) == "corners 3.00 mm apart"
    assert "(8, 9, 9)" in same_space(volume, Volume(volume.data[..., :9], volume.affine))


# One axis


@pytest.mark.parametrize("axis", SPACINGS)
def test_weights_equal_the_slow_twin_and_rows_sum_to_one_or_zero(axis):
    weights = axis_weights(*axis)
    np.testing.assert_allclose(weights, slow_weights(*axis), atol=1e-6)
    total = weights.sum(1)
    n_in, zoom_in, n_out, zoom_out, offset = axis
    inside = np.abs((np.arange(n_out) - (n_out - 1) / 2) * zoom_out + offset) <= n_in * zoom_in / 2 + 1e-5
    np.testing.assert_allclose(total, inside, atol=1e-6)
    np.testing.assert_allclose((weights @ np.full(n_in, 7.0))[inside], 7.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("zoom_out", "error"), [(0.4, 1e-5), (1.0, 1e-5), (2.0, 1e-5), (3.0, 1e-5), (1.5, 0.1), (1.7, 0.1), (2.6, 0.1)]
)
def test_a_ramp_stays_a_ramp_in_the_interior(zoom_out, error):
    """Exactly where the axis is refined or its spacing multiplied, else to a tenth of a voxel that is read."""
    n_in, n_out = 36, int(36 / zoom_out)
    ramp = np.arange(n_in) - (n_in - 1) / 2
    written = (np.arange(n_out) - (n_out - 1) / 2) * zoom_out
    interior = np.abs(written) < n_in / 2 - max(1, zoom_out)
    assert interior.sum() > 5
    found = axis_weights(n_in, 1.0, n_out, zoom_out) @ ramp
    np.testing.assert_allclose(found[interior], written[interior], atol=error)


# To the cube


@pytest.mark.parametrize("box", [False, True], ids=["whole", "box"])
def test_cube_equals_the_slow_twin(box):
    data = np.random.default_rng(1).normal(size=(9, 8, 6)).astype(np.float32)
    zooms = np.array([1.0, 1.3, 2.0])
    mask = np.zeros(data.shape, bool)
    mask[5:8, 1:4, 0:2] = True
    frame = box_frame(mask, zooms, 8, 2.0) if box else frame_of(data.shape, zooms, 8)
    np.testing.assert_allclose(to_cube(data, frame, -3.0), slow_cube(data, frame, -3.0), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "zooms", "side"),
    [((20, 16, 12), (1.0, 1.25, 2.5), 20), ((12, 20, 20), (2.5, 1.0, 1.5), 16), ((20, 18, 16), (1.0, 1.1, 1.2), 8)],
)
def test_a_sphere_stays_a_sphere(shape, zooms, side):
    """Its spread is the same along the three axes and its volume in mm3 stays, on fields of view of any aspect."""
    affine = affine_of(zooms=zooms)
    frame = frame_of(shape, zooms, side)
    sphere = blob(shape, affine, sigma=3.0)
    cube = to_cube(sphere, frame)
    offset = (np.indices(cube.shape) - (side - 1) / 2) * frame.voxel_mm
    spread = np.sqrt((offset**2 * cube).sum((1, 2, 3)) / cube.sum())
    assert spread.max() / spread.min() < 1.06
    assert cube.sum() * frame.voxel_mm**3 == pytest.approx(sphere.sum() * np.prod(zooms), rel=0.05)


def test_padding_gets_the_background_and_a_constant_stays():
    frame = frame_of((16, 8, 4), np.array([1.0, 1.0, 1.0]), 16)
    cube = to_cube(np.full((16, 8, 4), 5.0), frame, background=-1.0)
    expected = np.full((16, 16, 16), -1.0)
    expected[:, 4:12, 6:10] = 5.0
    np.testing.assert_allclose(cube, expected, atol=1e-6)
    assert cube.dtype == np.float32


@pytest.mark.parametrize("turn", TURNS)
@GRIDS_BY_NAME
def test_affine_of_the_frame_agrees_with_the_cube(shape, zooms, side, turn):
    affine = affine_of(zooms=zooms, turn=turn)
    data = blob(shape, affine, (1.7, -1.1, 0.9), sigma=2.6)
    mask = data > 0.02
    for frame in (frame_of(shape, zooms, side), box_frame(mask, np.array(zooms), side, 4.0)):
        cube = to_cube(data, frame)
        assert np.linalg.norm(centroid_mm(cube, frame.affine(affine)) - centroid_mm(data, affine)) < 0.2 * min(zooms)
        np.testing.assert_allclose(np.linalg.norm(frame.affine(affine)[:3, :3], axis=0), frame.voxel_mm, rtol=1e-6)


def test_box_holds_mask_and_margin_in_the_middle():
    mask, zooms = np.zeros((14, 12, 10), bool), np.array([1.0, 1.5, 2.0])
    mask[2:6, 7:9, 1:4] = True  # 4, 3 and 6 mm
    frame = box_frame(mask, zooms, 8, 5.0)
    assert frame.voxel_mm * 8 == pytest.approx(6 + 2 * 5)
    np.testing.assert_allclose(frame.centre_mm, (np.array([4, 8, 2.5]) - np.array([7, 6, 5])) * zooms)
    cube = to_cube(mask, frame)
    offset = [np.average(axis, weights=cube) - 3.5 for axis in np.indices(cube.shape)]
    np.testing.assert_allclose(offset, 0, atol=0.1)
    assert box_frame(np.zeros_like(mask), zooms, 8, 5.0) == frame_of(mask.shape, zooms, 8)
    mask[:] = False
    mask[0, 0, 0] = True  # the margin leaves the field of view
    assert to_cube(np.ones(mask.shape), box_frame(mask, zooms, 8, 5.0), -1.0).min() == -1


# Masks


@pytest.mark.parametrize("side", [4, 8, 16])
def test_no_component_of_one_voxel_is_lost(side):
    shape, zooms = (20, 18, 9), np.array([1.0, 1.0, 2.0])
    affine, frame = affine_of(zooms=zooms), frame_of(shape, zooms, side)
    rng = np.random.default_rng(2)
    edges = [(0, 0, 0), (19, 17, 8), (0, 17, 4), (19, 0, 0)]
    for voxel in edges + [tuple(rng.integers(0, shape)) for _ in range(30)]:
        mask = np.zeros(shape, bool)
        mask[voxel] = True
        cube = mask_to_cube(mask, frame)
        assert cube.dtype == bool and cube.any(), voxel
        apart = np.abs(centroid_mm(cube, frame.affine(affine)) - apply_affine(affine, voxel))
        assert apart.max() <= max(frame.voxel_mm, 2.0) / 2 + 1e-6, voxel


def test_a_small_component_beside_a_large_one_is_kept():
    shape, zooms = (20, 20, 20), np.ones(3)
    mask = np.zeros(shape, bool)
    mask[2:10, 2:10, 2:10] = True
    mask[16, 15, 17] = mask[3, 17, 3] = True
    cube = mask_to_cube(mask, frame_of(shape, zooms, 7))
    assert ndimage.label(cube)[1] == 3
    np.testing.assert_array_equal(mask_to_cube(mask, frame_of(shape, zooms, 20)), mask)


def test_an_empty_mask_and_one_outside_the_box_give_an_empty_cube():
    mask, other = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    assert not mask_to_cube(mask, frame_of(mask.shape, np.ones(3), 8)).any()
    mask[1:3, 1:3, 1:3], other[10, 10, 10] = True, True
    assert not mask_to_cube(other, box_frame(mask, np.ones(3), 8, 1.0)).any()


# And back


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("cells", [4, 8, None])
@GRIDS_BY_NAME
def test_a_map_comes_back_to_its_place(shape, zooms, side, cells, turn):
    """A map of g^3 cells is the mean of the cube's voxels in each cell; its blob is where the cube's is, in mm."""
    affine = affine_of(zooms=zooms, turn=turn)
    frame = frame_of(shape, zooms, side)
    extent = frame.side * frame.voxel_mm
    g = cells or side
    edges = (np.arange(g) - (g - 1) / 2) * extent / g
    offset = np.array([0.8, -1.2, 0.5])
    sigma = max(3.0, 1.1 * extent / g)
    away = np.stack(np.meshgrid(edges, edges, edges, indexing="ij"), -1) - offset
    back = from_cube(np.exp(-0.5 * (away**2).sum(-1) / sigma**2), frame)
    assert back.shape == tuple(shape) and back.dtype == np.float32
    expected = blob(shape, affine, offset, sigma)
    if cells is None:
        assert np.abs(back - expected).max() < 0.1
    assert np.linalg.norm(centroid_mm(back, affine) - centroid_mm(expected, affine)) < 0.25 * frame.voxel_mm


@GRIDS_BY_NAME
def test_there_and_back_a_smooth_image_changes_little(shape, zooms, side):
    """In the interior: at the field of view's edge the cube's padding is mixed in."""
    affine = affine_of(zooms=zooms)
    data = blob(shape, affine, (1.0, 2.0, -1.5), sigma=6.0)
    frame = frame_of(shape, zooms, side)
    error = np.abs(from_cube(to_cube(data, frame), frame) - data)
    assert error[2:-2, 2:-2, 2:-2].max() < 0.08


@pytest.mark.parametrize("g", [2, 3, 4, 6, 12])
def test_a_symmetric_map_stays_symmetric_and_a_constant_constant(g):
    frame = frame_of((18, 13, 10), np.array([1.0, 1.4, 1.8]), 12)
    profile = np.minimum(np.arange(g), np.arange(g)[::-1]) + 1.0
    back = from_cube(profile[:, None, None] * profile[:, None] * profile, frame)
    for axis in range(3):
        np.testing.assert_allclose(back, np.flip(back, axis), atol=1e-4)
    np.testing.assert_allclose(from_cube(np.full((g, g, g), 3.0), frame), 3.0, rtol=1e-6)


def test_outside_the_box_is_zero_and_inside_it_is_linear_between_centres():
    mask = np.zeros((20, 16, 12), bool)
    mask[12:16, 3:7, 4:8] = True
    frame = box_frame(mask, np.ones(3), 8, 2.0)  # an edge of 8 mm: voxels 10 to 17, 1 to 8, 2 to 9
    inside = np.zeros(mask.shape, bool)
    inside[10:18, 1:9, 2:10] = True
    np.testing.assert_allclose(from_cube(np.ones((4, 4, 4)), frame), inside, atol=1e-6)
    along = from_cube(np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 4)), frame)[10:18, 5, 5]
    np.testing.assert_allclose(along, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


# Writing


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("code", CODES)
def test_what_is_saved_lies_on_the_reference_and_at_the_same_mm(tmp_path, code, turn):
    reference = write(tmp_path / "reference.nii.gz", numbered(), affine_of(code, turn=turn))
    volume = load_volume(reference)
    path = save_like(reference, volume.data, tmp_path / "maps" / "a.nii.gz")
    saved = nib.load(path)
    np.testing.assert_array_equal(saved.get_fdata(), numbered())
    for affine in (saved.affine, saved.get_qform(), saved.get_sform()):
        np.testing.assert_allclose(affine, nib.load(reference).affine, atol=1e-4)
    again = load_volume(path)
    np.testing.assert_array_equal(again.data, volume.data)
    assert same_space(volume, again) is None
    assert [file.name for file in path.parent.iterdir()] == ["a.nii.gz"]


def test_a_mask_is_saved_as_bytes_and_another_shape_is_refused(tmp_path):
    reference = write(tmp_path / "reference.nii", numbered(), affine_of("PSR"))
    mask = load_volume(reference).data % 2 == 0
    saved = nib.load(save_like(reference, mask, tmp_path / "mask.nii.gz"))
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(saved.get_fdata(), numbered() % 2 == 0)
    with pytest.raises(ExamError, match="on the grid of .*Received"):
        save_like(reference, numbered()[1:], tmp_path / "other.nii.gz")
    assert not (tmp_path / "other.nii.gz").exists()


# Intensities


@pytest.mark.parametrize("scale", [1e-3, 0.25, 1000.0])
def test_the_scanners_scale_drops_out(scale):
    early = np.random.default_rng(3).gamma(0.3, 100.0, (10, 9, 8)).astype(np.float32)
    found = normalise(early, 4.0)
    np.testing.assert_allclose(normalise(early * np.float32(scale), 4.0), found, rtol=1e-5)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() == 4
    values = early.ravel().tolist()
    mean = sum(values) / len(values)
    bright = [value for value in values if value > mean]
    level = sum(bright) / len(bright)
    np.testing.assert_allclose(found.ravel(), [min(value / level, 4.0) for value in values], rtol=1e-5)


@pytest.mark.parametrize("values", [0.0, 0.1, -7.0, 1234.5], ids=str)
def test_a_constant_volume_is_refused(values):
    with pytest.raises(ExamError, match="bright voxels. Received"):
        normalise(np.full((7, 9, 11), values, np.float32), 4.0)


def test_a_volume_of_nothing_positive_is_refused_and_below_zero_becomes_zero():
    early = np.linspace(-9, -1, 512, dtype=np.float32).reshape(8, 8, 8)
    with pytest.raises(ExamError, match="bright voxels"):
        normalise(early, 4.0)
    assert normalise(early + 5, 4.0).min() == 0
