"""A served model over TensorFlow Serving's REST API, as far as KServe's and others' V1 protocol share it.

GET /v1/models/NAME is the status, GET /v1/models/NAME/metadata the signatures (KServe has none), POST
/v1/models/NAME:predict takes {"signature_name", "instances"} and answers {"predictions"}, errors are {"error": text}.

Reference: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests
import urllib3

from mgkeras.serving.transport import (
    MIXED_SHAPES,
    Address,
    AnswerError,
    Busy,
    Gone,
    Patience,
    ServerError,
    VersionState,
    in_short,
)

CONNECT_S = 10.0  # ours, because a server that is there answers a handshake at once
AGAIN = (429, 502, 503)  # too many requests, a gateway without its server, overloaded or still loading
FINAL = (401, 403, 404)  # the same for every exam
NO_METADATA = (404, 405, 501)


@dataclass(frozen=True, eq=False)
class Rest:
    """One served model over REST, see transport.Server; redirections are not followed, exams go where one said."""

    address: Address
    patience: Patience
    session: requests.Session = field(default_factory=requests.Session)

    def states(self) -> tuple[VersionState, ...]:
        """The versions by TensorFlow Serving's status; of KServe's, which has no versions, one without a number."""
        found = _json(_refused(self._ask("GET", self._url(self.address.version)), self.address))
        try:
            if "ready" in found:
                return (VersionState(None, "AVAILABLE" if found["ready"] in (True, "true", "True") else "LOADING"),)
            return tuple(
                VersionState(int(one["version"]), one["state"], one.get("status", {}).get("error_message", ""))
                for one in found["model_version_status"]
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ServerError(
                f"expected the status of a served model at {self.address}. Received: {in_short(json.dumps(found))}"
            ) from None

    def signatures(self, version: int | None) -> dict[str, tuple[str, ...]] | None:
        """The signatures and their outputs by TensorFlow Serving's metadata, None where the server has none."""
        response = self._ask("GET", self._url(version) + "/metadata")
        if response.status_code in NO_METADATA:
            return None
        found = _json(_refused(response, self.address))
        try:
            named = found["metadata"]["signature_def"]["signature_def"]
            return {name: tuple(one.get("outputs", ())) for name, one in named.items()}
        except (KeyError, TypeError, AttributeError):
            return None

    def predict(
        self, version: int | None, signature: str, inputs: Mapping[str, Any], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The outputs of one row; REST cannot leave any out, so those that are not wanted travel in vain."""
        row = {name: _plain(value) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "instances": [row if len(row) > 1 else [*row.values()][0]]})
        response = self._ask("POST", self._url(version) + ":predict", body)
        found = _json(_refused(response, self.address))
        rows = found.get("predictions") if isinstance(found, dict) else None
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            raise AnswerError(
                f"expected one row of named predictions from {self.address}. Received: {in_short(json.dumps(found))}"
            )
        return {name: _array(name, rows[0][name], self.address) for name in outputs if name in rows[0]}

    def _url(self, version: int | None) -> str:
        tail = "" if version is None else f"/versions/{version}"
        return f"{self.address.scheme}://{self.address.host}{self.address.path}{tail}"

    def _ask(self, method: str, url: str, body: str | None = None) -> requests.Response:
        """The whole response, of any status.

        Raises:
            Gone, Busy, AnswerError, ServerError: there is none.
        """
        limit = (min(CONNECT_S, self.patience.timeout_s), self.patience.timeout_s)
        try:
            return self.session.request(
                method,
                url,
                data=body,
                timeout=limit,
                allow_redirects=False,
                headers={"Content-Type": "application/json"},
            )
        except requests.exceptions.SSLError as error:
            raise ServerError(f"expected a server with a valid certificate at {url}. Received: {error}") from None
        except requests.ConnectionError as error:
            cause = error.args[0] if error.args else error
            if isinstance(cause, urllib3.exceptions.MaxRetryError):  # no connection was made
                why = str(cause.reason or cause).rpartition("): ")[2]  # without HTTPConnection(...)
                raise Gone(f"nothing answers at {url} ({in_short(why, 200)})") from None
            if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
                raise self._too_slow(url) from None
            told = getattr(cause, "args", ())
            if told and type(told[-1]) is http.client.BadStatusLine:  # not RemoteDisconnected, which is one
                raise ServerError(
                    f"expected HTTP/1 at {url}. Received: something else; is it the port of gRPC (8500)?"
                ) from None
            raise Busy(f"the connection to {url} broke off ({in_short(str(cause), 200)})") from None
        except requests.Timeout:
            raise self._too_slow(url) from None
        except requests.exceptions.ChunkedEncodingError as error:
            raise Busy(f"expected a whole answer from {url}. Received: a part ({in_short(str(error), 200)})") from None
        except requests.RequestException as error:
            raise ServerError(f"{url} cannot be asked: {error}") from None

    def _too_slow(self, url: str) -> AnswerError:
        return AnswerError(
            f"expected an answer from {url} within {self.patience.timeout_s:g} s. Received: none; give "
            "it more with --timeout"
        )


def _refused(response: requests.Response, address: Address) -> requests.Response:
    """The response, if its status is 200.

    Raises:
        Busy, AnswerError, ServerError: another status, with the server's own message.
    """
    code = response.status_code
    if code == 200:
        return response
    told = _message(response)
    if code in AGAIN or MIXED_SHAPES in told:
        raise Busy(f"{address} cannot answer now: {code}, {told}")
    if code == 404:
        raise ServerError(f"expected a served model at {address}. Received: 404, {told}; are name and version right?")
    if code in FINAL or code < 400:
        raise ServerError(f"{address} refuses: {code}, {told}")
    raise AnswerError(f"{address} answers {code}: {told}")


def _message(response: requests.Response) -> str:
    """The text of an error: TensorFlow Serving's and KServe's ``error``, FastAPI's ``detail``, else the body."""
    try:
        found = response.json()
        return in_short(str(found.get("error") or found["detail"]))
    except (ValueError, AttributeError, KeyError):
        return in_short(response.text) or response.reason or "without a word"


def _json(response: requests.Response) -> Any:
    """The body's value; a JSON text that ends too early is half an answer."""
    try:
        return response.json()
    except ValueError as error:
        raise AnswerError(
            f"expected JSON from {response.url}. Received: {len(response.content)} bytes that begin with "
            f"{in_short(response.text, 80)!r} ({error})"
        ) from None


def _plain(value: Any) -> Any:
    """An input as JSON has it; whole numbers as such, since scanners write those and they are short."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    whole = np.isfinite(value).all() and (value == np.rint(value)).all() and np.abs(value).max(initial=0) < 2**31
    return (value.astype(np.int64) if whole else value).tolist()


def _array(name: str, value: Any, address: Address) -> np.ndarray:
    try:
        return np.array(value, np.float32)
    except (ValueError, TypeError):
        raise AnswerError(
            f"expected numbers as {name} from {address}. Received: {in_short(json.dumps(value), 200)}"
        ) from None
