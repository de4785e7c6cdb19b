"""Commands in processes of their own, forked from this process, which has imported all they need and started nothing.

A fork spares a command the 8 s of its imports. It is sound as long as this process has one thread: TensorFlow starts
its own with the first operation, which no process but a forked one computes here.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 300.0
PATIENCE_S = 15.0  # with processes that a command started, once it has ended
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # Python's audit events


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal; what it said; seconds; changes of files begun.

    ``orphans``: a process that it had started was still there PATIENCE_S after its end.
    """

    status: int
    said: str
    seconds: float
    changes: int
    orphans: bool = False

    @property
    def wrong(self) -> str:
        """'traceback', 'signal', 'hung' or 'orphan' where a command must not end so, else ''."""
        if "Traceback (most recent call last)" in self.said:
            return "traceback"
        if self.orphans:
            return "orphan"
        return "" if self.status >= 0 else "hung" if self.status == -signal.SIGXCPU else "signal"


def import_all(heavy: bool) -> None:
    """Imports what commands need, TensorFlow among it for ``heavy``.

    Raises:
        RuntimeError: an import started a thread.
    """
    import matplotlib.figure  # noqa: F401
    import mgkeras.cli.main

    import mgkeras

    names = [f"mgkeras.cli.{module.name}" for module in pkgutil.iter_modules(mgkeras.cli.__path__)]
    parts = ("data", "runs", "phantom", "scores", "check", "importers", "evaluation", "report", "figures")
    parts += ("inference", "models", "training", "probes", "tuning", "serving") if heavy else ()
    for part in parts:
        package = importlib.import_module(f"mgkeras.{part}")
        names += [f"mgkeras.{part}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    for name in names:
        if heavy or name not in ("mgkeras.data.stream", "mgkeras.importers.dicom"):
            importlib.import_module(name)
    if (count := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"expected one thread after the imports, or a fork is not sound. Received: {count}")


def mgkeras(words: Sequence[str], folder: Path, before: Callable[[], object] | None = None, **options) -> Ended:
    """`mgkeras WORDS` in a folder, after ``before`` in the same process; options of :func:`forked`."""

    def command() -> None:
        from mgkeras.cli.main import main

        if before:
            before()
        sys.argv = ["mgkeras", *words]
        main()

    return forked(command, folder, **options)


def forked(
    work: Callable[[], object],
    folder: Path,
    *,
    kill_after_s: float | None = None,
    kill_at_change: int | None = None,
    kill_all: bool = True,
    longest_s: float = LONGEST_S,
) -> Ended:
    """Calls ``work`` in a forked process and waits for its end.

    Args:
        work: what SystemExit it raises is the process's status, of another exception the traceback is printed.
        folder: where the process works.
        kill_after_s: SIGKILL after so many seconds.
        kill_at_change: SIGKILL just before the n-th file is opened for writing, renamed or removed by Python.
        kill_all: whether the first of these kills the processes that it started too.
        longest_s: a process that takes longer is ended, and told by SIGXCPU.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as counted:
        pid, began = os.fork(), time.monotonic()
        if not pid:
            os._exit(_child(work, folder, said.fileno(), counted.fileno(), kill_at_change))
        end = began + (longest_s if kill_after_s is None else min(kill_after_s, longest_s))
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() >= end:
                if kill_after_s is None or kill_after_s > longest_s:
                    os.kill(pid, signal.SIGXCPU)
                elif kill_all:
                    _kill_group(pid)
                else:
                    os.kill(pid, signal.SIGKILL)
                end = float("inf")
            time.sleep(0.001)
        orphans = not _gone(pid)
        if orphans:
            _kill_group(pid)
        said.seek(0)
        counted.seek(0)
        return Ended(
            os.waitstatus_to_exitcode(found[1]),
            said.read().decode(errors="replace"),
            time.monotonic() - began,
            len(counted.read()),
            orphans,
        )


def _child(work: Callable[[], object], folder: Path, said: int, counted: int, kill_at_change: int | None) -> int:
    os.setsid()
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    status = 0
    try:
        os.chdir(folder)
        changes = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal changes
            if event in CHANGES or (event == "open" and _writes(*arguments[:3])):
                changes += 1
                os.write(counted, b".")
                if changes == kill_at_change:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


def _writes(path: object, mode: str | None, flags: int) -> bool:
    changed = bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return changed and isinstance(path, str | bytes | os.PathLike) and not os.fsdecode(path).startswith("/dev/")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _gone(pid: int) -> bool:
    """Whether no process of the group is left; those that end with their parent get some time for it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False
