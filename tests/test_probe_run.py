"""Probing a finished run: what is written agrees with the run's own numbers, and nothing of the run changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.compare import command as compare_command
from mgkeras.cli.evaluate import command

from mgkeras.data.cohort import read_cohort
from mgkeras.data.volume import ExamError
from mgkeras.evaluation import tables
from mgkeras.evaluation.evaluate import evaluate
from mgkeras.figures.pictures import figure3_panels
from mgkeras.models.weights import read_arrays, write_arrays
from mgkeras.phantom.cohort import make_phantom, phantom_traps
from mgkeras.probes.fold import Fold, trap_columns
from mgkeras.probes.ledger import NO_LEDGER, PARTS
from mgkeras.probes.run import BOXES, probe_run
from mgkeras.probes.scores import DILATIONS_MM
from mgkeras.report.collect import report_facts, viewer
from mgkeras.runs import store
from mgkeras.runs.digests import PROBES, run_digests, with_digests
from mgkeras.scores.comparison import read_run
from mgkeras.scores.held_out import read_table
from mgkeras.scores.radiomics_table import write_radiomics
from mgkeras.settings import for_model
from mgkeras.training.crossval import cross_validate
from mgkeras.training.devices import choose_device
from mgkeras.training.progress import Console

SILENT = Console(lambda text: None, lambda text: None)


@pytest.fixture(scope="module")
def made(phantom, small, tmp_path_factory):
    """Probed runs of guided and mask-only beside the phantom's folder, and the cache."""
    folder = tmp_path_factory.mktemp("probed")
    settings = replace(small, training=replace(small.training, epochs=1))
    for model in ("guided", "mask-only"):
        run = folder / model
        cross_validate(
            read_cohort(phantom, "recurrence"),
            for_model(settings, model),
            run,
            device=choose_device(),
            cache_folder=folder / "cache",
            console=SILENT,
        )
        probe_run(run, folder / "cache", SILENT, occlusions=3)
    return folder


def rows_of(made, model="guided", name="subjects"):
    return {row["subject"]: row for row in read_table(made / model / "probes" / f"{name}.csv")}


@pytest.mark.computes
def test_every_held_out_subject_is_probed_and_the_default_dilation_is_that_of_the_run(made):
    rows, run = rows_of(made), read_run(made / "guided")
    assert set(rows) == set(run.held_out)
    predictions = read_table(made / "guided" / "predictions.csv")
    held = {row["subject"]: row for row in predictions if row["split"] == "held-out"}
    for name, row in rows.items():
        assert float(row["probability"]) == pytest.approx(run.held_out[name][2], abs=1e-6)
        for part in ("outside", "inside"):  # 5 mm are what the run itself is asked with
            expected = float(held[name][f"p_{part}_blurred"])
            assert float(row[f"p_{part}_blurred_5mm"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.computes
def test_the_spot_is_taken_from_those_that_have_it_and_given_to_the_others(made, phantom):
    spots = phantom_traps(phantom.parent)["spot"]
    for name, row in rows_of(made).items():
        as_it_is, other = ("p_with_spot", "p_without_spot") if spots[name] else ("p_without_spot", "p_with_spot")
        assert row["trap_spot"] == str(int(spots[name]))
        assert row[as_it_is] == row["probability"] != row[other]


@pytest.mark.parametrize("model", ["no-mask", "mask-only"])
def test_every_trap_of_a_phantom_is_toggled_the_site_too(small, tmp_path, model):
    """A reader of mean intensity stands for the network; a box follows its mask to the other scanner's grid."""
    table = make_phantom(tmp_path, subjects=4, side=24, seed=6, traps=["noise", "site"], agreement=0.75)
    seen, settings = [], for_model(small, model)

    def forward(volumes):
        seen.extend(volumes)
        return {"probability": volumes.mean(axis=(1, 2, 3, 4))}

    subjects = read_cohort(table, "recurrence").subjects
    fold = Fold(0, np.arange(4), np.arange(0), None, SimpleNamespace(settings=settings), forward)
    columns = trap_columns(fold, subjects, np.full(4, 0.5))
    traps = phantom_traps(tmp_path)
    assert list(columns) == [f"{part}_{trap}" for trap in traps for part in ("trap", "p_without", "p_with")]
    for trap, states in traps.items():
        on = np.array([states[subject.name] for subject in subjects])
        assert np.array_equal(columns[f"trap_{trap}"], on)
        assert np.array_equal(np.where(on, columns[f"p_with_{trap}"], columns[f"p_without_{trap}"]), np.full(4, 0.5))
        assert (np.where(on, columns[f"p_without_{trap}"], columns[f"p_with_{trap}"]) != 0.5).all()
    if model == "mask-only":  # the box holds the tumour, which is brighter than the rest
        assert min(cube.max() for cube in seen) > 1 and min(cube.mean() for cube in seen) > 0.5


def test_occlusion_and_randomised_layers_of_the_asked_number_of_subjects(made):
    rows = rows_of(made)
    columns = [name for name in next(iter(rows.values())) if name.startswith("rank_random_")]
    assert columns[0] == "rank_random_logits" and columns[-1] == "rank_random_block1_conv1" and len(columns) == 11
    arrays, _ = read_arrays(made / "guided" / "probes" / "occlusion.h5")
    names = {name.decode() for name in arrays["subject"]}
    assert len(names) == 3 and arrays["effect"].shape == (3, 3, 3, 3)
    assert {name for name, row in rows.items() if row["occlusion_chance"]} == names
    p = sorted(float(row["probability"]) for row in rows.values())
    assert {p[0], p[-1]} <= {float(rows[name]["probability"]) for name in names}, "the surest of both sides are asked"


def test_the_random_network_is_another_one_and_is_scored_like_a_trained_one(made):
    untrained = rows_of(made, name="random_network")
    attention = read_table(made / "guided" / "attention.csv")
    assert set(untrained) == {row["subject"] for row in attention}
    assert set(next(iter(untrained.values()))) == set(attention[0]) | {"label", "probability"}
    assert any(untrained[row["subject"]]["mass_in_mask"] != row["mass_in_mask"] for row in attention)


def test_a_mask_only_model_is_asked_with_other_boxes_and_another_is_not(made):
    rows = rows_of(made, "mask-only")
    for name in BOXES:
        assert all(0 <= float(row[f"p_box_{name}"]) <= 1 for row in rows.values())
    assert any(row["p_box_dilated 4 mm"] != row["probability"] for row in rows.values())
    assert not any(name.startswith("p_box") for row in rows_of(made).values() for name in row)


def test_probing_changes_nothing_of_the_run_and_is_not_repeated(made, monkeypatch):
    weights, _ = read_arrays(made / "guided" / "fold_0" / "weights.h5")
    monkeypatch.setattr("mgkeras.probes.run.load_fold", lambda *_: pytest.fail("probed again"))
    before = (made / "guided" / "probes" / "subjects.csv").stat().st_mtime_ns
    probe_run(made / "guided", made / "cache", SILENT, occlusions=3)
    assert (made / "guided" / "probes" / "subjects.csv").stat().st_mtime_ns == before
    again, _ = read_arrays(made / "guided" / "fold_0" / "weights.h5")
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_exams_that_are_gone_or_changed_are_refused_by_name(made, tmp_path):
    run = tmp_path / "a" / "guided"
    shutil.copytree(made / "guided", run)
    with pytest.raises(ExamError, match="where its cohort.csv says.*repeat its fit command"):  # its paths lead nowhere
        probe_run(run, made / "cache", SILENT, occlusions=2)
    run = changed(made, "P0003")
    with pytest.raises(ExamError, match="P0003"):
        probe_run(run, made / "cache", SILENT, occlusions=2)


def changed(made, name):
    """A copy of the guided run that was trained on another early phase of one subject."""
    run = made / f"changed-{name}"
    shutil.copytree(made / "guided", run, dirs_exist_ok=True)
    data = store.read_json(run / "data.json")
    data["subjects"][name]["early"] = "0" * 32
    store.write_json(run / "data.json", data)
    store.write_json(run / "done.json", {"sha256": run_digests(run)})
    return run


def test_a_changed_exam_is_nowhere_shown_under_the_runs_numbers(made, tmp_path):
    run = changed(made, "P0005")
    with pytest.raises(ExamError, match="P0005"):
        figure3_panels([run], ["guided"], 3, subjects=["P0005"])
    with pytest.raises(ExamError, match="P0005"):
        write_radiomics(run)
    assert not (run / "radiomics.csv").exists()
    facts = report_facts({"guided": run})
    shown = viewer({"guided": run}, replace(facts, chosen={"P0005": ("best",), "P0006": ("worst",)}), 1e9)
    assert [case.name for case in shown.cases] == ["P0006"] and "P0005" in shown.unread["P0005"]


def test_comparing_a_moved_run_still_gives_its_tables(made, tmp_path):
    run = tmp_path / "deeper" / "guided"
    shutil.copytree(made / "guided", run)
    found = CliRunner().invoke(compare_command, [str(run), "--out", str(tmp_path / "c")], catch_exceptions=False)
    assert found.exit_code == 0 and "no figure3.png" in found.output
    assert (tmp_path / "c" / "table.md").exists() and not (tmp_path / "c" / "figure3.png").exists()


def test_probes_of_other_weights_are_made_again_and_never_reported(made, tmp_path):
    run = made / "again"
    shutil.copytree(made / "guided", run)
    before = store.read_json(run / "probes" / "probes.json")["asked"]
    arrays, about = read_arrays(run / "fold_0" / "weights.h5")
    write_arrays(
        run / "fold_0" / "weights.h5", arrays | {"logits/bias": arrays["logits/bias"] + np.float32([0, 3])}, about
    )
    probe_run(run, made / "cache", SILENT, occlusions=3)
    assert store.read_json(run / "probes" / "probes.json")["asked"] != before
    results = evaluate([run], samples=100, trust=True).results  # predictions.csv is that of the old weights
    assert results["models"][0]["probes"] is None and results["models"][0]["robustness"]["mask"] is None
    assert any("of other weights" in line for line in results["skipped"])


def test_an_unfinished_run_is_not_probed(made):
    run = made / "unfinished"
    shutil.copytree(made / "guided", run)
    (run / "fold_1" / "done.json").unlink()
    with pytest.raises(store.RunError, match="expected 2 finished folds.*Received: 1"):
        probe_run(run, made / "cache", SILENT, occlusions=3)


def test_runs_on_other_exams_are_told_apart(made):
    results = evaluate([made / "guided", changed(made, "P0007")], samples=100).results
    assert any("other early or pre files or masks" in line and "P0007" in line for line in results["skipped"])


def test_the_ledger_adds_up_to_the_models_log_odds(made):
    for model in ("guided", "mask-only"):
        rows, ledger = rows_of(made, model), rows_of(made, model, "ledger")
        assert set(ledger) <= set(rows) and ledger
        for name, row in ledger.items():
            total = sum(float(row[part]) for part in ("constant", *PARTS))
            assert total == pytest.approx(float(row["log_odds"]), abs=1e-4)
            p = float(rows[name]["probability"])
            assert total == pytest.approx(np.log(p / (1 - p)), abs=1e-3) and row["label"] == rows[name]["label"]
            assert sum(int(row[f"cells_{part}"]) for part in PARTS) == 27
        assert model == "guided" or not any(int(row["cells_outside"]) for row in ledger.values())


def test_transplants_and_controls_of_a_run(made):
    rows, run = rows_of(made), read_run(made / "guided")
    known = [row for row in rows.values() if row["partner"]]
    assert len(known) > 6
    for row in known:
        assert row["partner"] != row["subject"] and row["partner_label"] == rows[row["partner"]]["label"]
        assert run.held_out[row["partner"]][0] == run.held_out[row["subject"]][0], "partners are of the same fold"
        for name in ("p_transplant", "p_transplant_soft", "p_inside_filled"):
            assert 0 <= float(row[name]) <= 1
        assert float(row["kept_ml_5mm"]) >= float(row["kept_ml_0mm"]) > 0
    looks = {row["subject"]: row for row in read_table(made / "guided" / "attention.csv")}
    assert all(
        float(row[name]) == pytest.approx(float(looks[row["subject"]][name]))
        for row in known
        for name in ("mass_chance_body", "mass_of_t1")
    )
    boxed = rows_of(made, "mask-only").values()
    assert not any(name in row for row in boxed for name in ("partner", "p_transplant", "p_hole"))
    held = [row for row in read_table(made / "guided" / "predictions.csv") if row["split"] == "held-out"]
    for row in held:
        assert row["kept_ml"] == rows[row["subject"]]["kept_ml_5mm"]


def test_shapes_are_of_the_whole_exam_whatever_the_network_saw(made):
    whole, boxed = rows_of(made, name="shapes"), rows_of(made, "mask-only", "shapes")
    assert whole == boxed and set(whole) == set(rows_of(made))
    arrays, _ = read_arrays(made / "guided" / "probes" / "features.h5")
    assert {name.decode() for name in arrays["subject"]} == set(whole) and arrays["features"].shape == (12, 64)


def test_probes_of_before_are_read_and_what_they_lack_is_none(made):
    run = made / "before"
    shutil.copytree(made / "guided", run)
    about = store.read_json(run / "probes" / "probes.json")
    about["asked"]["format"] = 2
    store.write_json(
        run / "probes" / "probes.json",
        {name: about[name] for name in ("asked", "dilations", "layers", "boxes", "grid")},
    )
    for name in ("ledger.csv", "shapes.csv", "features.h5"):
        (run / "probes" / name).unlink()
    fewer = ("kept_ml", "partner", "p_transplant", "p_inside_filled", "p_hole", "mass_")
    for name in ("predictions.csv", "probes/subjects.csv"):
        rows = [
            {key: value for key, value in row.items() if not key.startswith(fewer)}
            for row in store.read_rows(run / name)
        ]
        store.write_rows(run / name, rows)
    results = evaluate([run], samples=100, trust=True).results  # as a run of before, which has no digests
    found, now = (scored["models"][0] for scored in (results, evaluate([made / "guided"], samples=100).results))
    assert [found["probes"][what] for what in ("transplant", "ledger", "controls", "site")] == [None] * 4
    assert found["causal"] == now["causal"] | {"kept_ml": None} and now["causal"]["kept_ml"]["mean"] > 0
    assert found["probes"]["causal"][0]["auc_outside_blurred"] == now["probes"]["causal"][0]["auc_outside_blurred"]
    assert now["probes"]["transplant"]["subjects"] > 6 and now["probes"]["site"]["columns"][0]["column"] == "site"
    assert any(line.startswith("mask shape: ") for line in results["skipped"])
    page = tables.as_page(results)
    assert "What the decision rests on" in page and "another breast" not in page


def test_a_network_that_ends_in_a_pool_has_no_ledger_and_says_why(made):
    run = made / "pooled"
    shutil.copytree(made / "guided", run)
    path = run / "probes" / "probes.json"
    about = store.read_json(path) | {"ledger": False, "no_ledger": NO_LEDGER}
    store.write_json(path, with_digests(path.parent.parent, PROBES, about))
    results = evaluate([run], samples=100).results
    assert results["models"][0]["probes"]["ledger"] is None
    assert f"ledger of guided: {NO_LEDGER}" in results["skipped"]


def test_the_command_writes_the_probes_into_its_results(made, tmp_path):
    options = ["--occlusions", 3, "--samples", 100, "--cache", made / "cache", "--out", tmp_path / "e"]
    found = CliRunner().invoke(command, [str(part) for part in (made / "guided", *options)], catch_exceptions=False)
    assert found.exit_code == 0 and "probes.png" in found.output
    results = store.read_json(tmp_path / "e" / "evaluation.json")
    model = results["models"][0]
    assert [row["dilation_mm"] for row in model["probes"]["causal"]] == list(DILATIONS_MM)
    assert [(trap["trap"], trap["subjects"]) for trap in model["probes"]["traps"]] == [("spot", 12)]
    assert model["robustness"]["mask"][0]["change"] == "as it is" and model["robustness"]["repeats"] is None
    attention = model["attention"]["all"]["mass_in_mask"]["mean"]
    assert model["robustness"]["mask"][0]["mass_in_mask"]["mean"] == pytest.approx(attention)
    page = (tmp_path / "e" / "table.md").read_text()
    assert "The traps removed and added" in page and "Another mask" in page
    for title in (
        "Tumours in another breast",
        "What each part brings to the log-odds",
        "Controls",
        "The site in the features",
    ):
        assert f"## {title}" in page
    ledger = model["probes"]["ledger"]["parts"]
    assert sum(part["variance"]["value"] for part in ledger) == pytest.approx(1)
    assert model["probes"]["transplant"]["swap_trained"] is False
    assert "mask shape" in [model["name"] for model in results["models"]]
