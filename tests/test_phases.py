"""Several phases as the channels of one cube: settings, scale, files, and what changes an exam's context."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mgkeras.data import anatomical, context
from mgkeras.data.augment import PAPER, apply_variant, stored_volumes
from mgkeras.data.cache import cached, exam_cube, file_digests
from mgkeras.data.cohort import CohortError, Subject, open_cohort, read_cohort
from mgkeras.data.phases import as_batch, channels_of, cube_shape, files_of, input_shape, load_others, needed_columns
from mgkeras.data.stream import fetch
from mgkeras.data.volume import ExamError, Volume, load_volume
from mgkeras.evaluation.evaluate import _same_exam
from mgkeras.settings import PHASES, Settings, VolumeSettings, as_dict, from_dict, with_values

EVERY = VolumeSettings(side=16, phases=PHASES)


@pytest.fixture
def exam():
    """Pre, early and late of one patient: (9, 8, 7) voxels, early brighter than pre, late washed out in one corner."""
    rng = np.random.default_rng(4)
    pre = rng.uniform(0, 900, (9, 8, 7)).astype(np.float32)
    early = (pre * rng.uniform(1, 3, pre.shape)).astype(np.float32)
    late = early.copy()
    late[:3] *= 0.5
    late[4, 4, 4] = -50
    phases = {"pre": pre, "early": early, "late": late}
    return {name: Volume(data, np.diag([1.0, 1, 2, 1])) for name, data in phases.items()}


def channels(exam, volume=EVERY):
    others = {name: volume for name, volume in exam.items() if name != "early"}
    return dict(zip(volume.phases, channels_of(exam["early"], others, volume), strict=True))


def test_phases_are_settings_in_one_order_and_runs_of_before_see_early():
    asked = VolumeSettings(side=32, phases=("subtraction", "late", "early"))
    assert asked.phases == ("early", "late", "subtraction") and files_of(asked) == ("early", "pre", "late")
    assert input_shape(asked) == cube_shape(asked) == (32, 32, 32, 3)
    alone = VolumeSettings(side=32, phases=("subtraction",))
    assert (files_of(alone), input_shape(alone), cube_shape(alone)) == (("early", "pre"), (32, 32, 32, 1), (32, 32, 32))
    settings = replace(Settings(), volume=asked)
    assert from_dict(as_dict(settings)) == settings
    before = as_dict(settings)
    del before["volume"]["phases"]
    assert from_dict(before).volume.phases == ("early",)
    for wrong, told in (((), "''"), (("early", "peak"), "'peak'")):
        with pytest.raises(ValueError, match=f"volume.phases must be one of early, .*Received: {told}"):
            with_values(Settings(), {"volume.phases": wrong})


def test_all_channels_have_the_scale_of_early(exam):
    found, bright = channels(exam), exam["early"].data
    unit = bright[bright > bright.mean()].mean()
    for name in ("early", "pre", "late"):
        slow = [[[min(max(v / unit, 0), 4) for v in row] for row in plane] for plane in exam[name].data]
        np.testing.assert_allclose(found[name], slow, rtol=1e-5)
    np.testing.assert_allclose(found["late"][:3], found["early"][:3] / 2, rtol=1e-5), "washout stays"
    difference = (exam["early"].data - exam["pre"].data) / unit
    np.testing.assert_allclose(found["subtraction"], np.clip(difference, -4, 4), rtol=1e-5, atol=1e-6)
    louder = {name: replace(volume, data=volume.data * np.float32(7)) for name, volume in exam.items()}
    for name, channel in channels(louder).items():
        np.testing.assert_allclose(channel, found[name], rtol=1e-5, atol=1e-6)
    falling = channels(exam | {"pre": exam["late"], "late": exam["pre"], "early": exam["pre"]}, EVERY)
    assert falling["subtraction"].min() < 0, "what gets darker is negative, not cut off at 0"


def test_a_cube_has_a_channel_a_phase_and_the_first_is_that_of_one_phase(exam):
    settings, mask = Settings(volume=EVERY), np.zeros((9, 8, 7), bool)
    early, others = exam["early"], {name: exam[name] for name in ("pre", "late")}
    image, _, frame = exam_cube(early, mask, settings, others)
    alone, _, same = exam_cube(early, mask, with_values(settings, {"volume.phases": ("early",)}))
    assert image.shape == (16, 16, 16, 4) and alone.shape == (16, 16, 16) and frame == same
    assert np.array_equal(image[..., 0], alone)
    only = exam_cube(early, mask, with_values(settings, {"volume.phases": ("late",)}), others)[0]
    assert np.array_equal(image[..., 2], only)
    assert as_batch(image[None]).shape == (1, 16, 16, 16, 4) and as_batch(alone[None]).shape == (1, 16, 16, 16, 1)
    with pytest.raises(ExamError, match="expected early, pre, late for the channels early, .*Received: no late"):
        exam_cube(early, mask, settings, {"pre": exam["pre"]})


def test_a_cohort_must_name_what_the_channels_are_made_of(phantom, tmp_path):
    rows = [line.split(",") for line in phantom.read_text().splitlines()]
    for row in rows[1:]:
        row[1:4] = [str(phantom.parent / cell) for cell in row[1:4]]
    rows[2][rows[0].index("late")] = ""
    (tmp_path / "cohort.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    two = VolumeSettings(phases=("early", "late"))
    assert needed_columns(VolumeSettings()) == ("early", "pre or mask")
    assert needed_columns(EVERY) == ("early", "pre", "late")
    with pytest.raises(CohortError, match="(?s)1 error:.*late.*an empty cell"):
        open_cohort(tmp_path / "cohort.csv", "recurrence", need=needed_columns(two))
    subject = read_cohort(tmp_path / "cohort.csv", "recurrence").subjects[1]
    with pytest.raises(ExamError, match="early, late, of which the channels early, late .* none for late"):
        file_digests(subject, two)
    assert set(file_digests(subject)) == {"early", "pre", "mask"}, "what runs of before know"


def test_a_late_phase_on_another_grid_is_refused(phantom, tmp_path):
    subject = read_cohort(phantom, "recurrence").subjects[0]
    image = nib.load(subject.late)
    wider = nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.1, 1, 1, 1]))
    nib.save(wider, tmp_path / "late.nii.gz")
    moved = Subject(subject.name, subject.early, late=tmp_path / "late.nii.gz")
    with pytest.raises(
        ExamError, match=f"{subject.name}: expected late on the early phase's grid. Received: corners .* mm apart"
    ):
        load_others(moved, load_volume(subject.early), VolumeSettings(phases=("late",)))


def test_variants_and_contexts_change_all_channels_alike():
    rng = np.random.default_rng(1)
    image, other = (rng.uniform(0, 4, (12, 12, 12, 2)).astype(np.float32) for _ in range(2))
    keep, hole = np.zeros((2, 12, 12, 12), bool)
    keep[3:6, 2:5, 4:8], hole[5:9, 6:9, 3:7] = True, True

    def alike(change, *cubes):
        found = change(*cubes)
        each = [change(*(cube[..., channel] for cube in cubes)) for channel in (0, 1)]
        np.testing.assert_allclose(found, np.stack(each, axis=-1), atol=1e-6)  # sums in another order

    alike(lambda cube: context.blurred(cube, 2.0), image)
    alike(lambda cube: context.blurred_outside(cube, keep, 2.0), image)
    alike(lambda cube: context.blurred_inside(cube, keep, 2.0), image)
    alike(lambda cube: context.filled(cube, hole, 2.0), image)
    alike(lambda cube, into: context.transplanted(cube, keep, into, hole, 2.0), image, other)
    alike(lambda cube, into: context.softly_transplanted(cube, keep, into, hole, 2.0, 1.0), image, other)
    for variant in PAPER:
        alike(lambda cube, how=variant: apply_variant(stored_volumes(cube, 10.0), how, 3), image)
    signed, steady = image - 2, anatomical.Change(True, (5.0, -3.0, 8.0), 1.1, (1.0, 0.0, -1.0), 1.2)
    found = np.empty_like(image)
    anatomical.changed(np.stack([image[..., 0], signed[..., 1]], -1), steady, 0.0, 4.0, found)
    for channel, voxels in enumerate((image[..., 0], signed[..., 1])):
        alone = np.empty_like(voxels)
        anatomical.changed(voxels, steady, 0.0, 4.0, alone)
        assert np.array_equal(found[..., channel], alone)
    assert found[..., 0].min() == 0 and found[..., 1].min() < -1, "a subtraction keeps its sign"
    noise = context.shuffled_outside(image, keep, rng)
    assert np.array_equal(noise[keep], image[keep]) and not np.array_equal(noise, image)
    assert {tuple(voxel) for voxel in noise.reshape(-1, 2)} == {tuple(voxel) for voxel in image.reshape(-1, 2)}
    assert np.array_equal(context.body_of(image), context.body_of(image[..., 0]))


def test_a_swapped_context_comes_from_one_partner_in_all_channels(cohort, small, tmp_path):
    settings = with_values(small, {"volume.side": 16, "volume.phases": ("early", "late"), "training.augment": "none"})
    cache = cached(cohort.subjects[:3], settings, tmp_path)
    keep = context.kept(np.asarray(cache.mask[0, 0]), float(cache.voxel_mm[0]), settings.guidance)
    (volume,), _ = fetch(cache, np.array([[0, 0, 1, 2]]), settings)  # way 1 is swap, with row 2
    assert volume.shape == (16, 16, 16, 2) and keep.any()
    hole = context.kept(np.asarray(cache.mask[2, 0]), float(cache.voxel_mm[2]), settings.guidance)
    sigma = settings.guidance.blur_mm / float(cache.voxel_mm[2])
    slow = context.transplanted(cache.image[0, 0], keep, cache.image[2, 0], hole, sigma)
    np.testing.assert_allclose(volume, slow, atol=2e-3)  # float16
    washout = volume[..., 1].astype(float) - volume[..., 0]
    assert np.abs(washout).max() > 0.05, "the two channels differ"


def test_runs_that_read_other_phases_of_an_exam_saw_the_same_exam():
    row = {"early": "a", "pre": "b", "mask": None, "label": 1}
    assert _same_exam(row, {**row, "late": "c"}) and _same_exam({**row, "pre": None}, row)
    assert not _same_exam(row, {**row, "pre": "d"}) and not _same_exam(row, {**row, "mask": "e"})
