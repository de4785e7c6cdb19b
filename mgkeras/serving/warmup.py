"""Warm-up requests: what TensorFlow Serving sends itself when it loads a model, so that the first client need not wait.

In: the signatures of an export. Out: VERSION/assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLog.
A request that fails keeps a server from loading the model, so each is one that the signature accepts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from mgkeras.data.phases import files_of, input_shape
from mgkeras.settings import VolumeSettings

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
NEEDED = "tensorflow-serving-api (pip install 'mgkeras[serving]')"


def write_warmup(folder: Path, name: str, signatures: Iterable[str], settings: VolumeSettings) -> bool:
    """Writes a request for each signature into a version's folder; False without tensorflow-serving-api.

    Args:
        folder: of the version.
        name: of the served model.
        signatures: names in graph.signatures_of.
        settings: of the run.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        return False
    (folder / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for signature in signatures:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, tensor in _inputs(signature, settings):
                request.inputs[key].CopyFrom(tensor)
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return True


def _inputs(signature: str, settings: VolumeSettings) -> Iterator[tuple[str, object]]:
    """(name, TensorProto) of a request of one row. One value of a TensorProto stands for all: files stay small."""
    if signature == "predict_exam":
        volume = np.arange(512, dtype=np.float32).reshape(1, 8, 8, 8)  # not constant: it needs bright voxels
        for phase in ("volume", *files_of(settings)[1:]):
            yield phase, tf.make_tensor_proto(volume)
        yield "zooms", tf.make_tensor_proto(np.ones((1, 3)))
    elif signature == "predict_bytes":
        yield "cube_bytes", tf.make_tensor_proto([zlib.compress(bytes(2 * math.prod(input_shape(settings))))])
    else:
        yield "cube", tf.make_tensor_proto(0.0, tf.float32, (1, *input_shape(settings)))
