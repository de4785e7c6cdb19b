"""Runs side by side (table, tests, refusals) and the pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.image import imread
from mgkeras.cli.compare import command

from mgkeras.data.cache import exam_cube, file_digests
from mgkeras.data.cohort import read_cohort, write_cohort
from mgkeras.data.tumour import subject_mask
from mgkeras.figures import figure3 as figures
from mgkeras.figures.pictures import figure3_panels
from mgkeras.models.weights import write_arrays
from mgkeras.runs import store
from mgkeras.runs.store import RunError, load_settings, write_json, write_rows
from mgkeras.scores import comparison, metrics, summary
from mgkeras.scores import format as layout


def _write_run(
    folder: Path,
    model: str,
    *,
    seed: int = 0,
    noise: float = 1.0,
    outcome: str = "recurrence",
    n: int = 30,
    folds: int = 3,
    shift: int = 0,
    flip: int | None = None,
    mask: bool = True,
) -> Path:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    if flip is not None:
        labels[flip] = ~labels[flip]
    p = 1 / (1 + np.exp(-(labels + generator.normal(0, noise, n) - 0.5)))
    rows = [
        {
            "subject": f"s{i:02d}",
            "fold": fold,
            "split": "held-out" if held else "train",
            "label": int(labels[i]),
            "probability": float(p[i]),
            "p_outside_blurred": float(p[i]) if held else "",
            "p_inside_blurred": 0.5 if held else "",
        }
        for i in range(n)
        for fold in range(folds)
        for held in [(i // 3 + shift) % folds == fold]
    ]
    attention = [{"subject": f"s{i:02d}", "fold": 0, "mass_in_mask": 0.6, "mass_chance": 0.05} for i in range(n)]
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"model": model, "outcome": outcome}))
    (folder / "summary.json").write_text(json.dumps(summary.run_summary(rows, attention if mask else [], samples=50)))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_altered_exams_are_compared_within_folds(tmp_path):
    """Altered exams move each fold's model by an offset of its own, which a pooled AUC counts as errors."""
    folder = _write_run(tmp_path / "a", "guided")
    rows = store.read_rows(folder / "predictions.csv")
    for row in rows:
        if row["p_outside_blurred"]:
            row["p_outside_blurred"] = str(int(row["label"]) / 10 + int(row["fold"]) / 4)
    rows[0]["p_inside_blurred"] = ""
    write_rows(folder / "predictions.csv", rows)
    held = [row for row in rows if row["split"] == "held-out"]
    labels, p = [int(row["label"]) for row in held], [float(row["p_outside_blurred"]) for row in held]
    assert metrics.auc_score(labels, p) < 0.8
    row = comparison.table_rows([comparison.read_run(folder)])[0]
    assert (row["AUC tumour only"], row["AUC outside only"]) == ("1.00", "0.50")
    for row in rows:
        row["p_outside_blurred"] = ""
    write_rows(folder / "predictions.csv", rows)
    assert comparison.table_rows([comparison.read_run(folder)])[0]["AUC tumour only"] == "-"


def test_table_and_pairs(tmp_path):
    folders = [_write_run(tmp_path / "a", "no-mask", noise=2, mask=False), _write_run(tmp_path / "b", "guided", seed=3)]
    found = comparison.comparison(folders, samples=200)
    assert [row["Run"] for row in found["rows"]] == ["no-mask", "guided"]
    runs = {run.name: run for run in found["runs"]}
    over = runs["guided"].summary["over_folds"]["auc_held_out"]
    row = found["rows"][1]
    assert row["AUC held out"] == f"{over['mean']:.3f} ({over['sd']:.3f})"
    assert row["mass in tumour (chance)"] == "0.60 (0.05)" and row["AUC outside only"] == "0.50"
    assert found["rows"][0]["mass in tumour (chance)"] == "-"
    labels, a, b = (
        np.array(column)
        for column in zip(
            *[
                (runs["no-mask"].held_out[name][1], runs["no-mask"].held_out[name][2], runs["guided"].held_out[name][2])
                for name in runs["no-mask"].held_out
            ],
            strict=True,
        )
    )
    assert found["pairs"][0]["delong"] == metrics.delong_test(labels, a, b)
    assert found["pair_rows"][0]["a - b"] == f"{found['pairs'][0]['delong']['difference']:+.3f}"
    json.dumps({key: found[key] for key in ("rows", "pairs", "pair_rows", "note")}, allow_nan=False)


def test_markdown_and_text(tmp_path):
    rows = [{"a": "1", "b": "x|y"}, {"a": "222", "b": ""}]
    assert layout.as_markdown(rows) == "| a | b |\n| --- | --- |\n| 1 | x&#124;y |\n| 222 |  |\n"
    assert layout.as_text(rows) == "a    b\n---  ---\n1    x|y\n222\n"
    assert layout.as_markdown([]) == layout.as_text([]) == ""


def test_the_same_model_twice_is_named_by_folder(tmp_path):
    folders = [_write_run(tmp_path / name, "guided", seed=seed) for seed, name in enumerate(("one", "two"))]
    assert [run.name for run in comparison.read_runs(folders)] == ["guided (one)", "guided (two)"]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"outcome": "her2"}, "outcome 'recurrence' against 'her2'"),
        ({"n": 27}, "3 subjects only in .*a: s27, s28, s29"),
        ({"shift": 1}, "another fold for 30 subjects: s00, s01, s02, s03, s04 and 25 more"),
        ({"flip": 4}, "another label for 1 subjects: s04 .*label 0 against 1"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path, change, text):
    folders = [_write_run(tmp_path / "a", "no-mask"), _write_run(tmp_path / "b", "guided", **change)]
    with pytest.raises(ValueError, match=text):
        comparison.read_runs(folders)


def test_an_unfinished_run_is_named(tmp_path):
    folder = _write_run(tmp_path / "a", "no-mask")
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="no summary.json. Run the same fit command"):
        comparison.read_runs([folder])


def test_undefined_scores_are_dashes(tmp_path):
    folder = _write_run(tmp_path / "a", "no-mask")
    values = json.loads((folder / "summary.json").read_text())
    values["over_folds"]["auc_held_out"] = {"mean": None, "sd": None, "folds": 0}
    values["pooled"]["auc"] = {"value": None, "low": None, "high": None, "subjects": 0}
    (folder / "summary.json").write_text(json.dumps(values))
    row = comparison.table_rows(comparison.read_runs([folder]))[0]
    assert row["AUC held out"] == row["AUC pooled (95 %)"] == "-"
    assert comparison.pair_rows([{"a": "x", "b": "y", "delong": None, "bootstrap": None}])[0]["p"] == "-"


def _panel(**changes) -> figures.Panel:
    side, grid = 16, 4
    early = np.random.default_rng(0).random((side,) * 3) * 0.2
    mask = np.zeros((side,) * 3, bool)
    mask[10:13, 9:12, 4:7] = True
    cells = np.zeros((grid,) * 3)
    cells[0, 0, 1] = 1
    values = {
        "name": "s01",
        "early": early,
        "mask": mask,
        "maps": {"no-mask": cells, "guided": cells[::-1, ::-1]},
        "voxel_mm": 2.0,
        "probabilities": {"guided": 0.7},
        "label": 1,
    }
    return figures.Panel(**(values | changes))


def test_figure3(tmp_path):
    path = figures.figure3(tmp_path / "new" / "figure3.png", [_panel()], planes=("axial", "sagittal"), dpi=60)
    with_map = imread(path)
    assert with_map.std() > 0.05
    blank = {model: np.zeros((4,) * 3) for model in ("no-mask", "guided")}
    without = imread(figures.figure3(tmp_path / "b.png", [_panel(maps=blank)], planes=("axial", "sagittal"), dpi=60))
    assert with_map.shape == without.shape and not np.allclose(with_map, without)
    figures.figure3(tmp_path / "empty.pdf", [_panel(mask=np.zeros((16,) * 3, bool), label=None)], dpi=40)
    with pytest.raises(ValueError, match="same models"):
        figures.figure3(tmp_path / "c.png", [_panel(), _panel(maps={"other": np.zeros((4,) * 3)})])
    with pytest.raises(ValueError, match="planes"):
        figures.figure3(tmp_path / "c.png", [_panel()], planes=("oblique",))


def test_a_panels_peak_is_where_the_map_is_strongest_of_any_sign():
    mask = np.zeros((8, 8, 8), bool)
    mask[:2, :2, :2] = True
    cells = np.zeros((4, 4, 4))
    cells[0, 0, 0], cells[3, 3, 3] = -2.0, 1.0  # strongest against the predicted class, in the tumour
    near = _panel(mask=mask, maps={"a": cells, "b": -cells / 4, "c": cells * [[[1, 1, 1, 3]]]})
    assert near.peak_mm("a") == near.peak_mm("b") == 0
    assert near.peak_mm("c") > 0


def test_the_scale_bar_stands_below_the_picture_and_is_as_long_as_it_says():
    axes = Figure(figsize=(4, 4)).subplots()
    axes.imshow(np.zeros((48, 48)))
    figures._scale_bar(axes, 48, 2.5)  # 120 mm across
    bar = next(artist for artist in axes.get_lines() + list(axes.artists) if artist.get_gid() == "scale bar")
    pixels, picture = bar.get_window_extent(), axes.get_window_extent()
    assert axes.texts[0].get_text() == "20 mm" and pixels.y1 < picture.y0
    x = bar.get_transform().transform(np.column_stack(bar.get_data()))[:, 0]
    assert np.ptp(x) / picture.width == pytest.approx(20 / 120) and x[0] == pytest.approx(picture.x0)


def test_white_is_one_for_all_planes_and_neither_a_small_bright_spot_nor_the_tumour_sets_it_alone():
    panel = _panel(early=np.full((16,) * 3, 100.0))
    panel.early[panel.mask] = 200
    panel.early[0, 0, :5] = 5000  # brighter than the tumour, and fewer voxels
    assert figures._white(panel) == 200
    assert figures._white(_panel(mask=np.zeros((16,) * 3, bool), early=np.zeros((16,) * 3))) > 0


def test_slices_are_seen_from_the_feet():
    cube = np.zeros((8,) * 3)
    cube[7, 7, 5] = 1  # right, anterior
    cut = figures._cut(cube, "axial", 5)
    assert cut[0, 0] == 1 and cut.sum() == 1  # the picture's upper left
    assert figures._cut(cube, "sagittal", 7)[2, 0] == 1  # anterior at the left, index 5 of 0..7 third from the top
    assert figures.largest_slice(cube > 0, 2) == 5 and figures.largest_slice(cube > 2, 2) == 4


def test_training_curves(tmp_path):
    fold = {"ce": [0.7, 0.5], "dice": [0.1, 0.3], "ce_held_out": [0.7, 0.6]}
    assert imread(figures.training_curves(tmp_path / "a.png", {"fold 0": fold}, dpi=50)).std() > 0.05
    figures.training_curves(tmp_path / "b.png", {"no-mask": {"ce": [0.7], "dice": [None], "epoch": [1]}}, dpi=50)
    figures.training_curves(tmp_path / "c.png", {}, dpi=50)


# --- Figure 3 of a run's own files


def _write_mapped_run(folder: Path, table: Path, model: str) -> Path:
    """A finished run of one fold over a phantom of side 24: the map of subject i is all i / 100, its mass i / 100."""
    subjects = read_cohort(table, "recurrence").subjects
    folder.mkdir()
    write_cohort(folder / "cohort.csv", subjects, "recurrence")
    (folder / "settings.json").write_text(json.dumps({"model": model, "outcome": "recurrence", "volume": {"side": 24}}))
    write_json(folder / "data.json", {"subjects": {subject.name: file_digests(subject) for subject in subjects}})
    rows = [
        {"subject": subject.name, "fold": 0, "split": "held-out", "label": subject.label, "probability": i / 100}
        for i, subject in enumerate(subjects)
    ]
    attention = [
        {"subject": row["subject"], "fold": 0, "mass_in_mask": row["probability"], "mass_chance": 0.1} for row in rows
    ]
    write_rows(folder / "predictions.csv", rows)
    write_rows(folder / "attention.csv", attention)
    (folder / "summary.json").write_text(json.dumps(summary.run_summary(rows, attention, samples=50)))
    fold = folder / "fold_0"
    fold.mkdir()
    maps = np.array([row["probability"] for row in rows])[:, None, None, None] * np.ones((1, 3, 3, 3))
    cam = np.stack([5 + maps, 5 - maps], axis=-1)  # every probability is under 0.5
    write_arrays(fold / "cams.h5", {"subject": np.array([s.name for s in subjects], "S"), "cam": cam}, {})
    write_rows(fold / "history.csv", [{"epoch": 1, "ce": 0.7, "dice": 0.1}])
    (fold / "done.json").write_text('{"fold": 0}')
    return folder


@pytest.fixture(scope="module")
def runs(phantom, tmp_path_factory):
    """{model: run} with maps, on the same 12 phantoms."""
    folder = tmp_path_factory.mktemp("mapped")
    return {model: _write_mapped_run(folder / model, phantom, model) for model in ("no-mask", "guided", "mask-only")}


def test_figure3_shows_the_named_subjects_in_their_order_each_once(runs, phantom):
    folders = [runs["mask-only"], runs["no-mask"], runs["guided"]]
    names = ["box", "no-mask", "guided"]
    panels, outcome = figure3_panels(folders, names, 3, subjects=["P0007", "P0002", "P0007"])
    assert [panel.name for panel in panels] == ["P0007", "P0002"] and outcome == "recurrence"
    subjects = {subject.name: subject for subject in read_cohort(phantom, "recurrence").subjects}
    for panel, value in zip(panels, (0.07, 0.02), strict=True):
        assert list(panel.maps) == ["no-mask", "guided"]  # the mask-only map lies on another grid
        assert all(np.allclose(cells, value) for cells in panel.maps.values())
        assert panel.probabilities == {"no-mask": value, "guided": value}
        assert panel.label == subjects[panel.name].label
        early, tumour = subject_mask(subjects[panel.name], load_settings(runs["guided"]).mask)
        image, mask, frame = exam_cube(early, tumour.mask, load_settings(runs["guided"]))
        assert np.array_equal(panel.early, image) and np.array_equal(panel.mask, mask)
        assert panel.voxel_mm == frame.voxel_mm


def test_figure3_without_names_shows_the_best_the_median_and_the_worst(runs):
    panels, _ = figure3_panels([runs["guided"]], ["guided"], 3)
    assert [panel.name for panel in panels] == ["P0011", "P0005", "P0000"]


def test_a_mask_only_run_alone_is_shown_on_the_box_that_it_saw(runs):
    (box,), _ = figure3_panels([runs["mask-only"]], ["mask-only"], 3, subjects=["P0003"])
    (whole,), _ = figure3_panels([runs["guided"]], ["guided"], 3, subjects=["P0003"])
    assert box.voxel_mm < 0.6 * whole.voxel_mm and box.mask.mean() > 5 * whole.mask.mean()


def test_an_unknown_subject_is_named_with_some_that_exist_and_nothing_is_written(runs, tmp_path):
    with pytest.raises(RunError, match="held out: P0003, .* and 6 more. Received: P03, bob$"):
        figure3_panels([runs["guided"]], ["guided"], 3, subjects=["P0001", "P03", "bob"])
    done = CliRunner().invoke(command, [str(runs["guided"]), "--out", str(tmp_path / "out"), "--subject", "bob"])
    assert isinstance(done.exception, RunError) and not (tmp_path / "out").exists()


def test_compare_draws_a_row_a_subject_and_plane(runs, tmp_path):
    heights = []
    for arguments in (["--subject", "P0001"], ["--subject", "P0001, P0004", "--plane", "sagittal,axial,coronal"]):
        done = CliRunner().invoke(command, [str(runs["guided"]), "--out", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output
        heights.append(imread(tmp_path / "figure3.png").shape[0])
    assert heights[1] > 5 * heights[0]


@pytest.mark.parametrize("value", ["oblique", "axial,oblique", ","])
def test_an_unknown_plane_is_refused_at_once(value, runs, tmp_path):
    done = CliRunner().invoke(command, [str(runs["guided"]), "--out", str(tmp_path / "out"), "--plane", value])
    assert done.exit_code == 2 and "axial, coronal, sagittal" in done.output and not (tmp_path / "out").exists()
