"""The client says clearly what is wrong with a server, an answer or an address.

The server gives recorded answers in the form that https://www.tensorflow.org/tfx/serving/api_rest documents; those of
real servers are in test_client.py.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
from serving import predict, quick  # noqa: F401

from mgkeras.runs import store
from mgkeras.serving.client import checked, choose
from mgkeras.serving.transport import AnswerError, ServerError, address_of
from mgkeras.settings import as_dict

SIDE = 24
pytestmark = pytest.mark.usefixtures("quick")

STATUS = """{
 "model_version_status": [
  {
   "version": "2",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  },
  {
   "version": "1",
   "state": "END",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""
INPUT = '{"inputs": {"cube_bytes": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1", "name": ""}]}}}}'
OLDER = f'{INPUT[:-1]}, "outputs": {{"cells": {{}}, "fold_probabilities": {{}}, "probabilities": {{}}}}}}'
METADATA = f"""{{
"model_spec":{{
 "name": "guided",
 "signature_name": "",
 "version": "2"
}},
"metadata": {{"signature_def": {{
 "signature_def": {{"predict_bytes": {INPUT}, "predict_exam": {INPUT}, "__saved_model_init_op": {INPUT}}}
}}}}
}}
"""
ROW = {
    "cells": np.linspace(0.1, 0.6, 27).reshape(3, 3, 3).tolist(),
    "class": 1,
    "fold_probabilities": [0.6, 0.8],
    "probabilities": [0.3, 0.7],
}
GOOD = json.dumps({"predictions": [ROW]}, indent=4)
MALFORMED = '{ "error": "Malformed request: GET /v1/models/guided/metadata" }'
URL = "/v1/models/guided"


class Recorded:
    """A server of recorded answers; ``answers`` {(method, path)}: a list of (code, text), the last one for ever.

    Instead of a text: 'close' breaks the connection off, 'hang' says nothing, 'die' ends the server; the code 'cut'
    ends half way.
    """

    def __init__(self):
        self.asked, self.stop = [], threading.Event()
        self.answers = {
            ("GET", URL): [(200, STATUS)],
            ("GET", f"{URL}/versions/2/metadata"): [(200, METADATA)],
            ("POST", f"{URL}/versions/2:predict"): [(200, GOOD)],
        }

    def predicts(self, *answers):
        self.asked.clear()
        self.answers["POST", f"{URL}/versions/2:predict"] = list(answers)
        return self

    def handler(self):
        recorded = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                recorded.asked.append((self.command, self.path, json.loads(body) if body else None))
                left = recorded.answers.get((self.command, self.path), [(404, '{ "error": "Servable not found" }')])
                code, text = left.pop(0) if len(left) > 1 else left[0]
                self.close_connection = True
                if text == "hang":
                    return recorded.stop.wait(10)
                if text == "die":
                    self.server.shutdown()
                    self.server.server_close()
                if text in ("close", "die"):
                    return None
                body = text.encode()
                self.send_response(code)
                self.send_header("Connection", "close")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", len(body) * (2 if code == "cut" else 1))
                self.end_headers()
                return self.wfile.write(body)

            def send_response(self, code):
                super().send_response(200 if code == "cut" else code)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def recorded():
    """(the recorded answers, the served model's URL)."""
    answers = Recorded()
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers.handler())
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield answers, f"http://127.0.0.1:{server.server_port}{URL}"
    finally:
        answers.stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def three(small, tmp_path_factory):
    """(cohort.csv of three exams of 12^3 voxels, the option of a preprocessing.json)."""
    folder, generator = tmp_path_factory.mktemp("three"), np.random.default_rng(1)
    for name in "abc":
        nib.save(nib.Nifti1Image(generator.integers(0, 900, (12, 12, 12), np.int16), np.eye(4)), folder / f"{name}.nii")
    store.write_rows(folder / "new.csv", [{"subject": name, "early": f"{name}.nii"} for name in "abc"])
    store.write_json(folder / "preprocessing.json", {"settings": as_dict(small), "folds": [0, 1]})
    return folder / "new.csv", ("--preprocessing", folder / "preprocessing.json")


def test_a_request_is_as_documented_and_the_answer_is_written(recorded, three, tmp_path):
    answers, url = recorded
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 0 and f"{url}/versions/2, asked for predict_bytes" in told
    status, metadata, *posts = answers.asked
    assert [status[:2], metadata[:2]] == [("GET", URL), ("GET", f"{URL}/versions/2/metadata")] and len(posts) == 3
    for _, path, body in posts:
        assert path == f"{URL}/versions/2:predict" and list(body) == ["signature_name", "instances"]
        assert body["signature_name"] == "predict_bytes" and len(body["instances"]) == 1
        cube = np.frombuffer(zlib.decompress(base64.b64decode(body["instances"][0]["b64"])), "<f2")
        assert cube.size == SIDE**3 and 1 < cube.max() <= 4
    assert store.read_rows(tmp_path / "predictions.csv")[1] == {
        "subject": "b",
        "label": "",
        "probability": "0.7",
        "predicted": "1",
        "spread": "0.1",
        "probability_fold_0": "0.6",
        "probability_fold_1": "0.8",
    }
    image = nib.load(tmp_path / "maps/b.nii.gz")
    assert image.shape == (12, 12, 12) and not (tmp_path / "scores.json").exists()
    assert image.get_fdata()[[1, -1], [1, -1], [1, -1]] == pytest.approx([0.1, 0.6], abs=0.02)


def test_an_export_of_before_is_served_and_called_what_it_is(recorded, three, small, tmp_path):
    """Its cells are a class map brought to [0, 1]; its preprocessing.json and its signatures name no kind."""
    answers, url = recorded
    code, told = predict(three[0], tmp_path / "a", "--server", url, *three[1])
    header = nib.load(tmp_path / "a/maps/b.nii.gz").header
    assert code == 0 and "class activation map brought to 0..1, of an older export" in told
    assert b"of an older export" in header["descrip"].item() and (header["cal_min"], header["cal_max"]) == (0, 1)
    signed = (200, json.dumps({"predictions": [ROW | {"cells": (np.array(ROW["cells"]) - 0.3).tolist()}]}))
    answers.predicts(signed)
    code, told = predict(three[0], tmp_path / "b", "--server", url, *three[1])
    assert code == 1 and "expected cells from 0 to 1" in told

    about = store.read_json(three[1][1]) | {"map": {"kind": "decision"}}
    store.write_json(tmp_path / "new.json", about)
    code, told = predict(three[0], tmp_path / "c", "--server", url, "--preprocessing", tmp_path / "new.json")
    image = nib.load(tmp_path / "c/maps/b.nii.gz")
    assert code == 0 and "decision map, log-odds" in told and image.get_fdata().min() < -0.1
    assert image.header["cal_max"] == -image.header["cal_min"] == pytest.approx(0.3)
    store.write_json(tmp_path / "odd.json", about | {"map": {"kind": "of tomorrow"}})
    code, told = predict(three[0], tmp_path / "d", "--server", url, "--preprocessing", tmp_path / "odd.json")
    assert code == 1 and "kind that is not known here: of tomorrow" in told

    code, told = predict(three[0], tmp_path / "e", "--server", url, "--signature", "predict_exam")
    assert code == 0 and "does not tell which kind" in told, "these signatures name no outputs"
    answers.answers["GET", f"{URL}/versions/2/metadata"] = [(200, METADATA.replace(INPUT, OLDER))]
    code, told = predict(three[0], tmp_path / "f", "--server", url, "--preprocessing", tmp_path / "new.json")
    assert code == 1 and "expected preprocessing.json of the version that" in told and "of an older export" in told


def test_exams_of_another_field_of_view_than_the_served_run_s_are_named(recorded, three, tmp_path):
    about = store.read_json(three[1][1])
    for edges, told_of in (([11.5, 12.5], False), ([96.0, 96.0], True)):
        store.write_json(tmp_path / "about.json", about | {"cube": {"trained_on_mm": edges}})
        code, told = predict(
            three[0], tmp_path / "out", "--server", recorded[1], "--preprocessing", tmp_path / "about.json"
        )
        assert code == 0 and ("field of view of 3 exams is not like" in told) is told_of
    assert "trained on, 96 mm: a (12 mm), b (12 mm), c (12 mm)" in told


def test_a_whole_exam_as_json_has_its_voxels_and_their_sizes(recorded, three, tmp_path):
    answers, url = recorded
    assert predict(three[0], tmp_path, "--server", f"{url}/versions/2")[0] == 1, "its status was not recorded"
    code, told = predict(three[0], tmp_path, "--server", url, *three[1], "--signature", "predict_exam")
    assert code == 0 and "asked for predict_exam" in told
    (row,) = answers.asked[-1][2]["instances"]
    assert row["zooms"] == [1, 1, 1] and isinstance(row["volume"][0][0][0], int)
    assert np.array_equal(row["volume"], nib.load(three[0].parent / "c.nii").get_fdata())


def test_a_busy_server_is_asked_again_and_the_console_says_so(recorded, three, tmp_path):
    answers, url = recorded
    busy = (503, '{ "error": "The batch scheduling queue to which this task was submitted is full" }')
    answers.predicts(busy, (502, "<html>Bad Gateway</html>"), (200, "close"), ("cut", GOOD), (200, GOOD))
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 0 and len(store.read_rows(tmp_path / "predictions.csv")) == 3
    assert told.count("asking again") == 4 and "503, The batch scheduling queue" in told
    for text in ("502, <html>Bad", "broke off", "expected a whole answer", "again in 0.08 s (4 of 4)"):
        assert text in told, text
    answers.predicts(busy)
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 1 and told.count("error: ") == 3 and "no subject could be scored" in told
    assert len([request for request in answers.asked if request[0] == "POST"]) == 15, "5 times for each exam, no more"
    assert not (tmp_path / "predictions.csv").exists(), "of the call before"


def test_a_batch_of_mixed_shapes_is_sent_again(recorded, three, tmp_path):
    answers, url = recorded
    answers.predicts(
        (
            400,
            '{ "error": "Tensors with name \'volume\' from different tasks have different shapes and '
            'padding is turned off." }',
        ),
        (200, GOOD),
    )
    code, told = predict(three[0], tmp_path, "--server", url)
    assert code == 0 and told.count("asking again") == 1


SHAPE = "input must be 4-dimensional[1,12,12]"
WRONG = {
    "wrong shape": ((400, json.dumps({"error": SHAPE})), f"answers 400: {SHAPE}"),
    "error inside": ((500, "{}"), "answers 500: {}"),
    "truncated JSON": ((200, GOOD[:200]), "expected JSON from "),
    "not JSON": ((200, "<html>hello"), "Received: 11 bytes that begin with '<html>hello'"),
    "empty": ((200, ""), "Received: 0 bytes"),
    "no predictions": ((200, '{"outputs": []}'), "expected one row of named predictions"),
    "two rows": ((200, json.dumps({"predictions": [ROW, ROW]})), "expected one row of named predictions"),
    "no row": ((200, '{"predictions": []}'), "expected one row of named predictions"),
    "one nameless output": ((200, '{"predictions": [[0.3, 0.7]]}'), "expected one row of named predictions"),
    "missing key": (
        (200, json.dumps({"predictions": [{k: v for k, v in ROW.items() if k != "cells"}]})),
        "an answer without cells",
    ),
    "ragged": ((200, json.dumps({"predictions": [ROW | {"cells": [[[0.1], []]]}]})), "expected numbers as cells"),
    "text": ((200, json.dumps({"predictions": [ROW | {"fold_probabilities": ["x"]}]})), "expected numbers as fold_"),
    "flat map": ((200, json.dumps({"predictions": [ROW | {"cells": [0.1, 0.2]}]})), "Received: (2,), (2,), (2,)"),
    "NaN": ((200, GOOD.replace("0.7", "NaN")), "expected probabilities from 0 to 1"),
    "no probability": ((200, json.dumps({"predictions": [ROW | {"probabilities": [-1, 2]}]})), "from 0 to 1"),
    "not the mean": ((200, GOOD.replace("0.7", "0.9")), "the mean of the folds'"),
    "other folds": ((200, GOOD.replace("0.8", "0.8, 0.7")), "preprocessing.json of the served version"),
    "hang": ((200, "hang"), "within 0.5 s. Received: none; give it more with --timeout"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_exam_without_a_usable_answer_fails_alone(name, recorded, three, tmp_path):
    answers, url = recorded
    wrong, text = WRONG[name]
    answers.predicts((200, GOOD), wrong, (200, GOOD))
    code, told = predict(three[0], tmp_path, "--server", url, *three[1], "--timeout", "0.5")
    assert code == 1 and "error: b: " in told and text in told and told.count("error: ") == 1, told
    assert [row["subject"] for row in store.read_rows(tmp_path / "predictions.csv")] == ["a", "c"]
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"a.nii.gz", "c.nii.gz"}


def test_where_the_server_is_lost_the_rest_is_not_tried_and_the_first_is_kept(recorded, three, tmp_path):
    answers, url = recorded
    answers.predicts((200, GOOD), (404, '{ "error": "Servable not found for request: Specific(guided, 2)" }'))
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 1 and "error: b: expected a served model" in told and "Specific(guided, 2)" in told
    assert "error: stopped there: 1 more exam was not tried" in told
    assert [row["subject"] for row in store.read_rows(tmp_path / "predictions.csv")] == ["a"]


def test_a_server_that_dies_meanwhile_is_waited_for_once(recorded, three, tmp_path):
    answers, url = recorded
    answers.predicts((200, GOOD), (200, "die"))
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 1 and "error: b: nothing answers at" in told and told.count("asking again") == 4
    assert "1 more exam was not tried" in told and len(store.read_rows(tmp_path / "predictions.csv")) == 1


def states(*pairs):
    return json.dumps(
        {
            "model_version_status": [
                {
                    "version": version,
                    "state": state,
                    "status": {"error_code": "UNKNOWN" if text else "OK", "error_message": text},
                }
                for version, state, text in pairs
            ]
        }
    )


NOT_READY = {
    "failed to load": (
        (200, states(("1", "END", "Could not find SavedModel .pb"))),
        "Received: version 1 END (Could not find SavedModel .pb)",
        0,
    ),
    "loads for long": ((200, states(("1", "LOADING", ""))), "to be available. Received: version 1 LOADING", 4),
    "no version": ((200, '{"model_version_status": []}'), "to be available. Received: none", 0),
    "wrong name": ((404, '{ "error": "Could not find any versions of model guided" }'), "are name and version", 0),
    "no right": ((403, "Forbidden"), "refuses: 403, Forbidden", 0),
    "moved": ((302, "elsewhere"), "refuses: 302, elsewhere", 0),
    "another server": ((200, '{"hello": 1}'), "expected the status of a served model at", 0),
    "a web page": ((200, "<html>"), "expected JSON from", 0),
}


@pytest.mark.parametrize("name", NOT_READY)
def test_a_model_that_is_not_available_stops_before_the_exams_are_read(name, recorded, three, tmp_path):
    answers, url = recorded
    answer, text, again = NOT_READY[name]
    answers.answers["GET", URL] = [answer]
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 1 and text in told and told.count("asking again") == again, told
    assert "checking every file" not in told and {request[0] for request in answers.asked} == {"GET"}


def test_a_model_that_is_loading_is_waited_for(recorded, three, tmp_path):
    answers, url = recorded
    answers.answers["GET", URL] = [(200, states(("2", "LOADING", ""))), (200, STATUS)]
    assert predict(three[0], tmp_path, "--server", url, *three[1])[0] == 0


def test_signatures_are_compared_where_the_server_tells_them(recorded, three, tmp_path):
    answers, url = recorded
    key = ("GET", f"{URL}/versions/2/metadata")
    answers.answers[key] = [(200, METADATA.replace("predict_", "score_"))]
    code, told = predict(three[0], tmp_path, "--server", url, *three[1])
    assert code == 1 and "expected the signature predict_bytes" in told and "score_bytes, score_exam" in told
    answers.answers[key] = [(404, MALFORMED)]
    assert predict(three[0], tmp_path, "--server", url, *three[1])[0] == 0


def test_a_dead_server_is_told_after_some_tries(three, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1/models/guided"
        code, told = predict(three[0], tmp_path, "--server", url)
    assert code == 1 and f"nothing answers at {url} (" in told and "refused" in told.lower()
    assert told.count("asking again") == 4


# --- addresses, choices, checks, the command


def test_addresses():
    found = address_of("https://gate/clinic/v1/models/a.b/versions/3:predict")
    assert (found.host, found.path, found.name, found.version) == ("gate", "/clinic/v1/models/a.b", "a.b", 3)
    assert str(found) == "https://gate/clinic/v1/models/a.b/versions/3" and found.rest
    found = address_of("grpc://host:8500/guided/")
    assert (str(found), found.rest, found.version) == ("grpc://host:8500/guided", False, None)
    for wrong in (
        "host:8501",
        "http://host:8501",
        "http://host:8501/guided",
        "grpc://host:8500",
        "ftp://host/guided",
        "http://host:8501/v1/models/a/versions/x",
        "grpc:///guided",
    ):
        with pytest.raises(ServerError, match="expected http://HOST:8501/v1/models/NAME"):
            address_of(wrong)


@pytest.mark.parametrize(
    ("url", "served", "about", "expected"),
    [
        ("grpc://h:1/m", ("predict_exam", "predict_bytes"), False, "predict_exam"),
        ("grpc://h:1/m", ("predict_exam", "predict_bytes"), True, "predict_exam"),
        ("grpc://h:1/m", ("predict_bytes",), True, "predict_bytes"),
        ("grpc://h:1/m", ("predict_bytes",), False, "predict_bytes"),
        ("http://h/v1/models/m", ("predict_exam", "predict_bytes"), True, "predict_bytes"),
        ("http://h/v1/models/m", ("predict_exam", "predict_bytes"), False, "predict_exam"),
        ("http://h/v1/models/m", None, True, "predict_bytes"),
        ("http://h/v1/models/m", None, False, "predict_exam"),
        ("http://h/v1/models/m", ("other",), False, "predict_exam"),
    ],
)
def test_the_signature_follows_the_transport(url, served, about, expected):
    assert choose(address_of(url), served, about) == expected


def test_an_answer_is_checked():
    good, address = {name: np.array(value) for name, value in ROW.items()}, address_of("grpc://h:1/m")
    each, cells = checked(good, address)
    assert each == pytest.approx([0.6, 0.8]) and cells.shape == (3, 3, 3)
    for change in (
        {"cells": np.zeros((3, 3, 2))},
        {"cells": np.zeros((0, 0, 0))},
        {"cells": np.full((2, 2, 2), np.inf)},
        {"fold_probabilities": np.array([])},
        {"probabilities": np.array([0.7])},
    ):
        with pytest.raises(AnswerError, match="from grpc://h:1/m"):
            checked(good | change, address)
    signed = good | {"cells": np.full((2, 2, 2), -1.1)}
    assert checked(signed, address)[1].min() == pytest.approx(-1.1)
    with pytest.raises(AnswerError, match="expected cells from 0 to 1"):
        checked(signed, address, None, "attention")


def test_the_command_wants_a_run_or_a_server(three, tmp_path):
    assert "Received: neither" in predict(three[0], tmp_path)[1]
    assert "Received: both" in predict(three[0], tmp_path, tmp_path, "--server", "grpc://h:1/m")[1]
    code, told = predict(three[0], tmp_path, tmp_path, "--timeout", "3", *three[1])
    assert code == 2 and "expected --server URL beside --preprocessing, --timeout" in told
    (tmp_path / "other.json").write_text('{"settings": {"volume": {"size": 3}}, "folds": [0]}')
    code, told = predict(
        three[0], tmp_path, "--server", "http://h/v1/models/m", "--preprocessing", tmp_path / "other.json"
    )
    assert code == 1 and "expected preprocessing.json of `mgkeras export`" in told and "volume.size" in told


def test_rest_needs_no_tensorflow(recorded, three, tmp_path):
    answers, url = recorded
    code = (
        "import sys; from mgkeras.cli.main import cli\n"
        f"cli.main({['predict', '--server', url, '--cohort', str(three[0]), '--out', str(tmp_path)]}"
        f" + {[str(word) for word in three[1]]}, standalone_mode=False)\n"
        "print('HEAVY', [name for name in ('tensorflow', 'keras', 'grpc') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.rstrip().endswith("HEAVY []")
