"""Cache, stream, folds, cross-validation, resuming and prediction, on a small phantom."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from mgkeras.cli.main import main

from mgkeras.data import cache as caching
from mgkeras.data.augment import PAPER, stored_volumes
from mgkeras.data.cohort import Subject
from mgkeras.data.stream import epoch_plan, train_stream
from mgkeras.data.tumour import subject_mask
from mgkeras.runs import store
from mgkeras.runs.folds import assign_folds
from mgkeras.settings import MODELS, for_model, with_values


@pytest.fixture
def labels(cohort):
    return np.array([subject.label for subject in cohort.subjects])


# --- cache


def test_a_cache_is_plain_hdf5_and_mapped_whole(cache, cohort):
    import h5py

    assert cache.subjects == tuple(subject.name for subject in cohort.subjects)
    for row, exam in enumerate(cache.image.files):
        with h5py.File(exam.path) as file:
            assert file["image"].chunks is None and np.array_equal(file["image"][:], cache.image[row])
            assert np.array_equal(file["mask"][:] > 0, cache.mask[row])
    assert cache.image.shape == (12, 3, 24, 24, 24) and all(mask.any() for mask in cache.mask)


@pytest.mark.parametrize("workers", [1, 5])
def test_a_cache_is_the_same_however_many_workers_build_it(workers, cache, cohort, small, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "WORKERS", workers)
    monkeypatch.setattr(caching.os, "cpu_count", lambda: workers)
    counted = []
    built = caching.cached(cohort.subjects, small, tmp_path, lambda done, of: counted.append((done, of)))
    assert np.array_equal(built.image, cache.image) and np.array_equal(built.mask, cache.mask)
    assert np.array_equal(built.voxel_mm, cache.voxel_mm) and built.reports == cache.reports
    assert counted == [(done, 12) for done in range(1, 13)]


# --- stream


def test_an_epoch_holds_every_variant_once(small):
    whole = with_values(small, {"training.variants_per_epoch": 34, "training.batch_size": 10})
    batches = epoch_plan([3, 5, 8], whole, epoch=0)
    seen = {(row, variant) for batch in batches for row, variant, *_ in batch}
    assert seen == {(row, variant) for row in (3, 5, 8) for variant in range(34)}
    assert {len(batch) for batch in batches} <= {9, 10} and sum(map(len, batches)) == 102
    again = epoch_plan([3, 5, 8], whole, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(batches[0], epoch_plan([3, 5, 8], whole, epoch=1)[0])


def test_guided_and_no_mask_see_the_same_order(small):
    plans = [epoch_plan(range(7), for_model(small, model), 3) for model in ("no-mask", "guided", "guided-context")]
    for a, b, c in zip(*plans, strict=True):
        assert np.array_equal(a[:, :3], b[:, :3]) and np.array_equal(a[:, :2], c[:, :2])
        assert not a[:, 2].any() and c[:, 2].all() and not np.any(c[:, 0] == c[:, 3])


def test_streamed_volumes_equal_the_slow_twin(cache, cohort, labels, small):
    whole = with_values(small, {"training.variants_per_epoch": 34})
    exact = {}
    for row in (0, 4):
        early, tumour = subject_mask(cohort.subjects[row], small.mask)
        exact[row] = caching.exam_cube(early, tumour.mask, small)[:2]
    batches = epoch_plan([0, 4], whole, 0)
    for plan, (inputs, streamed_labels) in zip(
        batches, train_stream(cache, labels, [0, 4], whole, range(1)), strict=True
    ):
        for place, (row, variant, *_) in enumerate(plan):
            image, mask = slow_variant(exact[row], PAPER[variant], 2)
            streamed = np.array(inputs["volume"][place, ..., 0])
            if PAPER[variant].stored:
                assert np.abs(streamed - image).max() < 1e-3
            else:
                assert np.array_equal(streamed, image.astype(np.float16))
            assert np.array_equal(inputs["mask"][place, ..., 0], mask)
            assert int(streamed_labels[place]) == labels[row]


def slow_variant(cubes, variant, shift):
    """Index by index for what moves voxels; the stored turn is tested on its own in test_augment."""
    if variant.stored:
        return [stored_volumes(cube, 10.0)[variant.stored] for cube in cubes]
    last = len(cubes[0]) - 1
    moved = [np.zeros_like(cube) for cube in cubes]
    turn, offset = variant.matrix.astype(int).tolist(), [shift * step for step in variant.shift]
    for at in np.ndindex(cubes[0].shape):
        centred = [2 * place - last for place in at]
        to = tuple(
            (sum(t * c for t, c in zip(row, centred, strict=True)) + last) // 2 + step
            for row, step in zip(turn, offset, strict=True)
        )
        if min(to) >= 0 and max(to) <= last:
            for new, cube in zip(moved, cubes, strict=True):
                new[to] = cube[at]
    return moved


# --- folds


def test_no_batch_holds_a_single_volume(small):
    for subjects in (2, 3, 5, 7):
        pairs = with_values(small, {"training.batch_size": 2})
        assert min(len(batch) for batch in epoch_plan(range(subjects), pairs, 0)) >= 2


def test_folds_balance_classes_and_sites_and_ignore_the_tables_order():
    rng = np.random.default_rng(1)
    subjects = [
        Subject(f"S{i}", Path("x"), site=str(rng.integers(3)), label=int(rng.random() < 0.3)) for i in range(61)
    ]
    fold_of = assign_folds(subjects, 5, seed=2)
    assert fold_of == dict(reversed(assign_folds(subjects[::-1], 5, seed=2).items()))
    assert fold_of != assign_folds(subjects, 5, seed=3)
    for group in [(label, site) for label in (0, 1) for site in (None, "0", "1", "2")]:
        counts = np.bincount(
            [fold_of[s.name] for s in subjects if s.label == group[0] and group[1] in (None, s.site)], minlength=5
        )
        assert counts.max() - counts.min() <= 1, group


# --- the command, end to end


FIT = ("--preset", "demo", "--outcome", "recurrence", "--side", "24", "--folds", "2", "--batch-size", "4")


def mgkeras(*arguments, check=True):
    """What the console script does, here: its exit code and what it prints."""
    said, told, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["mgkeras", *map(str, arguments)]
    try:
        with redirect_stdout(said), redirect_stderr(told), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    done = subprocess.CompletedProcess(arguments, ended.value.code, said.getvalue(), told.getvalue())
    assert not check or done.returncode == 0, done.stderr
    return done


def mgkeras_in_a_process(*arguments, check=True):
    """The same in a process of its own, as a user would."""
    command = [sys.executable, "-c", "from mgkeras.cli.main import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def run(phantom, tmp_path_factory):
    """A finished guided run of 2 folds and 2 epochs."""
    folder = tmp_path_factory.mktemp("runs")
    mgkeras("fit", "--cohort", phantom, *FIT, "--epochs", 2, "--out", folder / "guided", "--cache", folder / "cache")
    return folder / "guided"


def test_a_run_has_its_files(run, cohort):
    for name in ("settings", "folds", "summary", "environment", "data"):
        json.loads((run / f"{name}.json").read_text())
    rows = store.read_rows(run / "predictions.csv")
    held = [row for row in rows if row["split"] == "held-out"]
    assert sorted(row["subject"] for row in held) == sorted(subject.name for subject in cohort.subjects)
    folds = store.read_json(run / "folds.json")["held_out_in"]
    assert all(folds[row["subject"]] == int(row["fold"]) for row in held)
    assert all((folds[row["subject"]] != int(row["fold"])) == (row["split"] == "train") for row in rows)
    for fold in (0, 1):
        assert {path.name for path in (run / f"fold_{fold}").iterdir()} == {
            "history.csv",
            "weights.h5",
            "predictions.csv",
            "attention.csv",
            "cams.h5",
            "done.json",
            ".lock",
        }
    summary = store.read_json(run / "summary.json")
    assert 0 <= summary["pooled"]["auc"]["value"] <= 1 and summary["attention"]["all"]["mass_in_mask"]["defined"] > 0


@pytest.mark.computes
def test_the_saved_moments_are_those_of_the_training_volumes(run, cohort, small):
    """CAM identity and recomputed moments on a trained model, as it is loaded from disk."""
    from mgkeras.inference.forward import score_rows
    from mgkeras.models.guided import build_model
    from mgkeras.models.weights import load_weights
    from mgkeras.training.fit import recompute_batch_norm

    settings = store.load_settings(run)
    cache = caching.cached(cohort.subjects, settings, run.parent / "cache")
    model = build_model(settings)
    load_weights(model, run / "fold_0" / "weights.h5")
    stored = np.array(model.net.get_layer("batch_norm").moving_variance)
    fold_of = store.read_json(run / "folds.json")["held_out_in"]
    recompute_batch_norm(model, cache, [i for i, name in enumerate(cache.subjects) if fold_of[name] != 0], 4)
    assert np.allclose(stored, model.net.get_layer("batch_norm").moving_variance, rtol=1e-4)
    held = [i for i, name in enumerate(cache.subjects) if fold_of[name] == 0]
    found = score_rows(model, cache, held, causal=False).maps.mean((1, 2, 3)) + np.array(model.head.weights()[1])
    volumes = np.stack([cache.image[i, 0] for i in held]).astype(np.float32)[..., None]
    logits = np.array(model.outputs_of(volumes)["logits"])
    assert np.abs(found - logits).max() <= 1e-5 * np.abs(logits).max()


def test_the_same_command_again_trains_nothing(run, phantom):
    before = (run / "predictions.csv").read_bytes()
    done = mgkeras("fit", "--cohort", phantom, *FIT, "--epochs", 2, "--out", run, "--cache", run.parent / "cache")
    assert "  epoch " not in done.stderr
    assert (run / "predictions.csv").read_bytes() == before


def test_folds_json_is_obeyed_and_refused_where_it_does_not_fit(phantom, cohort, tmp_path):
    names = [subject.name for subject in cohort.subjects]
    held_out_in = {name: int(place < 6) for place, name in enumerate(names)}
    (tmp_path / "run").mkdir()
    store.write_json(tmp_path / "run" / "folds.json", {"held_out_in": held_out_in})
    options = ("fit", "--cohort", phantom, *FIT, "--epochs", 1, "--out", tmp_path / "run", "--cache", tmp_path / "c")
    mgkeras(*options)
    held = [r for r in store.read_rows(tmp_path / "run" / "predictions.csv") if r["split"] == "held-out"]
    assert {row["subject"]: int(row["fold"]) for row in held} == held_out_in
    store.write_json(tmp_path / "run" / "folds.json", {"held_out_in": {**held_out_in, "stranger": 1}})
    done = mgkeras(*options, check=False)
    assert done.returncode == 1 and "folds.json is another one" in done.stderr  # of a run with finished folds
    (tmp_path / "new").mkdir()
    store.write_json(tmp_path / "new" / "folds.json", {"held_out_in": {**held_out_in, "stranger": 1}})
    done = mgkeras(*options, "--out", tmp_path / "new", check=False)
    assert done.returncode == 1 and "every subject of the cohort once" in done.stderr


def test_other_settings_in_the_same_folder_are_refused(run, phantom):
    done = mgkeras(
        "fit", "--cohort", phantom, *FIT, "--epochs", 3, "--out", run, "--cache", run.parent / "cache", check=False
    )
    assert done.returncode == 1 and "training.epochs: 2 in the folder, 3 asked for" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_puts_maps_on_the_patients_own_grid(run, phantom, cohort, tmp_path):
    table = tmp_path / "new.csv"
    lines = ["subject,early,recurrence"] + [f"new{s.name},{s.early},{s.label}" for s in cohort.subjects[:4]]
    table.write_text("\n".join(lines) + "\n")
    done = mgkeras("predict", run, "--cohort", table, "--out", tmp_path / "out")
    assert "trained on: newP0000" in done.stderr  # known by the bytes of its early phase, under another name
    rows = store.read_rows(tmp_path / "out" / "predictions.csv")
    for row, subject in zip(rows, cohort.subjects, strict=False):
        folds = [float(row[f"probability_fold_{fold}"]) for fold in (0, 1)]
        assert float(row["probability"]) == pytest.approx(np.mean(folds), abs=1e-6)
        early, image = nib.load(subject.early), nib.load(tmp_path / "out" / "maps" / f"{row['subject']}.nii.gz")
        assert image.shape == early.shape and np.allclose(image.affine, early.affine)
        low, high = image.get_fdata().min(), image.get_fdata().max()
        top = image.header["cal_max"]
        assert image.get_data_dtype() == np.float32 and low < 0 and image.header["cal_min"] == -top
        assert max(-low, high) <= top * (1 + 1e-6) and b"decision map, log-odds" in image.header["descrip"].item()
    assert "decision map" in done.stderr and store.read_json(tmp_path / "out" / "scores.json")["map"] == "decision"
    assert (tmp_path / "out" / "scores.json").exists()


def test_a_signed_map_of_a_patient_is_what_the_folds_class_maps_say(run, phantom, cohort):
    from mgkeras.data.volume import load_volume
    from mgkeras.inference.predict import load_folds, score_exam

    subject, (settings, forwards) = cohort.subjects[0], load_folds(run)
    early = load_volume(subject.early)
    image = caching.exam_cube(early, np.zeros(early.data.shape, bool), settings)[0]
    found = [forward(image[None, ..., None]) for forward in forwards]
    p, cells, _ = score_exam(subject, settings, forwards)
    sign = 1 if p.mean() >= 0.5 else -1
    half = np.mean([result["maps"][0, ..., 1] - result["maps"][0, ..., 0] for result in found], axis=0) / 2
    assert cells.dtype == np.float32 and np.allclose(cells, sign * half, atol=1e-5 * np.abs(half).max())
    literal = score_exam(subject, settings, forwards, "class")[1]
    expected = np.mean([result["maps"][0, ..., int(p.mean() >= 0.5)] for result in found], axis=0)
    assert np.allclose(literal, expected, rtol=1e-6) and not np.allclose(literal, cells, atol=1e-3)


def test_the_class_map_is_to_be_had_by_name(run, cohort, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text(f"subject,early\nX,{cohort.subjects[0].early}\n")
    done = mgkeras("predict", run, "--cohort", table, "--out", tmp_path / "out", "--map", "class")
    image = nib.load(tmp_path / "out" / "maps" / "X.nii.gz")
    assert b"class activation map" in image.header["descrip"].item() and "class activation map" in done.stderr
    done = mgkeras(
        "predict",
        "--server",
        "http://127.0.0.1:1/v1/models/x",
        "--cohort",
        table,
        "--out",
        tmp_path / "s",
        "--map",
        "class",
        check=False,
    )
    assert done.returncode == 2 and "expected RUN beside --map class" in done.stderr


def test_a_run_of_before_is_scored_again_by_its_fit_command(run, phantom, tmp_path):
    """Nothing is trained: attention.csv is made anew from the maps that the folds stored."""
    before = tmp_path / "guided"
    shutil.copytree(run, before)
    for folder in store.done_folds(before):
        rows = store.read_rows(folder / "attention.csv")
        store.write_rows(folder / "attention.csv", [row | {"mass_in_mask": 0.99} for row in rows])
        done = store.read_json(folder / "done.json")
        assert done.pop("map") == "decision" and done["sha256"].pop("done.json")
        store.write_json(folder / "done.json", done)
    summary = store.read_json(before / "summary.json")
    del summary["map"]
    store.write_json(before / "summary.json", summary)
    weights = (before / "fold_0" / "weights.h5").read_bytes()
    told = mgkeras("fit", "--cohort", phantom, *FIT, "--epochs", 2, "--out", before, "--cache", run.parent / "cache")
    assert told.stderr.count("its maps are scored again") == 2
    for name in ("attention.csv", "fold_0/attention.csv", "fold_1/attention.csv", "summary.json"):
        assert (before / name).read_text() == (run / name).read_text()
    assert (before / "fold_0" / "weights.h5").read_bytes() == weights
    told = mgkeras("fit", "--cohort", phantom, *FIT, "--epochs", 2, "--out", before, "--cache", run.parent / "cache")
    assert "scored again" not in told.stderr


@pytest.mark.computes
def test_predict_agrees_with_the_fold_that_held_the_subject_out(run, phantom, cohort, tmp_path):
    mgkeras("predict", run, "--cohort", phantom, "--out", tmp_path)
    held = {row["subject"]: row for row in store.read_rows(run / "predictions.csv") if row["split"] == "held-out"}
    for row in store.read_rows(tmp_path / "predictions.csv"):
        own = held[row["subject"]]
        assert float(row[f"probability_fold_{own['fold']}"]) == pytest.approx(float(own["probability"]), abs=2e-3)


def test_mask_only_and_compare(run, phantom, cohort, tmp_path):
    mgkeras(
        "fit",
        "--model",
        "mask-only",
        "--cohort",
        phantom,
        *FIT,
        "--epochs",
        1,
        "--out",
        tmp_path / "box",
        "--cache",
        tmp_path / "cache",
    )
    done = mgkeras("compare", tmp_path / "box", run, "--out", tmp_path / "comparison")
    assert "guided" in done.stdout and "mask-only" in done.stdout
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == {
        "table.md",
        "comparison.json",
        "figure3.png",
        "curves.png",
    }
    table = tmp_path / "t1-only.csv"
    table.write_text(f"subject,early\nX,{cohort.subjects[0].early}\n")
    done = mgkeras("predict", tmp_path / "box", "--cohort", table, "--out", tmp_path / "p", check=False)
    assert done.returncode == 1 and "a mask-only model needs a mask" in done.stderr


def kill_when(command: list[str], path: Path, lines: int) -> None:
    """Starts a command and kills it -9 as soon as its log holds so many epochs."""
    with open(path, "w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
        for _ in range(1200):
            if path.read_text().count("  epoch ") >= lines or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_byte_for_byte(phantom, tmp_path):
    options = [
        "fit",
        "--cohort",
        str(phantom),
        *FIT,
        "--epochs",
        "3",
        "--deterministic",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
    ]
    mgkeras_in_a_process(*options, tmp_path / "whole")
    command = [sys.executable, "-c", "from mgkeras.cli.main import main; main()", *options, str(tmp_path / "killed")]
    kill_when(command, tmp_path / "log1", 2)
    assert not (tmp_path / "killed" / "fold_0" / "done.json").exists()
    kill_when(command, tmp_path / "log2", 2)  # once more, across the folds' border
    again = mgkeras_in_a_process(*options, tmp_path / "killed")
    epochs = [(tmp_path / name).read_text().count("  epoch ") for name in ("log1", "log2")]
    assert sum(epochs) + again.stderr.count("  epoch ") <= 6 + 2  # at most one epoch is lost a kill
    whole, killed = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.parametrize("change", ["label", "mask", "pre"])
def test_data_that_changed_since_are_refused(change, cohort, small, tmp_path):
    subject = replace(cohort.subjects[0], mask=tmp_path / "mask.nii.gz" if change == "mask" else None)
    for name in ("early", "pre"):
        copy = tmp_path / f"{name}.nii.gz"
        copy.write_bytes(getattr(subject, name).read_bytes())
        subject = replace(subject, **{name: copy})
    if subject.mask:
        subject.mask.write_bytes(b"one")
    claim = {subject.name: {**caching.file_digests(subject), "label": subject.label}}
    store.claim_data(tmp_path, {"subjects": claim})
    store.claim_data(tmp_path, {"subjects": claim})  # the same again is fine
    if change == "label":
        subject = replace(subject, label=1 - subject.label)
    else:
        getattr(subject, change).write_bytes(b"another one")
    claim = {subject.name: {**caching.file_digests(subject), "label": subject.label}}
    with pytest.raises(
        store.RunError, match=f"{subject.name} were added or left out since, or their early or pre file, mask"
    ):
        store.claim_data(tmp_path, {"subjects": claim})


def test_the_largest_seed_trains(cache, labels, small):
    from mgkeras.training.devices import choose_device
    from mgkeras.training.fit import fold_seed, train_fold

    large = with_values(replace(small, seed=2**31 - 1), {"training.epochs": 1})
    _, history = train_fold(cache, labels, range(12), large, choose_device(), seed=fold_seed(large, 4))
    assert len(history) == 1 and np.isfinite(history[0]["ce"])


def test_a_state_of_another_precision_is_refused(cache, labels, small, tmp_path):
    from mgkeras.training.devices import choose_device
    from mgkeras.training.fit import TrainingError, train_fold

    short, whole = with_values(small, {"training.epochs": 1}), small
    train_fold(cache, labels, range(12), short, choose_device(), state=tmp_path / "state.h5")
    other = replace(choose_device(), policy="mixed_bfloat16")  # not chosen: some processors have none of it
    with pytest.raises(TrainingError, match="trained in float32 and cannot go on in mixed_bfloat16"):
        train_fold(cache, labels, range(12), whole, other, state=tmp_path / "state.h5")


def test_the_console_script_hands_exit_codes_on(phantom, tmp_path):
    """A subject that fails does not stop `mgkeras mask`, but its exit code tells."""
    folder = tmp_path / "broken"
    shutil.copytree(phantom.parent, folder)
    (folder / "images" / "P0002_early.nii.gz").write_bytes(b"no gzip")
    done = mgkeras_in_a_process("mask", folder / "cohort.csv", "--out", tmp_path / "masks", check=False)
    assert done.returncode == 1 and (tmp_path / "masks" / "P0001.nii.gz").exists(), done.stderr


def test_skip_invalid_names_who_is_left_out(phantom, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(phantom.parent, folder)
    (folder / "images" / "P0002_early.nii.gz").unlink()
    options = (
        "fit",
        "--cohort",
        folder / "cohort.csv",
        *FIT,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
        "--cache",
        tmp_path / "cache",
    )
    refused = mgkeras(*options, check=False)
    assert refused.returncode == 1 and "subject P0002, column early" in refused.stderr
    assert not (tmp_path / "run").exists()
    assert "1 subjects left out for their errors: P0002" in mgkeras(*options, "--skip-invalid").stderr
    assert store.read_json(tmp_path / "run" / "data.json")["invalid"] == ["P0002"]
    assert "P0002" not in store.read_json(tmp_path / "run" / "folds.json")["held_out_in"]


@pytest.mark.slow
def test_all_models_on_the_same_folds_with_labels_missing(tmp_path):
    """`--model all` on an outcome that 5 % of the subjects lack."""
    mgkeras("phantom", tmp_path / "phantom", "--subjects", 60, "--side", 24)
    done = mgkeras(
        "fit",
        "--cohort",
        tmp_path / "phantom/cohort.csv",
        "--preset",
        "demo",
        "--model",
        "all",
        "--outcome",
        "her2",
        "--folds",
        2,
        "--epochs",
        1,
        "--side",
        24,
        "--out",
        tmp_path / "runs",
        "--cache",
        tmp_path / "cache",
    )
    assert "subjects left out, their her2 is empty" in done.stderr
    folds = [store.read_json(tmp_path / "runs" / name / "folds.json")["digest"] for name in MODELS]
    assert len(set(folds)) == 1 and all(name in done.stdout for name in MODELS)
    assert (tmp_path / "runs" / "comparison" / "figure3.png").exists()


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgkeras.data.io.os.replace", full)
    with pytest.raises(OSError, match="No space left on device.*table.md"):
        store.write_text(tmp_path / "table.md", "text")
    assert list(tmp_path.iterdir()) == []
