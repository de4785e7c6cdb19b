"""Folds side by side: one process a fold, one a GPU where there are GPUs, else with a share of the cores.

Tasks of a cluster's workers end up here too, one at a time: see training.cluster.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from mgkeras.data.cache import Elsewhere
from mgkeras.errors import MgkerasError
from mgkeras.training.devices import Device, cores

POLL_SECONDS = 0.5
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


class WorkerError(MgkerasError, RuntimeError):
    """A process that trained a fold failed; the message is its own, or says how it ended."""


@dataclass(frozen=True)
class Told:
    """A message of a worker: ``kind`` is 'line', 'tick', 'long' (shall it go on so long?) or 'failed'."""

    task: str
    kind: str
    text: str


Work = Callable[..., None]  # work(task, device, console), with a progress.Console whose words come here as Told


class Engine(Protocol):
    """What works on tasks side by side: Processes of this machine, or the workers of training.cluster.

    ``waits``: whether a task may be begun while a lost worker's process still has it.
    """

    waits: bool

    @property
    def exams(self) -> Elsewhere | None:
        """What makes exams of the cache in other processes; None where this process does."""

    def width(self) -> int:
        """How many tasks at a time."""

    def run(self, work: Work, tasks: Sequence[Any], deterministic: bool, told: Callable[[Told], None]) -> None:
        """Calls work(task, device, console) for each task; as in_processes."""


@dataclass(frozen=True)
class Processes:
    """So many processes of this machine. ``how`` and ``gpus`` are those of in_processes."""

    jobs: int
    how: Mapping[str, Any]
    gpus: Sequence[str] = ()
    waits = False
    exams = None

    def width(self) -> int:
        return self.jobs

    def run(self, work: Work, tasks: Sequence[Any], deterministic: bool, told: Callable[[Told], None]) -> None:
        in_processes(work, tasks, self.jobs, self.how, deterministic, told, self.gpus)


def in_processes(
    work: Work,
    tasks: Sequence[Any],
    jobs: int,
    how: Mapping[str, Any],
    deterministic: bool,
    told: Callable[[Told], None],
    gpus: Sequence[str] = (),
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Calls work(task, device, console) for each task in a process of its own, so many at a time.

    Ctrl-C, or a worker that fails, ends all of them; what each had finished is in its state.

    Args:
        work: a function of a module.
        tasks: picklable; str of one is its name in messages, and differs from those of the others.
        jobs: how many at a time.
        how: the arguments of choose_device; each worker chooses its own device.
        deterministic: numbers must be those of folds one after the other: then each worker may use all cores, since
            sums over other numbers of threads are rounded otherwise.
        told: gets the workers' messages, in this process.
        gpus: as CUDA_VISIBLE_DEVICES names them: each worker sees one of them. Where none, all that this process sees.
        wanted: asked several times a second; once it says no, all workers are ended.

    Raises:
        WorkerError: a worker failed, with its own message; or the work is no longer wanted.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    waiting = list(tasks)
    running: dict[str, tuple[int, SpawnProcess]] = {}  # by the task's name: its slot and its process
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, slot = waiting.pop(0), min(set(range(jobs)) - {slot for slot, _ in running.values()})
                with _environment(gpus, slot, jobs, deterministic):
                    process = context.Process(
                        target=_worker, args=(work, task, how, deterministic, messages), daemon=True
                    )
                    process.start()
                running[str(task)] = slot, process
            _read(messages, POLL_SECONDS, told)
            if not wanted():
                raise WorkerError(f"{', '.join(running)} ended, since nobody waits for it any more")
            for name, (_, process) in list(running.items()):
                if process.exitcode is None:
                    continue
                until = time.monotonic() + 1  # others go on talking
                while time.monotonic() < until and _read(messages, 0.1, told):  # what it said before it ended
                    pass
                if process.exitcode:
                    raise WorkerError(
                        f"expected the process of {name} to end well. Received: exit code "
                        f"{process.exitcode}; out of memory ends so too: try fewer --jobs, then repeat the command"
                    )
                del running[name]
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _read(messages: Any, seconds: float, told: Callable[[Told], None]) -> bool:
    """Passes one message on; False where none comes in time. A failed worker's is an error."""
    try:
        message = messages.get(timeout=seconds)
    except queue.Empty:
        return False
    if message.kind == "failed":
        raise WorkerError(message.text)
    told(message)
    return True


def end_with_parent() -> None:
    """Ends this process with the one that started it, killed or not; else it would go on alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # as in every process that multiprocessing started

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker(work: Work, task: Any, how: Mapping[str, Any], deterministic: bool, messages: Any) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    silent = os.open(os.devnull, os.O_WRONLY)
    before = os.dup(2)
    os.dup2(silent, 2)  # TensorFlow's C++ prints lines while it is imported
    try:
        from mgkeras.training.devices import choose_device
        from mgkeras.training.progress import console_of

        device = choose_device(deterministic, **how)
    except MgkerasError as error:
        return messages.put(Told(str(task), "failed", str(error)))
    finally:
        os.dup2(before, 2)
    try:
        work(task, device, console_of(lambda kind, text: messages.put(Told(str(task), kind, text))))
    except (ValueError, RuntimeError, OSError) as error:
        messages.put(Told(str(task), "failed", str(error)))
    return None


@contextmanager
def _environment(gpus: Sequence[str], slot: int, jobs: int, deterministic: bool) -> Iterator[None]:
    """The variables that a process inherits when it starts: its GPU, or its share of the cores."""
    values = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if gpus:
        values["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    elif not deterministic:
        values |= dict.fromkeys(THREADS, str(max(1, cores() // jobs)))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def processes(jobs: int, device: Device) -> Processes | None:
    """The engine of so many processes, each with the same choices as this device and one of the GPUs; None for one."""
    if jobs < 2:
        return None
    how = {"precision": device.policy.removeprefix("mixed_"), "jit": device.jit, "s2d_blocks": device.s2d_blocks}
    return Processes(jobs, how, _gpus() if device.kind == "gpu" else ())


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import tensorflow as tf

    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(place) for place in range(len(tf.config.list_physical_devices("GPU")))]
