"""Runs that were edited, mixed up or damaged by hand: each is an error that names the file and says what to do."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reporting
from click.testing import CliRunner

from mgkeras.data.arrays import read_arrays, write_arrays
from mgkeras.evaluation.evaluate import evaluate
from mgkeras.evaluation.kept import made_from
from mgkeras.runs import digests as run_files
from mgkeras.runs import forms, store
from mgkeras.runs.digests import EditedRun, check_run
from mgkeras.scores import radiomics_table
from mgkeras.scores.comparison import comparison, read_run
from mgkeras.settings import for_model


@pytest.fixture(scope="module")
def whole(phantom, small, tmp_path_factory):
    """A finished run by hand, with digests as fit writes them."""
    settings = for_model(replace(small, outcome="recurrence"), "guided")
    run = reporting.make_run(tmp_path_factory.mktemp("whole") / "guided", phantom, settings)
    for number, folder in enumerate(store.done_folds(run)):
        write_arrays(folder / "weights.h5", {"conv/kernel": np.full((3, 3), number, "f4")}, {})
        for name in ("predictions.csv", "attention.csv"):
            rows = [row for row in store.read_rows(run / name) if row["fold"] == str(number)]
            store.write_rows(folder / name, rows)
        seal(folder)
    store.write_json(run / "done.json", {"sha256": run_files.run_digests(run)})
    return run


def seal(folder: Path) -> None:
    """Digests of a fold's files as they are now."""
    done = store.read_json(folder / "done.json") | {"map": "decision"}
    store.write_json(folder / "done.json", run_files.fold_with_digests(folder, done))


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it to edit."""
    return Path(shutil.copytree(whole, tmp_path / "guided"))


def cell(path: Path, row: int, column: str, value: str) -> None:
    """Writes one cell of a table."""
    rows = store.read_rows(path)
    rows[row][column] = value
    store.write_rows(path, rows)


def weights_of_another_fold(run):
    shutil.copy(run / "fold_1" / "weights.h5", run / "fold_0" / "weights.h5")


def a_fold_of_another_number(run):
    shutil.copytree(run / "fold_0", run / "fold_7")


def exchanged_subjects(run):
    folds = store.read_json(run / "folds.json")
    held = folds["held_out_in"]
    a, b = (next(name for name, fold in held.items() if fold == number) for number in (0, 1))
    held[a], held[b] = held[b], held[a]
    store.write_json(run / "folds.json", folds)


def another_side(run):
    settings = store.read_json(run / "settings.json")
    settings["volume"]["side"] = 32
    store.write_json(run / "settings.json", settings)


EDITS = {
    "fold_0/weights.h5": weights_of_another_fold,
    "fold_7": a_fold_of_another_number,
    "folds.json": exchanged_subjects,
    "settings.json": another_side,
    "fold_1/predictions.csv": lambda run: cell(run / "fold_1/predictions.csv", 0, "probability", "0.25"),
    "fold_1/attention.csv": lambda run: cell(run / "fold_1/attention.csv", 0, "mass_in_mask", "0.25"),
    "fold_0/history.csv": lambda run: cell(run / "fold_0/history.csv", 0, "ce", "0.25"),
    "fold_0/cams.h5": lambda run: (run / "fold_0/cams.h5").unlink(),
    "summary.json": lambda run: store.write_json(
        run / "summary.json", store.read_json(run / "summary.json") | {"subjects": 7}
    ),
    "predictions.csv is another": lambda run: cell(run / "predictions.csv", 0, "probability", "0.25"),
    "attention.csv is another": lambda run: cell(run / "attention.csv", 0, "mass_in_mask", "0.25"),
    "done.json of the run": lambda run: (run / "done.json").unlink(),
    "fold_0/done.json": lambda run: store.write_json(run / "fold_0/done.json", {}),
    "fold_1/done.json is another": lambda run: store.write_json(
        run / "fold_1/done.json", store.read_json(run / "fold_1/done.json") | {"seconds": 7.0}
    ),
}


def test_a_run_as_it_was_trained_is_in_order(run):
    assert check_run(run) == check_run(run, resuming=True) == ()
    assert read_run(run).held_out and evaluate([run], samples=100).results["edited"] == []


def test_what_a_killed_process_was_writing_is_no_part_of_what_an_evaluation_is_made_from(run):
    def made():
        return made_from([run], samples=9, seed=0, maps=True)

    (run / "probes").mkdir(exist_ok=True)
    before = made()
    for name in (".77-summary.json", ".77-masks.csv", "probes/.77-subjects.csv"):
        (run / name).write_text("half")
    assert made() == before
    cell(run / "masks.csv", 0, "volume_mm3", "7")
    assert made() != before


@pytest.mark.parametrize("named", EDITS)
def test_an_edit_is_an_error_that_names_the_file_and_trust_goes_on(named, run):
    EDITS[named](run)
    with pytest.raises(EditedRun, match=f"expected .*guided.*Received: .*{named}.*--trust"):
        check_run(run)
    assert any(named in told and told.startswith("guided") for told in check_run(run, trust=True))
    if named.split()[0] not in run_files.RUN_FILES + ("done.json",):
        with pytest.raises(EditedRun, match=named):
            check_run(run, resuming=True)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 50_000])
@pytest.mark.parametrize("name", ["fold_0/done.json", "settings.json", "summary.json", "folds.json", "data.json"])
def test_json_that_is_damaged_is_an_error_that_names_it(name, content, run):
    (run / name).write_text(content)
    with pytest.raises((ValueError, store.RunError), match=Path(name).name):
        if name == "data.json":
            store.claim_data(run, {"subjects": {}})
        check_run(run)
        read_run(run)


def test_runs_of_before_have_no_digests_and_are_read(phantom, small, tmp_path):
    run = reporting.make_run(tmp_path / "guided", phantom, for_model(replace(small, outcome="recurrence"), "guided"))
    assert check_run(run) == () and evaluate([run], samples=100).results["edited"] == []


def test_maps_that_are_scored_again_need_no_digest_of_their_scores(run):
    done = store.read_json(run / "fold_0" / "done.json")
    del done["map"], done["sha256"]["done.json"]  # as in runs of before
    store.write_json(run / "fold_0" / "done.json", done)
    cell(run / "fold_0/attention.csv", 0, "mass_in_mask", "0.25")
    assert check_run(run, resuming=True) == ()
    with pytest.raises(EditedRun, match=r"fold_0/attention\.csv"):
        check_run(run)


CELLS = [
    ("probability", "2.0"),
    ("probability", "-0.1"),
    ("probability", "nan"),
    ("probability", "high"),
    ("probability", ""),
    ("p_outside_blurred", "7"),
    ("fold", "7"),
    ("fold", "-1"),
    ("fold", "x"),
    ("label", "2"),
    ("label", ""),
    ("split", "test"),
    ("subject", "stranger"),
    ("subject", "P0003"),
]


@pytest.mark.parametrize(("column", "value"), CELLS)
def test_a_prediction_that_cannot_be_is_an_error_with_file_and_row(column, value, run):
    cell(run / "predictions.csv", 4, column, value)
    row = r"\d+" if value == "P0003" else 5  # a name that stands there twice is told where it comes again
    with pytest.raises(ValueError, match=rf"predictions\.csv, row {row}: expected .*Received: "):
        read_run(run)


@pytest.mark.parametrize("what", ["doubled", "short", "long", "no column", "binary", "quote", "empty"])
def test_a_table_that_is_damaged_is_an_error_with_the_file(what, run):
    path = run / "predictions.csv"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_bytes(
        {
            "doubled": (text + lines[3]).encode(),
            "short": "".join([*lines[:3], lines[3].split(",")[0] + "\n", *lines[4:]]).encode(),
            "long": "".join([*lines[:3], lines[3].strip() + ",1,2\n", *lines[4:]]).encode(),
            "no column": text.replace("probability", "p").encode(),
            "binary": b"\x89PNG\xff\xfe" + text.encode(),
            "quote": (text + '"').encode(),
            "empty": b"",
        }[what]
    )
    with pytest.raises(ValueError, match=r"predictions\.csv.*Received: "):
        read_run(run)


@pytest.mark.parametrize(("column", "value"), [("mass_in_mask", "nan"), ("fold", "x"), ("subject", "stranger")])
def test_a_score_of_a_map_that_cannot_be_is_an_error_with_file_and_row(column, value, run):
    cell(run / "attention.csv", 2, column, value)
    with pytest.raises(ValueError, match=r"attention\.csv, row 3: expected .*Received: "):
        read_run(run).attention_rows()


def maps_of_others(run):
    arrays, about = read_arrays(run / "fold_0/cams.h5")
    arrays["subject"][0] = b"stranger"
    write_arrays(run / "fold_0/cams.h5", arrays, about)


def maps_too_many(run):
    arrays, about = read_arrays(run / "fold_0/cams.h5")
    write_arrays(run / "fold_0/cams.h5", {name: np.repeat(array, 2, axis=0) for name, array in arrays.items()}, about)


def maps_of_another_grid(run):
    arrays, about = read_arrays(run / "fold_0/cams.h5")
    arrays["cam"] = np.zeros((len(arrays["subject"]), 25, 25, 25, 2), "f4")
    write_arrays(run / "fold_0/cams.h5", arrays, about)


@pytest.mark.parametrize("edit", [maps_of_others, maps_too_many, maps_of_another_grid])
def test_maps_are_compared_with_the_fold_before_they_are_shown(edit, run):
    from mgkeras.figures.pictures import held_out_maps

    edit(run)
    with pytest.raises((ValueError, store.RunError), match=r"cams\.h5.*Received: "):
        held_out_maps(run)


def test_evaluate_and_report_stop_and_with_trust_say_so(run, tmp_path):
    from mgkeras.cli.evaluate import command as evaluate_command
    from mgkeras.cli.report import command as report_command

    cell(run / "predictions.csv", 0, "probability", "0.25")
    for command, out in ((evaluate_command, tmp_path / "e"), (report_command, tmp_path / "report.html")):
        options = [str(run), "--out", str(out), "--samples", "100", "--no-probe"]
        refused = CliRunner().invoke(command, options)
        assert isinstance(refused.exception, EditedRun) and not out.exists()
        done = CliRunner().invoke(command, [*options, "--trust"], catch_exceptions=False)
        assert done.exit_code == 0 and "edited after it was trained: predictions.csv" in done.output
    for text in ((tmp_path / "e" / "table.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "guided was edited after it was trained: predictions.csv is another one" in text
    told = json.loads((tmp_path / "e" / "evaluation.json").read_text())["edited"]
    assert told == ["guided was edited after it was trained: predictions.csv is another one"]


def test_compare_stops_too(run):
    cell(run / "predictions.csv", 0, "probability", "0.25")
    with pytest.raises(EditedRun, match="predictions.csv"):
        comparison([run])
    assert "edited" in comparison([run], trust=True)["note"]


def test_predict_and_export_stop(run, tmp_path):
    from mgkeras.data.cohort import Cohort
    from mgkeras.inference.predict import predict_cohort
    from mgkeras.serving.export import export_run

    weights_of_another_fold(run)
    with pytest.raises(EditedRun, match=r"fold_0/weights\.h5"):
        predict_cohort(run, Cohort(tmp_path, "recurrence", ()), tmp_path / "p")
    with pytest.raises(EditedRun, match=r"fold_0/weights\.h5"):
        export_run(run, tmp_path / "served")
    assert not (tmp_path / "served").exists() and not (tmp_path / "p").exists()


def test_fit_writes_digests_and_refuses_what_was_edited_since(phantom, tmp_path):
    from test_training import FIT, mgkeras

    run = tmp_path / "guided"
    options = ("fit", "--cohort", phantom, *FIT, "--epochs", 1, "--out", run, "--cache", tmp_path / "cache")
    mgkeras(*options)
    for folder in store.done_folds(run):
        done = store.read_json(folder / "done.json")
        assert set(done["sha256"]) == {*run_files.FOLD_FILES, *run_files.SHARED, "done.json"}
        assert done == run_files.fold_with_digests(folder, done)
    assert check_run(run) == ()
    folds = (run / "folds.json").read_bytes()
    exchanged_subjects(run)
    done = mgkeras(*options, check=False)
    assert done.returncode == 1 and "folds.json is another one" in done.stderr and "Traceback" not in done.stderr
    (run / "folds.json").write_bytes(folds)
    cell(run / "fold_0" / "history.csv", 0, "ce", "0.25")
    done = mgkeras(*options, "--trust")
    assert "edited after it was trained: fold_0/history.csv is another one" in done.stderr


def test_rows_are_counted_as_a_reader_of_the_table_counts_them(run):
    """Row 1 is the first after the header."""
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert store.read_rows(run / "predictions.csv")[0]["subject"] == rows[1][0]


def probed(run: Path) -> Path:
    """RUN/probes as `mgkeras evaluate` writes them, of hardly anything asked, with its digests."""
    folder = run / "probes"
    held = [row for row in store.read_rows(run / "predictions.csv") if row["split"] == "held-out"]
    columns = ("subject", "fold", "label", "probability")
    blurred = {f"p_{part}_blurred_5mm": 0.5 for part in ("outside", "inside")}
    store.write_rows(folder / "subjects.csv", [{name: row[name] for name in columns} | blurred for row in held])
    store.write_rows(folder / "random_network.csv", [{"subject": "P0000", "fold": 0, "label": 1, "probability": 0.5}])
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "subjects": 12}
    masks = [{name: {str: "as it is", float: 0.0}.get(type(form), score) for name, form in forms.MASKS[0].items()}]
    store.write_json(folder / "masks.json", masks)
    about = {"asked": {"format": 3}, "dilations": [{"mm": 5.0}], "layers": [], "boxes": [], "grid": 0}
    store.write_json(folder / "probes.json", run_files.with_digests(run, run_files.PROBES, about))
    return folder


def put(path: Path, where: tuple, value) -> None:
    """Writes a value into a JSON file, at its place."""
    whole = inside = json.loads(path.read_text())
    for key in where[:-1]:
        inside = inside[key]
    if where:
        inside[where[-1]] = value
    path.write_text(json.dumps(whole if where else value))


HOSTILE = [
    ("summary.json", ("pooled", "auc"), "x"),
    ("summary.json", ("pooled", "auc", "value"), [1]),
    ("summary.json", ("pooled",), {}),
    ("summary.json", ("attention", "all"), 7),
    ("summary.json", ("attention", "all", "mass_in_mask"), "x"),
    ("summary.json", ("attention", "all", "mass_in_mask"), {"sd": 0.1, "defined": 12}),
    ("summary.json", ("attention", "all", "mass_in_mask", "mean"), 10**400),
    ("summary.json", ("subjects",), 2**63),
    ("summary.json", ("over_folds", "auc_train"), {}),
    ("summary.json", ("over_folds", "auc_train", "mean"), float("nan")),
    ("summary.json", ("per_fold", 0), "x"),
    ("summary.json", ("subjects",), True),
    ("probes/masks.json", (), {"a": 1}),
    ("probes/masks.json", (), [1]),
    ("probes/masks.json", (0, "mm"), "far"),
    ("probes/masks.json", (0, "mass_moved"), None),
    ("probes/masks.json", (0, "mass_moved"), {}),
    ("probes/masks.json", (0, "mass_moved", "low"), -(10**400)),
    ("probes/masks.json", (0, "mass_moved", "mean"), float("inf")),
    ("probes/probes.json", ("asked",), 3),
    ("probes/probes.json", ("asked", "format"), "new"),
    ("probes/probes.json", ("dilations", 0), {"m": 1}),
    ("probes/probes.json", ("layers",), [[]]),
    ("probes/probes.json", ("ledger",), True),
]


def test_probes_as_they_are_written_are_read(run):
    probed(run)
    (network, *_) = evaluate([run], samples=100).results["models"]
    assert network["robustness"]["mask"] and network["probes"]["subjects"] == 12


@pytest.mark.parametrize(("name", "where", "value"), HOSTILE)
def test_json_of_another_form_is_an_error_that_names_it(name, where, value, run):
    """Whoever sent the run wrote its digests too."""
    probed(run)
    put(run / name, where, value)
    where_told = "ledger.csv" if where == ("ledger",) else name
    with pytest.raises((ValueError, store.RunError, FileNotFoundError), match=rf"expected .*{where_told}|{where_told}"):
        comparison([run], trust=True)
        evaluate([run], samples=100, trust=True)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((), []),
        (("chosen",), True),
        (("chosen",), {}),
        (("chosen", 0), {"outer_fold": 0}),
        (("chosen", 0, "values"), 7),
        (("chosen", 0, "values", "guidance.lambda_dice"), "x"),
    ],
)
def test_a_search_of_another_form_is_an_error_that_names_it(where, value, run):
    from mgkeras.serving.card import model_card, read_facts

    tuned(run)
    settings = store.load_settings(run)
    assert "lambda" in model_card(read_facts(run, settings, (0, 1)), {}, [])
    put(run / "tune.json", where, value)
    with pytest.raises((ValueError, store.RunError), match=r"expected .*tune\.json"):
        read_facts(run, settings, (0, 1))


@pytest.mark.parametrize(("where", "value"), [((), [1]), (("pooled",), {}), (("subjects",), "x"), (("folds",), 10**30)])
def test_a_summary_of_another_form_is_an_error_in_python_too(where, value, run):
    from mgkeras.training.api import load_run

    assert load_run(run).summary["subjects"] == 12
    put(run / "summary.json", where, value)
    with pytest.raises((ValueError, store.RunError), match=r"expected .*summary\.json"):
        load_run(run).summary  # noqa: B018


@pytest.mark.parametrize("column", ["subject", "fold", "label", "probability"])
def test_probes_that_hold_no_numbers_are_an_error_that_names_their_folder(column, run):
    folder = probed(run)
    cell(folder / "subjects.csv", 2, column, "odd")
    told = evaluate([run], samples=100, trust=True).results["skipped"] if column == "subject" else []
    if column == "subject":  # they are probes of other subjects
        assert any("probes of guided: none" in reason for reason in told)
        return
    with pytest.raises(ValueError, match=r"expected prob.*probes"):
        evaluate([run], samples=100, trust=True)


@pytest.mark.parametrize("name", ["masks.json", "subjects.csv", "probes.json"])
def test_probes_that_were_edited_are_noticed(name, run):
    folder = probed(run)
    assert check_run(run) == ()
    if name == "probes.json":
        put(folder / name, ("dilations", 0, "mm"), 6.0)
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    with pytest.raises(EditedRun, match=f"probes/{name} is another one"):
        check_run(run)
    assert check_run(run, resuming=True) == ()  # fit reads no probes


@pytest.mark.parametrize("name", ["masks.csv", "cohort.csv", "data.json", "environment.json"])
def test_what_else_a_report_reads_of_a_run_is_compared_too(name, run):
    (run / name).write_text((run / name).read_text() + " ")
    with pytest.raises(EditedRun, match=f"{name} is another one"):
        check_run(run)


def test_scores_of_a_run_of_before_whose_digests_are_fewer_are_in_order(run):
    done = store.read_json(run / "done.json")
    known = {name: done["sha256"][name] for name in ("predictions.csv", "attention.csv", "summary.json")}
    store.write_json(run / "done.json", {"sha256": known})
    assert check_run(run) == ()


def tuned(run: Path) -> None:
    """What `mgkeras tune` leaves in a run, of one trial, with its digests."""
    store.write_json(run / "tune/search.json", {"search": {"trials": 1}})
    store.write_json(run / "tune/fold_0/trial_0/result.json", {"outer_fold": 0, "trial": 0})
    store.write_rows(run / "tune/fold_0/trial_0/inner_0.csv", [{"subject": "P0000", "probability": 0.5}])
    store.write_rows(run / "tune/trials.csv", [{"outer_fold": 0, "trial": 0}])
    chosen = {"chosen": [{"outer_fold": 0, "trial": 0, "values": {"guidance.lambda_dice": 1.0}}]}
    store.write_json(run / "tune.json", run_files.with_digests(run, run_files.TUNE, chosen))


@pytest.mark.parametrize(
    "name", ["tune.json", "tune/trials.csv", "tune/fold_0/trial_0/result.json", "tune/fold_0/trial_0/inner_0.csv"]
)
def test_an_edited_search_is_noticed_by_who_reads_the_run_and_who_goes_on_with_it(name, run):
    tuned(run)
    assert check_run(run) == check_run(run, resuming=True) == ()
    (run / name).write_text((run / name).read_text().replace("0", "1"))
    for resuming in (False, True):
        with pytest.raises(EditedRun, match=f"{name} is another one"):
            check_run(run, resuming=resuming)
        assert any(name in told for told in check_run(run, trust=True, resuming=resuming))
    about = store.read_json(run / "tune.json")
    del about["sha256"]
    store.write_json(run / "tune.json", about)
    assert check_run(run) == ()  # as a search of before


def test_an_edited_table_of_radiomics_is_noticed(run, phantom, monkeypatch):
    pytest.importorskip("numpyradiomics", reason="the extra radiomics is not installed")
    monkeypatch.setattr(radiomics_table, "check_unchanged", lambda *_: None)  # the run was made by hand
    monkeypatch.setattr(radiomics_table.radiomics, "features", lambda *_: {"Mean": 0.5})
    assert radiomics_table.write_radiomics(run) == run / "radiomics.csv" and check_run(run) == ()
    cell(run / "radiomics.csv", 0, "Mean", "0.25")
    with pytest.raises(EditedRun, match=r"radiomics\.csv is another one"):
        check_run(run)
    assert check_run(run, resuming=True) == ()  # fit reads none
    (run / "radiomics.csv").unlink()  # a process that was killed before the table had its name
    assert check_run(run) == ()
    radiomics_table.write_radiomics(run)
    (run / "radiomics.json").unlink()
    assert check_run(run) == ()  # as a table of before


EVALUATED = {"name": "guided", "folder": "guided", "pooled": {"auc": {"value": 0.5, "low": 0.4, "high": 0.6}}}


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {"name": "guided"},
        EVALUATED | {"pooled": {"auc": {"value": "x"}}},
        EVALUATED | {"causal": {"auc_whole": 3}},
        EVALUATED | {"at_half": []},
        EVALUATED | {"probes": {"traps": [{}]}},
        EVALUATED | {"probes": 7},
        EVALUATED | {"folder": 7},
    ],
)
def test_an_evaluation_of_another_form_is_an_error_that_names_it(entry, run, tmp_path):
    from mgkeras.serving.card import has_run

    path = tmp_path / "evaluation.json"
    auc = store.read_json(run / "summary.json")["pooled"]["auc"]["value"]
    whole = EVALUATED | {"pooled": {"auc": {"value": auc}}}
    store.write_json(path, {"models": [whole]})
    assert has_run(path, run)
    if isinstance(entry, dict) and entry.get("pooled") == EVALUATED["pooled"]:
        entry = whole | {name: entry[name] for name in entry if name != "pooled"}
    store.write_json(path, {"models": [entry]})
    with pytest.raises((ValueError, store.RunError), match=r"expected .*evaluation\.json"):
        has_run(path, run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.epochs", "x"),
        ("training.epochs", 1.5),
        ("training.epochs", True),
        ("backbone.filters", ["wide"]),
        ("backbone.filters", []),
        ("guidance.lambda_dice", None),
        ("deterministic", 1),
        ("model", 3),
    ],
)
def test_settings_of_other_types_are_an_error_that_names_the_file(name, value, run):
    *parts, last = name.split(".")
    put(run / "settings.json", (*parts, last), value)
    with pytest.raises(store.RunError, match=rf"settings\.json.*{name}"):
        store.load_settings(run)
