"""Processes that work beside a command: none outlives it, and none speaks when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from mgkeras.cli.pool import work_on

SCRIPT = """
import sys, time
from mgkeras.cli.pool import work_on

def work(folder):
    import os, pathlib
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(work_on([sys.argv[1]] * 8, work, 2, lambda task, why: None))
"""


def double(number):
    return 2 * number


def ends_itself(number):
    if number == 3:
        os._exit(1)
    return 2 * number


def test_results_come_in_order_and_a_lost_process_costs_its_own_task_alone():
    assert list(work_on(range(9), double, 2, lambda *_: "lost")) == [2 * number for number in range(9)]
    found = list(work_on(range(6), ends_itself, 2, lambda task, why: f"{task}: {why}"))
    assert found[:3] + found[4:] == [0, 2, 4, 8, 10] and found[3].startswith("3: its process ended")


def alive(process):
    """Whether a process runs; a process that ended and that nobody waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are found in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_command_and_none_speaks(how, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "seen").mkdir()
    command = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "seen"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while len(seen := os.listdir(tmp_path / "seen")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(seen) == 2
    if how == signal.SIGINT:  # a terminal sends it to all
        os.killpg(command.pid, how)
        for worker in seen:
            assert alive(worker)  # they did not hear it: the command ends them
        os.killpg(command.pid, signal.SIGKILL)
    else:
        command.send_signal(how)
    _, told = command.communicate(timeout=30)
    until = time.monotonic() + 20
    while any(alive(worker) for worker in seen) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in seen)
    assert "importlib" not in told and told.count("Traceback") <= 1  # the command's own
