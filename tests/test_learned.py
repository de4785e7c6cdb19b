"""A fit that has not learned is told, recorded, and told what to try."""

from __future__ import annotations

import json

import pytest
from mgkeras.cli.fit import headline

from mgkeras.scores.learned import advice, not_learned
from mgkeras.scores.summary import run_summary


def made(tmp_path, *train_aucs):
    """summary.json of a run whose folds have these AUCs, of 10 training exams of each class."""
    rows = []
    for fold, auc in enumerate(train_aucs):
        right = round(100 * auc)  # of 100 pairs
        for label in (0, 1):
            for number in range(10):
                p = 0.5 if label == 0 and number == 0 else (0.1 + 0.01 * number if label == 0 else 0.9)
                rows.append({"subject": f"H{fold}{label}{number}", "fold": fold, "split": "held-out", "label": label})
                rows[-1] |= {"probability": p}
                low = number * 10 if label == 0 else 10 * (right // 10) - 5
                value = low + (10 if label and number < right % 10 else 0)
                rows.append({"subject": f"T{label}{number}", "fold": fold, "split": "train", "label": label})
                rows[-1] |= {"probability": min(1.0, max(0.0, value / 100))}
    summary = {"model": "no-mask", "outcome": "recurrence", **run_summary(rows, samples=20)}
    aucs = [fold["train"]["auc"] for fold in summary["per_fold"]]
    assert aucs == pytest.approx(train_aucs)
    summary["not_learned"] = not_learned(summary["per_fold"])
    (tmp_path / "settings.json").write_text(json.dumps({"preset": "demo"}))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return summary, tmp_path / "summary.json"


def test_folds_below_the_line_are_named_with_what_to_try(tmp_path):
    summary, path = made(tmp_path, 0.9, 0.55, 0.79, 0.8)
    assert summary["not_learned"] == pytest.approx({"1": 0.55, "2": 0.79})
    text = headline(path)
    assert "2 of 4 folds have not learned" in text and "2 (training AUC 0.55), 3 (training AUC 0.79)" in text
    assert "--preset workstation; --augment anatomical; more --epochs" in text


def test_a_fit_that_has_learned_is_not_warned_of(tmp_path):
    summary, path = made(tmp_path, 0.9, 1.0)
    assert summary["not_learned"] == {} and "not learned" not in headline(path)
    del summary["not_learned"]  # of before
    path.write_text(json.dumps(summary))
    assert "not learned" not in headline(path)


def test_what_is_used_already_is_not_advised_and_what_is_not_known_is_no_failure():
    text = advice({"0": 0.6}, 1, "none", "workstation")
    assert "augment" not in text and "preset" not in text and "learning-rate" in text
    assert not not_learned([{"fold": 0, "train": {"auc": None}}])
