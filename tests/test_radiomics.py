"""The radiomics baseline: pyradiomics' published values, slow twins, invariances, degenerate masks, held-out labels."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mgkeras.data.volume import ExamError
from mgkeras.scores import radiomics
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.radiomics import FEATURES, Extraction, RadiomicsError, baseline, features

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
BREAST = SHARED / "breast1"
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("numpyradiomics") is None, reason="no numpyradiomics: pip install 'mgkeras[radiomics]'"
)
needs_breast = pytest.mark.skipif(not BREAST.is_dir(), reason=f"no {BREAST}: set MGKERAS_SHARED_DATA")

# --- pyradiomics' published values

AS_PUBLISHED = Extraction(ceiling=None, bin_width=25, shift=2000)  # the settings behind pyradiomics_baseline.csv
DEFINED_ALIKE = """
    firstorder_10Percentile firstorder_90Percentile firstorder_Energy firstorder_Entropy firstorder_InterquartileRange
    firstorder_Kurtosis firstorder_Maximum firstorder_Mean firstorder_MeanAbsoluteDeviation firstorder_Median
    firstorder_Minimum firstorder_Range firstorder_RobustMeanAbsoluteDeviation firstorder_RootMeanSquared
    firstorder_Skewness firstorder_TotalEnergy firstorder_Uniformity firstorder_Variance
    shape_Elongation shape_Flatness shape_Maximum3DDiameter shape_MeshVolume shape_Sphericity shape_SurfaceArea
    shape_SurfaceVolumeRatio shape_VoxelVolume
    glcm_Autocorrelation glcm_ClusterProminence glcm_ClusterShade glcm_ClusterTendency glcm_Contrast glcm_Correlation
    glcm_DifferenceAverage glcm_DifferenceEntropy glcm_DifferenceVariance glcm_Id glcm_Idm glcm_Idmn glcm_Idn glcm_Imc1
    glcm_Imc2 glcm_InverseVariance glcm_JointAverage glcm_JointEnergy glcm_JointEntropy glcm_MCC
    glcm_MaximumProbability glcm_SumAverage glcm_SumEntropy glcm_SumSquares
""".split()
CONVERTED = dict.fromkeys(
    ("shape_LeastAxisLength", "shape_MajorAxisLength", "shape_MinorAxisLength"),
    "the library divides the voxels' covariance by n - 1, pyradiomics by n; features() multiplies by sqrt(1 - 1 / n)",
)
DEFINED_OTHERWISE = dict.fromkeys(
    ("shape_Maximum2DDiameterSlice", "shape_Maximum2DDiameterColumn", "shape_Maximum2DDiameterRow"),
    "the library projects the whole surface on the plane, pyradiomics looks within each plane; features() has none",
)


def read_nrrd(path: Path) -> np.ndarray:
    """(x, y, z) RAS+ of a short, gzipped, axis-aligned NRRD in left-posterior-superior order."""
    header, data = path.read_bytes().split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in header.decode("ascii").splitlines() if ": " in line)
    assert (fields["type"], fields["endian"], fields["encoding"]) == ("short", "little", "gzip"), fields
    assert fields["space"] == "left-posterior-superior"
    sizes = [int(size) for size in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(data), "<i2").reshape(sizes, order="F")[::-1, ::-1]


@pytest.fixture(scope="module")
def breast():
    """Early phase, mask, zooms and {feature: value} as published."""
    with open(BREAST / "pyradiomics_baseline.csv", newline="", encoding="utf-8") as file:
        rows = {row["feature"]: row["value"] for row in csv.DictReader(file)}
    zooms = np.array([float(zoom) for zoom in rows["diagnostics_Image-original_Spacing"].strip("()").split(",")])
    published = {
        name.removeprefix("original_"): float(value) for name, value in rows.items() if name.startswith("original_")
    }
    return read_nrrd(BREAST / "breast1_image.nrrd"), read_nrrd(BREAST / "breast1_label.nrrd") == 1, zooms, published


@needs_library
@needs_breast
def test_features_equal_those_that_pyradiomics_published(breast):
    early, mask, zooms, published = breast
    assert mask.sum() == 143
    assert {*DEFINED_ALIKE, *CONVERTED, *DEFINED_OTHERWISE} == set(published)
    assert {f"original_{name}" for name in (*DEFINED_ALIKE, *CONVERTED)} == set(FEATURES)
    found = features(early, mask, zooms, AS_PUBLISHED)
    apart = {name: abs(found[f"original_{name}"] / published[name] - 1) for name in (*DEFINED_ALIKE, *CONVERTED)}
    assert {name: value for name, value in apart.items() if not value < 1e-9} == {}


@needs_library
@needs_breast
def test_what_the_library_defines_otherwise_is_otherwise_as_stated(breast):
    """Axes differ by sqrt(n / (n - 1)); in-plane diameters against all pairs of the surface's points, both ways."""
    import numpyradiomics

    _, mask, zooms, published = breast
    found = numpyradiomics.shape(mask, tuple(zooms), transpose=True, extend=False)
    for name in CONVERTED:
        assert found[name.removeprefix("shape_")] / published[name] == pytest.approx(np.sqrt(143 / 142), rel=1e-9)
    points = surface_points(mask)
    for normal, name in ((2, "Slice"), (1, "Column"), (0, "Row")):
        plane = np.delete(points * zooms, normal, axis=1)
        within = [pdist(plane[points[:, normal] == level]) for level in np.unique(points[:, normal])]
        largest = max(distances.max() for distances in within if distances.size)
        assert published[f"shape_Maximum2DDiameter{name}"] == pytest.approx(largest, rel=1e-9)
        assert found[f"Maximum2DDiameter{name}"] == pytest.approx(pdist(plane).max(), rel=1e-6)
    assert found["Maximum2DDiameterRow"] > 1.05 * published["shape_Maximum2DDiameterRow"]


def surface_points(mask: np.ndarray) -> np.ndarray:
    """(m, 3) voxel indices: the points half way between a voxel of the mask and a neighbour that is not."""
    padded = np.pad(mask, 1).astype(int)
    steps = [np.argwhere(np.diff(padded, axis=axis)) + 0.5 * np.eye(3)[axis] for axis in range(3)]
    return np.concatenate(steps)


# --- twins and invariances


@pytest.fixture(scope="module")
def tumour():
    """A lumpy tumour of some 500 voxels off the centre of a noisy volume: early (22, 20, 18), mask, zooms."""
    rng = np.random.default_rng(3)
    x, y, z = np.indices((22, 20, 18)) - np.array([10, 9, 8])[:, None, None, None]
    mask = (x / 6) ** 2 + (y / 5) ** 2 + (z / 4) ** 2 + 0.15 * np.sin(x + 2 * y) < 1
    mask &= ~((x > 2) & (y > 1) & (z > 0))
    return rng.gamma(9, 10, mask.shape) + 120 * mask * (1 + 0.2 * np.sin(x - y)), mask, np.array([0.8, 1.1, 2.0])


@needs_library
def test_first_order_features_against_numpy(tumour):
    early, mask, zooms = tumour
    found = {name.removeprefix("original_firstorder_"): value for name, value in features(early, mask, zooms).items()}
    level = early[early > early.mean()].mean()
    x = np.clip(early / level, 0, 4)[mask]
    p = np.unique(np.floor(x / 0.1), return_counts=True)[1] / x.size
    centred = x - x.mean()
    middle = x[(x >= np.percentile(x, 10)) & (x <= np.percentile(x, 90))]
    slow = {
        "Mean": x.mean(),
        "Median": np.median(x),
        "Range": x.max() - x.min(),
        "Variance": x.var(),
        "Skewness": (centred**3).mean() / x.std() ** 3,
        "Kurtosis": (centred**4).mean() / x.var() ** 2,
        "Energy": (x**2).sum(),
        "TotalEnergy": (x**2).sum() * zooms.prod(),
        "RootMeanSquared": np.sqrt((x**2).mean()),
        "RobustMeanAbsoluteDeviation": np.abs(middle - middle.mean()).mean(),
        "Entropy": -(p * np.log2(p)).sum(),
        "Uniformity": (p**2).sum(),
    }
    assert {name: found[name] for name in slow} == pytest.approx(slow, rel=1e-5)


@needs_library
@pytest.mark.parametrize("binning", [{"bin_width": 20}, {"bin_count": 9}], ids=str)
def test_glcm_features_against_counting_every_pair_of_neighbours(tumour, binning):
    early, mask, zooms = tumour
    found = features(early, mask, zooms, Extraction(ceiling=None, **binning))
    if "bin_width" in binning:
        grey = np.floor(early / 20) - np.floor(early[mask].min() / 20) + 1
    else:
        low, high = early[mask].min(), early[mask].max()
        grey = np.minimum(np.floor((early - low) / (high - low) * 9), 8) + 1
    slow = {name: [] for name in ("Contrast", "JointAverage", "JointEntropy", "Id", "Autocorrelation")}
    for step in [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]:  # 13 directions
        pairs = {}
        for voxel in map(tuple, np.argwhere(mask)):
            other = tuple(np.add(voxel, step))
            if all(0 <= k < n for k, n in zip(other, mask.shape, strict=True)) and mask[other]:
                for pair in ((grey[voxel], grey[other]), (grey[other], grey[voxel])):
                    pairs[pair] = pairs.get(pair, 0) + 1
        (i, j), p = np.array(list(pairs)).T, np.array(list(pairs.values())) / sum(pairs.values())
        for name, value in {
            "Contrast": (i - j) ** 2,
            "JointAverage": i,
            "JointEntropy": -np.log2(p),
            "Id": 1 / (1 + np.abs(i - j)),
            "Autocorrelation": i * j,
        }.items():
            slow[name].append((value * p).sum())
    assert len(slow["Id"]) == 13
    for name, values in slow.items():
        assert found[f"original_glcm_{name}"] == pytest.approx(np.mean(values), rel=1e-9)


@needs_library
def test_features_do_not_depend_on_place_direction_or_the_scanners_gain(tumour):
    early, mask, zooms = tumour
    first = features(early, mask, zooms)
    assert None not in first.values()
    shifted = [np.roll(array, (3, -2, 1), axis=(0, 1, 2)) for array in (early, mask)]
    assert shifted[1][:4].sum() == 0 < mask.sum()  # nothing was rolled across the border
    assert features(*shifted, zooms) == pytest.approx(first, rel=1e-6)
    assert features(early * 37, mask, zooms) == pytest.approx(first, rel=1e-5)
    for axes in ((0, 1), (0, 2), (1, 2)):
        swapped = zooms.copy()
        swapped[list(axes)] = zooms[list(axes[::-1])]
        turned = [np.rot90(array, axes=axes) for array in (early, mask)]
        assert features(*turned, swapped) == pytest.approx(first, rel=1e-5)
        assert features(*turned, zooms) != pytest.approx(first, rel=1e-2)


# --- degenerate masks


def of_class(found: dict, kind: str) -> set:
    """Which features of a class are undefined."""
    return {name.split("_")[2] for name, value in found.items() if f"_{kind}_" in name and value is None}


@needs_library
def test_masks_without_a_texture_or_a_volume_have_defined_results(tumour):
    early, mask, zooms = tumour
    empty, single, apart, slice_, all_ = (np.zeros(mask.shape, bool) for _ in range(5))
    single[5, 5, 5] = apart[2, 2, 2] = apart[2, 4, 2] = True
    slice_[3:8, 2:9, -1] = all_[:] = True
    assert features(early, empty, zooms) == features(early, single, zooms) == dict.fromkeys(FEATURES)
    found = features(early, apart, zooms)
    assert of_class(found, "glcm") == set(radiomics.GLCM)
    assert not of_class(found, "shape") | of_class(found, "firstorder")
    flat = features(np.where(mask, 300.0, early), mask, zooms)
    assert of_class(flat, "glcm") == set(radiomics.GLCM) and of_class(flat, "firstorder") == {"Skewness", "Kurtosis"}
    for whole in (slice_, all_):
        assert None not in features(early, whole, zooms).values()
    for found in (features(early, slice_, zooms), flat):
        assert all(value is None or type(value) is float and np.isfinite(value) for value in found.values())


@needs_library
def test_volumes_that_cannot_be_measured_are_refused(tumour):
    early, mask, zooms = tumour
    with pytest.raises(ValueError, match=r"on one 3D grid. Received: \(22, 20, 17\) and \(22, 20, 18\)"):
        features(early[..., 1:], mask, zooms)
    with pytest.raises(ExamError, match="bright voxels"):
        features(np.ones(mask.shape), mask, zooms)
    holed = np.where(mask, early, np.nan)
    holed[tuple(np.argwhere(mask)[0])] = np.inf
    with pytest.raises(ValueError, match="finite voxels of the early phase in the mask. Received: 1 voxels"):
        features(holed, mask, zooms, Extraction(ceiling=None))


def test_a_missing_library_is_named_with_what_to_install(tumour, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyradiomics", None)
    with pytest.raises(RadiomicsError, match=r"pip install 'mgkeras\[radiomics\]'. Received: .*numpyradiomics"):
        features(*tumour)


# --- the baseline, which needs no library


def cohort(signal: float, seed: int = 0, subjects: int = 60) -> tuple[HeldOut, list[dict]]:
    """Subjects with correlated features, a third of class 1, and three folds with the same share of it."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(subjects) % 3 == 0).astype(int)
    latent = rng.normal(size=(subjects, 6))
    latent[:, 0] += signal * labels
    values = latent @ rng.normal(size=(6, len(FEATURES))) + 0.5 * rng.normal(size=(subjects, len(FEATURES)))
    names = tuple(f"s{i:02d}" for i in range(subjects))
    like = HeldOut("x", "network", names, labels, np.full(subjects, 0.5), np.arange(subjects) // 3 % 3, {})
    return like, [
        {"subject": name, **dict(zip(FEATURES, row, strict=True))} for name, row in zip(names, values, strict=True)
    ]


def test_the_baseline_ranks_what_can_be_told_apart_and_nothing_else():
    def auc(signal, seed):
        like, rows = cohort(signal, seed)
        found = baseline(like, rows)
        assert (found.name, found.kind, set(found.thresholds)) == ("radiomics", "baseline", {0, 1, 2})
        return roc_auc_score(found.labels, found.probabilities)

    assert min(auc(8.0, seed) for seed in range(3)) > 0.95
    assert abs(np.mean([auc(0.0, seed) for seed in range(20)]) - 0.5) < 0.08  # three standard errors of the mean


def test_the_baseline_equals_a_strongly_penalised_regression_written_out():
    like, rows = cohort(2.0)
    rows[4] = {"subject": rows[4]["subject"]} | dict.fromkeys(FEATURES)  # an empty mask
    rows[9][FEATURES[0]] = ""
    found = baseline(like, rows[::-1])
    x = np.array([[np.nan if row[name] in (None, "") else row[name] for name in FEATURES] for row in rows])
    for fold in range(3):
        train, held = like.folds != fold, like.folds == fold
        filled = np.where(np.isnan(x), np.nanmedian(x[train], axis=0), x)
        scaled = (filled - filled[train].mean(axis=0)) / filled[train].std(axis=0)
        model = LogisticRegression(C=0.03).fit(scaled[train], like.labels[train])
        assert np.allclose(found.probabilities[held], model.predict_proba(scaled[held])[:, 1], atol=1e-4)
    assert found.note == (
        "regularised logistic regression on 53 features of the early phase in the mask: 18 first-order, 11 shape, "
        "24 GLCM; 2 of 60 have undefined features and get the training median there"
    )
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert np.array_equal(found.probabilities, baseline(like, as_text).probabilities)


def test_the_baseline_does_not_see_the_held_out_labels():
    like, rows = cohort(2.0)
    turned = np.where(like.folds == 1, 1 - like.labels, like.labels)
    a, b = (
        baseline(HeldOut("x", "network", like.subjects, labels, like.probabilities, like.folds, {}), rows)
        for labels in (like.labels, turned)
    )
    held = like.folds == 1
    assert np.array_equal(a.probabilities[held], b.probabilities[held]) and a.thresholds[1] == b.thresholds[1]
    assert not np.allclose(a.probabilities[~held], b.probabilities[~held])


def test_the_baseline_refuses_absent_subjects_and_broken_cells():
    like, rows = cohort(0.0)
    with pytest.raises(ValueError, match="every held-out subject. Received: none for s05"):
        baseline(like, rows[:5] + rows[6:])
    for broken, received in (("inf", "'inf'"), ("x", "'x'"), (np.inf, "inf")):
        with pytest.raises(ValueError, match=f"subject s02: {FEATURES[3]} must be a finite number.*: {received}"):
            baseline(like, [*rows[:2], rows[2] | {FEATURES[3]: broken}, *rows[3:]])
    with pytest.raises(ValueError, match="no such column"):
        baseline(like, [{"subject": row["subject"]} for row in rows])
    with pytest.raises(ValueError, match="expected a column subject. Received: "):
        baseline(like, [{name: row[name] for name in row if name != "subject"} for row in rows])
