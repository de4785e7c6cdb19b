"""`mgkeras evaluate`: known values, thresholds and baselines without the held-out subjects, degenerate cohorts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from mgkeras.cli.evaluate import FILES, command
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from mgkeras.evaluation import tables
from mgkeras.evaluation.evaluate import above_chance, evaluate
from mgkeras.figures import curves
from mgkeras.scores import baselines, metrics
from mgkeras.scores.held_out import HeldOut, thresholds_of
from mgkeras.scores.summary import run_summary

LABELS = [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
P = [0.1, 0.3, 0.6, 0.4, 0.7, 0.9, 0.2, 0.2, 0.5, 0.45, 0.8, 0.6]
QUICK = 30  # bootstrap draws


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_run(folder, *, model="guided", labels=LABELS, p=P, folds=2, attention=True, masks=True, train=True) -> Path:
    """A finished run by hand: subject i is held out in fold i % folds; its train rows hold the same p."""
    folder.mkdir(parents=True)
    names = [f"s{i:02d}" for i in range(len(labels))]
    rows = [
        {
            "subject": name,
            "fold": fold,
            "split": "held-out" if held else "train",
            "label": labels[i],
            "probability": p[i],
            "p_outside_blurred": p[i] if held else "",
            "p_inside_blurred": 0.5 if held else "",
        }
        for fold in range(folds)
        for i, name in enumerate(names)
        for held in [i % folds == fold]
        if train or held
    ]
    looks = (
        [
            {
                "subject": name,
                "fold": i % folds,
                "mass_in_mask": "" if i == 0 else 0.2 + 0.1 * labels[i],
                "mass_chance": 0.05,
                "peak_distance_mm": 3.0 * i,
                "rank_accuracy": 0.5,
            }
            for i, name in enumerate(names)
        ]
        if attention
        else []
    )
    write_csv(folder / "predictions.csv", rows)
    write_csv(
        folder / "cohort.csv",
        [
            {
                "subject": name,
                "pre": "a",
                "early": "b",
                "age": "" if i == 1 else 30 + i,
                "er": ["pos", "neg", ""][i % 3],
                "recurrence": labels[i],
            }
            for i, name in enumerate(names)
        ],
    )
    if attention:
        write_csv(folder / "attention.csv", looks)
    if masks:
        write_csv(
            folder / "masks.csv",
            [{"subject": name, "volume_mm3": 0 if i == 2 else 100.0 * (i + 1)} for i, name in enumerate(names)],
        )
    (folder / "settings.json").write_text(json.dumps({"model": model, "outcome": "recurrence"}))
    (folder / "summary.json").write_text(json.dumps(run_summary(rows, looks, samples=50)))
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "a", model="no-mask", p=P[::-1], attention=False), make_run(folder / "b")]
    return evaluate(runs, clinical=("age", "er"), samples=QUICK)


# --- known values


def test_scores_are_those_of_scikit_learn_and_of_counting_by_hand(found):
    model = found.results["models"][1]
    pooled = model["pooled"]
    assert model["name"] == "guided" and found.results["positives"] == 6
    assert pooled["auc"]["value"] == pytest.approx(roc_auc_score(LABELS, P))
    assert pooled["average_precision"]["value"] == pytest.approx(average_precision_score(LABELS, P))
    assert pooled["brier_loss"]["value"] == pytest.approx(np.mean((np.array(P) - LABELS) ** 2))
    half = {name: values["value"] for name, values in model["at_half"].items()}  # called: 2, 4, 5, 8, 10, 11
    assert half == pytest.approx(
        {
            "accuracy": 8 / 12,
            "balanced_accuracy": 4 / 6,
            "sensitivity": 4 / 6,
            "specificity": 4 / 6,
            "ppv": 4 / 6,
            "npv": 4 / 6,
        }
    )
    for fold in (0, 1):
        part = slice(fold, None, 2)
        assert model["per_fold"][fold]["auc"] == pytest.approx(roc_auc_score(LABELS[part], P[part]))
    assert model["over_folds"]["auc"]["mean"] == pytest.approx(np.mean([row["auc"] for row in model["per_fold"]]))
    for values in (*pooled.values(), *model["at_half"].values()):
        assert values["low"] is None or values["low"] <= values["high"]


def test_the_threshold_is_youdens_on_the_training_rows(found):
    """Fold k is trained on the subjects of the other fold; a slow search over a thousand thresholds is no better."""
    model = found.models[1]
    for fold in (0, 1):
        labels, p = (np.array(values)[np.arange(12) % 2 != fold] for values in (LABELS, P))
        youden = {t: (p[labels == 1] >= t).mean() - (p[labels == 0] >= t).mean() for t in np.linspace(0, 1, 1001)}
        chosen = model.thresholds[fold]
        reached = (p[labels == 1] >= chosen).mean() - (p[labels == 0] >= chosen).mean()
        assert reached == pytest.approx(max(youden.values()))
    called = np.array([p >= model.thresholds[i % 2] for i, p in enumerate(P)])
    assert found.results["models"][1]["pooled"]["accuracy"]["value"] == np.mean(called == LABELS)


def test_thresholds_and_baselines_do_not_see_the_held_out_labels(tmp_path):
    """Turning the labels of fold 0's held-out subjects must not move what fold 0 says or decides."""
    turned = [1 - label if i % 2 == 0 else label for i, label in enumerate(LABELS)]
    runs = [make_run(tmp_path / name, labels=labels) for name, labels in (("a", LABELS), ("b", turned))]
    before, after = (evaluate([run], clinical=("age", "er"), samples=QUICK).models for run in runs)
    for a, b in zip(before, after, strict=True):
        assert a.thresholds[0] == b.thresholds[0], a.name
        if a.name != "majority class":  # one share for all folds, on purpose
            assert np.array_equal(a.probabilities[a.folds == 0], b.probabilities[b.folds == 0]), a.name


def test_attention_by_class_and_right_or_wrong_beside_chance(found):
    model = found.results["models"][1]
    assert model["attention"]["class_1"]["mass_in_mask"]["mean"] == pytest.approx(0.3)
    assert model["above_chance"]["class_0"]["mean"] == pytest.approx(0.15)
    assert model["above_chance"]["class_0"]["subjects"] == 5 and model["above_chance"]["right"]["subjects"] == 7
    everyone = model["above_chance"]["all"]
    assert everyone["low"] <= everyone["mean"] <= everyone["high"]
    within = metrics.auc_within(LABELS, P, np.arange(12) % 2)
    assert model["causal"]["auc_outside_blurred"]["value"] == pytest.approx(within)
    assert model["causal"]["auc_whole"]["value"] == pytest.approx(within) and model["causal"]["kept_ml"] is None
    assert model["causal"]["inside_less_whole"]["value"] == pytest.approx(0.5 - within)
    assert model["causal"]["auc_inside_blurred"]["value"] == 0.5
    assert found.results["models"][0]["attention"] == {} == found.results["models"][0]["above_chance"]


def test_pairs_are_networks_with_each_other_and_with_what_ranks(found):
    pairs = {(pair["a"], pair["b"]): pair for pair in found.results["pairs"]}
    simple = ("tumour volume", "clinical")
    assert set(pairs) == {("no-mask", "guided"), *((a, b) for a in ("no-mask", "guided") for b in simple)}
    values = {model["name"]: model["pooled"]["auc"]["value"] for model in found.results["models"]}
    for (a, b), pair in pairs.items():
        assert pair["delong"]["difference"] == pytest.approx(values[a] - values[b])
        assert pair["bootstrap"]["low"] <= pair["bootstrap"]["high"]


# --- baselines


def test_the_volume_baseline_equals_a_regression_written_out():
    names = tuple(f"s{i:02d}" for i in range(12))
    like = HeldOut("x", "network", names, np.array(LABELS), np.array(P), np.arange(12) % 2, {0: 0.5, 1: 0.5})
    volumes = np.array([100.0 * (i + 1) for i in range(12)])
    rows = [{"subject": name, "volume_mm3": "0" if i == 2 else str(volumes[i])} for i, name in enumerate(like.subjects)]
    found = baselines.volume(like, rows[::-1])
    x = np.log(volumes)
    for fold in (0, 1):
        train, held = like.folds != fold, like.folds == fold
        known = train & (np.arange(12) != 2)
        filled = np.where(np.arange(12) == 2, np.median(x[known]), x)
        scaled = ((filled - filled[train].mean()) / filled[train].std())[:, None]
        model = LogisticRegression().fit(scaled[train], like.labels[train])
        assert np.allclose(found.probabilities[held], model.predict_proba(scaled[held])[:, 1], atol=1e-6)
    assert "1 of 12 have an empty mask" in found.note
    with pytest.raises(ValueError, match="masks.csv. Received: none for s01"):
        baselines.volume(like, rows[:1])


def test_the_majority_class_ranks_nobody_and_is_right_as_often_as_it_occurs(tmp_path):
    labels = [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    model = evaluate([make_run(tmp_path / "a", labels=labels)], samples=QUICK).results["models"][1]
    assert model["name"] == "majority class"
    assert model["pooled"]["auc"]["value"] == 0.5 and model["pooled"]["accuracy"]["value"] == pytest.approx(8 / 12)
    assert model["pooled"]["brier_loss"]["value"] == pytest.approx(8 / 12 * 4 / 12)
    assert model["pooled"]["ppv"]["value"] is None and model["pooled"]["calibration_slope"]["value"] is None


def test_columns_are_encoded_as_numbers_or_levels():
    age, er = (baselines.encoded("x", values, "abcd") for values in (["1", " 2.5", "NA", None], ["p", "n", "", "p"]))
    assert np.array_equal(age, [[1], [2.5], [np.nan], [np.nan]], equal_nan=True)
    assert np.array_equal(er, [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])  # missing, n, p
    with pytest.raises(ValueError, match="none; leave it out"):
        baselines.encoded("age", ["", "na"], ["a", "b"])
    with pytest.raises(ValueError, match="13 levels"):
        baselines.encoded("date", [f"d{i}" for i in range(13)], [f"s{i}" for i in range(13)])
    with pytest.raises(ValueError, match="subject b: age must be a finite number. Received: 'inf'"):
        baselines.encoded("age", ["1", "inf"], ["a", "b"])


@pytest.mark.parametrize("column", ["recurrence", "early", "typo"])
def test_a_clinical_column_must_be_one(column, tmp_path):
    with pytest.raises(ValueError, match=f"expected clinical columns of age, er. Received: {column}"):
        evaluate([make_run(tmp_path / "a")], clinical=("age", column), samples=QUICK)


# --- curves


def test_net_benefit_against_counting():
    labels, p = np.array(LABELS), np.array(P)
    for t, value in zip((0.2, 0.5), curves.net_benefit(labels, p, np.array([0.2, 0.5])), strict=True):
        true = sum(x >= t and y for x, y in zip(P, LABELS, strict=True))
        false = sum(x >= t and not y for x, y in zip(P, LABELS, strict=True))
        assert value == pytest.approx((true - false * t / (1 - t)) / 12)
    assert curves.net_benefit(labels, np.zeros(12), np.array([0.3]))[0] == 0


def test_bins_hold_every_subject_once_and_ties_together():
    generator = np.random.default_rng(0)
    p = generator.random(100).round(1)
    bins = curves.calibration_bins((generator.random(100) < p).astype(int), p)
    assert sum(point["subjects"] for point in bins) == 100 and 2 <= len(bins) <= 10
    assert all(point["low"] <= point["observed"] <= point["high"] for point in bins)
    assert len(curves.calibration_bins(np.array([0, 1, 0]), np.full(3, 0.4))) == 1


def test_the_band_holds_the_curve_and_narrows_with_subjects():
    def width(times):
        low, high = curves.roc_band(np.tile(LABELS, times), np.tile(P, times), samples=QUICK)
        assert (low <= high).all() and low.min() >= 0 and high.max() <= 1
        return (high - low).mean()

    assert width(10) < width(1)
    assert curves.roc_band(np.zeros(4, int), np.arange(4) / 4) is None


def test_a_patient_of_two_exams_is_drawn_as_one_with_one():
    twice, patients = (np.repeat(LABELS, 2), np.repeat(P, 2)), np.repeat(np.arange(len(P)), 2)
    band = curves.roc_band(*twice, samples=QUICK, patients=patients)
    np.testing.assert_array_equal(band, curves.roc_band(np.array(LABELS), np.array(P), samples=QUICK))
    assert not np.array_equal(band, curves.roc_band(*twice, samples=QUICK))


# --- degenerate cohorts: defined results, no NaN that travels


DEGENERATE = {
    "one class": {"labels": [0] * 6, "p": [0.1, 0.2, 0.3, 0.4, 0.6, 0.2]},
    "one class in a fold": {"labels": [0, 1, 0, 0, 0, 1], "p": [0.1, 0.9, 0.3, 0.4, 0.6, 0.2]},
    "three subjects": {"labels": [0, 1, 0], "p": [0.2, 0.7, 0.4], "folds": 3},
    "tied scores": {"p": [0.5] * 12},
    "separated": {"p": [0.9 if label else 0.1 for label in LABELS]},
    "certain": {"p": [float(label) for label in LABELS]},
    "no attention, masks or training rows": {"attention": False, "masks": False, "train": False},
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_cohorts_have_defined_results(case, tmp_path):
    found = evaluate([make_run(tmp_path / "a", **DEGENERATE[case])], clinical=("age",), samples=QUICK)
    text = json.dumps(found.results, allow_nan=False)
    assert "NaN" not in text and "nan" not in tables.as_page(found.results)
    scored = {model["name"]: model for model in found.results["models"]}
    if case in ("one class", "three subjects"):
        curves.roc_figure(tmp_path / "roc.png", found.models[:1], scored, samples=20)
        curves.calibration_figure(tmp_path / "calibration.png", found.models[:1], scored)
        curves.decision_figure(tmp_path / "decision.png", found.models[:1])
    guided = scored["guided"]
    if case == "one class":
        assert guided["pooled"]["auc"]["value"] is None and guided["threshold_fallback"] == [0, 1]
        assert found.results["pairs"][0]["delong"] is None
    if case == "tied scores":
        assert guided["pooled"]["auc"]["value"] == 0.5
    if case.startswith("no attention"):
        curves.attention_figure(tmp_path / "attention.png", found.models[:1], found.attention)
        assert guided["thresholds"] == {"0": 0.5, "1": 0.5} and "no masks.csv" in found.results["skipped"][0]


def test_thresholds_fall_back_where_a_fold_has_one_class():
    train = {0: (np.array([1, 1]), np.array([0.2, 0.4])), 1: (np.array([0, 1]), np.array([0.2, 0.3]))}
    assert thresholds_of(train, np.array([0, 1, 2])) == ({0: 0.5, 1: 0.25, 2: 0.5}, (0, 2))


def test_attention_of_strangers_and_of_nobody(tmp_path):
    run = make_run(tmp_path / "a")
    write_csv(run / "attention.csv", [{"subject": "zz", "mass_in_mask": 1, "mass_chance": 1}])
    with pytest.raises(ValueError, match="only held-out subjects .* Received: zz"):
        evaluate([run], samples=QUICK)
    assert above_chance(None, []) == {}
    with pytest.raises(ValueError, match="at least one run"):
        evaluate([])


# --- tables and the command


def test_the_csv_holds_the_numbers_of_the_json(found):
    rows = tables.csv_rows(found.results)
    keys = [tuple(row[name] for name in ("model", "part", "group", "threshold", "score")) for row in rows]
    assert len(set(keys)) == len(keys) and {tuple(row) for row in rows} == {tables.CSV_COLUMNS}
    by_key = dict(zip(keys, rows, strict=True))
    for model in found.results["models"]:
        for name, values in model["pooled"].items():
            at = "train" if name in model["at_half"] else None
            row = by_key[(model["name"], "score", "pooled", at, name)]
            assert {key: row[key] for key in values} == values
        assert by_key[(model["name"], "score", "fold 1", None, "auc")]["value"] == model["per_fold"][1]["auc"]


def test_the_command_writes_its_files_and_prints_its_table(tmp_path):
    runs = [make_run(tmp_path / "a", model="no-mask", p=P[::-1]), make_run(tmp_path / "b")]
    out = tmp_path / "out"
    options = ["--out", str(out), "--clinical", "age, er", "--samples", "100"]
    done = CliRunner().invoke(command, [*map(str, runs), *options], catch_exceptions=False)
    written = [name for name in FILES if name != "probes.png"]  # the exams of these runs are nowhere: no probes
    assert done.exit_code == 0 and {path.name for path in out.iterdir()} == set(written)
    for word in ("no-mask", "guided", "majority class", "tumour volume", "clinical", *(str(out / n) for n in written)):
        assert word in done.output
    assert "is not probed" in done.output and "not scored: probes of guided" in done.output
    results = json.loads((out / "evaluation.json").read_text())
    assert f"| guided | {results['models'][1]['pooled']['auc']['value']:.2f} (" in (out / "table.md").read_text()
    for name in written:
        if name.endswith(".png"):
            assert imread(out / name)[..., :3].std() > 0.02


def test_the_command_explains_itself_and_refuses_other_folds(tmp_path):
    text = CliRunner().invoke(command, ["--help"]).output
    assert all(word in text for word in (*FILES, "--clinical", "Youden", "Example:"))
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", folds=3)]
    done = CliRunner().invoke(command, [*map(str, runs), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ValueError) and "same outcome, subjects and folds" in str(done.exception)


# --- several exams of a patient


def test_both_breasts_of_a_patient_count_once_wherever_an_interval_is_drawn(tmp_path):
    """The exams of a cohort twice, as left and right breasts, have the intervals of the cohort once."""
    twice = tuple([*values, *values] for values in (LABELS, P, P[::-1]))
    once = [
        make_run(tmp_path / "one", masks=False),
        make_run(tmp_path / "one-b", model="no-mask", p=P[::-1], masks=False),
    ]
    both = [
        make_run(tmp_path / "two", labels=twice[0], p=twice[1], masks=False),
        make_run(tmp_path / "two-b", model="no-mask", labels=twice[0], p=twice[2], masks=False),
    ]
    for run in both:
        rows = list(csv.DictReader((run / "cohort.csv").open()))
        write_csv(run / "cohort.csv", [{**row, "patient": f"P{i % 12}"} for i, row in enumerate(rows)])
    first, second = (evaluate(runs, samples=200).results for runs in (once, both))
    assert (first["subjects"], first["patients"]) == (12, 12) and (second["subjects"], second["patients"]) == (24, 12)
    for ours, theirs in zip(first["models"][:2], second["models"][:2], strict=True):
        for name in ("auc", "average_precision", "brier_loss", "accuracy", "sensitivity"):
            assert theirs["pooled"][name] == pytest.approx(ours["pooled"][name], abs=1e-9), name
        for name in ("auc_whole", "auc_outside_blurred", "outside_less_whole"):
            whole = {key: value for key, value in ours["causal"][name].items() if key != "subjects"}
            assert {key: theirs["causal"][name][key] for key in whole} == pytest.approx(whole, abs=1e-9), name
        assert theirs["at_half"] == {name: pytest.approx(values) for name, values in ours["at_half"].items()}
    for test in ("delong", "bootstrap"):
        assert second["pairs"][0][test] == pytest.approx(first["pairs"][0][test], abs=1e-9)
    rows = [row for row in csv.DictReader((both[0] / "predictions.csv").open())]
    numbers = {f"s{i:02d}": i % 12 for i in range(24)}
    summary = run_summary(rows, samples=200, patients=numbers)["pooled"]["auc"]
    assert {key: summary[key] for key in ("low", "high")} == pytest.approx(
        {key: first["models"][0]["pooled"]["auc"][key] for key in ("low", "high")}, abs=1e-9
    )
