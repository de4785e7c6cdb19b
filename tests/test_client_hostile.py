"""What a server, an address or the environment may try with the client: no time, no memory, no secret, no terminal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from mgkeras.serving import rest, transport
from mgkeras.serving.rest import open_rest
from mgkeras.serving.transport import AnswerError, Patience, ServerError, address_of

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def serving(answer):
    """host:port of a server that calls answer(connection) for each; ``asked`` holds the heads of what it was asked."""
    asked, listener = [], socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1 << 16).decode(errors="replace"))
                try:
                    answer(connection)
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()


def of(content, headers=OK):
    return lambda connection: connection.sendall(headers + b"Content-Length: %d\r\n\r\n" % len(content) + content)


def client(host, timeout_s=5.0, told=None, **options):
    return open_rest(
        address_of(f"http://{host}/v1/models/m"), Patience(timeout_s, ([] if told is None else told).append), **options
    )


def drip(connection, head, pause):
    connection.sendall(head)
    for _ in range(40):
        time.sleep(pause)
        connection.sendall(b" ")


@pytest.mark.parametrize("where", ["headers", "body", "chunks"])
def test_the_whole_answer_has_the_time_that_was_given(where):
    head = {
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": OK + b"Content-Length: 100\r\n\r\n",
        "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n",
    }[where]

    def answer(connection):
        connection.sendall(head)
        for _ in range(100):
            time.sleep(0.05)
            connection.sendall(b"1\r\n \r\n" if where == "chunks" else b" ")

    with serving(answer) as (host, _):
        began = time.monotonic()
        with pytest.raises(AnswerError, match=r"within 0\.5 s. Received: none; give it more with --timeout"):
            client(host, 0.5).states()
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("how", ["declared", "sent", "unpacked"])
def test_the_whole_answer_has_a_size(how, monkeypatch):
    import gzip

    monkeypatch.setattr(rest, "LARGEST", 1 << 16)
    packed = gzip.compress(b" " * (1 << 22))
    answer = {
        "declared": lambda connection: connection.sendall(OK + b"Content-Length: 999999999999\r\n\r\n"),
        "sent": of(b" " * (1 << 18), OK.replace(b"Content-Type", b"X")),
        "unpacked": of(packed, OK + b"Content-Encoding: gzip\r\n"),
    }[how]
    assert len(packed) < 1 << 16
    with serving(answer) as (host, _):
        with pytest.raises(AnswerError, match="expected an answer of .* at most from .*Received: more"):
            client(host).states()


DEEP = b"[" * 100_000 + b"]" * 100_000
ODD = {
    "deep": DEEP,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a large number": b'{"model_version_status": [{"version": 1e999, "state": "AVAILABLE"}]}',
    "a long number": b'{"model_version_status": [{"version": ' + b"9" * 5000 + b', "state": "AVAILABLE"}]}',
    "no encoding": b"\xff\xfe\xfa",
}


@pytest.mark.parametrize("name", ODD)
def test_json_that_is_odd_is_an_error(name):
    with serving(of(ODD[name])) as (host, _):
        with pytest.raises((AnswerError, ServerError), match="expected .*Received: "):
            client(host).states()


@pytest.mark.parametrize("cells", ["9" * 400, "[" * 500 + "]" * 500, '"x"', "[[1], [1, 2]]", '{"a": 1}'])
def test_an_output_that_is_odd_is_an_error(cells):
    content = f'{{"predictions": [{{"cells": {cells}}}]}}'.encode()
    with serving(of(content)) as (host, _):
        with pytest.raises(AnswerError, match="expected numbers as cells from .*Received: "):
            client(host).predict(None, "predict_bytes", {"cube_bytes": b"x"}, ["cells"])


def test_a_password_is_sent_and_neither_printed_nor_stored():
    address = address_of("https://ann:s3cret%21@gate/v1/models/m")
    assert (address.host, address.login) == ("gate", ("ann", "s3cret!"))
    assert "s3cret" not in f"{address}{address!r}" and "ann" not in f"{address}{address!r}"
    for wrong in ("https://ann:s3cret@gate/nothing", "grpc://ann:s3cret@gate:1/m"):
        with pytest.raises(ServerError) as caught:
            address_of(wrong)
        assert "s3cret" not in str(caught.value) and "expected" in str(caught.value)
    with serving(of(b'{"ready": true}')) as (host, asked):
        found = open_rest(address_of(f"http://ann:s3cret@{host}/v1/models/m"), Patience(5, print))
        assert found.states()[0].state == "AVAILABLE"
        assert "Authorization: Basic YW5uOnMzY3JldA==" in asked[0] and "@" not in asked[0]
    with serving(lambda connection: None) as (host, _):
        broken = open_rest(address_of(f"http://ann:s3cret@{host}/v1/models/m"), Patience(5, print))
        with pytest.raises(AnswerError) as caught:
            broken.states()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("tail", ["?key=1", "#part", "?"])
def test_a_query_is_refused_rather_than_dropped(tail):
    for url in (f"http://h:1/v1/models/m{tail}", f"grpc://h:1/m{tail}"):
        if tail == "?":
            continue
        with pytest.raises(ServerError, match="without a query.*Received"):
            address_of(url)


def test_an_address_without_control_characters():
    with pytest.raises(ServerError):
        address_of("http://h:1/v1/models/\x1b[31mm")


def test_proxies_and_netrc_are_not_used_and_that_is_told(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(of(b'{"ready": true}')) as (proxy, through), serving(of(b'{"ready": true}')) as (host, asked):
        monkeypatch.setenv("http_proxy", f"http://ann:s3cret@{proxy}")
        told = []
        assert client(host, told=told).states() and len(asked) == 1 and not through
        assert "Authorization" not in asked[0]
        assert len(told) == 1 and "proxy" in told[0] and "--proxy" in told[0] and "s3cret" not in told[0]
        told = []
        assert client(host, told=told, proxy=True).states() and len(asked) == 1 and len(through) == 1
        assert told == [] and "Authorization: Basic" not in through[0].replace("Proxy-Authorization", "")


def test_certificates_of_the_environment_are_still_believed(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/hospital.pem")
    assert client("h:1").session.verify == "/etc/ssl/hospital.pem"
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert client("h:1").session.verify is True


RAW = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\x00"


def test_control_characters_of_a_server_never_reach_the_terminal_raw(tmp_path, monkeypatch):
    from mgkeras.cli.predict import command

    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    (tmp_path / "new.csv").write_text("subject,early\nx,x.nii.gz\n")
    content = json.dumps({"error": RAW}).encode()
    for status in (b"403 No", b"503 Busy", b"404 None"):
        with serving(of(content, OK.replace(b"200 OK", status))) as (host, _):
            options = ["--cohort", str(tmp_path / "new.csv"), "--out", str(tmp_path / "out"), "--timeout", "3"]
            found = CliRunner().invoke(command, ["--server", f"http://{host}/v1/models/m", *options])
            told = f"{found.output}{found.exception}"
            assert "evil" in told and not set(told) & set("\x1b\x07\x9b\u202e\x00"), repr(told)


@pytest.mark.parametrize("name", ["\x1b[31mred", "\u202egpj.exe"])
def test_control_characters_of_a_table_never_reach_the_terminal_raw(name, tmp_path):
    (tmp_path / "cohort.csv").write_text(f"subject,early,outcome\n{name},gone.nii.gz,1\nb,gone.nii.gz,0\n")
    for arguments in (["cohort", "check", "cohort.csv", "--out", "c.html"], ["fit", "--cohort", "cohort.csv"]):
        done = subprocess.run(
            [sys.executable, "-c", "from mgkeras.cli.main import main; main()", *arguments],
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
        told = (done.stdout + done.stderr).decode()
        assert done.returncode and "gone.nii.gz" in told and name[1:5] in told, told
        assert "\x1b" not in told and "\u202e" not in told and "Traceback" not in told, told
