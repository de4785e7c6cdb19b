"""mgkeras demo ends with what to open, and fit without a cohort says what to type."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli

from mgkeras.runs import store


def test_fit_and_tune_without_a_cohort_name_the_demo():
    for command in ("fit", "tune"):
        found = CliRunner().invoke(cli, [command])
        assert found.exit_code == 2 and "expected COHORT, a cohort.csv. Received: none" in found.output
        assert "mgkeras demo" in found.output


@pytest.mark.slow
def test_the_demo_makes_three_runs_on_the_same_folds_and_a_report(tmp_path):
    options = [
        "demo",
        "--out",
        str(tmp_path / "demo"),
        "--cache",
        str(tmp_path / "cache"),
        "--side",
        "16",
        "--epochs",
        "1",
    ]
    for _ in range(2):  # again, it trains nothing
        found = CliRunner().invoke(cli, options)
        assert found.exit_code == 0, found.output
        for name in ("report.html", "comparison/figure3.png", "comparison/table.md"):
            assert (tmp_path / "demo" / name).exists() and f"{tmp_path / 'demo' / name}: " in found.output
    assert "was finished before and is kept" in found.output
    digests = {store.read_json(tmp_path / "demo" / model / "folds.json")["digest"] for model in ("no-mask", "guided")}
    assert len(digests) == 1
