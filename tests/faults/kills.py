"""SIGKILL at random moments; then the command is repeated to its end, which must be that of an undisturbed command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from faults.counts import Trial
from faults.processes import Ended
from faults.world import BY_NAME, COMMANDS, PART, Command, contents, copied, different

MOST = 3  # kills of a command before it may end


@dataclass(frozen=True)
class Undisturbed:
    """How a command ends that nobody kills, and what is there then."""

    ended: Ended
    contents: dict[str, bytes]


@cache
def undisturbed(command: str, world: Path, folder: Path) -> Undisturbed:
    """The command from its beginning to its end, in a copy of the world.

    Raises:
        RuntimeError: it did not succeed.
    """
    ended = BY_NAME[command].run(copied(world, folder))
    if ended.status or ended.wrong:
        raise RuntimeError(f"expected {command} to succeed. Received: {ended}")
    return Undisturbed(ended, contents(folder))


def commands(heavy: bool) -> list[Command]:
    """Those that can be tried, each as often as its share says."""
    return [command for command in COMMANDS if heavy or not command.heavy for _ in range(command.share)]


def trial(seed: int, world: Path, folder: Path, heavy: bool = True) -> Trial:
    """MOST kills of a command or fewer, half of them at a random time, half just before a change of a file; none is
    counted where it ended before."""
    rng = np.random.default_rng(seed)
    command = (among := commands(heavy))[rng.integers(len(among))]
    expected = undisturbed(command.name, world, folder)
    copied(world, folder)
    kills, when, ends = 0, [], []
    for _ in range(int(rng.integers(1, MOST + 1))):
        if rng.random() < 0.5:
            how = {"kill_after_s": float(rng.uniform(0, expected.ended.seconds))}
        else:
            how = {"kill_at_change": int(rng.integers(1, expected.ended.changes + 1))}
        ends.append(command.run(folder, kill_all=bool(rng.random() < 0.5), **how))
        when.append(how)
        if ends[-1].status != -9:
            break
        kills += 1
    left = sum(bool(PART.fullmatch(path.name)) for path in folder.rglob("*"))
    outcome, about = judged(command, folder, expected, [end for end in ends if end.status != -9 or end.orphans])
    told = {"kills": when, "left": left, **about}
    return Trial("kill", command.name, seed, kills, outcome, told)


def judged(command: Command, folder: Path, expected: Undisturbed, ends: list[Ended]) -> tuple[str, dict]:
    """The outcome once the command was repeated to its end, and more where it is not 'same'."""
    ends = [*ends, command.run(folder)]
    for ended in ends:
        if ended.wrong:
            return ended.wrong, {"said": ended.said[-1500:]}
    if ends[-1].status:
        return "refused", {"said": ends[-1].said[-1500:]}
    names = different(*map(versions_as_one, (contents(folder), expected.contents)))
    return ("wrong", {"different": names[:20]}) if names else ("same", {})


def versions_as_one(found: dict[str, bytes]) -> dict[str, bytes]:
    """Exported versions have the same files each, so that all of them are compared with the first."""
    kept: dict[str, bytes] = {}
    for name, content in found.items():
        first = re.sub(r"^out/model/\d+/", "out/model/1/", name)
        kept[first if kept.get(first, content) == content else name] = content
    return kept
