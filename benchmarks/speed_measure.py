"""What every engine of speed.py shares: the task, rows of results, clocks, synthetic volumes. It needs NumPy alone.

Glossary:
    engine  one way to do a thing, timed in a process of its own.
    sample  one reading of the clock over a group of steps, or over a window of about a second.
    row     the median and the range of an engine's samples: a line of speed.csv.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRAINING, HELD_OUT = 92, 23  # subjects of a fold of the paper's recurrence outcome
CACHE_BYTES = 1 << 30  # of the synthetic cache at most: small enough to stay in memory, larger than a processor's cache


@dataclass(frozen=True)
class Task:
    """What an engine is to do.

    Attributes:
        side, batch: voxels along the cube's edge, volumes a step.
        steps: samples of a step engine.
        quick: fewer and shorter samples, to see that it runs.
        gpu: whether there is one.
        folder: holds the synthetic cache, and what engines leave for each other.
    """

    side: int
    batch: int
    steps: int
    quick: bool
    gpu: bool
    folder: Path


@dataclass(frozen=True)
class Row:
    """A line of speed.csv. ``key`` is the engine, ``what`` says it in words; numbers are None where nothing ran."""

    section: str  # 'step', 'stream' or 'job'
    key: str
    what: str
    side: int
    batch: int
    unit: str  # 'ms a step', 'volumes/s' or 's'
    median: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    memory_gb: float | None = None  # peak of GPU memory in use
    note: str = ""


def settings_of(side: int, batch: int, **training):
    """Settings of the paper preset's guided model at this side and batch."""
    from mgkeras.settings import Settings, with_values

    values = {"volume.side": side, "training.batch_size": batch}
    return with_values(Settings(), values | {f"training.{name}": value for name, value in training.items()})


def work_of_others(call: Callable[[], object]) -> tuple[object, float]:
    """What the call returns, and the share of all cores that neither it nor its ended child processes took meanwhile.

    The share is 0 where /proc/stat does not say.
    """

    def clocks() -> np.ndarray:
        if not Path("/proc/stat").exists():
            return np.zeros(2)
        ticks = np.array(Path("/proc/stat").read_text().splitlines()[0].split()[1:9], float)
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        idle = ticks[3] + ticks[4]  # the second is waiting for a disk
        return np.array([ticks.sum(), ticks.sum() - idle - used * os.sysconf("SC_CLK_TCK")])

    before = clocks()
    result = call()
    passed, others = clocks() - before
    return result, max(0.0, others / max(1.0, passed))


def row_of(
    section: str,
    key: str,
    what: str,
    task: Task,
    unit: str,
    values: Sequence[float],
    *,
    note: str = "",
    memory_gb: float | None = None,
) -> Row:
    """A row of samples that are in the unit already."""
    numbers = (statistics.median(values), min(values), max(values))
    return Row(
        section,
        key,
        what,
        task.side,
        task.batch,
        unit,
        *(float(f"{n:.5g}") for n in numbers),
        len(values),
        memory_gb and round(memory_gb, 2),
        note,
    )


def step_times(task: Task, run: Callable[[int], None]) -> tuple[list[float], float]:
    """Milliseconds a step, a sample each, and the seconds of the first call.

    Args:
        task: its steps, device and quickness say how many samples of how many steps.
        run: run(n) does n steps and returns when the device has done them.
    """
    began = time.perf_counter()
    run(1)
    first = time.perf_counter() - began
    group = (2 if task.quick else 5) if task.gpu else 1  # a GPU is handed steps without waiting for each
    for _ in range(3 if task.gpu else 1):
        run(group)
    return [1000 * seconds / group for seconds in times(lambda: run(group), task.steps)], first


def times(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of ``count`` calls."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def rates(task: Task, sizes: Iterable[int]) -> list[float]:
    """Volumes a second over windows of at least a second, after a warm-up; ``sizes`` yields each batch's volumes."""
    windows, least = (3, 0.5) if task.quick else (10, 1.5)
    sizes, found = iter(sizes), []
    began = time.perf_counter()
    while time.perf_counter() - began < 2 * least:
        next(sizes)
    while len(found) < windows:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < least:
            done += next(sizes)
        found.append(done / (time.perf_counter() - began))
    return found


def random_volumes(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, side, side, side) float16 in [0, 4] and bool: noise, and a ball as the mask, brighter."""
    rng = np.random.default_rng(seed)
    volumes, masks = np.empty((count, *[side] * 3), np.float16), np.empty((count, *[side] * 3), bool)
    axes = np.ogrid[:side, :side, :side]
    for place in range(count):
        centre = rng.uniform(0.3, 0.7, 3) * side
        masks[place] = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < (side / 10) ** 2
        volumes[place] = np.minimum(rng.random((side, side, side), np.float32) + masks[place], 4)
    return volumes, masks


def labels_of(count: int) -> np.ndarray:
    """(count,) int32 of 0 and 1 in turn."""
    return np.arange(count, dtype=np.int32) % 2


def write_synthetic(folder: Path, side: int) -> None:
    """FOLDER/image-SIDE.npy and mask-SIDE.npy, (n, 3, side, side, side) float16 and bool, as a cache holds them."""
    count = max(4, min(24, CACHE_BYTES // (9 * side**3)))
    volumes, masks = random_volumes(count, side)
    for name, values in (("image", volumes), ("mask", masks)):
        stored = np.lib.format.open_memmap(folder / f"{name}-{side}.npy", "w+", values.dtype, (count, 3, *[side] * 3))
        for place in range(3):
            stored[:, place] = values
        stored.flush()


def read_synthetic(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of write_synthetic as read-only memory maps."""
    return tuple(np.load(folder / f"{name}-{side}.npy", mmap_mode="r") for name in ("image", "mask"))
