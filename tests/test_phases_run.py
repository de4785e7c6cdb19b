"""A run that sees early and late: trained, probed, applied, exported and asked through the client."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import mgkeras
from mgkeras.data.cache import cached
from mgkeras.data.cohort import Subject
from mgkeras.data.volume import ExamError, load_volume
from mgkeras.figures.pictures import figure3_panels
from mgkeras.inference.forward import forward_of
from mgkeras.inference.predict import load_fold
from mgkeras.inference.score import cube_of
from mgkeras.probes.fold import Fold, _occlusion, trap_columns
from mgkeras.probes.seen import seen
from mgkeras.probes.transplant import altered_rows
from mgkeras.runs import store
from mgkeras.serving import client
from mgkeras.serving.export import export_run
from mgkeras.serving.transport import VersionState

SIDE = 16


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """no-mask on early and late and subtraction, two folds of an epoch."""
    home = tmp_path_factory.mktemp("phases")
    changes = {"folds": 2, "epochs": 1, "side": SIDE, "batch_size": 4, "shift_voxels": 1, "context_dropout": 1.0}
    return mgkeras.fit(
        mgkeras.load_cohort(phantom, "recurrence"),
        "guided-context",
        out=home / "run",
        start="demo",
        cache=home / "cache",
        phases=("early", "late", "subtraction"),
        **changes,
    )


@pytest.fixture(scope="module")
def served(run):
    """Its export: the folder of version 1."""
    return export_run(run.path, run.path.parent / "served").path


def test_a_subject_without_a_late_phase_is_told_before_a_folder_is_made(cohort, tmp_path):
    lacking = replace(cohort, subjects=tuple(replace(subject, late=None) for subject in cohort.subjects))
    with pytest.raises(ExamError, match="of which the channels early, late are made. Received: none for late"):
        mgkeras.fit(lacking, "no-mask", out=tmp_path / "run", start="demo", phases=("early", "late"), side=16)
    assert not (tmp_path / "run").exists()


def test_predict_reads_every_phase(run, cohort):
    subject = cohort.subjects[0]
    found = run.predict(subject.early, pre=subject.pre, late=subject.late)
    rows = run.predict_cohort(mgkeras.load_cohort(cohort.path, predict=True), run.path.parent / "out")
    row = store.read_rows(run.path.parent / "out/predictions.csv")[0]
    assert rows["failed"] == [] and float(row["probability"]) == pytest.approx(found.probability, abs=1e-6)
    other = run.predict(subject.early, pre=subject.pre, late=subject.pre)
    assert other.probability != found.probability, "late is looked at"
    turned = run.predict(subject.early, pre=subject.pre, late=subject.late, tta=True)
    assert turned.fold_probabilities[:, 0] == pytest.approx(found.fold_probabilities, abs=1e-6)
    with pytest.raises(ExamError, match="for the channels early, late, subtraction. Received: no pre, late"):
        run.predict(subject.early)


def test_probes_and_pictures_take_channels(run, cohort):
    cache = cached(cohort.subjects, run.settings, run.path.parent / "cache")
    fold_of = store.read_json(run.path / "folds.json")["held_out_in"]
    numbers = np.array([fold_of[name] for name in cache.subjects])
    model = load_fold(run.path / "fold_0", run.settings)
    fold = Fold(0, np.flatnonzero(numbers == 0), np.flatnonzero(numbers == 1), cache, model, forward_of(model))
    own = [cohort.subjects[row] for row in fold.held_out]
    labels = [subject.label for subject in own]
    looks = seen(fold, labels)
    p = [float(row["probability"]) for row in run.predictions if row["fold"] == 0 and row["split"] == "held-out"]
    traps = trap_columns(fold, own, np.array(p))
    on = traps["trap_spot"] == 1
    assert looks.features.shape[0] == len(own) and traps["p_with_spot"][on] == pytest.approx(np.array(p)[on])
    assert (traps["p_with_spot"] != traps["p_without_spot"]).all()
    rows = altered_rows(fold, labels)
    assert all(row["p_transplant"] != row["p_transplant_soft"] for row in rows) and all(row["p_hole"] for row in rows)
    effect, _ = _occlusion(fold, int(fold.held_out[0]))
    assert effect.shape == (2, 2, 2) and effect.any()
    panels, _ = figure3_panels([run.path], ["run"], count=1)
    row = cache.subjects.index(panels[0].name)
    np.testing.assert_allclose(panels[0].early, cache.image[row, 0, ..., 0], atol=2e-3)  # float16


def test_an_export_says_what_the_run_says_of_whole_exams_and_of_cubes(run, served, cohort):
    loaded, subject = tf.saved_model.load(str(served)), cohort.subjects[1]
    expected = run.predict(subject.early, pre=subject.pre, late=subject.late)
    early, pre, late = (load_volume(path) for path in (subject.early, subject.pre, subject.late))
    exam = {"volume": early.data, "pre": pre.data, "late": late.data}
    inputs = {name: tf.constant(voxels[None]) for name, voxels in exam.items()}
    found = loaded.signatures["predict_exam"](**inputs, zooms=tf.constant(early.zooms[None], tf.float64))
    assert found["fold_probabilities"].numpy()[0] == pytest.approx(expected.fold_probabilities, abs=1e-5)
    cube = cube_of(subject, run.settings)[0]
    assert cube.shape == (SIDE, SIDE, SIDE, 3)
    explained = loaded.signatures["explain"](cube=tf.constant(cube[None]))
    assert explained["probabilities"].numpy()[0, 1] == pytest.approx(expected.probability, abs=1e-5)
    packed = zlib.compress(cube.astype("<f2").tobytes())
    found = loaded.signatures["predict_bytes"](cube_bytes=tf.constant([packed]))
    assert found["probabilities"].numpy()[0, 1] == pytest.approx(expected.probability, abs=1e-3)  # float16
    sent = tf.constant([zlib.compress(cube[..., 0].astype("<f2").tobytes())])
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"expected {3 * SIDE**3} float16 voxels.* of 3 channels"):
        loaded.signatures["predict_bytes"](cube_bytes=sent)
    about = store.read_json(served / "preprocessing.json")
    assert about["channels"] == ["early", "late", "subtraction"] and "the late phase" in about["input"]
    assert "the network sees early, late, subtraction" in (served / "model-card.md").read_text()


@pytest.mark.parametrize("signature", ("predict_exam", "predict_bytes"))
def test_the_client_sends_every_phase(run, served, cohort, monkeypatch, signature):
    loaded = tf.saved_model.load(str(served))

    class Server:
        def states(self):
            return (VersionState(1, "AVAILABLE", ""),)

        def signatures(self, version):
            return {name: tuple(signature.structured_outputs) for name, signature in loaded.signatures.items()}

        def predict(self, version, name, inputs, outputs):
            given = {
                key: tf.constant([value] if isinstance(value, bytes) else value[None]) for key, value in inputs.items()
            }
            found = loaded.signatures[name](**given)
            return {key: found[key].numpy()[0] for key in outputs}

    monkeypatch.setattr(client, "open_server", lambda *_: Server())
    about = client.read_preprocessing(served / "preprocessing.json")
    asked = client.connect("grpc://localhost:1/m", preprocessing=about, signature=signature, tell=print)
    subject = cohort.subjects[2]
    each, cells, _ = asked.score(subject)
    expected = run.predict(subject.early, pre=subject.pre, late=subject.late)
    assert each == pytest.approx(expected.fold_probabilities, abs=1e-3)  # float16 of the one
    assert cells.shape == (2, 2, 2)
    with pytest.raises(ExamError, match="none for pre, late"):
        asked.score(Subject("A", subject.early))
