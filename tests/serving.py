"""`mgkeras predict`, called as the tests of the client call it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from mgkeras.cli.predict import command

from mgkeras.serving import transport


@pytest.fixture
def quick(monkeypatch):
    """Short waits between tries, and no proxy between the client and this machine."""
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def predict(table, out, *arguments):
    """(exit code, all that was printed, and the error that the console script would print)."""
    found = CliRunner().invoke(command, [*map(str, arguments), "--cohort", str(table), "--out", str(out)])
    if not isinstance(found.exception, (SystemExit, ValueError, RuntimeError, type(None))):
        raise found.exception
    return found.exit_code, f"{found.output}{found.exception or ''}"
