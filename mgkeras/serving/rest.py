"""A served model over TensorFlow Serving's REST API, as far as KServe's and others' V1 protocol share it.

GET /v1/models/NAME is the status, GET /v1/models/NAME/metadata the signatures (KServe has none), POST
/v1/models/NAME:predict takes {"signature_name", "instances"} and answers {"predictions"}, errors are {"error": text}.

Reference: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
import urllib3

from mgkeras.errors import InputError
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

CONNECT_S = 10.0  # ours, because a server that is there answers a handshake at once
AGAIN = (429, 502, 503)  # too many requests, a gateway without its server, overloaded or still loading
FINAL = (401, 403, 404)  # the same for every exam
NO_METADATA = (404, 405, 501)
PART = 1 << 16  # bytes


@dataclass(frozen=True)
class Answer:
    """A whole response: its status, its content without compression, and where it came from."""

    status_code: int
    reason: str
    content: bytes
    url: str

    @property
    def text(self) -> str:
        """The content as UTF-8, whatever it is."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The content's value. Raises ValueError where it is not JSON, or nested too deep."""
        try:
            return json.loads(self.content)
        except RecursionError:
            raise InputError("it is nested too deep") from None


@dataclass(frozen=True, eq=False)
class Rest:
    """One served model over REST, see transport.Server and open_rest.

    Redirections, .netrc and, unless asked for, proxies are not followed: exams go where one said.
    """

    address: Address
    patience: Patience
    session: requests.Session

    def states(self) -> tuple[VersionState, ...]:
        """The versions by TensorFlow Serving's status; of KServe's, which has no versions, one without a number."""
        found = _json(_refused(self._ask("GET", self._url(self.address.version)), self.address))
        try:
            if "ready" in found:
                return (VersionState(None, "AVAILABLE" if found["ready"] in (True, "true", "True") else "LOADING"),)
            return tuple(
                VersionState(int(status["version"]), status["state"], status.get("status", {}).get("error_message", ""))
                for status in found["model_version_status"]
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            raise ServerError(
                f"expected the status of a served model at {self.address}. Received: {_told(found)}"
            ) from None

    def signatures(self, version: int | None) -> dict[str, tuple[str, ...]] | None:
        """The signatures and their outputs by TensorFlow Serving's metadata, None where the server has none."""
        response = self._ask("GET", self._url(version) + "/metadata")
        if response.status_code in NO_METADATA:
            return None
        found = _json(_refused(response, self.address))
        try:
            named = found["metadata"]["signature_def"]["signature_def"]
            return {name: tuple(signature.get("outputs", ())) for name, signature in named.items()}
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
            raise AnswerError(f"expected one row of named predictions from {self.address}. Received: {_told(found)}")
        return {name: _array(name, rows[0][name], self.address) for name in outputs if name in rows[0]}

    def _url(self, version: int | None) -> str:
        tail = "" if version is None else f"/versions/{version}"
        return f"{self.address.scheme}://{self.address.host}{self.address.path}{tail}"

    def _ask(self, method: str, url: str, body: str | None = None) -> Answer:
        """The whole response, of any status.

        Raises:
            Gone, Busy, AnswerError, ServerError: there is none.
        """
        try:
            return self._in_time(method, url, body)
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

    def _in_time(self, method: str, url: str, body: str | None) -> Answer:
        """The whole answer within the time that is given for it.

        Sockets count the time since their last byte, so a thread waits for them; one that is given up ends with its
        connection, or with this process.
        """
        found: list[Answer | BaseException] = []
        given_up = threading.Event()

        def ask() -> None:
            try:
                found.append(self._received(method, url, body, given_up))
            except BaseException as error:  # is raised where it was asked for
                found.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.patience.timeout_s)
        if not found:
            given_up.set()
            raise self._too_slow(url)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _received(self, method: str, url: str, body: str | None, given_up: threading.Event) -> Answer:
        limit = (min(CONNECT_S, self.patience.timeout_s), self.patience.timeout_s)
        content = bytearray()
        # as bytes, which requests sends as they are, though its types know text only
        login: Any = self.address.login and tuple(part.encode() for part in self.address.login)
        with self.session.request(
            method,
            url,
            data=body,
            timeout=limit,
            stream=True,
            allow_redirects=False,
            headers={"Content-Type": "application/json"},
            auth=login,
        ) as response:
            declared = response.headers.get("Content-Length", "")
            too_large = declared.isdecimal() and (len(declared) > 15 or int(declared) > LARGEST)
            for part in () if too_large else response.iter_content(PART):
                content += part
                too_large = len(content) > LARGEST
                if too_large or given_up.is_set():
                    break
        if too_large:
            raise AnswerError(f"expected an answer of {LARGEST >> 20} MB at most from {url}. Received: more")
        return Answer(response.status_code, response.reason, bytes(content), url)

    def _too_slow(self, url: str) -> AnswerError:
        return AnswerError(
            f"expected an answer from {url} within {self.patience.timeout_s:g} s. Received: none; give "
            "it more with --timeout"
        )


def open_rest(address: Address, patience: Patience, proxy: bool = False) -> Rest:
    """The served model over REST, through the environment's proxy only for ``proxy``; nothing is asked yet."""
    session = requests.Session()
    session.trust_env = False  # neither proxies nor .netrc; certificates that a hospital added are still believed
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if through := proxy_of(address, patience, proxy):
        session.proxies[address.scheme] = through
    return Rest(address, patience, session)


def _refused(response: Answer, address: Address) -> Answer:
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


def _message(response: Answer) -> str:
    """The text of an error: TensorFlow Serving's and KServe's ``error``, FastAPI's ``detail``, else the body."""
    try:
        found = response.json()
        return in_short(str(found.get("error") or found["detail"]))
    except (ValueError, AttributeError, KeyError):
        return in_short(response.text) or response.reason or "without a word"


def _told(value: Any) -> str:
    """A value of JSON on one line, cut where it is long."""
    try:
        return in_short(json.dumps(value))
    except (ValueError, RecursionError):
        return "values nested too deep, or too large"


def _json(response: Answer) -> Any:
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
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise AnswerError(
            f"expected numbers as {name} from {address}. Received: {in_short(_told(value), 200)}"
        ) from None
