"""What is written for others: whole files, no markup from names, nobody's paths."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import reporting
from click.testing import CliRunner
from matplotlib.figure import Figure

from mgkeras.data.io import written_whole
from mgkeras.data.markdown import escaped, escaped_all
from mgkeras.evaluation import tables
from mgkeras.evaluation.evaluate import evaluate
from mgkeras.figures.figure3 import save_figure
from mgkeras.importers.found import Exam, Found
from mgkeras.importers.sheet import data_sheet, kept
from mgkeras.runs import store
from mgkeras.scores.format import as_markdown
from mgkeras.serving.card import Facts, model_card
from mgkeras.settings import for_model

SCRIPT = "<script>alert(1)</script>"
TAG = re.compile(r"<\w|</")


def full(self, path, **options):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_figure_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "roc.png"
    save_figure(Figure(), path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device.*roc\.png"):
        save_figure(Figure(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_figure_gives_the_same_bytes(kind, tmp_path):
    def drawn(name):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="a")
        axes.legend()
        return save_figure(figure, tmp_path / f"{name}.{kind}").read_bytes()

    assert drawn("a") == drawn("b")


def test_a_text_that_does_not_fit_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda path, text, **options: full(None, path))
    with pytest.raises(OSError, match=r"No space left on device.*a\.json"):
        store.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_the_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.csv", []
    monkeypatch.setattr("os.fsync", lambda number: seen.append((os.fstat(number).st_size, path.exists())))
    with written_whole(path) as part:
        part.write_text("whole")
    assert seen == [(5, False)] and path.read_text() == "whole"


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    """In a container every command is process 1."""
    path = tmp_path / "a.csv"
    with written_whole(path) as part:
        part.write_text("before")
    part.write_text("half")
    with written_whole(path) as part, open(part, "x") as file:
        file.write("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_in_a_run_is_removed(tmp_path):
    (tmp_path / "fold_0").mkdir()
    for name in (".123-weights.h5", ".state.h5.77.part"):
        (tmp_path / "fold_0" / name).write_text("")
        (tmp_path / name).write_text("")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "fold_0" / "state.h5").write_text("")

    def left():
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())

    store.sweep(tmp_path)  # a fold's folder belongs to the process that trains it
    assert left() == [".lock", "fold_0/.123-weights.h5", "fold_0/.state.h5.77.part", "fold_0/state.h5"]
    store.sweep(tmp_path / "fold_0")
    assert left() == [".lock", "fold_0/state.h5"]
    (tmp_path / "fold_0" / "done.json").write_text("{}")
    store.sweep(tmp_path / "fold_0")
    assert left() == [".lock", "fold_0/done.json"]


def test_names_are_text_in_markdown():
    assert escaped(f"a\n{SCRIPT} | b & c") == "a &lt;script>alert(1)&lt;/script> &#124; b &amp; c"
    assert escaped_all({SCRIPT: [SCRIPT, 1, None], "x": (True, 0.5)}) == {
        escaped(SCRIPT): [escaped(SCRIPT), 1, None],
        "x": (True, 0.5),
    }
    assert not TAG.search(as_markdown([{"Run": SCRIPT}]))


def test_the_model_card_takes_no_markup_from_names(small):
    settings = replace(for_model(small, "guided"), outcome=SCRIPT, preset=SCRIPT)
    facts = Facts(
        SCRIPT,
        settings,
        (0, 1),
        {},
        {"mgkeras": SCRIPT},
        {SCRIPT: 3},
        [("given", False)],
        False,
        None,
        {0: {SCRIPT: 1.0}},
    )
    card = model_card(facts, {}, [SCRIPT])
    assert "alert(1)" in card and not TAG.search(card)


def test_the_table_of_an_evaluation_takes_no_markup_from_names(phantom, small, tmp_path):
    run = reporting.make_run(tmp_path / "guided", phantom, for_model(replace(small, outcome="recurrence"), "guided"))
    results = evaluate([run], samples=100).results
    results["outcome"], results["models"][0]["name"] = SCRIPT, SCRIPT
    results["skipped"].append(SCRIPT)
    results["edited"] = [SCRIPT]
    assert "alert(1)" in (page := tables.as_page(results)) and not TAG.search(page)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("=1+1", True),
        ("@SUM(A1)", True),
        ("+cmd|x", True),
        ("-2+3", True),
        ("-2.5", False),
        ("+", False),
        ("a=b", False),
    ],
)
def test_formulas_of_a_table_are_told(text, warned):
    found = Found("folder", (Exam("A", {"early": Path("a"), "pre": Path("b")}, {}, {"note": text}),))
    notes = kept(found).notes
    assert [("1 cells begin as a formula does" in note and "note of A" in note) for note in notes] == [True] * warned
    assert ("note of A" in data_sheet(kept(found))) == warned


def test_what_is_shared_tells_nobodys_path(phantom, small, tmp_path):
    from mgkeras.cli.evaluate import command as evaluate_command
    from mgkeras.cli.report import command as report_command

    home = tmp_path / "home-of-ann"
    home.mkdir()
    run = reporting.make_run(home / "guided", phantom, for_model(replace(small, outcome="recurrence"), "guided"))
    (run / "masks.csv").unlink()
    table = (run / "cohort.csv").read_text()
    (run / "cohort.csv").write_text(re.sub(r"[^,\n]*(?=P0000_)", f"{home}/exams/", table, count=2))
    options = ["--samples", "100", "--no-probe"]
    for command, out in ((evaluate_command, tmp_path / "e"), (report_command, tmp_path / "report.html")):
        done = CliRunner().invoke(command, [str(run), "--out", str(out), *options], catch_exceptions=False)
        assert done.exit_code == 0
    written = [tmp_path / "report.html", *(tmp_path / "e").glob("*.md"), *(tmp_path / "e").glob("*.json")]
    assert len(written) == 3
    for path in written:
        text = path.read_text()
        assert "home-of-ann" not in text and str(tmp_path) not in text and str(phantom.parent) not in text, path
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["models"][0]["folder"] == "guided"
