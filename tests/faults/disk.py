"""A full disk: a command writes into a file system that has less room than it needs, then again with enough."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from faults.counts import Trial
from faults.kills import commands, judged, undisturbed
from faults.processes import forked, mgkeras
from faults.world import Command, contents, copied, different

WORDS = ("No space left", "free. Make room", "File too large", "cannot be written", "could not be written")


@cache
def mounts() -> bool:
    """Whether this process may mount a small file system; else the size of each file is limited instead."""
    if os.geteuid():
        return False
    return forked(lambda: _try_to_mount(), Path("/")).status == 0


def _try_to_mount() -> None:
    import tempfile

    folder = tempfile.mkdtemp()
    status = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]).returncode
    if status == 0:
        subprocess.run(["umount", folder], check=True)
    os.rmdir(folder)
    raise SystemExit(status)


def trial(seed: int, world: Path, folder: Path, heavy: bool = True) -> Trial:
    """A command with a random share of the room that it needs; then with enough."""
    rng = np.random.default_rng(seed)
    command = (among := commands(heavy))[rng.integers(len(among))]
    expected = undisturbed(command.name, world, folder)
    share = float(rng.uniform(0, 1))
    if mounts():
        return _in_small_room(command, share, seed, world, folder.with_name(f"{folder.name}-room"), expected)
    copied(world, folder)
    largest = max(len(content) for content in expected.contents.values())
    ended = mgkeras(command.words, folder, before=lambda: _limit_files(int(share * largest)))
    return _told(command, "largest file", share, seed, folder, ended, expected)


def _in_small_room(command: Command, share: float, seed: int, world: Path, folder: Path, expected) -> Trial:
    needed = sum(-(-len(content) // 4096) * 4096 for content in expected.contents.values())
    with _mounted(folder, 4 * needed + (16 << 20)) as resize:
        shutil.copytree(world, folder, dirs_exist_ok=True)
        used = (status := os.statvfs(folder)).f_frsize * (status.f_blocks - status.f_bfree)
        resize(int(used + share * max(needed - used, 0)) // 4096 * 4096 + 4096)
        ended = command.run(folder)
        resize(4 * needed + (16 << 20))
        return _told(command, "room", share, seed, folder, ended, expected)


@contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    if os.path.ismount(folder):  # of a harness that was killed
        subprocess.run(["umount", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield lambda to: subprocess.run(["mount", "-o", f"remount,size={to}", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _told(command: Command, of: str, share: float, seed: int, folder: Path, ended, expected) -> Trial:
    """A full disk is to be told; with room again the command is to end as an undisturbed command does."""
    lines = [line for line in ended.said.splitlines() if any(words in line for words in WORDS)]
    told, named = bool(lines), any("/" in line for line in lines)
    whole = ended.status == 0 and not different(contents(folder), expected.contents)
    again, more = judged(command, folder, expected, [])
    noticed = "silent" if not told else "unnamed" if not named else "refused" if ended.status else "told"
    outcome = ended.wrong or ("same" if whole else noticed)
    about = {"share": round(share, 3), "of": of, "status": ended.status, "said": ended.said[-600:], "again": again}
    return Trial("disk", command.name, seed, 1, outcome if again == "same" else again, about | more)
