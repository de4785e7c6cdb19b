"""The client gets from a served export what the run itself says of exams.

The exported SavedModels are asked over gRPC in a server of TensorFlow Serving's own protos, over REST in KServe's model
server, and in TensorFlow Serving itself where it is installed. Recorded answers are in test_client_rest.py.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
from serving import predict, quick  # noqa: F401

from mgkeras.runs import store
from mgkeras.settings import as_dict, for_model

FLOAT16 = 1e-3  # what rounding a cube to float16 may move
pytestmark = pytest.mark.usefixtures("quick")
NEEDS_PROTOS = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow_serving"), reason="tensorflow-serving-api is not installed"
)
NEEDS_KSERVE = pytest.mark.skipif(
    not importlib.util.find_spec("kserve"), reason="no kserve; beside TensorFlow 2.15 it does not resolve"
)
NEEDS_TF_SERVING = pytest.mark.skipif(
    not shutil.which("tensorflow_model_server"), reason="tensorflow_model_server is not on PATH"
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """new.csv of three exams of several sizes, voxels and axis orders; large.csv has one of more than 4 MB too."""
    folder, generator = tmp_path_factory.mktemp("exams"), np.random.default_rng(3)
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    grids = {
        "oblique": ((40, 31, 18), turn @ np.diag([-0.7, -0.9, 2.2])),
        "sagittal": ((14, 33, 50), np.array([[0, 0, 1.1], [1.3, 0, 0], [0, -1.3, 0]])),
        "cubic": ((24, 24, 24), np.diag([2.0, 2, 2])),
        "large": ((120, 120, 80), np.eye(3)),
    }
    rows = []
    for place, (name, (shape, axes)) in enumerate(grids.items()):
        where = np.indices(shape).transpose(1, 2, 3, 0) / np.array(shape) - 0.5
        data = generator.integers(0, 60, shape) + 900 * np.exp(-9 * ((where - 0.1) ** 2).sum(-1))
        data = data if name == "oblique" else np.rint(data)  # JSON writes whole numbers another way
        affine = np.eye(4)
        affine[:3, :3] = axes
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
        rows.append({"subject": name, "early": f"{name}.nii.gz", "recurrence": place % 2})
    store.write_rows(folder / "new.csv", rows[:3])
    store.write_rows(folder / "large.csv", rows)
    return folder / "new.csv"


@pytest.fixture(scope="module")
def made(phantom, small, table, tmp_path_factory):
    """Runs of guided and mask-only with weights drawn at random, served/ with their exports, local/ with what they
    predict, boxes.csv with exams that have a pre phase."""
    from mgkeras.models.guided import build_model
    from mgkeras.models.weights import named_weights, save_weights
    from mgkeras.serving.export import export_run

    folder = tmp_path_factory.mktemp("made")
    for row in (rows := store.read_rows(phantom)[:3]):
        row.update({name: str(phantom.parent / row[name]) for name in ("pre", "early", "late") if row.get(name)})
    store.write_rows(folder / "boxes.csv", rows)
    for model, cohort in (("guided", table.with_name("large.csv")), ("mask-only", folder / "boxes.csv")):
        settings = for_model(small, model)
        store.write_json(folder / model / "settings.json", as_dict(settings))
        store.write_json(folder / model / "data.json", {"subjects": {}})
        for fold in range(2):
            network = build_model(settings, seed=fold + 1)
            for name, weight in named_weights(network):
                if name == "logits/kernel":
                    weight.assign(5 * weight)  # for probabilities that tell exams apart
            (folder / model / f"fold_{fold}").mkdir()
            save_weights(network, folder / model / f"fold_{fold}" / "weights.h5")
            store.write_json(folder / model / f"fold_{fold}" / "done.json", {"fold": fold})
        export_run(folder / model, folder / "served" / model)
        assert predict(cohort, folder / "local" / model, folder / model)[0] == 0
    return folder


def about(made, model):
    """The option that names an export's preprocessing.json."""
    return "--preprocessing", made / "served" / model / "1" / "preprocessing.json"


def assert_same(found, expected, tolerance, exams=3):
    """The same columns and files; probabilities and maps within the tolerance, maps on the same grid."""
    rows, others = (list(csv.DictReader((folder / "predictions.csv").open())) for folder in (found, expected))
    assert len(rows) == exams and list(rows[0]) == list(others[0]) and "probability_fold_1" in rows[0]
    each = [float(row["probability_fold_1"]) for row in others]
    assert 0.05 < min(each) and max(each) < 0.95 and np.ptp(each) > 20 * tolerance, "they would not tell exams apart"
    for row, other in zip(rows, others, strict=False):
        assert row["subject"] == other["subject"] and row["label"] == other["label"]
        for name in (name for name in row if name.startswith("probability")):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=tolerance), (row["subject"], name)
        image, other = (nib.load(folder / "maps" / f"{row['subject']}.nii.gz") for folder in (found, expected))
        assert np.array_equal(image.affine, other.affine) and image.shape == other.shape
        assert other.get_fdata().std() > 0.02, "a map of nothing would equal any other"
        largest = np.abs(other.get_fdata()).max()
        kinds = [nifti.header["descrip"].item() for nifti in (image, other)]
        assert other.get_fdata().min() < 0 and b"decision map" in kinds[1]
        assert kinds[0] == kinds[1] or b"does not tell" in kinds[0]  # KServe has no metadata
        assert np.abs(image.get_fdata() - other.get_fdata()).max() < tolerance * max(1, largest), row["subject"]
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert names == {"predictions.csv", "scores.json", *(f"maps/{row['subject']}.nii.gz" for row in rows)}


# --- gRPC: TensorFlow Serving's protos around the exported SavedModel


class Model:
    """TensorFlow Serving's PredictionService and ModelService for one model, as far as a client can see.

    ``states`` {version: state}; ``before`` may raise or answer instead of Predict; ``asked`` keeps the requests.
    """

    def __init__(self, name, folder):
        import tensorflow as tf

        self.name, self.folder, self.states = name, folder, {1: "AVAILABLE"}
        self.signatures = tf.saved_model.load(str(folder / "1")).signatures
        self.asked, self.before = [], lambda request, context: None

    def known(self, spec, context):
        import grpc

        version = spec.version.value or max(self.states)
        if spec.name != self.name or version not in self.states:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {spec.name}, {version}")

    def GetModelStatus(self, request, context):  # noqa: N802
        from tensorflow_serving.apis import get_model_status_pb2

        self.known(request.model_spec, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in self.states.items():
            if request.model_spec.version.value in (0, version):
                response.model_version_status.add(version=version, state=state)
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        from tensorflow.core.protobuf import saved_model_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        self.known(request.model_spec, context)
        graph = saved_model_pb2.SavedModel.FromString((self.folder / "1/saved_model.pb").read_bytes()).meta_graphs[0]
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=graph.signature_def)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Predict(self, request, context):  # noqa: N802
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        self.asked.append(request)
        self.known(request.model_spec, context)
        if (instead := self.before(request, context)) is not None:
            return instead
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        try:
            outputs = self.signatures[request.model_spec.signature_name](**inputs)
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name in request.output_filter or outputs:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name].numpy()))
        return response


@contextmanager
def grpc_server(model):
    """grpc://HOST:PORT of a server of one model."""
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    server = grpc.server(
        ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(model, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None)


# its own methods are all that is called
Model.Classify = Model.Regress = Model.MultiInference = Model.HandleReloadConfigRequest = lambda *_: None


@pytest.fixture
def guided(made):
    """(model, URL) of guided over gRPC."""
    model = Model("guided", made / "served/guided")
    with grpc_server(model) as url:
        yield model, f"{url}/guided"


@pytest.mark.computes
@NEEDS_PROTOS
def test_whole_exams_over_grpc_get_what_the_run_gives(guided, made, table, tmp_path):
    model, url = guided
    code, told = predict(table.with_name("large.csv"), tmp_path, "--server", url, "--outcome", "recurrence")
    assert code == 0 and f"{url}/versions/1, asked for predict_exam" in told
    assert_same(tmp_path, made / "local/guided", 1e-4, exams=4)
    assert [request.ByteSize() > 4 << 20 for request in model.asked] == [False, False, False, True]
    assert all(
        set(request.output_filter) == {"probabilities", "fold_probabilities", "cells"} for request in model.asked
    )
    found, expected = (store.read_json(folder / "scores.json") for folder in (tmp_path, made / "local/guided"))
    for name, values in expected["pooled"].items():  # a server's sums are in another order: 5e-8 of Brier was seen
        assert found["pooled"][name] == pytest.approx(values, abs=1e-5), name
    assert found["outcome"] == "recurrence" and set(found["pooled"]) == set(expected["pooled"])
    assert found["run"] == f"{url}/versions/1" and found["seen_in_training"] is None
    assert "whom the served model was trained on is not known here" in told


@pytest.mark.computes
@NEEDS_PROTOS
def test_a_mask_only_model_over_grpc_gets_the_boxes_cube(made, tmp_path):
    model = Model("mask-only", made / "served/mask-only")
    with grpc_server(model) as url:
        code, told = predict(made / "boxes.csv", tmp_path / "a", "--server", f"{url}/mask-only")
        assert code == 1 and "expected preprocessing.json of the export beside the signature predict_bytes" in told
        code, told = predict(
            made / "boxes.csv", tmp_path / "b", "--server", f"{url}/mask-only", "--signature", "predict_exam"
        )
        assert code == 1 and "(a mask-only model has none for whole exams)" in told
        code, told = predict(
            made / "boxes.csv", tmp_path / "c", "--server", f"{url}/mask-only", *about(made, "mask-only")
        )
    assert code == 0 and "asked for predict_bytes" in told and "recurrence: AUC" in told
    assert_same(tmp_path / "c", made / "local/mask-only", FLOAT16)


@NEEDS_PROTOS
def test_one_version_scores_all_exams(guided, table, tmp_path):
    model, url = guided
    model.states = {1: "AVAILABLE", 3: "AVAILABLE", 4: "LOADING"}
    assert predict(table, tmp_path, "--server", url)[0] == 0
    assert {request.model_spec.version.value for request in model.asked} == {3}
    assert predict(table, tmp_path, "--server", f"{url}/versions/1")[0] == 0
    assert {request.model_spec.version.value for request in model.asked[3:]} == {1}


@NEEDS_PROTOS
def test_over_grpc_a_wrong_exam_fails_alone_with_the_graphs_words(guided, table, tmp_path):
    values = np.where(np.arange(9) < 5, -90, -10) + np.zeros((9, 9, 1))
    values[0, 0, 8] = 1  # what is brighter than the mean is below 0 on average, which the check of the files lets pass
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), tmp_path / "dark.nii.gz")
    rows = [row | {"early": str(table.parent / row["early"])} for row in store.read_rows(table)[:3]]
    rows[1] = {"subject": "dark", "early": "dark.nii.gz", "recurrence": "1"}
    store.write_rows(tmp_path / "new.csv", rows)
    code, told = predict(tmp_path / "new.csv", tmp_path / "out", "--server", guided[1])
    assert code == 1 and "error: dark: " in told and "INVALID_ARGUMENT" in told and "bright voxels" in told, told
    assert told.count("error: dark") == 1 and "asking again" not in told
    assert [row["subject"] for row in store.read_rows(tmp_path / "out/predictions.csv")] == ["oblique", "cubic"]


def failing(code, text):
    """For Model.before: ends a call."""
    return lambda request, context: context.abort(code, text)


@NEEDS_PROTOS
def test_a_busy_server_is_asked_again_over_grpc(guided, table, tmp_path):
    import grpc

    model, url = guided
    full = failing(grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")
    mixed = failing(
        grpc.StatusCode.FAILED_PRECONDITION,
        "Tensors with name 'volume' from different tasks have "
        "different shapes and padding is turned off. Set pad_variable_length_inputs to true",
    )
    first = iter([full, mixed])
    model.before = lambda request, context: next(first, lambda *_: None)(request, context)
    code, told = predict(table, tmp_path, "--server", url)
    assert code == 0 and len(model.asked) == 5, "the first exam was sent three times"
    assert "is full; asking again in 0.01 s (1 of 4)" in told and "turned off" in told and "(2 of 4)" in told
    model.asked.clear()
    model.before = full
    code, told = predict(table, tmp_path, "--server", url)
    assert code == 1 and len(model.asked) == 3 * 5 and told.count("error: ") == 3, "every exam was tried, and no more"


@NEEDS_PROTOS
def test_what_can_go_wrong_over_grpc(guided, table, tmp_path):
    import grpc
    from tensorflow_serving.apis import predict_pb2

    model, url = guided
    model.before = lambda request, context: time.sleep(1)
    code, told = predict(table, tmp_path, "--server", url, "--timeout", "0.3")
    assert code == 1 and "within 0.3 s. Received: none; give it more with --timeout" in told
    model.before = lambda request, context: predict_pb2.PredictResponse()
    code, told = predict(table, tmp_path, "--server", url)
    assert code == 1 and "an answer without probabilities, fold_probabilities, cells" in told
    model.asked.clear()
    model.before = failing(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(guided, 1)")
    code, told = predict(table, tmp_path, "--server", url)
    assert code == 1 and len(model.asked) == 1 and "stopped there: 2 more exams were not tried" in told


@NEEDS_PROTOS
def test_a_model_that_is_not_served_is_told_over_grpc(guided, table, tmp_path):
    model, url = guided
    for state, again in (("LOADING", 4), ("END", 0)):
        model.states = {1: state}
        code, told = predict(table, tmp_path, "--server", url)
        assert code == 1 and f"Received: version 1 {state}" in told and told.count("asking again") == again
    code, told = predict(table, tmp_path, "--server", f"{url}-other")
    assert code == 1 and "Servable not found" in told and "are name and version right?" in told
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        code, told = predict(table, tmp_path, "--server", f"grpc://127.0.0.1:{free.getsockname()[1]}/guided")
    assert code == 1 and "nothing answers at grpc://" in told and told.count("asking again") == 4


@NEEDS_PROTOS
def test_the_ports_of_rest_and_grpc_are_told_apart(guided, table, tmp_path):
    host = guided[1].removeprefix("grpc://").removesuffix("/guided")
    code, told = predict(table, tmp_path, "--server", f"http://{host}/v1/models/guided")
    assert code == 1 and "is it the port of gRPC (8500)?" in told and "asking again" not in told
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    code, told = predict(table, tmp_path, "--server", f"grpc://127.0.0.1:{server.server_port}/guided")
    server.shutdown()
    server.server_close()
    assert code == 1 and "is it the port of REST (8501)?" in told and "asking again" not in told


def test_without_the_protos_grpc_says_what_to_install(table, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "mgkeras.serving.client.importlib.util.find_spec",
        lambda name, *rest: None if name == "tensorflow_serving" else real(name, *rest),
    )
    code, told = predict(table, tmp_path, "--server", "grpc://127.0.0.1:1/guided")
    assert code == 1 and "pip install 'mgkeras[serving]'" in told


# --- REST: KServe's model server around the exported SavedModel

KSERVE = """
import base64, sys
import kserve, numpy as np, tensorflow as tf


class Served(kserve.Model):
    '''One signature of a SavedModel: the V1 protocol here has no signature names.'''

    def __init__(self, name, path, signature):
        super().__init__(name)
        self.signature = tf.saved_model.load(path).signatures[signature]
        self.ready = True

    async def healthy(self):
        return self.name != "late"

    def predict(self, payload, headers=None):
        (row,) = payload["instances"]
        specs = {spec.name: spec.dtype for spec in self.signature.structured_input_signature[1].values()}
        row = row if set(row) == set(specs) else {[*specs][0]: row}
        values = {name: base64.b64decode(sent["b64"]) if isinstance(sent, dict) else
                  np.array(sent, specs[name].as_numpy_dtype) for name, sent in row.items()}
        try:
            outputs = self.signature(**{name: tf.constant([value]) for name, value in values.items()})
        except tf.errors.InvalidArgumentError as error:
            raise kserve.errors.InvalidInput(str(error))
        return {"predictions": [{name: output[0].numpy().tolist() for name, output in outputs.items()}]}


served, port = sys.argv[1], int(sys.argv[2])
guided, boxes = served + "/guided/1", served + "/mask-only/1"
models = [Served("guided", guided, "predict_bytes"), Served("exams", guided, "predict_exam"),
          Served("late", guided, "predict_exam"), Served("boxes", boxes, "predict_bytes")]
assert "mgkeras" not in sys.modules
kserve.ModelServer(http_port=port, enable_grpc=False).start(models)
"""


@pytest.fixture(scope="module")
def kserve(made, tmp_path_factory):
    """http://HOST:PORT/v1/models of KServe's model server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("kserve")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", KSERVE, str(made / "served"), str(port)], cwd=folder, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}/v1/models"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(240):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                opener.open(f"{url}/boxes", timeout=5)
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.computes
@NEEDS_KSERVE
def test_kserve_scores_cubes_and_whole_exams_as_the_run_does(kserve, made, table, tmp_path):
    code, told = predict(table, tmp_path / "cubes", "--server", f"{kserve}/guided", *about(made, "guided"))
    assert code == 0 and "asked for predict_bytes" in told and "note: whole" not in told
    assert_same(tmp_path / "cubes", made / "local/guided", FLOAT16)
    code, told = predict(table, tmp_path / "exams", "--server", f"{kserve}/exams", "--outcome", "recurrence")
    assert code == 0 and "asked for predict_exam" in told and "note: whole exams as JSON are tens of MB each" in told
    assert_same(tmp_path / "exams", made / "local/guided", 1e-4)
    code, told = predict(
        made / "boxes.csv", tmp_path / "boxes", "--server", f"{kserve}/boxes:predict", *about(made, "mask-only")
    )
    assert code == 0
    assert_same(tmp_path / "boxes", made / "local/mask-only", FLOAT16)


@NEEDS_KSERVE
def test_kserves_refusals_are_told(kserve, made, table, tmp_path):
    code, told = predict(table, tmp_path, "--server", f"{kserve}/nobody")
    assert code == 1 and "404" in told and "Model with name nobody does not exist" in told
    code, told = predict(table, tmp_path, "--server", f"{kserve}/late")
    assert code == 1 and "503" in told and "is not ready" in told and told.count("asking again") == 4
    other = json.loads(about(made, "guided")[1].read_text())
    other["settings"]["volume"]["side"] = 32
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, told = predict(table, tmp_path, "--server", f"{kserve}/guided", "--preprocessing", tmp_path / "other.json")
    assert code == 1 and "answers 400: " in told and "expected 13824 float16 voxels" in told and "32768" in told
    assert told.count("\nerror: ") == 3 and "no subject could be scored" in told


# --- TensorFlow Serving itself, where it is installed


@NEEDS_TF_SERVING
def test_tensorflow_serving_scores_exams_as_the_run_does(made, table, tmp_path):
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
        for _ in range(240):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", ports[1])) == 0:
                    break
            time.sleep(0.25)
        rest, rpc = f"http://127.0.0.1:{ports[1]}/v1/models/guided", f"grpc://127.0.0.1:{ports[0]}/guided"
        for name, url, options, tolerance in (
            ("rpc", rpc, ("--outcome", "recurrence"), 1e-4),
            ("rest", rest, ("--outcome", "recurrence"), 1e-4),
            ("cubes", rest, about(made, "guided"), FLOAT16),
        ):
            code, told = predict(table, tmp_path / name, "--server", url, *options)
            assert code == 0, told
            assert_same(tmp_path / name, made / "local/guided", tolerance)
    finally:
        server.terminate()
        server.wait(timeout=30)
