"""A served model over TensorFlow Serving's gRPC API: GetModelStatus, GetModelMetadata and Predict.

Tensors travel as they are in memory, and only the outputs that are asked for come back. The protos are those of the
PyPI package tensorflow-serving-api; with them comes TensorFlow, so this module is imported when gRPC is used.

Reference: https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mgkeras.serving.transport import (
    LARGEST,
    MIXED_SHAPES,
    Address,
    AnswerError,
    Busy,
    Gone,
    Patience,
    ServerError,
    VersionState,
    in_short,
    proxy_of,
)

# gRPC's own limits are 4 MB, an exam of 256 x 256 x 64 voxels has 17
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", LARGEST)]
Code = grpc.StatusCode
FINAL = (Code.NOT_FOUND, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED)


@dataclass(frozen=True, eq=False)
class Rpc:
    """One served model over gRPC, see transport.Server."""

    address: Address
    patience: Patience
    channel: grpc.Channel

    def states(self) -> tuple[VersionState, ...]:
        """The versions by GetModelStatus."""
        stub = model_service_pb2_grpc.ModelServiceStub(self.channel)
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec(self.address.version))
        states = get_model_status_pb2.ModelVersionStatus.State
        return tuple(
            VersionState(status.version, states.Name(status.state), status.status.error_message)
            for status in self._ask(stub.GetModelStatus, request).model_version_status
        )

    def signatures(self, version: int | None) -> dict[str, tuple[str, ...]] | None:
        """The signatures and their outputs by GetModelMetadata."""
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(version), metadata_field=["signature_def"]
        )
        found = get_model_metadata_pb2.SignatureDefMap()
        if not self._ask(stub.GetModelMetadata, request).metadata["signature_def"].Unpack(found):
            return None
        return {name: tuple(signature.outputs) for name, signature in found.signature_def.items()}

    def predict(
        self, version: int | None, signature: str, inputs: Mapping[str, Any], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The outputs of one row; the server leaves out, and need not compute, those that are not wanted."""
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        spec = self._spec(version)
        spec.signature_name = signature
        request = predict_pb2.PredictRequest(model_spec=spec, output_filter=outputs)
        for name, value in inputs.items():
            batch = [value] if isinstance(value, bytes) else value[None]
            request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
        found = self._ask(stub.Predict, request).outputs
        return {name: self._row(name, found[name]) for name in outputs if name in found}

    def _spec(self, version: int | None) -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.address.name)
        if version is not None:
            spec.version.value = version
        return spec

    def _row(self, name: str, tensor: Any) -> np.ndarray:
        try:
            (row,) = tf.make_ndarray(tensor)
        except (ValueError, TypeError) as error:
            raise AnswerError(f"expected one row as {name} from {self.address}. Received: {error}") from None
        return row

    def _ask(self, method: Callable, request: Any) -> Any:
        """The answer to a call.

        Raises:
            Gone, Busy, AnswerError, ServerError: there is none, with the server's own message.
        """
        try:
            return method(request, timeout=self.patience.timeout_s)
        except grpc.RpcError as error:
            code, told = error.code(), in_short(error.details() or "without a word")
        where = self.address
        if code == Code.UNAVAILABLE:
            if "Failed parsing HTTP/2" in told:
                raise ServerError(f"expected gRPC at {where}. Received: HTTP/1; is it the port of REST (8501)?")
            if "failed to connect" in told or "DNS resolution" in told:
                raise Gone(f"nothing answers at {where} ({told})")
            raise Busy(f"{where} cannot answer now: {told}")
        if MIXED_SHAPES in told:
            raise Busy(f"{where} cannot answer now: {told}")
        if code == Code.DEADLINE_EXCEEDED:
            raise AnswerError(
                f"expected an answer from {where} within {self.patience.timeout_s:g} s. Received: none; "
                "give it more with --timeout"
            )
        if code == Code.NOT_FOUND:
            raise ServerError(f"expected a served model at {where}. Received: {told}; are name and version right?")
        if code in FINAL:
            raise ServerError(f"{where} refuses: {code.name}, {told}")
        raise AnswerError(f"{where} answers {code.name}: {told}")


def open_rpc(address: Address, patience: Patience, proxy: bool = False) -> Rpc:
    """A channel to the server, TLS for grpcs, through the environment's proxy for ``proxy``; nothing is sent yet."""
    options = [*OPTIONS, ("grpc.enable_http_proxy", int(proxy_of(address, patience, proxy) is not None))]
    if address.scheme == "grpcs":
        return Rpc(address, patience, grpc.secure_channel(address.host, grpc.ssl_channel_credentials(), options))
    return Rpc(address, patience, grpc.insecure_channel(address.host, options))
