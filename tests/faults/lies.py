"""A server that lies: the client's result must be the truth or an error, in time, and steer no terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.counts import Trial
from faults.edits import DEEP, ODD, places
from faults.processes import mgkeras
from faults.world import contents, copied, different

TIMEOUT_S = 2.0
STATUS = {"model_version_status": [{"version": "2", "state": "AVAILABLE", "status": {"error_message": ""}}]}
SIGNATURE = {"inputs": {"cube_bytes": {"dtype": "DT_STRING"}}, "outputs": {"cells": {}, "log_odds": {}}}
METADATA = {"metadata": {"signature_def": {"signature_def": {"predict_bytes": SIGNATURE}}}}
ROW = {
    "cells": (np.arange(8.0) - 3).reshape(2, 2, 2).tolist(),
    "fold_probabilities": [0.6, 0.8],
    "probabilities": [0.3, 0.7],
}
TRUTH = {"status": STATUS, "metadata": METADATA, "predict": {"predictions": [ROW]}}
LIES = (
    "value",
    "number",
    "missing",
    "cut",
    "bit",
    "noise",
    "deep",
    "nan",
    "slow",
    "early",
    "large",
    "code",
    "redirect",
    "head",
)
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x1b\x7f]")
Rng = np.random.Generator


def trial(seed: int, world: Path, folder: Path, heavy: bool = True) -> Trial:
    """`mgkeras predict --server` of a server of which one answer is a lie."""
    rng = np.random.default_rng(seed)
    asked, lie = str(rng.choice(list(TRUTH))), str(rng.choice(LIES))
    truth = _asked(world, folder, lambda which: _whole(TRUTH[which]))
    if not truth[1]:
        raise RuntimeError(f"expected the truth to be written. Received: {truth[0]}")
    answer = _lie(lie, TRUTH[asked], rng)
    ended, written = _asked(world, folder, lambda which: answer if which == asked else _whole(TRUTH[which]))
    about = {"lie": lie, "of": asked, "seconds": round(ended.seconds, 1), "said": ended.said[-500:]}
    if ended.wrong:
        outcome = ended.wrong
    elif ESCAPES.search(ended.said.replace("\r", "")):
        outcome = "wrong"
    elif ended.seconds > 20 * TIMEOUT_S:
        outcome = "hung"
    elif ended.status:
        outcome = "refused"
    else:
        outcome = "same" if not different(written, truth[1]) else "another" if lie in ("number", "bit") else "silent"
    return Trial("lie", f"{lie} of {asked}" if outcome in ("silent", "wrong") else lie, seed, 1, outcome, about)


def _asked(world: Path, folder: Path, answer: Callable[[str], bytes | list]) -> tuple[Any, dict[str, bytes]]:
    """How the client ended, and what it wrote."""
    copied(world / "phantom", folder)
    table = (folder / "cohort.csv").read_text().splitlines()
    (folder / "cohort.csv").write_text("\n".join(table[:2]) + "\n")  # one exam
    (folder / "preprocessing.json").write_text(json.dumps(_preprocessing()))
    listener = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    server = os.fork()
    if not server:
        _serve(listener, answer)
    listener.close()
    try:
        words = f"predict --server http://{host}/v1/models/m --cohort cohort.csv --out out --timeout {TIMEOUT_S}"
        words += " --preprocessing preprocessing.json"
        ended = mgkeras(words.split(), folder, before=_impatient, longest_s=100)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    if ended.status:
        return ended, {}
    return ended, {name: content.replace(host.encode(), b"HOST") for name, content in contents(folder / "out").items()}


def _preprocessing() -> dict[str, Any]:
    from mgkeras.settings import as_dict, preset, with_values

    settings = as_dict(with_values(preset("demo"), {"volume.side": 16}))
    return {"settings": settings, "folds": [0, 1], "map": {"kind": "decision"}}


def _impatient() -> None:
    from mgkeras.serving import transport

    transport.FIRST_WAIT_S = 0.01


def _whole(value: Any) -> bytes:
    return _http(json.dumps(value).encode())


def _http(body: bytes, code: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {code}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode("latin-1") + body


def _lie(lie: str, truth: Any, rng: Rng) -> bytes | list:
    """The bytes of an answer, or a list of parts that come one at a time."""
    whole = json.loads(json.dumps(truth))
    inside, key = (found := list(places(whole)))[rng.integers(len(found))]
    body = bytearray(json.dumps(truth).encode())
    place = int(rng.integers(len(body)))
    if lie in ("value", "number", "missing", "deep", "nan"):
        no_number = [odd for odd in ODD if not isinstance(odd, int | float)]  # another number cannot be told
        inside[key] = "here" if lie in ("deep", "nan") else no_number[rng.integers(len(no_number))]
        if lie == "number":
            inside[key] = float(rng.normal())
        if lie == "missing":
            del inside[key]
        text = json.dumps(whole).replace(
            '"here"', DEEP if lie == "deep" else str(rng.choice(["NaN", "1e999", "-Infinity"]))
        )
        return _http(text.encode())
    if lie == "bit":
        body[place] ^= 1 << int(rng.integers(8))
    if lie == "noise":
        body = bytearray(rng.bytes(300))
    if lie == "cut":
        return _http(bytes(body[:place]))
    if lie == "early":
        return _http(bytes(body))[: -int(rng.integers(1, len(body)))]
    if lie == "slow":
        return [bytes([byte]) for byte in _http(bytes(body))]
    if lie == "large":
        return _http(bytes(body)).replace(b"Content-Length: ", b"Content-Length: 9999999")
    if lie == "code":
        code = str(rng.choice(["400 Bad", "404 No", "429 Many", "500 Error", "503 Busy", "999 \x1b[2J", "200"]))
        return _http(b'{"error": "\\u001b[2J\x1b]0;owned\x07 ' + b"x" * 3000 + b'"}', code)
    if lie == "redirect":
        return _http(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n")
    if lie == "head":
        return _http(bytes(body), "200 OK", f"X: {'y' * int(rng.integers(1, 200_000))}\r\n")
    return _http(bytes(body))


def _serve(listener: socket.socket, answer: Callable[[str], bytes | list]) -> None:
    """Answers until it is killed."""
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                head = connection.recv(1 << 20)
                which = "metadata" if b"/metadata " in head else "predict" if head.startswith(b"POST") else "status"
                connection.settimeout(0.05)
                try:
                    while connection.recv(1 << 20):
                        pass
                except TimeoutError:
                    pass
                connection.settimeout(10)
                parts = answer(which)
                for part in [parts] if isinstance(parts, bytes) else parts:
                    connection.sendall(part)
                    if not isinstance(parts, bytes):
                        time.sleep(0.05)
            except OSError:
                pass
