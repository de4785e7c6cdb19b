"""Every source in miniature, from its download to a report, by the commands that a user would type."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli
from miniatures.bids import make_bids
from miniatures.breastdcedl import make_breastdcedl
from miniatures.dicom import make_dicom
from miniatures.duke import make_duke
from miniatures.folder import PATTERNS, make_folder
from miniatures.ispy1 import make_ispy1
from miniatures.mama_mia import make_mama_mia
from miniatures.odelia import make_odelia

SOURCES = {  # kind -> builder, outcome
    "mama-mia": (make_mama_mia, "pcr"),
    "ispy1": (make_ispy1, "her2"),
    "breastdcedl": (make_breastdcedl, "pcr"),
    "duke": (make_duke, "her2"),
    "odelia": (make_odelia, "malignant"),
    "dicom": (make_dicom, "recurrence"),
    "bids": (make_bids, "recurrence"),
    "folder": (make_folder, "Recurrence"),
}
SIDE = 16


def mgkeras(*words, code=0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, f"mgkeras {' '.join(map(str, words))}\n{done.output}"
    return done.output


def imported(kind: str, folder: Path, *options) -> Path:
    """The miniature of a kind, imported; the table."""
    source = SOURCES[kind][0](folder / "download")
    if kind == "folder":
        options = [
            *options,
            *(word for column, pattern in PATTERNS.items() for word in (f"--{column}", pattern)),
            "--labels",
            source / "labels.csv",
        ]
    if kind == "dicom":
        options = [*options, "--labels", source.parent / "labels.csv"]
    mgkeras("import", kind, source, folder / "out", *options)
    return folder / "out" / "cohort.csv"


def masked(kind: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """The table with masks of an imported miniature, and the option that leaves out who cannot be used, if any."""
    outcome = SOURCES[kind][1]
    table = imported(kind, tmp_path)
    sheet = (table.parent / "data-sheet.md").read_text("utf-8")
    assert f"## Outcome {outcome}" in sheet and "## Left out: subjects" in sheet
    assert {path.name for path in table.parent.iterdir()} <= {"cohort.csv", "data-sheet.md", "nifti"}
    checked = CliRunner().invoke(cli, ["cohort", "check", str(table), "--outcome", outcome, "--folds", "2"])
    assert checked.exit_code in (0, 1) and not checked.exception or isinstance(checked.exception, SystemExit)
    made = CliRunner().invoke(cli, ["mask", str(table), "--jobs", "1", "--smallest-mm3", "1", "--thinnest-mm", "0"])
    assert made.exit_code in (0, 1), made.output
    return table.parent / "masks" / "cohort.csv", ["--skip-invalid"] if checked.exit_code else []


@pytest.mark.parametrize("kind", SOURCES)
def test_from_the_download_to_the_masks(kind, tmp_path):
    table, _ = masked(kind, tmp_path)
    assert any(row["mask"] for row in csv.DictReader(table.open(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_from_the_download_to_the_report(kind, tmp_path):
    table, skip = masked(kind, tmp_path)
    run = tmp_path / "run"
    mgkeras(
        "fit",
        "--model",
        "guided",
        "--cohort",
        table,
        "--outcome",
        SOURCES[kind][1],
        "--preset",
        "demo",
        "--side",
        SIDE,
        "--shift-voxels",
        1,
        "--folds",
        2,
        "--epochs",
        1,
        "--batch-size",
        4,
        "--out",
        run,
        "--cache",
        tmp_path / "cache",
        *skip,
    )
    scored = json.loads((run / "summary.json").read_text())
    assert 4 <= scored["subjects"] <= len(list(csv.DictReader(table.open(encoding="utf-8"))))
    mgkeras(
        "report", run, "--no-probe", "--samples", 100, "--out", tmp_path / "report.html", "--cache", tmp_path / "cache"
    )
    assert (tmp_path / "report.html").stat().st_size > 100_000
