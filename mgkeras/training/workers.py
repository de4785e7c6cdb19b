"""Folds side by side: one process a fold, one a GPU where there are GPUs, else with a share of the cores."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

from mgkeras.errors import MgkerasError
from mgkeras.training.devices import Device, cores

POLL_SECONDS = 0.5
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


class WorkerError(MgkerasError, RuntimeError):
    """A process that trained a fold failed; the message is its own, or says how it ended."""


@dataclass(frozen=True)
class Told:
    """A message of a worker: ``kind`` is 'line', 'tick', 'long' (shall it go on so long?) or 'failed'."""

    fold: int
    kind: str
    text: str


def in_processes(
    work: Callable[..., None],
    folds: Sequence[int],
    jobs: int,
    arguments: tuple[Any, ...],
    device: Device,
    deterministic: bool,
    told: Callable[[Told], None],
) -> None:
    """Calls work(fold, device, say, *arguments) for each fold in a process of its own, so many at a time.

    Ctrl-C, or a worker that fails, ends all of them; what each had finished is in its state.

    Args:
        work: a function of a module, and picklable like the arguments.
        folds: their numbers.
        jobs: how many at a time.
        arguments: of work, after the fold, its device and ``say``, a function of (kind, text).
        device: as chosen here; each worker chooses the same for itself.
        deterministic: numbers must be those of folds one after the other: then each worker may use all cores, since
            sums over other numbers of threads are rounded otherwise.
        told: gets the workers' messages, in this process.

    Raises:
        WorkerError: a worker failed; the message is its own.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    gpus, waiting = _gpus() if device.kind == "gpu" else [], list(folds)
    running: dict[int, tuple[int, SpawnProcess]] = {}  # by fold: its slot and its process
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                fold, slot = waiting.pop(0), min(set(range(jobs)) - {slot for slot, _ in running.values()})
                with _Environment(gpus, slot, jobs, deterministic):
                    process = context.Process(
                        target=_worker, args=(work, fold, device, deterministic, messages, arguments), daemon=True
                    )
                    process.start()
                running[fold] = slot, process
            _read(messages, POLL_SECONDS, told)
            for fold, (_, process) in list(running.items()):
                if process.exitcode is None:
                    continue
                until = time.monotonic() + 1  # others go on talking
                while time.monotonic() < until and _read(messages, 0.1, told):  # what it said before it ended
                    pass
                if process.exitcode:
                    raise WorkerError(
                        f"expected the process of fold {fold + 1} to end well. Received: exit code "
                        f"{process.exitcode}; out of memory ends so too: try fewer --jobs, then repeat the command"
                    )
                del running[fold]
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


def _worker(work: Any, fold: int, device: Device, deterministic: bool, messages: Any, arguments: tuple) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    silent = os.open(os.devnull, os.O_WRONLY)
    before = os.dup(2)
    os.dup2(silent, 2)  # TensorFlow's C++ prints lines while it is imported
    try:
        from mgkeras.training.devices import choose_device

        precision = device.policy.removeprefix("mixed_")
        own = choose_device(deterministic, precision=precision, jit=device.jit, s2d_blocks=device.s2d_blocks)
    finally:
        os.dup2(before, 2)
    try:
        work(fold, own, lambda kind, text: messages.put(Told(fold, kind, text)), *arguments)
    except (ValueError, RuntimeError, OSError) as error:
        messages.put(Told(fold, "failed", str(error)))


class _Environment:
    """The variables that a process inherits when it starts: its GPU, or its share of the cores."""

    def __init__(self, gpus: Sequence[str], slot: int, jobs: int, deterministic: bool) -> None:
        self.values = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        if gpus:
            self.values["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        elif not deterministic:
            self.values |= dict.fromkeys(THREADS, str(max(1, cores() // jobs)))

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.values}
        os.environ.update(self.values)

    def __exit__(self, *_: Any) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import tensorflow as tf

    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(place) for place in range(len(tf.config.list_physical_devices("GPU")))]
