"""A study from its file: what the file may hold, the numbers over seeds, and the runs, made by hand or trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli
from mgkeras.cli.study import chosen
from reporting import make_run

from mgkeras.evaluation.seeds import over_seeds, seed_pairs, study_page
from mgkeras.report.study import study_html
from mgkeras.runs.study import read_study
from mgkeras.scores import metrics
from mgkeras.scores.comparison import ComparedRun
from mgkeras.scores.summary import run_summary

PAPER = """\
cohorts = ["masks/cohort.csv"]
outcomes = ["recurrence", "her2"]
models = ["no-mask", "mask-only", "guided"]
seeds = [0, 1, 2]
preset = "paper"
"""


@pytest.fixture
def file(tmp_path):
    """A function that writes study.toml beside masks/cohort.csv and gives its path."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "cohort.csv").touch()

    def written(text):
        (tmp_path / "study.toml").write_text(text, encoding="utf-8")
        return tmp_path / "study.toml"

    return written


def test_five_lines_are_the_papers_study(file, tmp_path):
    found = read_study(file(PAPER))
    assert found.out == tmp_path / "study" and dict(found.cohorts) == {"masks": tmp_path / "masks" / "cohort.csv"}
    assert found.outcomes == ("recurrence", "her2") and found.seeds == (0, 1, 2) and found.preset == "paper"
    assert found.run("masks", "her2", 1, "guided") == tmp_path / "study" / "masks-her2" / "seed-1" / "guided"
    assert read_study(file(PAPER.replace("models", "#"))).models == found.models == ("no-mask", "mask-only", "guided")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = ", "study.toml to be TOML. Received: "),
        (PAPER + "folds = 3", "keys among cohorts, .* in .*study.toml. Received: folds"),
        (PAPER.replace("masks/", "gone/"), "study.toml: cohorts must be tables that exist. Received: .*gone"),
        (PAPER.replace("cohorts", "#"), "study.toml: cohorts must be a list of texts. Received: nothing"),
        (PAPER.replace("guided", "guidde"), "study.toml: models must be some of no-mask, .*. Received: .*guidde"),
        (PAPER.replace("[0, 1, 2]", "[0, true]"), "study.toml: seeds must be a list of numbers. Received: .*True"),
        (PAPER.replace("[0, 1, 2]", "[0, -1]"), "study.toml: seeds must be numbers from 0 .* Received: .-1"),
        (PAPER.replace("[0, 1, 2]", "[1, 1]"), "study.toml: seeds must be each once"),
        (PAPER.replace('"her2"', '"../her2"'), "study.toml: outcomes must be names of columns .*Received: .*../her2"),
        (PAPER.replace('"paper"', "1"), "study.toml: preset must be a name in quotes. Received: 1"),
        (PAPER + "[settings]\nepoch = 2", "study.toml: settings.epoch must be one of folds, .* Received: epoch"),
        (PAPER + "[settings]\nepochs = 0", "study.toml: settings.epochs: .*0 is not in the range x>=1"),
        (PAPER + "[settings]\nepochs = 2.5", "study.toml: settings.epochs: expected .*whole number.* Received: 2.5"),
        (PAPER + "[settings.mask]\ngate = 1", "study.toml: settings.mask.gate: expected one of .* Received: mask.gate"),
        (PAPER + '[settings]\noptimizer = "adamm"', "study.toml: settings.optimizer: .*'adamm' is not one of"),
    ],
)
def test_what_cannot_be_is_told_with_file_and_key(text, words, file):
    with pytest.raises(ValueError, match=words):
        chosen(read_study(file(text)))


def test_settings_are_named_as_options_or_as_in_settings_json(file):
    text = PAPER + '[settings]\nside = 16\nstratify = ["site"]\ntraining.batch_size = 4\n'
    found = chosen(read_study(file(text)))
    assert found == {"volume.side": 16, "training.stratify": ("site",), "training.batch_size": 4}


def test_cohorts_of_one_name_are_named_by_the_file(file, tmp_path):
    (tmp_path / "other" / "masks").mkdir(parents=True)
    (tmp_path / "other" / "masks" / "cohort.csv").touch()
    both = PAPER.replace('["masks/cohort.csv"]', '["masks/cohort.csv", "other/masks/cohort.csv"]')
    with pytest.raises(ValueError, match="cohorts must be tables of different names; name them"):
        read_study(file(both))
    named = PAPER.replace('["masks/cohort.csv"]', '{duke = "masks/cohort.csv", ispy = "other/masks/cohort.csv"}')
    assert list(read_study(file(named)).cohorts) == ["duke", "ispy"]


# --- numbers over seeds, of runs made in memory

LABELS = np.arange(40) % 3 == 0


def made(name, seed, strength):
    """A run whose probabilities go with the label by so much; its folds are its seed's."""
    rng = np.random.default_rng([seed, len(name)])
    p = 1 / (1 + np.exp(-(strength * (LABELS - 0.5) + rng.normal(0, 1, LABELS.size))))
    held = {f"s{place:02d}": ((place + seed) % 2, int(label), float(p[place])) for place, label in enumerate(LABELS)}
    rows = [
        {"subject": who, "fold": fold, "split": "held-out", "label": label, "probability": probability}
        for who, (fold, label, probability) in held.items()
    ]
    return ComparedRun(name, Path("nowhere"), {"outcome": "her2"}, run_summary(rows, samples=10), held)


def test_means_intervals_and_tests_equal_a_slow_twin():
    runs = {name: {seed: made(name, seed, s) for seed in (0, 1, 2)} for name, s in (("no-mask", 0.5), ("guided", 2.0))}
    found = over_seeds(runs, samples=200, seed=4)
    p = {
        name: np.array([[exam[2] for exam in run.held_out.values()] for run in own.values()])
        for name, own in runs.items()
    }
    labels = LABELS.astype(int)
    chosen_seeds = np.random.default_rng([4, 1]).integers(3, size=(200, 2))
    every = {
        name: [
            metrics.bootstrap_scores(metrics.auc_score, labels, probabilities, samples=200, seed=4)
            for probabilities in each
        ]
        for name, each in p.items()
    }
    slow = {
        name: np.array([np.mean([each[seed][draw] for seed in chosen_seeds[draw]]) for draw in range(200)])
        for name, each in every.items()
    }
    for name, own in found["models"].items():
        aucs = [metrics.auc_score(labels, probabilities) for probabilities in p[name]]
        assert own["auc"]["value"] == pytest.approx(np.mean(aucs)) and own["sd_seeds"] == pytest.approx(
            np.std(aucs, ddof=1)
        )
        assert (own["auc"]["low"], own["auc"]["high"]) == pytest.approx(tuple(np.quantile(slow[name], (0.025, 0.975))))
        assert own["over_folds"]["auc_held_out"]["folds"] == 6
    (pair,) = found["pairs"]
    apart = slow["no-mask"] - slow["guided"]
    assert (pair["low"], pair["high"]) == pytest.approx(tuple(np.quantile(apart, (0.025, 0.975))))
    assert pair["of"] == "the methods" and pair["p"] < 0.05
    page = study_page("a <study>", {"duke, her2": {"outcome": "her2", **found}})
    assert "duke, her2 (the paper's Table 2)" in page and "3 seeds: 0, 1, 2" in page and "a &lt;study>" in page


def test_one_seed_speaks_of_these_weights_and_equal_seeds_of_patients_alone():
    runs = {name: {7: made(name, 7, s)} for name, s in (("no-mask", 0.5), ("guided", 2.0))}
    found = over_seeds(runs, samples=200)
    labels, (a, b) = LABELS.astype(int), [[v[2] for v in own[7].held_out.values()] for own in runs.values()]
    known = metrics.paired_bootstrap_difference(labels, a, b, samples=200)
    assert {name: found["pairs"][0][name] for name in ("low", "high", "p")} == pytest.approx(
        {name: known[name] for name in ("low", "high", "p")}
    )
    assert seed_pairs(found)[0]["says of"] == "these weights" and found["models"]["guided"]["sd_seeds"] is None
    assert "of these weights" in study_html("s", {"duke, her2": {"outcome": "her2", **found}})
    same = over_seeds({name: {1: own[7], 2: own[7]} for name, own in runs.items()}, samples=200)
    for name in runs:
        assert same["models"][name]["auc"] == pytest.approx(found["models"][name]["auc"])
        assert same["models"][name]["patients"] == pytest.approx(found["models"][name]["patients"])


def test_seeds_and_subjects_must_be_the_same():
    runs = {"no-mask": {0: made("no-mask", 0, 1)}, "guided": {1: made("guided", 1, 1)}}
    with pytest.raises(ValueError, match="expected the seeds .0. of guided. Received: .1."):
        over_seeds(runs, samples=10)
    other = made("no-mask", 1, 1)
    less = replace(other, held_out=dict(list(other.held_out.items())[1:]))
    with pytest.raises(ValueError, match="subjects and labels of the other seeds"):
        over_seeds({"no-mask": {0: made("no-mask", 0, 1), 1: less}}, samples=10)


# --- the command


def written(tmp_path, phantom, side, more=""):
    """study.toml on the phantoms, and the arguments of its command."""
    path = tmp_path / "study.toml"
    path.write_text(
        f'cohorts = {{made = "{phantom}"}}\noutcomes = ["recurrence"]\nseeds = [0, 1]\npreset = "demo"\n{more}'
        f"[settings]\nfolds = 2\nepochs = 2\nside = {side}\nbatch-size = 4\nshift-voxels = 2\n",
        encoding="utf-8",
    )
    return [str(path), "--cache", str(tmp_path / "cache"), "--samples", "100"]


def test_every_run_is_asked_for_once_and_the_documents_written(phantom, tmp_path, monkeypatch):
    asked = []

    def fitted(cohort, runs, *_):
        for settings, run in runs:
            asked.append(
                (settings.model, settings.seed, settings.training.epochs, run.relative_to(tmp_path).as_posix())
            )
            make_run(run, phantom, settings)

    monkeypatch.setattr("mgkeras.cli.fit.fit_runs", fitted)
    given = ["study", *written(tmp_path, phantom, 24), "--no-probe"]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    assert len(asked) == 6 and asked[1] == ("mask-only", 0, 2, "study/made-recurrence/seed-0/mask-only")
    found = json.loads((tmp_path / "study" / "study.json").read_text())["groups"]["made, recurrence"]
    assert found["seeds"] == [0, 1] and list(found["models"]) == ["no-mask", "mask-only", "guided"]
    assert {pair["of"] for pair in found["pairs"]} == {"the methods"}
    for name in ("study.md", "study.html", "made-recurrence/report.html"):
        assert (tmp_path / "study" / name).stat().st_size > 500
    assert "<caption>Models of made, recurrence (the paper" in (tmp_path / "study" / "study.html").read_text()


def test_an_outcome_that_a_cohort_lacks_is_told_before_anything_is_trained(phantom, tmp_path):
    given = written(tmp_path, phantom, 16)
    path = Path(given[0])
    path.write_text(path.read_text().replace('["recurrence"]', '["recurrence", "pcr"]'))
    done = CliRunner().invoke(cli, ["study", *given])
    assert done.exit_code and "pcr" in str(done.exception) and not (tmp_path / "study").exists()


@pytest.mark.slow  # a minute: twelve folds of two epochs, most of it TensorFlow's start and tracing
def test_a_study_killed_in_the_middle_goes_on(phantom, tmp_path):
    given = written(tmp_path, phantom, 16, more='models = ["no-mask", "guided"]\n')
    command = [sys.executable, "-c", "from mgkeras.cli.main import main; main()", "study", *given, "--no-report"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first = tmp_path / "study" / "made-recurrence" / "seed-0" / "no-mask" / "done.json"
    second = first.parents[1] / "guided" / "fold_0" / "state.h5"
    until = time.monotonic() + 300
    while not second.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = first.stat().st_mtime_ns, (first.parent / "fold_0" / "weights.h5").stat().st_mtime_ns
    assert second.exists() and not (tmp_path / "study" / "study.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no-mask: fold 1 was finished before and is kept" in done.stderr and "going on from" in done.stderr
    assert (first.parent / "fold_0" / "weights.h5").stat().st_mtime_ns == before[1]
    found = json.loads((tmp_path / "study" / "study.json").read_text())["groups"]["made, recurrence"]
    assert found["seeds"] == [0, 1] and found["pairs"][0]["of"] == "the methods"
