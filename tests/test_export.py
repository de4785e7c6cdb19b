"""A served run says what the run says: read back in plain TensorFlow without this package, and in OpenVINO."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.export import command

from mgkeras.data.cache import cached, exam_cube
from mgkeras.data.cohort import Subject, read_cohort
from mgkeras.data.volume import axis_weights, from_cube, load_volume
from mgkeras.evaluation.evaluate import evaluate
from mgkeras.inference.predict import load_folds, score_exam
from mgkeras.models.weights import read_arrays
from mgkeras.runs import store
from mgkeras.scores.attention import enlarge
from mgkeras.serving import card, graph, warmup
from mgkeras.serving.export import export_run
from mgkeras.settings import as_dict, for_model
from mgkeras.training.crossval import cross_validate
from mgkeras.training.devices import choose_device
from mgkeras.training.progress import Console

pytestmark = pytest.mark.computes
SILENT = Console(lambda text: None, lambda text: None)
SERVING_API = bool(importlib.util.find_spec("tensorflow_serving"))
SIDE, GRID = 24, 3
CUBE = ("float32", [-1, SIDE, SIDE, SIDE, 1])
SCORES = {
    "probabilities": ("float32", [-1, 2]),
    "class": ("int32", [-1]),
    "cells": ("float32", [-1, *3 * [GRID]]),
    "log_odds": ("float32", [-1]),
}
PLAIN = """
import importlib.abc, json, sys, zlib
blocked = {"mgkeras"}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Block())
import numpy as np, tensorflow as tf
blocked.add("keras")  # TensorFlow looks for it while it is imported
given, found, errors, loaded = dict(np.load("asked.npz")), {}, {}, {}
for name, (path, signature) in json.load(open("asked.json")).items():
    loaded[path] = loaded.get(path) or tf.saved_model.load(path)
    inputs = {key.split("/")[1]: tf.constant(value) for key, value in given.items() if key.split("/")[0] == name}
    if signature == "predict_bytes":
        inputs["cube_bytes"] = tf.constant([zlib.compress(cube.numpy().tobytes()) for cube in inputs["cube_bytes"]])
    try:
        outputs = loaded[path].signatures[signature](**inputs)
        found.update({f"{name}/{key}": value.numpy() for key, value in outputs.items()})
    except tf.errors.InvalidArgumentError as error:
        errors[name] = str(error)
assert "mgkeras" not in sys.modules
np.savez("found.npz", **found)
json.dump(errors, open("errors.json", "w"))
"""


@pytest.fixture(scope="module")
def made(phantom, small, tmp_path_factory):
    """Runs of guided and mask-only, and served/: guided, guided's fold 1, mask-only."""
    folder = tmp_path_factory.mktemp("exported")
    for model in ("guided", "mask-only"):
        settings = for_model(replace(small, training=replace(small.training, epochs=1)), model)
        cross_validate(
            read_cohort(phantom, "recurrence"),
            settings,
            folder / model,
            device=choose_device(),
            cache_folder=folder / "cache",
            console=SILENT,
        )
        export_run(folder / model, folder / "served" / model)
    export_run(folder / "guided", folder / "served" / "one", fold=1)
    return folder


def signature_table(version):
    """{signature: ({input: (dtype, shape)}, {output: (dtype, shape)})} in saved_model.pb, -1 for a free dimension."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.dtypes import as_dtype

    def tensors(named):
        return {
            name: (as_dtype(spec.dtype).name, [dim.size for dim in spec.tensor_shape.dim])
            for name, spec in named.items()
        }

    model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return {
        name: (tensors(signature.inputs), tensors(signature.outputs))
        for name, signature in model.meta_graphs[0].signature_def.items()
        if name != "__saved_model_init_op"
    }


# --- what is written


def test_signatures_are_named_and_typed_and_the_batch_is_free(made):
    exam = {"volume": ("float32", [-1, -1, -1, -1]), "zooms": ("float64", [-1, 3])}
    on_cube = {
        "serving_default": ({"cube": CUBE}, {"probabilities": SCORES["probabilities"]}),
        "explain": (
            {"cube": CUBE},
            {"probabilities": SCORES["probabilities"], "class": SCORES["class"], "map": ("float32", CUBE[1][:4])},
        ),
        "predict_bytes": ({"cube_bytes": ("string", [-1])}, each_fold(2)),
    }
    whole = on_cube | {"predict_exam": (exam, each_fold(2) | {"map": ("float32", [-1, -1, -1, -1])})}
    assert signature_table(made / "served/guided/1") == whole
    assert signature_table(made / "served/mask-only/1") == on_cube
    assert signature_table(made / "served/one/1")["predict_bytes"][1] == each_fold(1)


def each_fold(count):
    return SCORES | {"fold_probabilities": ("float32", [-1, count])}


def test_nothing_in_it_calls_python_and_weights_keep_their_names(made):
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    version = made / "served/guided/1"
    graph = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    ops = {node.op for function in graph.library.function for node in function.node_def}
    assert {"Conv3D", "DecodeCompressed"} <= ops and not [op for op in ops if "Py" in op]
    written = {path.relative_to(version).parts[0] for path in version.rglob("*") if path.is_file()}
    assert written == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables",
        "model-card.md",
        "preprocessing.json",
        "assets.extra",
    } - (set() if SERVING_API else {"assets.extra"})
    weights, _ = read_arrays(made / "guided/fold_1/weights.h5")
    reader = tf.train.load_checkpoint(version / "variables/variables")
    for name, array in weights.items():
        stored = reader.get_tensor(f"fold_1/{name.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE")
        assert np.array_equal(stored, array), name
    assert len([name for name in reader.get_variable_to_shape_map() if name.startswith("fold_")]) == 2 * len(weights)


def test_versions_count_upward_and_appear_whole(made, tmp_path, monkeypatch):
    out = tmp_path / "model"
    for name in ("7", "notes", ".export-1.part"):
        (out / name).mkdir(parents=True)
    assert export_run(made / "guided", out, fold=0).path == out / "8"
    assert {path.name for path in out.iterdir()} == {"7", "8", "notes", ".lock"}
    with store.locked(out), pytest.raises(store.RunError, match="another process"):
        export_run(made / "guided", out, fold=0)
    monkeypatch.setattr("mgkeras.serving.export.card.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(made / "guided", out, fold=0)
    assert {path.name for path in out.iterdir()} == {"7", "8", "notes", ".lock"}


def test_the_card_has_the_scores_and_no_name(made, tmp_path):
    text = (made / "served/guided/1/model-card.md").read_text()
    auc = store.read_json(made / "guided/summary.json")["pooled"]["auc"]
    assert f"| AUC | {auc['value']:.3f} | {auc['low']:.3f} | {auc['high']:.3f} |" in text
    assert "not a medical device" in text and "Trained on synthetic phantoms" in text and "12 subjects" in text
    assert "P00" not in text and str(made) not in text and "brier" not in text
    assert "fold_1, one of 2 folds" in (made / "served/one/1/model-card.md").read_text()
    assert "chosen" not in text

    results = evaluate([made / "guided", made / "mask-only"], samples=100).results
    store.write_json(tmp_path / "evaluation.json", results)
    done = export_run(made / "mask-only", tmp_path / "m", fold=0, evaluation=tmp_path / "evaluation.json")
    brier = results["models"][1]["pooled"]["brier_loss"]
    assert f"| brier loss | {brier['value']:.3f} | {brier['low']:.3f}" in (done.path / "model-card.md").read_text()
    store.write_json(tmp_path / "evaluation.json", results | {"models": results["models"][:1]})
    with pytest.raises(store.RunError, match="expected the scores of"):
        export_run(made / "mask-only", tmp_path / "m", fold=0, evaluation=tmp_path / "evaluation.json")


def test_the_card_tells_what_was_chosen_by_fold_and_a_cohorts_own_split(made):
    settings = store.load_settings(made / "guided")
    facts = card.read_facts(made / "guided", settings, (0,))
    told = card.model_card(
        replace(facts, tuned={0: {"guidance.lambda_dice": 3.2}, 1: {"guidance.lambda_dice": 40.0}}), {}, []
    )
    assert "| 0 | guidance.lambda_dice = 3.2 | yes |" in told and "| 1 | guidance.lambda_dice = 40 | no |" in told
    assert "here stands their median" in told
    split = replace(settings, training=replace(settings.training, folds=1, split=True))
    told = card.model_card(replace(facts, settings=split), {}, [])
    trained = facts.summary["per_fold"][0]["train"]["subjects"]
    assert f"by the cohort's own split, and {trained} more trained on" in told
    assert f"It was trained on {trained} subjects" in told and "the model of the cohort's own split" in told


def test_preprocessing_json_is_enough_to_make_a_cube(made, exams):
    about = json.loads((made / "served/guided/1/preprocessing.json").read_text())
    early, settings = load_volume(exams["oblique"]), store.load_settings(made / "guided")
    expected, _, _ = exam_cube(early, np.zeros(early.data.shape, bool), settings)
    cube = early.data / early.data[early.data > early.data.mean()].mean()
    cube = cube.clip(0, about["normalisation"]["ceiling"]) - about["cube"]["background"]
    side, edge = about["cube"]["side"], max(np.array(early.data.shape) * early.zooms)
    for axis, (n, zoom) in enumerate(zip(early.data.shape, early.zooms, strict=True)):
        weights = np.zeros((side, n))
        for w, r in np.ndindex(side, n):
            apart = (w - (side - 1) / 2) * edge / side - (r - (n - 1) / 2) * zoom
            if abs(w - (side - 1) / 2) * edge / side <= n * zoom / 2 + 1e-6:
                weights[w, r] = max(0, 1 - abs(apart) / max(zoom, edge / side))
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        cube = np.moveaxis(np.tensordot(weights, cube, (1, axis)), 0, axis)
    assert np.abs(cube + about["cube"]["background"] - expected).max() < 1e-5
    assert about["settings"] == as_dict(settings) and about["map"]["cells"] == [GRID] * 3
    assert about["map"]["kind"] == "decision" and about["map"]["unit"] == "log-odds"
    card = (made / "served/guided/1/model-card.md").read_text()
    assert "decision map of the class that is predicted" in card and "below 0 against" in card
    box = json.loads((made / "served/mask-only/1/preprocessing.json").read_text())
    assert box["cube"]["box_margin_mm"] == 5.0 and "predict_exam" not in box["signatures"]


# --- what is served


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """NIfTI files of several sizes, voxels and axis orders, dark around and bright inside."""
    folder, generator = tmp_path_factory.mktemp("exams"), np.random.default_rng(3)
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    grids = {
        "oblique": ((40, 31, 18), turn @ np.diag([-0.7, -0.9, 2.2])),
        "sagittal": ((14, 33, 50), np.array([[0, 0, 1.1], [1.3, 0, 0], [0, -1.3, 0]])),
        "cubic": ((24, 24, 24), np.diag([2.0, 2, 2])),
        "edge": ((24, 23, 5), np.eye(3)),
    }
    for name, (shape, axes) in grids.items():
        place = np.indices(shape).transpose(1, 2, 3, 0) / np.array(shape) - 0.5
        data = generator.uniform(0, 60, shape) + 900 * np.exp(-9 * ((place - 0.1) ** 2).sum(-1))
        affine = np.eye(4)
        affine[:3, :3] = axes
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in grids}


@pytest.fixture(scope="module")
def cubes(made, phantom):
    """{model: (12, side, side, side, 1) float16} cubes of the run's cache, and the subjects' names."""
    subjects = read_cohort(phantom, "recurrence").subjects
    caches = {
        model: cached(subjects, store.load_settings(made / model), made / "cache") for model in ("guided", "mask-only")
    }
    assert all(cache.subjects == tuple(subject.name for subject in subjects) for cache in caches.values())
    return {model: np.asarray(cache.image[:, 0, ..., None]) for model, cache in caches.items()}, caches["guided"]


@pytest.fixture(scope="module")
def plain(made, cubes, exams, tmp_path_factory):
    """(outputs, errors) of the served models, asked in plain TensorFlow where mgkeras and Keras cannot be imported."""
    asked, arrays = {}, {}

    def ask(name, model, signature, **inputs):
        asked[name] = (str(made / "served" / model / "1"), signature)
        arrays.update({f"{name}/{key}": value for key, value in inputs.items()})

    cube = {model: array.astype(np.float32) for model, array in cubes[0].items()}
    for model in cube:
        ask(f"default {model}", model, "serving_default", cube=cube[model])
        ask(f"explain {model}", model, "explain", cube=cube[model])
        ask(f"bytes {model}", model, "predict_bytes", cube_bytes=cubes[0][model])
    ask("bytes one", "one", "predict_bytes", cube_bytes=cubes[0]["guided"])
    for name, path in exams.items():
        early = load_volume(path)
        ask(name, "guided", "predict_exam", volume=early.data[None], zooms=early.zooms[None])
    pair = np.stack([load_volume(exams["cubic"]).data, load_volume(exams["cubic"]).data[::-1] + 30])
    ask("pair", "guided", "predict_exam", volume=pair, zooms=np.array([[2.0, 2, 2], [1, 1, 3]]))
    ask("second", "guided", "predict_exam", volume=pair[1:], zooms=np.array([[1.0, 1, 3]]))
    wrong = np.where(np.arange(SIDE) == 3, np.nan, pair[:1])
    ask("NaN", "guided", "predict_exam", volume=wrong.astype(np.float32), zooms=np.full((1, 3), 2.0))
    ask("constant", "guided", "predict_exam", volume=np.ones((1, 5, 5, 5), np.float32), zooms=np.ones((1, 3)))
    ask("no voxel size", "guided", "predict_exam", volume=pair[:1], zooms=np.array([[2.0, 0, 2]]))
    ask("other side", "guided", "serving_default", cube=np.ones((1, 16, 16, 16, 1), np.float32))
    ask("other bytes", "guided", "predict_bytes", cube_bytes=np.ones((1, 16, 16, 16, 1), np.float16))
    folder = tmp_path_factory.mktemp("plain")
    np.savez(folder / "asked.npz", **arrays)
    store.write_json(folder / "asked.json", asked)
    subprocess.run([sys.executable, "-c", PLAIN], cwd=folder, check=True)
    return dict(np.load(folder / "found.npz")), store.read_json(folder / "errors.json")


def by_hand(run, cube):
    """NumPy's mean of the folds, the class it predicts and the folds' mean map of that class."""
    _, forwards = load_folds(run)
    found = [forward(cube) for forward in forwards]
    p = np.mean([result["probability"] for result in found], axis=0)
    predicted = (p >= 0.5).astype(int)
    sign = np.where(predicted, 1, -1)[:, None, None, None]
    cells = [sign * (result["maps"][..., 1].astype(np.float64) - result["maps"][..., 0]) / 2 for result in found]
    return p, predicted, np.mean(cells, axis=0), np.array([result["probability"] for result in found])


@pytest.mark.parametrize("model", ["guided", "mask-only"])
def test_plain_tensorflow_says_what_the_run_says_of_cubes(model, made, cubes, plain):
    found, _ = plain
    p, predicted, cells, each = by_hand(made / model, cubes[0][model].astype(np.float32))
    clear = np.abs(p - 0.5) > 1e-5  # nearer to 0.5, rounding chooses the class, and with it the map
    assert set(predicted[clear]) == {0, 1}
    for way in ("default", "explain", "bytes"):
        assert np.abs(found[f"{way} {model}/probabilities"] - np.stack([1 - p, p], 1)).max() < 1e-5
    for way in ("explain", "bytes"):
        assert np.array_equal(found[f"{way} {model}/class"][clear], predicted[clear])
    assert np.abs(found[f"bytes {model}/fold_probabilities"] - each.T).max() < 1e-5
    close = 1e-5 * max(1, np.abs(cells).max())
    assert np.abs(found[f"bytes {model}/cells"] - cells)[clear].max() < close
    large = np.stack([enlarge(cell.astype(np.float32), SIDE) for cell in cells])
    assert np.abs(found[f"explain {model}/map"] - large)[clear].max() < close
    assert found[f"explain {model}/map"].min() < 0 < found[f"explain {model}/map"].max(), "the map has a sign"


def test_the_served_cells_add_up_to_the_served_log_odds(made, cubes, plain):
    """The cells' mean less half the log-odds is one constant a class for all exams: plus and minus one number."""
    found, _ = plain
    for name in ("bytes guided", "bytes mask-only", "bytes one"):
        sign = 2 * found[f"{name}/class"] - 1
        constants = sign * (found[f"{name}/cells"].mean((1, 2, 3)) - sign * found[f"{name}/log_odds"] / 2)
        assert np.ptp(constants) <= 1e-5 * max(1, np.abs(found[f"{name}/cells"]).max()), name
    p = found["bytes one/probabilities"][:, 1]
    assert np.allclose(found["bytes one/log_odds"], np.log(p / (1 - p)), atol=1e-4)


def test_one_folds_model_says_what_the_run_wrote_of_those_held_out(made, cubes, plain):
    found, cache = plain[0]["bytes one/probabilities"][:, 1], cubes[1]
    rows = [row for row in store.read_rows(made / "guided/predictions.csv") if row["fold"] == "1"]
    assert len(rows) == 12 and {row["split"] for row in rows} == {"held-out", "train"}
    for row in rows:
        assert found[cache.subjects.index(row["subject"])] == pytest.approx(float(row["probability"]), abs=1e-5)


@pytest.mark.parametrize("name", ["oblique", "sagittal", "cubic", "edge"])
def test_a_raw_exam_is_scored_in_the_graph_as_in_python(name, made, exams, plain):
    found = {key.split("/")[1]: value[0] for key, value in plain[0].items() if key.startswith(f"{name}/")}
    each, cells, frame = score_exam(Subject(name, exams[name]), *load_folds(made / "guided"))
    assert np.abs(found["fold_probabilities"] - each).max() < 1e-4
    assert np.abs(found["probabilities"] - [1 - each.mean(), each.mean()]).max() < 1e-4
    close = 1e-4 * max(1, np.abs(cells).max())
    assert np.abs(found["cells"] - cells).max() < close
    expected = from_cube(cells, frame)
    assert found["map"].shape == expected.shape and np.abs(found["map"] - expected).max() < close


def test_exams_of_one_batch_do_not_mix(plain):
    found, _ = plain
    for key in ("probabilities", "class", "cells", "map", "log_odds"):
        assert np.allclose(found[f"pair/{key}"][0], found[f"cubic/{key}"][0], rtol=1e-5, atol=1e-5), key
        assert np.allclose(found[f"pair/{key}"][1], found[f"second/{key}"][0], rtol=1e-5, atol=1e-5), key
    assert not np.allclose(found["pair/map"][0], found["pair/map"][1])


def test_what_cannot_be_scored_is_refused_in_words(plain):
    found, errors = plain
    expected = {
        "NaN": "bright voxels",
        "constant": "bright voxels",
        "no voxel size": "voxel sizes in mm above 0",
        "other side": r"[1,16,16,16,1] is not compatible",
        "other bytes": "13824 float16 voxels",
    }
    assert set(errors) == set(expected) and not {key.split("/")[0] for key in found} & set(expected)
    for name, text in expected.items():
        assert text in errors[name], name


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 5), (5, 1), (7, 24), (24, 7), (24, 24), (23, 24)])
def test_the_graphs_matrices_are_those_of_numpy(n_in, n_out):
    import tensorflow as tf

    zoom_in, zoom_out = np.array([1.0, 0.7, 3.3]), np.array([1.0, 2.2, 0.9])
    found = graph.axis_weights(tf.constant(n_in), tf.constant(zoom_in), tf.constant(n_out), tf.constant(zoom_out))
    for place in range(3):
        expected = axis_weights(n_in, zoom_in[place], n_out, zoom_out[place])
        assert np.abs(found[place] - expected).max() < 1e-7
    assert set(np.round(found.numpy().sum(axis=2), 6).ravel()) <= {0.0, 1.0}


@pytest.mark.parametrize("model", ["guided", "mask-only"])
def test_openvino_says_what_the_run_says(model, made, cubes):
    openvino = pytest.importorskip("openvino", reason="the second engine: pip install openvino")
    core = openvino.Core()
    network = core.read_model(made / "served" / model / "1")
    assert [value.get_any_name() for value in network.inputs] == ["cube"]
    assert [output.get_any_name() for output in network.outputs] == ["probabilities"]
    exact = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # bfloat16 where the CPU has it
    cube = cubes[0][model].astype(np.float32)
    p, *_ = by_hand(made / model, cube)
    assert np.abs(exact({"cube": cube})["probabilities"][:, 1] - p).max() < 1e-4


# --- warm-up, server, command


def test_a_session_serves_a_signature_whole_or_filtered(made, exams, plain):
    """TensorFlow Serving feeds and fetches by the SignatureDef's names; a request may ask for some outputs only."""
    import tensorflow as tf

    early = load_volume(exams["oblique"])
    given, v1 = {"volume": early.data[None], "zooms": early.zooms[None]}, tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        loaded = v1.saved_model.load(session, ["serve"], str(made / "served/guided/1"))
        signature = loaded.signature_def["predict_exam"]
        assert signature.method_name == "tensorflow/serving/predict"
        feed = {signature.inputs[name].name: value for name, value in given.items()}
        for names in (list(signature.outputs), ["cells"]):
            for name, value in zip(names, session.run([signature.outputs[n].name for n in names], feed), strict=True):
                assert np.allclose(value, plain[0][f"oblique/{name}"], rtol=1e-5, atol=1e-5), name


@pytest.mark.skipif(not SERVING_API, reason="tensorflow-serving-api is not installed")
@pytest.mark.parametrize("model", ["guided", "mask-only"])
def test_each_signature_accepts_its_warm_up_request(model, made):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    version = made / "served" / model / "1"
    loaded, seen = tf.saved_model.load(version).signatures, []
    for record in tf.data.TFRecordDataset(str(version / warmup.FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        assert {value.shape[0] for value in inputs.values()} == {1}, "a batching server compares first dimensions"
        answer = loaded[request.model_spec.signature_name](**inputs)
        assert np.isfinite(answer["probabilities"]).all() and request.model_spec.name == model
        seen.append(request.model_spec.signature_name)
    assert sorted(seen) == sorted(loaded)


def test_without_the_serving_protos_the_export_says_so(made, tmp_path, monkeypatch):
    for name in ("tensorflow_serving", "tensorflow_serving.apis"):
        monkeypatch.setitem(sys.modules, name, None)
    done = export_run(made / "guided", tmp_path / "m", fold=0)
    assert not (done.path / warmup.FILE).exists()
    assert done.notes == ("no warm-up requests: they need tensorflow-serving-api (pip install 'mgkeras[serving]')",)


@pytest.mark.skipif(not shutil.which("tensorflow_model_server"), reason="tensorflow_model_server is not on PATH")
def test_tensorflow_serving_serves_it_with_batching(made, cubes, exams, plain, tmp_path):
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0)), second.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    server = subprocess.Popen(
        [
            "tensorflow_model_server",
            f"--port={ports[0]}",
            f"--rest_api_port={ports[1]}",
            "--model_name=guided",
            f"--model_base_path={made / 'served' / 'guided'}",
            "--enable_batching",
        ],
        cwd=tmp_path,
    )
    try:
        url = f"http://127.0.0.1:{ports[1]}/v1/models/guided"
        for _ in range(120):
            try:
                if "AVAILABLE" in urllib.request.urlopen(url, timeout=5).read().decode():
                    break
            except OSError:
                time.sleep(0.5)
        packed = [{"b64": base64.b64encode(zlib.compress(cube.tobytes())).decode()} for cube in cubes[0]["guided"][:3]]
        early = load_volume(exams["edge"])
        for signature, name, instances in (
            ("predict_bytes", "bytes guided", packed),
            ("predict_exam", "edge", [{"volume": early.data.tolist(), "zooms": early.zooms.tolist()}]),
        ):
            body = json.dumps({"signature_name": signature, "instances": instances}).encode()
            answer = json.load(urllib.request.urlopen(f"{url}:predict", body, timeout=60))["predictions"]
            for row, expected in zip(answer, plain[0][f"{name}/probabilities"], strict=False):
                assert np.allclose(row["probabilities"], expected, atol=1e-5)
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_command_prints_where_it_wrote_and_what_it_left_out(made, tmp_path):
    found = CliRunner().invoke(command, [str(made / "mask-only"), "--out", str(tmp_path / "m"), "--fold", "1"])
    assert found.exit_code == 0 and found.stdout == f"{tmp_path / 'm' / '1'}\n"
    assert "fold_0: serving_default, explain, predict_bytes\n" in found.stderr
    assert "predict_exam is left out: a mask-only model" in found.stderr


def test_a_run_that_is_not_finished_and_a_fold_that_is_not_there_are_refused(made, tmp_path):
    with pytest.raises(store.RunError, match="Received: fold_2; fold_0, fold_1 of 2 finished"):
        export_run(made / "guided", tmp_path / "m", fold=2)
    shutil.copytree(made / "guided", tmp_path / "run")
    (tmp_path / "run/fold_0/done.json").unlink()
    with pytest.raises(store.RunError, match="every fold to be finished. Received: fold_1 of 2 finished"):
        export_run(tmp_path / "run", tmp_path / "m")
    assert not (tmp_path / "m").exists()
