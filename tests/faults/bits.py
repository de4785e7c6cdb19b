"""Bits flipped and bytes lost in a cache, which is then opened again: what is used must be what was prepared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from faults.counts import Trial
from faults.processes import forked
from mgkeras.data.cache import cached
from mgkeras.data.cohort import read_cohort
from mgkeras.settings import for_model, preset, with_values

SUBJECTS = 3
SAME, OTHER, TOLD = "the same voxels", "other voxels", "told: "


def trial(seed: int, world: Path, folder: Path, heavy: bool = True) -> Trial:
    """A flipped bit, half of them among the voxels, or a file that is cut off."""
    rng, whole = np.random.default_rng(seed), folder.with_name(f"{folder.name}-cache")
    if not whole.exists():
        _succeed(forked(lambda: cached(*_asked(world), whole), world).status)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    files = sorted(folder.rglob("*.h5"))
    path, what = (
        files[rng.integers(len(files))],
        str(rng.choice(["voxels", "the rest", "cut off"], p=[0.45, 0.45, 0.1])),
    )
    content = bytearray(path.read_bytes())
    among = np.zeros(len(content), bool)
    with h5py.File(path) as file:
        for name in ("image", "mask"):
            among[(start := file[name].id.get_offset()) : start + file[name].nbytes] = True
    if what == "cut off":
        del content[int(rng.integers(len(among))) :]
    else:
        place = int(rng.choice(np.flatnonzero(among == (what == "voxels"))))
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    ended = forked(lambda: _open_again(world, whole, folder), world, longest_s=60)
    outcome = ended.wrong or "signal"
    if not ended.wrong:
        outcome = "silent" if OTHER in ended.said else "remade" if TOLD in ended.said else "same"
        outcome = outcome if SAME in ended.said or OTHER in ended.said else "refused"
    return Trial("bit", what, seed, 1, outcome, {"file": path.name, "said": ended.said[-500:]})


def _succeed(status: int) -> None:
    if status:
        raise RuntimeError(f"expected a cache to be made. Received: status {status}")


def _asked(world: Path):
    settings = with_values(preset("demo"), {"volume.side": 16})
    subjects = read_cohort(world / "phantom" / "cohort.csv", "recurrence").subjects[:SUBJECTS]
    return subjects, replace(for_model(settings, "guided"), outcome="recurrence")


def _open_again(world: Path, whole: Path, folder: Path) -> None:
    found = cached(*_asked(world), folder, tell=lambda line: print(TOLD + line))
    print(SAME if _values(found) == _values(cached(*_asked(world), whole)) else OTHER)


def _values(cache) -> list:
    voxels = [np.asarray(array[row]).tobytes() for array in (cache.image, cache.mask) for row in range(SUBJECTS)]
    return [*voxels, cache.subjects, cache.voxel_mm.tolist(), cache.reports]
