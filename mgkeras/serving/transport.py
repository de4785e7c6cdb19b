"""What REST and gRPC have in common: a served model's address, what can go wrong with a server, asking again.

What a served model can be asked is :class:`Server`; rest.Rest and rpc.Rpc can be.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np

from mgkeras.data.volume import ExamError
from mgkeras.inference.score import ScoringStopped

RETRIES = 4  # ours, because 1 + 2 + 4 + 8 s outlast a full queue and a restart
FIRST_WAIT_S = 1.0  # doubled after each try
FORMS = "http://HOST:8501/v1/models/NAME (REST) or grpc://HOST:8500/NAME (gRPC)"
LARGEST = 1 << 29  # bytes of an answer; ours, because the map of an exam of 512 x 512 x 128 as JSON has 0.4 GB
# of TensorFlow Serving's batching: another client's exam of another size met ours in one batch, bad luck
MIXED_SHAPES = "different shapes and padding is turned off"
Result = TypeVar("Result")


class ServerError(ScoringStopped):
    """No exam can be scored by this server; the message says why and what to do."""


class Gone(ServerError):
    """Nothing answers at the address; a server that starts again will."""


class AnswerError(ExamError):
    """The server has no usable answer to one exam; the next one may fare better."""


class Busy(AnswerError):
    """The server cannot answer now; it may a little later."""


@dataclass(frozen=True)
class Address:
    """A served model's place.

    Attributes:
        scheme: 'http', 'https', 'grpc' or 'grpcs' (the s is for TLS).
        host: with the port, where one is given.
        path: what REST puts before :predict, without a version; '' for gRPC.
        name: of the model.
        version: None for the latest that is available.
        login: user and password for HTTP, None where none are given; never printed.
    """

    scheme: str
    host: str
    path: str
    name: str
    version: int | None
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def rest(self) -> bool:
        """True for HTTP, False for gRPC."""
        return self.scheme.startswith("http")

    def __str__(self) -> str:
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self.scheme}://{self.host}{self.path or '/' + self.name}{version}"


@dataclass(frozen=True)
class VersionState:
    """One version of a served model: 'AVAILABLE', 'LOADING', 'END' ..., and the error that led there, if any."""

    version: int | None
    state: str
    message: str = ""


@dataclass(frozen=True)
class Patience:
    """How long to wait for an answer, in seconds, and whom to tell when asking again."""

    timeout_s: float
    tell: Callable[[str], None]


class Server(Protocol):
    """A served model. Each method asks once; see :func:`insist`."""

    def states(self) -> Sequence[VersionState]:
        """The versions that the server knows, of the model or of the version that the address names."""

    def signatures(self, version: int | None) -> dict[str, tuple[str, ...]] | None:
        """{signature: names of its outputs}, None where the server does not tell."""

    def predict(
        self, version: int | None, signature: str, inputs: Mapping[str, Any], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The outputs of one row of inputs.

        Args:
            version: None for the latest.
            signature: its name.
            inputs: arrays, or bytes for a string; without the batch dimension.
            outputs: names of those that are wanted; others may be left out.

        Raises:
            AnswerError: no usable answer to this row.
            ServerError: no row can be answered.
        """


def address_of(url: str) -> Address:
    """The parts of http[s]://HOST:PORT/v1/models/NAME[/versions/N] or grpc[s]://HOST:PORT/NAME[/versions/N].

    What stands before /v1, as behind a gateway, is kept; so is USER:PASSWORD@ before HOST, for HTTP.

    Raises:
        ServerError: another form.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{url.rpartition('@')[2]}" if "@" in url else url  # no password is printed
    if parts.query or parts.fragment:
        raise ServerError(f"expected a served model's address without a query or fragment. Received: {shown}")
    if at and not parts.scheme.startswith("http"):
        raise ServerError(f"expected a user and password for http or https only. Received: one for {shown}")
    pattern = r"(?P<path>.*/v1/models/(?P<name>[^/:]+))" if parts.scheme in ("http", "https") else r"/(?P<name>[^/:]+)"
    found = re.fullmatch(pattern + r"(?:/versions/(?P<version>\d+))?/?(?::predict)?", parts.path)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not host or not found or not url.isprintable():
        raise ServerError(
            f"expected {FORMS}, and /versions/N behind it if need be, as a served model's address. Received: {shown}"
        )
    version, (name, _, password) = found["version"], user.partition(":")
    return Address(
        parts.scheme,
        host,
        found.groupdict().get("path", ""),
        found["name"],
        None if version is None else int(version),
        (unquote(name), unquote(password)) if at else None,
    )


def proxy_of(address: Address, patience: Patience, wanted: bool) -> str | None:
    """The proxy that the environment names for an address; None without one, or if not wanted, which is told."""
    named, scheme = getproxies(), address.scheme
    found = named.get(scheme) if address.rest else named.get("grpc") or named.get("https") or named.get("http")
    if not found or proxy_bypass(address.host):
        return None
    if not wanted:
        patience.tell(f"note: {address.host} is asked directly and not through the environment's proxy; see --proxy")
    return found if wanted else None


def insist(ask: Callable[[], Result], tell: Callable[[str], None]) -> Result:
    """What ``ask`` returns; where the server is busy or gone, asks RETRIES times more, and says so.

    Scoring an exam twice does no harm, so it is safe to ask again after a broken connection too.
    """
    for again in range(RETRIES):
        try:
            return ask()
        except (Busy, Gone) as error:
            wait = FIRST_WAIT_S * 2**again
            tell(f"{error}; asking again in {wait:g} s ({again + 1} of {RETRIES})")
            time.sleep(wait)
    return ask()


def in_short(text: str, length: int = 500) -> str:
    """A server's message on one line, cut where it is long, without what a terminal would obey."""
    line = " ".join(text[: 4 * length].split())
    line = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in line)
    return line if len(line) <= length and len(text) <= 4 * length else line[:length] + " ..."
