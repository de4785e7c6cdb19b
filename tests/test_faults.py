"""A few faults of each kind that need no TensorFlow, and whether the harness would notice what is wrong.

`make test-faults N=1000` tries many of all kinds, see docs/integrity.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.counts import WRONG, Trial, append, read, table

TESTS = Path(__file__).resolve().parent
QUICK = {"kill": 8, "bit": 12, "disk": 4, "lie": 6}
if not sys.platform.startswith("linux"):
    pytest.skip("the harness reads /proc and forks as Linux does", allow_module_level=True)


def harness(*words, **options):
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, **options)


def test_a_few_of_each_kind_are_not_wrong(tmp_path):
    kinds = ",".join(f"{kind}:{count}" for kind, count in QUICK.items())
    words = ("--light", "--kinds", kinds, "--work", tmp_path, "--log", tmp_path / "log")
    done = harness("-m", "faults", *words, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    trials = read(tmp_path / "log")
    for kind, count in QUICK.items():
        assert (
            sum(trial.tried for trial in trials if trial.kind == kind) >= count and f"| {kind} | all | " in done.stdout
        )
    assert not any(trial.wrong for trial in trials)


PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from faults import kills, processes
from faults.world import Command
folder = Path(sys.argv[1])
"""
TORN = """
class Torn(Command):
    def run(self, folder, **options):
        def work():
            if not Path("out.txt").exists():
                with open("out.txt", "w") as file:
                    for part in range(20):
                        file.write(str(part)), file.flush(), time.sleep(0.01)
        return processes.forked(work, folder, **options)

kills.BY_NAME["torn"] = torn = Torn("torn", "", 1)
kills.commands = lambda heavy: [torn]
(folder / "world").mkdir()
print({kills.trial(seed, folder / "world", folder / "trial").outcome for seed in range(8)})
"""
ENDS = """
processes.PATIENCE_S = 0.2
ends = {
    "": lambda: print("Error: expected so. Received: that") or sys.exit(1),
    "traceback": lambda: 1 / 0,
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hung": lambda: time.sleep(60),
    "orphan": lambda: subprocess.Popen(["sleep", "60"]),
}
for expected, work in ends.items():
    found = processes.forked(work, folder, longest_s=1.0)
    assert found.wrong == expected, (expected, found)
killed = processes.forked(lambda: [open("a", "w"), os.rename("a", "b"), open("c", "w")], folder, kill_at_change=3)
assert killed.status == -9 and killed.changes == 3 and os.listdir(folder) == ["b"], (killed, os.listdir(folder))
print("told")
"""


def test_a_file_that_is_not_written_whole_is_noticed(tmp_path):
    done = harness("-c", PRELUDE + TORN, tmp_path, timeout=120)
    assert done.returncode == 0 and "wrong" in done.stdout, done.stderr


def test_every_bad_end_of_a_process_is_told_apart(tmp_path):
    done = harness("-c", PRELUDE + ENDS, tmp_path, timeout=120)
    assert done.returncode == 0 and "told" in done.stdout, done.stderr


def test_counts_are_kept_and_added_up(tmp_path):
    trials = [Trial("kill", "fit", seed, 2, outcome) for seed, outcome in enumerate(["same", "same", "refused"])]
    trials += [Trial("bit", "voxels", 0, 1, "remade"), Trial("bit", "voxels", 1, 1, "silent")]
    for trial in trials:
        append(tmp_path / "0.jsonl", trial)
    with open(tmp_path / "0.jsonl", "a") as file:
        file.write('{"kind": "kill", "wha')  # of a harness that was killed itself
    assert read(tmp_path) == trials
    assert [trial.wrong for trial in trials] == [False, False, True, False, True]
    rows = {tuple(line.split(" | ")[:3]): line.split(" | ")[3:] for line in table(trials).splitlines()}
    head, fit = rows["| what", "of", "tried"], rows["| kill", "fit", "6"]
    assert fit[head.index("same")] == "4" and fit[head.index("refused")] == "2"
    assert set(WRONG) <= {name.removesuffix(" |") for name in head}
    assert rows["| bit", "all", "2"][head.index("silent")] == "1"
