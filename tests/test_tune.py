"""The nested search: its ranges, oracles, trials, choice, leaks, resuming, and one chief with two workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

keras_tuner = pytest.importorskip("keras_tuner", reason="needs the extra tune")

from mgkeras.cli import tune as cli  # noqa: E402
from mgkeras.cli.kinds import Range  # noqa: E402
from mgkeras.cli.setting_options import SETTINGS  # noqa: E402

from mgkeras.data.cache import cached  # noqa: E402
from mgkeras.data.cohort import Subject, read_cohort  # noqa: E402
from mgkeras.phantom.cohort import make_phantom  # noqa: E402
from mgkeras.runs import store  # noqa: E402
from mgkeras.scores.comparison import read_run  # noqa: E402
from mgkeras.settings import Settings, with_values  # noqa: E402
from mgkeras.training.devices import choose_device  # noqa: E402
from mgkeras.training.fit import TrainingError  # noqa: E402
from mgkeras.tuning import choice as tuning  # noqa: E402
from mgkeras.tuning import search as tuner  # noqa: E402
from mgkeras.tuning import trials as trying  # noqa: E402
from mgkeras.tuning.oracles import FoldOracles, make_oracle  # noqa: E402
from mgkeras.tuning.trials import Job, Search, Span, inner_folds, results_of, run_trial  # noqa: E402

LAMBDA = Span("guidance.lambda_dice", 0.1, 100.0, log=True)
RATE = Span("training.learning_rate", 1e-5, 1e-3, log=True)
QUIET = SimpleNamespace(line=lambda text: None, tick=lambda text: None, counter=lambda what: lambda done, of: None)
SMALL = (
    "--preset",
    "demo",
    "--side",
    "16",
    "--folds",
    "2",
    "--inner-folds",
    "2",
    "--epochs",
    "1",
    "--trials",
    "2",
    "--batch-size",
    "4",
    "--shift-voxels",
    "2",
    "--outcome",
    "recurrence",
)


# --- the command line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1:100:log", (0.1, 100.0, True)),
        ("0:0.5", (0.0, 0.5, False)),
        ("3", 3.0),
    ],
)
def test_a_range_is_low_high_and_its_scale(text, value):
    assert Range(click.FloatRange(0)).convert(text, None, None) == value


@pytest.mark.parametrize("text", ["1:", "2:1", "1:1", "0:1:log", "1:2:cubic", "1:2:log:log", "-1:2", "a:b", "x"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(click.BadParameter, match="LOW:HIGH|is not"):
        Range(click.FloatRange(0)).convert(text, None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no-mask"], "expected a range to search"),
        (["--model", "no-mask", "--lambda", "1:2"], "no-mask has no guidance to search"),
        (["--lambda", "3"], "expected a range to search"),
        (["--objective", "auc", "--attention-floor", "0.5"], "--attention-floor goes with --objective auc-floor"),
    ],
)
def test_what_cannot_be_searched_is_told(arguments, said):
    done = CliRunner().invoke(cli.command, arguments)
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_without_keras_tuner_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    for name in ("search", "oracles"):
        monkeypatch.delitem(sys.modules, f"mgkeras.tuning.{name}")
    done = CliRunner().invoke(cli.command, [])
    assert done.exit_code == 1 and "pip install 'mgkeras[tune]'" in done.output


def test_lambda_is_searched_where_nothing_is_named():
    assert cli._spans({}, "guided") == ([("guidance.lambda_dice", 0.1, 100.0, True)], {})
    columns = {"training.stratify": ("er", "pr", "age")}  # several, and no range
    assert cli._spans(columns, "guided") == ([("guidance.lambda_dice", 0.1, 100.0, True)], columns)
    spans, fixed = cli._spans({"training.learning_rate": (1e-4, 1e-2, True), "training.epochs": 3}, "no-mask")
    assert spans == [("training.learning_rate", 1e-4, 1e-2, True)] and fixed == {"training.epochs": 3}


def test_what_is_searched_plays_no_part_in_a_trained_model():
    """So a run's settings.json may hold any value of it, and every fold's model is rebuilt from there."""
    from mgkeras.inference.forward import forward_of
    from mgkeras.models.guided import build_model

    searched = [dotted for option, dotted, *_ in SETTINGS if option in cli.SEARCHED]
    assert len(searched) == len(cli.SEARCHED) and set(searched) == set(tuning.SHORT)
    base = with_values(Settings(), {"volume.side": 16})
    low, high = (with_values(base, dict.fromkeys(searched, value)) for value in (0.1, 0.9))
    volumes = np.random.default_rng(0).random((2, 16, 16, 16, 1), np.float32)
    a, b = (forward_of(build_model(settings, seed=1))(volumes) for settings in (low, high))
    assert all(np.array_equal(a[name], b[name]) for name in a)


# --- scores and choice


def inner_rows(n=40, mass=0.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    p = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return [
        {"inner_fold": i % 4 // 2, "label": labels[i], "probability": p[i], "mass_in_mask": mass, "mass_chance": 0.1}
        for i in range(n)
    ]


def test_a_trials_auc_is_pooled_over_its_inner_folds():
    rows = inner_rows()
    found = tuning.trial_scores(rows, samples=200)
    y, p, fold = (np.array([row[name] for row in rows]) for name in ("label", "probability", "inner_fold"))
    assert found["auc"]["value"] == found["score"] == pytest.approx(roc_auc_score(y, p))
    assert found["auc_by_inner_fold"] == pytest.approx([roc_auc_score(y[fold == i], p[fold == i]) for i in (0, 1)])
    assert found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"] and found["reached"]


def test_a_dead_map_counts_as_nothing_and_an_empty_mask_not_at_all():
    rows = inner_rows()
    rows[0] |= {"mass_in_mask": ""}  # dead: no positive cell
    rows[1] |= {"mass_in_mask": None, "mass_chance": None}  # no mask
    found = tuning.trial_scores(rows, floor=0.5, samples=100)
    assert found["attention"]["mean"] == pytest.approx(0.6 * 38 / 39) and found["attention"]["subjects"] == 39
    assert found["dead"] == 1 and found["chance"] == pytest.approx(0.1)
    for row in rows:
        row |= {"mass_in_mask": None, "mass_chance": None}
    found = tuning.trial_scores(rows, floor=0.5, samples=100)
    assert found["attention"]["mean"] is None and not found["reached"] and found["score"] == -0.5


def test_every_trial_under_the_floor_ranks_below_every_one_that_reaches_it():
    worst = [row | {"probability": 1.0 - row["label"]} for row in inner_rows(mass=0.5)]
    best = [row | {"probability": float(row["label"])} for row in inner_rows(mass=0.49)]
    nearly, far = (tuning.trial_scores(best, floor=floor, samples=100)["score"] for floor in (0.5, 0.9))
    assert tuning.trial_scores(worst, floor=0.5, samples=100)["score"] == 0 > nearly > far
    assert tuning.trial_scores(best, samples=100)["score"] == 1


def test_without_both_classes_there_is_no_score():
    with pytest.raises(ValueError, match="both classes. Received: 20 of one class"):
        tuning.trial_scores([row for row in inner_rows() if row["label"]])


def test_the_best_of_those_trained_longest_is_chosen_and_of_equals_the_first():
    trials = [
        {"trial": name, "epochs": epochs, "score": score}
        for name, epochs, score in (("a", 3, 0.9), ("b", 9, 0.6), ("c", 9, 0.7), ("d", 9, 0.7))
    ]
    assert tuning.choose([*trials, {"trial": "e", "epochs": 27, "failed": "diverged"}])["trial"] == "c"
    assert tuning.choose([{"trial": "e", "epochs": 27, "failed": "diverged"}]) is None


def test_the_picture_marks_the_chosen_value_of_each_outer_fold(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(tuning, "save_figure", lambda figure, path: drawn.append(figure) or path)
    trials = [
        {
            "outer_fold": fold,
            "trial": str(place),
            "values": {LAMBDA.name: value},
            "epochs": 1,
            **tuning.trial_scores(inner_rows(mass=0.2 * place + 0.2 * fold), 0.5, samples=100),
        }
        for fold in (0, 1)
        for place, value in enumerate((0.5, 5.0, 50.0))
    ]
    trials.append({"outer_fold": 1, "trial": "3", "values": {LAMBDA.name: 80.0}, "epochs": 1, "failed": "diverged"})
    tuning.value_figure(tmp_path / "lambda.png", LAMBDA.name, (0.1, 100.0, True), trials, {0: "2", 1: "1"}, 0.5)
    panels = drawn[0].axes
    stars = [[line for line in axes.lines if line.get_marker() == "*" and len(line.get_xdata())] for axes in panels]
    assert sorted(star[0].get_xdata()[0] for star in stars) == [5.0, 5.0, 50.0, 50.0]
    assert all(len(star) == 1 for star in stars) and all(axes.get_xscale() == "log" for axes in panels)
    tops = [axes for axes in panels if "AUC" in axes.get_ylabel()]
    assert [axes.get_title(loc="left") for axes in tops] == ["outer fold 1: lambda 50", "outer fold 2: lambda 5"]
    assert [sum(line.get_marker() == "x" and len(line.get_xdata()) for line in axes.lines) for axes in tops] == [0, 1]


# --- oracles


def drive(oracles, score, worker="w", limit=1000):
    """Runs a search whose trials cost nothing; returns [(identity, values)] in order."""
    seen = []
    for _ in range(limit):
        trial = oracles.create_trial(worker)
        if trial.status != "RUNNING":
            return seen, trial.status
        seen.append((trial.trial_id, trial.hyperparameters.values))
        oracles.update_trial(trial.trial_id, {"score": score(trial.hyperparameters.values)})
        trial.status = "COMPLETED"
        oracles.end_trial(trial)
    raise AssertionError("the search did not end")


def oracles_in(folder, method="random", trials=4, epochs=9, folds=2, spans=(LAMBDA, RATE), told=None):
    made = [make_oracle(method, spans, trials, epochs, seed) for seed in range(folds)]
    return FoldOracles(made, folder, told or (lambda name, status: None))


def near_ten(values):
    return 1 - abs(np.log10(values[LAMBDA.name]) - 1) / 3


@pytest.mark.parametrize("method", ["random", "bayesian", "hyperband"])
def test_each_outer_fold_gets_its_own_trials_within_the_ranges(method, tmp_path):
    told = []
    seen, status = drive(oracles_in(tmp_path, method, trials=9, told=lambda *it: told.append(it)), near_ten)
    assert status == "STOPPED" and [name.split("-")[0] for name, _ in seen] == ["0"] * 9 + ["1"] * 9
    assert told == [(name, "COMPLETED") for name, _ in seen]
    for _, values in seen:
        assert all(span.low <= values[span.name] <= span.high for span in (LAMBDA, RATE))
    first, second = ([values[LAMBDA.name] for name, values in seen if name[0] == fold] for fold in "01")
    assert not set(first) & set(second)


def test_bayesian_search_ends_nearer_the_optimum_than_it_began(tmp_path):
    seen, _ = drive(oracles_in(tmp_path, "bayesian", trials=12, folds=1, spans=(LAMBDA,)), near_ten)
    scores = [near_ten(values) for _, values in seen]
    assert np.mean(scores[3:]) > np.mean(scores[:3]) and max(scores[3:]) > 0.95


def test_hyperband_trains_the_better_half_on(tmp_path):
    seen, _ = drive(oracles_in(tmp_path, "hyperband", trials=None, epochs=9, folds=1), near_ten)
    by_name = dict(seen)
    later = {name: values for name, values in seen if "tuner/trial_id" in values}
    assert {values["tuner/epochs"] for _, values in seen} == {1, 3, 9} and len(later) > 3
    for values in later.values():
        past = by_name[f"0-{values['tuner/trial_id']}"]
        assert past[LAMBDA.name] == values[LAMBDA.name] and past["tuner/epochs"] == values["tuner/initial_epoch"]
    ended = [values for name, values in seen if values["tuner/epochs"] == 1]
    kept = [by_name[f"0-{values['tuner/trial_id']}"] for values in later.values() if values["tuner/initial_epoch"] == 1]
    assert min(map(near_ten, kept)) >= np.median([near_ten(values) for values in ended])


def test_a_search_cut_off_after_every_step_is_the_same_search(tmp_path):
    """A new process an action: whatever was handed out and not ended is handed out again, and nothing else."""
    whole, _ = drive(oracles_in(tmp_path / "whole"), near_ten)
    seen = []
    while (trial := oracles_in(tmp_path / "cut").create_trial("w")).status == "RUNNING":
        again = oracles_in(tmp_path / "cut").create_trial("another")
        assert (again.trial_id, again.hyperparameters.values) == (trial.trial_id, trial.hyperparameters.values)
        oracles = oracles_in(tmp_path / "cut")
        oracles.create_trial("w")
        oracles.update_trial(trial.trial_id, {"score": near_ten(trial.hyperparameters.values)})
        seen.append((trial.trial_id, trial.hyperparameters.values))
        trial.status = "COMPLETED"
        oracles.end_trial(trial)
    assert seen == whole


@pytest.mark.parametrize("method", ["random", "hyperband"])
def test_a_search_that_is_killed_before_any_of_its_files_is_written_is_the_same_search(method, tmp_path, monkeypatch):
    def files(folder):
        return {str(path.relative_to(folder)): store.read_json(path) for path in sorted(folder.rglob("*.json"))}

    def search(folder):
        return drive(oracles_in(folder, method, trials=2, folds=1), near_ten)

    write, left = store.write_json, []

    def killed(path, content):
        if left and not left[0]:
            raise KeyboardInterrupt
        if left:
            left[0] -= 1
        write(path, content)

    monkeypatch.setattr(store, "write_json", killed)
    search(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for kill_at in range(100):
        left[:] = [kill_at]
        try:
            search(tmp_path / f"{kill_at}")
        except KeyboardInterrupt:
            left.clear()
            search(tmp_path / f"{kill_at}")
            assert files(tmp_path / f"{kill_at}") == whole, f"killed before write {kill_at}"
        else:
            break
    assert kill_at == 10  # two trials: each is written thrice, oracle.json twice for each


def test_two_workers_share_the_trials_and_the_last_one_lets_the_chief_end(tmp_path):
    oracles = oracles_in(tmp_path, trials=2)
    a, b = oracles.create_trial("a"), oracles.create_trial("b")
    assert {a.trial_id, b.trial_id} == {"0-0", "0-1"} and oracles.create_trial("a").trial_id == a.trial_id
    for worker, trial in (("a", a), ("b", b)):
        oracles.update_trial(trial.trial_id, {"score": 0.5})
        trial.status = "COMPLETED"
        oracles.end_trial(trial)
        drive(oracles, near_ten, worker)
    assert not oracles.tuner_ids and not oracles.ongoing_trials


def test_hyperband_lets_a_worker_wait_while_another_trains(tmp_path):
    oracles = oracles_in(tmp_path, "hyperband", trials=None, epochs=1, folds=1)  # one trial and no more
    assert oracles.create_trial("a").status == "RUNNING" and oracles.create_trial("b").status == "IDLE"


# --- inner folds and leaks


def subjects_of(labels):
    return [Subject(f"S{i:02d}", Path("x"), label=int(label)) for i, label in enumerate(labels)]


def test_inner_folds_are_balanced_and_know_nothing_of_the_outer_held_out():
    labels, fold = np.arange(36) % 3 // 2, np.arange(36) // 3 % 3
    found = inner_folds(subjects_of(labels), fold, 4, seed=1)
    for outer, inner in enumerate(found):
        assert np.array_equal(inner == -1, fold == outer) and set(inner[fold != outer]) == {0, 1, 2, 3}
        assert {int(np.sum(labels[inner == fold])) for fold in range(4)} == {2}
        turned = np.where(fold == outer, 1 - labels, labels)
        assert np.array_equal(inner_folds(subjects_of(turned), fold, 4, seed=1)[outer], inner)
    assert [np.mean(inner[inner >= 0] == 0) for inner in inner_folds(subjects_of(labels), fold, 1, 0)] == [1 / 3] * 3


def test_inner_folds_are_stratified_as_the_outer_ones_are():
    rng = np.random.default_rng(2)
    labels, hr = rng.integers(2, size=90), rng.choice(["0", "1"], 90)
    subjects = [
        replace(subject, covariates={"hr": text}) for subject, text in zip(subjects_of(labels), hr, strict=True)
    ]
    fold = np.arange(90) % 3
    for outer, inner in enumerate(inner_folds(subjects, fold, 3, 0, ["hr"])):
        for label in (0, 1):
            for text in ("0", "1"):
                counts = np.bincount(inner[(labels == label) & (hr == text) & (fold != outer)], minlength=3)
                assert np.ptp(counts) <= 1


def test_too_few_subjects_for_the_inner_folds_are_told():
    with pytest.raises(store.RunError, match="4 or more training subjects of each class.*Received: 3 in outer fold 1"):
        inner_folds(subjects_of([1, 0] * 6), np.arange(12) // 2 % 2, 4, 0)


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """A job whose trainings cost nothing, and what each was given."""
    labels, fold = np.arange(24) % 2, np.arange(24) // 2 % 2
    calls = []

    def train_fold(cache, given, rows, settings, device, *, seed, state, report):
        calls.append(SimpleNamespace(labels=given, rows=rows, settings=settings, seed=seed))
        return settings, []

    def score_rows(model, cache, rows, causal):
        noise = np.random.default_rng(len(rows)).random(len(rows))
        return SimpleNamespace(probability=labels[rows] * near_ten({LAMBDA.name: model.guidance.lambda_dice}) + noise)

    def attention_rows(cache, rows, fold, scored, box):
        calls[-1].held_out = rows
        return [{"mass_in_mask": 0.4, "mass_chance": 0.1}] * len(rows)

    for fake in (train_fold, score_rows, attention_rows):
        monkeypatch.setattr(trying, fake.__name__, fake)
    monkeypatch.setattr(trying, "gc", SimpleNamespace(collect=lambda: None))  # no model is left behind, and it is slow
    settings = with_values(Settings(), {"training.folds": 2, "training.epochs": 3})
    inner = inner_folds(subjects_of(labels), fold, 2, 0)
    cache = SimpleNamespace(subjects=[f"S{i:02d}" for i in range(24)])
    job = Job(tmp_path / "run" / "tune", cache, labels, inner, settings, Search((LAMBDA,), "random", 3, 2), None, QUIET)
    return SimpleNamespace(job=job, calls=calls, fold=fold)


def test_no_training_of_the_search_is_given_an_outer_held_out_subject(faked):
    tuner.run_search(faked.job)
    assert len(faked.calls) == 2 * 3 * 2
    for place, call in enumerate(faked.calls):
        held_out = np.flatnonzero(faked.fold == place // 6)
        used = {*call.rows, *call.held_out}
        assert not used & set(held_out) and not set(call.rows) & set(call.held_out)
        assert used | set(held_out) == set(range(24)) and (call.labels[held_out] == -1).all()
    assert len({call.seed for call in faked.calls}) == 4  # of an inner fold the same in every trial


@pytest.mark.slow
def test_turning_the_held_out_around_changes_nothing_that_is_chosen(tuned, tmp_path):
    """The real thing: outer fold 1's trials again, its held-out subjects' pixels inverted and labels turned over."""
    cohort = read_cohort(tuned.table, "recurrence")
    settings = with_values(store.load_settings(tuned.run), {LAMBDA.name: 1.0})
    cache = cached(cohort.subjects, settings, tuned.cache)
    fold_of = store.read_json(tuned.run / "folds.json")["held_out_in"]
    fold = np.array([fold_of[name] for name in cache.subjects])
    labels = np.array([subject.label for subject in cohort.subjects])
    out = fold == 0
    image = np.array(cache.image)
    image[out] = 4.0 - image[out]
    subjects = [
        replace(subject, label=int(turned))
        for subject, turned in zip(cohort.subjects, np.where(out, 1 - labels, labels), strict=True)
    ]
    labels = np.array([subject.label for subject in subjects])
    job = Job(
        tmp_path / "tune",
        replace(cache, image=image),
        labels,
        inner_folds(subjects, fold, 2, settings.seed),
        settings,
        Search((LAMBDA,), "random", 2, 2),
        choose_device(),
        QUIET,
    )
    before = [trial for trial in results_of(tuned.run) if trial["outer_fold"] == 0]
    for trial in before:
        run_trial(job, f"0-{trial['trial']}", trial["values"])
        for inner in (0, 1):
            where = Path("fold_0") / f"trial_{trial['trial']}" / f"inner_{inner}.csv"
            ours, theirs = (store.read_rows(folder / where) for folder in (tmp_path / "tune", tuned.run / "tune"))
            assert [row["subject"] for row in ours] == [row["subject"] for row in theirs]
            assert [float(row["probability"]) for row in ours] == pytest.approx(
                [float(row["probability"]) for row in theirs], abs=1e-4
            )
    assert tuning.choose(results_of(tmp_path))["values"] == tuning.choose(before)["values"]


# --- trials that stop, fail, go on


def test_a_search_that_was_cut_off_trains_only_what_is_missing(faked, monkeypatch):
    train, left = trying.train_fold, [4]

    def cut_off(*args, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train(*args, **options)

    monkeypatch.setattr(trying, "train_fold", cut_off)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tuner.run_search(faked.job)
        left[0] = 3
    left[0] = 100
    tuner.run_search(faked.job)
    assert len(faked.calls) == 12 and len(results_of(faked.job.folder.parent)) == 6


def test_a_trial_that_diverges_is_a_failed_trial_and_the_search_goes_on(faked, monkeypatch):
    train = trying.train_fold

    def fails(cache, labels, rows, settings, *rest, **options):
        if settings.guidance.lambda_dice > limit:
            raise TrainingError("the loss must stay a number")
        return train(cache, labels, rows, settings, *rest, **options)

    monkeypatch.setattr(trying, "train_fold", fails)
    limit = 3
    tuner.run_search(faked.job)
    run = faked.job.folder.parent
    tuner._conclude(run, faked.job)
    rows = store.read_rows(run / "tune" / "trials.csv")
    assert len(rows) == 6 and {bool(row["failed"]) for row in rows} == {True, False}
    assert all(
        (float(row[LAMBDA.name]) > limit) == bool(row["failed"]) and bool(row["auc"]) != bool(row["failed"])
        for row in rows
    )
    assert [row["outer_fold"] for row in rows if row["chosen"] == "True"] == ["0", "1"]
    limit = 0
    lost = replace(faked.job, folder=run.parent / "lost" / "tune")
    tuner.run_search(lost)
    with pytest.raises(store.RunError, match="can be scored in outer fold 1. Received: 3 failed ones, the last: the l"):
        tuner._conclude(run.parent / "lost", lost)


def test_an_error_that_is_no_trials_fault_ends_the_search_as_itself(faked, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(trying, "train_fold", full)
    with pytest.raises(OSError, match="no space left"):
        tuner.run_search(faked.job)


def test_a_floor_that_no_trial_reaches_is_told(faked):
    said = []
    job = replace(
        faked.job,
        search=replace(faked.job.search, attention_floor=0.5),
        console=SimpleNamespace(line=said.append, tick=QUIET.tick),
    )
    tuner.run_search(job)
    tuner._conclude(job.folder.parent, job)
    assert sum("no trial of outer fold" in line for line in said) == 2
    assert not any(trial["reached"] for trial in store.read_json(job.folder.parent / "tune.json")["chosen"])


def test_hyperband_goes_on_from_the_state_of_the_trial_it_keeps(faked, monkeypatch):
    states, train = [], trying.train_fold

    def train_on(cache, labels, rows, settings, device, *, state, **options):
        states.append(state.read_text() if state.exists() else "")
        state.write_text(f"{states[-1]}{settings.training.epochs} ")
        return train(cache, labels, rows, settings, device, state=state, **options)

    monkeypatch.setattr(trying, "train_fold", train_on)
    job = replace(faked.job, search=Search((LAMBDA,), "hyperband", None, 1))
    tuner.run_search(job)
    went_on = [state for state in states if state]
    assert went_on and set(went_on) == {"1 "}  # an epoch first, then up to 3
    tuner._conclude(job.folder.parent, job)
    assert not list(job.folder.rglob("*.h5"))
    assert all(trial["epochs"] == 3 for trial in store.read_json(faked.job.folder.parent / "tune.json")["chosen"])


# --- the command, end to end


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished search of 2 outer x 2 inner folds and 2 trials, by the command."""
    folder = tmp_path_factory.mktemp("tuned")
    table = make_phantom(folder / "phantom", subjects=16, side=16, seed=3)
    arguments = [*SMALL, "--cohort", str(table), "--out", str(folder / "run"), "--cache", str(folder / "cache")]
    done = CliRunner().invoke(cli.command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return SimpleNamespace(
        run=folder / "run", cache=folder / "cache", table=table, arguments=arguments, output=done.output
    )


def test_a_tuned_run_is_a_run_that_says_what_was_chosen(tuned):
    chosen = store.read_json(tuned.run / "tune.json")["chosen"]
    values = [trial["values"][LAMBDA.name] for trial in chosen]
    assert [trial["outer_fold"] for trial in chosen] == [0, 1]
    assert store.load_settings(tuned.run).guidance.lambda_dice == min(values)  # the lower median of two
    for fold, value in enumerate(values):
        assert store.read_json(tuned.run / f"fold_{fold}" / "tuned.json") == {LAMBDA.name: value}
        assert f"{value:.4g}" in tuned.output
    rows = store.read_rows(tuned.run / "tune" / "trials.csv")
    assert [(row["outer_fold"], row["trial"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    for fold in "01":
        own = [row for row in rows if row["outer_fold"] == fold]
        best = max(own, key=lambda row: float(row["score"]))
        assert [row["trial"] for row in own if row["chosen"] == "True"] == [best["trial"]]
    assert {"auc", "auc_low", "auc_high", "auc_inner_0", "auc_inner_1", "attention", LAMBDA.name} <= set(rows[0])
    assert (tuned.run / "lambda.png").stat().st_size > 5000
    assert not [*tuned.run.rglob("*.part"), *(tuned.run / "tune").rglob("*.h5"), *tuned.run.rglob("*.pkl")]


def test_each_outer_fold_was_trained_with_its_own_values(tuned, monkeypatch):
    """Trained again by hand with the fold's tuned.json, a fold gives the same probabilities."""
    from mgkeras.inference.forward import score_rows
    from mgkeras.training.fit import fold_seed, train_fold

    cohort = read_cohort(tuned.table, "recurrence")
    settings = with_values(store.load_settings(tuned.run), store.read_json(tuned.run / "fold_1" / "tuned.json"))
    cache = cached(cohort.subjects, settings, tuned.cache)
    held = read_run(tuned.run).held_out
    place = np.array([held[name][0] for name in cache.subjects])
    labels = np.array([subject.label for subject in cohort.subjects])
    model, _ = train_fold(
        cache, labels, np.flatnonzero(place != 1), settings, choose_device(), seed=fold_seed(settings, 1)
    )
    rows = np.flatnonzero(place == 1)
    expected = [held[cache.subjects[row]][2] for row in rows]
    assert score_rows(model, cache, rows, causal=False).probability == pytest.approx(expected, abs=1e-4)


def test_a_tuned_run_can_be_applied(tuned):
    from mgkeras.inference.predict import load_folds, score_exam

    settings, forwards = load_folds(tuned.run)
    subject = read_cohort(tuned.table, "recurrence").subjects[0]
    fold, _, p = read_run(tuned.run).held_out[subject.name]
    assert score_exam(subject, settings, forwards)[0][fold] == pytest.approx(p, abs=2e-3)


def test_the_same_command_again_trains_nothing(tuned):
    before = (tuned.run / "predictions.csv").read_bytes()
    done = CliRunner().invoke(cli.command, tuned.arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "epoch 1/1" not in done.output and "search (" not in done.output
    assert (tuned.run / "predictions.csv").read_bytes() == before


def test_another_search_in_the_same_folder_is_refused(tuned):
    with pytest.raises(store.RunError, match=r"search.spans.guidance.lambda_dice.low: 0.1 in the folder, 1.0 asked"):
        CliRunner().invoke(cli.command, [*tuned.arguments, "--lambda", "1:100:log"], catch_exceptions=False)


def test_fit_and_tune_refuse_each_others_folders(tuned, tmp_path):
    from mgkeras.cli.fit import command as fit

    store.claim_settings(tmp_path, Settings())
    with pytest.raises(store.RunError, match="holds a run of `mgkeras fit`"):
        tuner.claim_search(tmp_path, Settings(), Search((LAMBDA,)))
    options = [*SMALL[:6], *SMALL[8:10], *SMALL[12:], *tuned.arguments[len(SMALL) :]]
    value = store.load_settings(tuned.run).guidance.lambda_dice
    with pytest.raises(store.RunError, match="is a run of `mgkeras tune`"):
        CliRunner().invoke(fit, [*options, "--lambda", str(value)], catch_exceptions=False)


def test_a_search_that_ranked_by_class_maps_is_not_continued_but_a_finished_one_is_used(tmp_path):
    """Trials whose mass is that of another map cannot be ranked together."""
    tuner.claim_search(tmp_path, Settings(), Search((LAMBDA,)))
    path = tmp_path / "tune" / "search.json"
    before = store.read_json(path)
    assert before.pop("map") == "decision"
    store.write_json(path, before)
    with pytest.raises(store.RunError, match="map: None in the folder, decision asked for"):
        tuner.claim_search(tmp_path, Settings(), Search((LAMBDA,)))
    store.write_json(tmp_path / "tune.json", {})
    tuner.claim_search(tmp_path, Settings(), Search((LAMBDA,)))


def test_a_parallel_search_needs_all_three_variables_and_a_cohort(monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    monkeypatch.delenv("KERASTUNER_ORACLE_PORT", raising=False)
    with pytest.raises(store.RunError, match="KERASTUNER_ORACLE_PORT. Received: KERASTUNER_TUNER_ID, KERAS"):
        tuner.role()
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")
    assert tuner.role() == "worker"
    assert "needs COHORT" in CliRunner().invoke(cli.command, []).output


@pytest.fixture
def launch():
    """Starts the command in processes of their own; whatever still runs at the end of the test is killed."""
    started = []

    def start(arguments, log, **variables):
        command = [sys.executable, "-c", "from mgkeras.cli.main import main; main()", "tune", *map(str, arguments)]
        with open(log, "a") as out:
            started.append(subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **variables}))
        return started[-1]

    yield start
    for process in started:
        kill(process)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_for(log, text, process, seconds=300):
    until = time.monotonic() + seconds
    while text not in log.read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert text in log.read_text(), log.read_text()


@pytest.mark.slow
def test_a_chief_and_two_workers_find_what_one_process_finds_though_each_is_killed(tuned, tmp_path, launch):
    """On loopback. A worker and the chief are killed -9 and started again; so is the process that is alone."""
    common = [
        *SMALL,
        "--epochs",
        "2",
        "--trials",
        "3",
        "--deterministic",
        "--cohort",
        tuned.table,
        "--cache",
        tuned.cache,
        "--out",
    ]
    for mark in ("epoch 2/2", "outer fold 1/2, trial 1", "outer fold 2/2  trial 2"):
        process = launch([*common, tmp_path / "alone"], tmp_path / "alone.log")
        wait_for(tmp_path / "alone.log", mark, process)
        kill(process)
    assert launch([*common, tmp_path / "alone"], tmp_path / "alone.log").wait(300) == 0

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free.getsockname()[1])}
    logs = {name: tmp_path / f"{name}.log" for name in ("chief", "worker0", "worker1")}

    def join(name):
        return launch([*common, tmp_path / "shared"], logs[name], KERASTUNER_TUNER_ID=name, **where)

    running = {name: join(name) for name in logs}
    wait_for(logs["worker1"], "epoch 1/2", running["worker1"])
    kill(running["worker1"])
    running["worker1"] = join("worker1")
    wait_for(logs["worker0"], "epoch 1/2", running["worker0"])
    kill(running["chief"])
    running["chief"] = join("chief")
    assert [running[name].wait(400) for name in logs] == [0, 0, 0], [log.read_text() for log in logs.values()]
    assert all("inner AUC" in logs[name].read_text() for name in ("worker0", "worker1"))
    assert "inner fold 1/2" not in logs["chief"].read_text()  # it hands out, and trains the outer folds alone

    def found(folder):
        rows = store.read_rows(folder / "tune" / "trials.csv")
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert found(tmp_path / "shared") == found(tmp_path / "alone") and len(found(tmp_path / "alone")) == 6
    alone, shared = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("alone", "shared"))
    assert alone == shared
