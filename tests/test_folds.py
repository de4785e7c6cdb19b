"""Folds stratified by several columns at once, and a cohort's own split."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgkeras.data.cohort import Subject
from mgkeras.runs.folds import assign_folds, leave_out_folds, plan_folds, split_folds, with_folds
from mgkeras.settings import NEVER, Settings, preset, with_values

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
ISPY2 = SHARED / "ispy2" / "metadata.csv"


def subjects_of(labels, **columns):
    return [
        Subject(
            f"S{place}",
            None,
            label=label,
            site=f"site{place % 3}",
            covariates={name: values[place] for name, values in columns.items()},
        )
        for place, label in enumerate(labels)
    ]


def spread(subjects, fold_of, key, folds):
    """The largest difference between two folds in how many subjects they hold of a value of ``key``."""
    counts = Counter((key(subject), fold_of[subject.name]) for subject in subjects)
    rows = [[counts[value, fold] for fold in range(folds)] for value in {value for value, _ in counts}]
    return max(max(row) - min(row) for row in rows)


@pytest.mark.skipif(not ISPY2.exists(), reason=f"no {ISPY2}: set MGKERAS_SHARED_DATA")
def test_five_folds_of_982_real_patients_balance_her2_and_pcr_jointly():
    rows = list(csv.DictReader(ISPY2.open()))
    subjects = subjects_of([int(row["HER2pos"]) for row in rows], pcr=[row["pCR"] for row in rows])
    assert len(subjects) == 982
    for seed in range(3):
        fold_of = assign_folds(subjects, 5, seed, ["pcr"])
        for key in (
            lambda subject: subject.label,
            lambda subject: subject.covariates["pcr"],
            lambda subject: 0,
            lambda subject: (subject.label, subject.covariates["pcr"]),
        ):
            assert spread(subjects, fold_of, key, 5) <= 1
    assert fold_of != assign_folds(subjects, 5, 0, ["pcr"])


@pytest.mark.parametrize("seed", range(8))
def test_any_two_columns_are_balanced_to_within_one(seed):
    rng = np.random.default_rng(seed)
    count, folds = int(rng.integers(12, 80)), int(rng.integers(2, 7))
    subjects = subjects_of(rng.integers(2, size=count).tolist(), pcr=rng.choice(["0", "1", ""], count).tolist())
    fold_of = assign_folds(subjects, folds, seed, ["pcr"])
    assert set(fold_of) == {subject.name for subject in subjects}
    for key in (
        lambda subject: subject.label,
        lambda subject: subject.covariates["pcr"],
        lambda subject: 0,
        lambda subject: (subject.label, subject.covariates["pcr"]),
    ):
        assert spread(subjects, fold_of, key, folds) <= 1
    assert fold_of == dict(reversed(assign_folds(subjects[::-1], folds, seed, ["pcr"]).items()))  # whatever the order


def test_many_columns_that_cannot_all_be_balanced_still_get_folds():
    rng = np.random.default_rng(0)
    columns = {name: rng.choice(["a", "b", "c"], 40).tolist() for name in "pqrs"}
    subjects = subjects_of(rng.integers(2, size=40).tolist(), **columns)
    fold_of = assign_folds(subjects, 5, 0, list(columns))
    assert spread(subjects, fold_of, lambda subject: 0, 5) <= 2
    assert spread(subjects, fold_of, lambda subject: subject.label, 5) <= 2


def test_a_column_that_nobody_has_is_told():
    with pytest.raises(ValueError, match="Received: age"):
        assign_folds(subjects_of([0, 1, 0, 1]), 2, 0, ["age"])


def test_the_cohorts_own_split_holds_out_its_test_subjects():
    subjects = subjects_of([0, 1, 0, 1, 0], split=["train", "Val", "test", "TEST", "train"])
    with pytest.raises(ValueError, match="trained on by the column split. Received: 0 of class 0"):
        split_folds([*subjects[1:4]])
    assert list(split_folds(subjects).values()) == [NEVER, NEVER, 0, 0, NEVER]
    with pytest.raises(ValueError, match="1 others, such as S2: empty"):
        split_folds(subjects_of([0, 1, 0], split=["train", "test", ""]))


def test_a_split_is_one_fold():
    with pytest.raises(ValueError, match="own split is one fold"):
        with_values(Settings(), {"training.split": True})
    assert with_values(Settings(), {"training.split": True, "training.folds": 1}).training.split


def test_fit_by_the_cohorts_own_split_and_its_evaluation(phantom, tmp_path):
    """One fold: the test subjects are held out, and baselines train on those that are never held out."""
    from click.testing import CliRunner
    from mgkeras.cli.main import cli

    lines = list(csv.DictReader(phantom.open()))
    cohort = phantom.with_name("split.csv")
    with cohort.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], "split"])
        writer.writeheader()
        seen = Counter()
        for line in lines:  # of each class two are tested and one is for validation
            seen[line["recurrence"]] += 1
            place = seen[line["recurrence"]]
            writer.writerow({**line, "split": "test" if place < 3 else "val" if place == 3 else "train"})

    def mgkeras(*arguments):
        done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    run, cache = tmp_path / "run", tmp_path / "cache"
    mgkeras(
        "fit",
        "--model",
        "no-mask",
        "--cohort",
        cohort,
        "--outcome",
        "recurrence",
        "--preset",
        "demo",
        "--side",
        24,
        "--shift-voxels",
        2,
        "--epochs",
        1,
        "--split",
        "--out",
        run,
        "--cache",
        cache,
    )
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert Counter(row["split"] for row in rows) == {"held-out": 4, "train": 8}
    mgkeras(
        "evaluate", run, "--clinical", "age", "--no-probe", "--samples", 100, "--out", tmp_path / "ev", "--cache", cache
    )
    found = json.loads((tmp_path / "ev" / "evaluation.json").read_text())
    assert found["subjects"] == 4 and found["folds"] == 1
    scored = {model["name"]: model["pooled"]["auc"]["value"] for model in found["models"]}
    assert {"no-mask", "majority class", "tumour volume", "clinical"} <= set(scored)
    assert scored["majority class"] == 0.5
    refused = CliRunner().invoke(cli, ["fit", "--cohort", str(cohort), "--split", "--folds", "3"])
    assert refused.exit_code == 2 and "--split is one fold" in refused.output


@pytest.mark.parametrize("stratify", [(), ("hr",)])
def test_both_breasts_of_a_patient_are_held_out_together(stratify):
    rng = np.random.default_rng(1)
    labels, patients = rng.integers(2, size=60).tolist(), [f"P{place // 2}" for place in range(50)] + [""] * 10
    subjects = [
        replace(subject, site="north")
        for subject in subjects_of(labels, patient=patients, hr=rng.choice(["0", "1"], 60).tolist())
    ]
    fold_of = assign_folds(subjects, 5, 0, stratify)
    by_patient = {}
    for subject in subjects[:50]:
        by_patient.setdefault(subject.covariates["patient"], set()).add(fold_of[subject.name])
    assert len(by_patient) == 25 and all(len(folds) == 1 for folds in by_patient.values())
    assert spread(subjects, fold_of, lambda subject: 0, 5) <= 4


def test_site_can_be_balanced_jointly_too():
    subjects = subjects_of([place % 2 for place in range(31)])
    fold_of = assign_folds(subjects, 5, 0, ["site"])
    for key in (
        lambda subject: subject.site,
        lambda subject: subject.label,
        lambda subject: (subject.label, subject.site),
    ):
        assert spread(subjects, fold_of, key, 5) <= 1


def test_folds_that_cannot_be_are_told_before_a_folder_is_claimed(phantom, tmp_path):
    from click.testing import CliRunner
    from mgkeras.cli.main import cli

    command = [
        "fit",
        "--cohort",
        str(phantom),
        "--outcome",
        "recurrence",
        "--preset",
        "demo",
        "--side",
        "24",
        "--shift-voxels",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    for options, told in (
        (["--stratify", "typo"], "Received: typo"),
        (["--split"], "Received: 0 of class 0"),
        (["--model", "no-mask", "--lambda", "3"], "no-mask has no guidance"),
    ):
        done = CliRunner().invoke(cli, command + options)
        assert done.exit_code and told in f"{done.output} {done.exception}", done.output
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").touch()
    done = CliRunner().invoke(cli, [*command, "--model", "all"])
    assert done.exit_code == 2 and "one run itself" in done.output


def test_two_visits_of_a_patient_are_held_out_together_where_one_has_no_site():
    labels = [0, 1] * 20
    subjects = subjects_of(labels, patient=[f"P{place // 2}" for place in range(40)])
    subjects = [replace(subject, site=None if place % 2 else "north") for place, subject in enumerate(subjects)]
    fold_of = assign_folds(subjects, 5, 0)
    assert all(fold_of[f"S{place}"] == fold_of[f"S{place + 1}"] for place in range(0, 40, 2))
    apart = [replace(subject, site="north" if place % 2 else "south") for place, subject in enumerate(subjects)]
    fold_of = assign_folds(apart, 5, 0)  # the same number at two sites: two patients
    assert any(fold_of[f"S{place}"] != fold_of[f"S{place + 1}"] for place in range(0, 40, 2))


def test_a_split_that_parts_two_breasts_of_a_patient_is_refused():
    split = ["train", "test", "train", "test", "val", "test"]
    patients = ["P1", "P1", "P2", "P3", "P4", "P5"]
    subjects = [
        replace(subject, site=None) for subject in subjects_of([0, 1, 1, 0, 1, 1], split=split, patient=patients)
    ]
    with pytest.raises(ValueError, match="one side.*Received: 1 patients on both, such as S0: train, S1: test"):
        split_folds(subjects)
    subjects[1] = replace(subjects[1], covariates={"split": "val", "patient": "P1"})
    assert split_folds(subjects)["S1"] == NEVER


@pytest.mark.parametrize("stratify", [[], ["hr"], ["site"], ["site", "hr"]])
def test_names_of_sites_do_not_change_who_is_held_out(stratify):
    rng = np.random.default_rng(4)
    subjects = subjects_of(rng.integers(2, size=61).tolist(), hr=rng.choice(["0", "1"], 61).tolist())
    other = {"site0": "zurich", "site1": "aarhus", "site2": "site0"}
    renamed = [replace(subject, site=other[subject.site]) for subject in subjects]
    assert assign_folds(subjects, 5, 1, stratify) == assign_folds(renamed, 5, 1, stratify)


# --- a fold for each value of a column


def sites(*pairs, **covariates):
    """Subjects of (site, label), named in the reverse of their order."""
    return [
        Subject(f"s{99 - place:02d}", Path("x"), site=site, label=label, covariates=dict(covariates))
        for place, (site, label) in enumerate(pairs)
    ]


def test_each_site_is_held_out_once_and_its_name_does_not_count():
    subjects = sites(("b", 0), ("a", 1), ("b", 1), ("c", 0), ("a", 0), ("c", 1))
    found = leave_out_folds(subjects, "site")
    assert {site: {found[subject.name] for subject in subjects if subject.site == site} for site in "abc"} == {
        "c": {0},
        "a": {1},
        "b": {2},
    }
    renamed = [replace(subject, site={"a": "z", "b": "y", "c": "x"}[subject.site]) for subject in subjects]
    assert leave_out_folds(renamed, "site") == found
    settings = with_folds(with_values(preset("demo"), {"training.leave_out": "site"}), subjects)
    assert settings.training.folds == 3 and plan_folds(subjects, settings.training, 5) == found


@pytest.mark.parametrize(
    ("subjects", "words"),
    [
        (sites(("a", 0), ("a", 1)), "2 values or more of site.*Received: a"),
        (sites(("a", 0), ("", 1)), "a site for every subject.*Received: 1 without, such as s98"),
        (sites(("a", 0), ("b", 1), ("b", 0)), "both classes beside site b.*Received: class 0 only"),
    ],
)
def test_sites_that_cannot_be_left_out_are_told(subjects, words):
    with pytest.raises(ValueError, match=words):
        leave_out_folds(subjects, "site")


def test_a_patient_whose_exams_have_two_scanners_is_told():
    subjects = [
        Subject(name, Path("x"), label=label, covariates={"scanner": scanner, "patient": patient})
        for name, label, scanner, patient in (
            ("a", 0, "x", "1"),
            ("b", 1, "y", "1"),
            ("c", 1, "x", "2"),
            ("d", 0, "y", "3"),
        )
    ]
    with pytest.raises(ValueError, match="one scanner. Received: a: x, b: y"):
        leave_out_folds(subjects, "scanner")


def test_the_settings_of_drawn_and_of_left_out_folds_exclude_each_other():
    with pytest.raises(ValueError, match="are not drawn"):
        with_values(preset("demo"), {"training.leave_out": "site", "training.stratify": ("age",)})
