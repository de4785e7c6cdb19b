"""Folds side by side, and one fold of a job array: the same files as one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli

from mgkeras.runs import store
from mgkeras.settings import MODELS, for_model, preset, with_values
from mgkeras.training.workers import Told, in_processes

SMALL = "--preset demo --side 16 --folds 2 --epochs 2 --batch-size 4 --shift-voxels 1 --deterministic".split()
COMPARED = ("predictions.csv", "attention.csv", "summary.json", "folds.json", "masks.csv")


def arguments(phantom, out, cache, *more):
    options = ["--cohort", str(phantom), "--outcome", "recurrence", "--model", "guided", *SMALL]
    return ["fit", *options, "--out", str(out), "--cache", str(cache), *more]


def fit(*given):
    found = CliRunner().invoke(cli, arguments(*given))
    assert found.exit_code == 0, found.output
    return found.output


def same(run, other):
    for name in COMPARED:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_two_folds_at_a_time_give_the_same_bytes(plain, phantom, tmp_path):
    told = fit(phantom, tmp_path / "run", plain[1], "--jobs", "2")
    assert "2 folds at a time" in told and "guided: fold 1/2" in told and "guided: fold 2/2" in told
    same(tmp_path / "run", plain[0])


@pytest.mark.slow
def test_folds_of_all_models_side_by_side_give_the_same_bytes(plain, phantom, tmp_path):
    told = fit(phantom, tmp_path / "all", plain[1], "--model", "all", "--jobs", "2")
    assert all(f"{model}: fold 2/2" in told for model in MODELS) and (tmp_path / "all" / "comparison").exists()
    same(tmp_path / "all" / "guided", plain[0])


def test_folds_of_a_job_array_in_any_order_give_the_same_bytes(plain, phantom, tmp_path):
    run = tmp_path / "run"
    assert "summary.json needs all" in fit(phantom, run, plain[1], "--fold", "2")
    assert [folder.name for folder in store.done_folds(run)] == ["fold_1"] and not (run / "summary.json").exists()
    assert "pooled out-of-fold AUC" in fit(phantom, run, plain[1], "--fold", "1")
    same(run, plain[0])
    found = CliRunner().invoke(cli, arguments(phantom, run, plain[1], "--fold", "3"))
    assert found.exit_code and "expected --fold from 1 to 2. Received: 3" in str(found.exception)


def test_a_fold_that_another_process_trains_is_refused(plain, phantom, tmp_path):
    run = tmp_path / "run"
    with store.locked(run / "fold_0"):
        found = CliRunner().invoke(cli, arguments(phantom, run, plain[1], "--fold", "1"))
    assert found.exit_code and "another process is working in" in str(found.exception)


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked here.*start no second process"), store.locked(tmp_path):
        pass


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_its_workers_and_goes_on_to_the_same_bytes(plain, phantom, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "mgkeras", *arguments(phantom, run, plain[1], "--jobs", "2")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(run.glob("fold_*/state.h5")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    children = [int(pid) for pid in _children(process.pid)]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (130, 0)
    until = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in children) and time.monotonic() < until:
        time.sleep(0.2)
    assert children and not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    fit(phantom, run, plain[1], "--jobs", "2")
    same(run, plain[0])


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_end_with_the_process_that_started_them(how):
    code = (
        "from mgkeras.training.workers import in_processes\n"
        "import test_jobs\n"
        "if __name__ == '__main__':\n"
        "    told = lambda message: print(message.text, flush=True)\n"
        "    in_processes(test_jobs.sleeps, [0, 1], 2, {}, False, told)"
    )
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=there)
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(how)
    process.wait(60)
    until = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [pid for pid in pids if _alive(pid)]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleeps(fold, device, console):
    console.line(str(os.getpid()))
    time.sleep(300)


def talks(fold, device, console):
    """Fold 0 says something every 0.05 s until fold 2 has begun; folds 1 and 2 end at once."""
    folder = os.environ["TALKS"]
    open(os.path.join(folder, str(fold)), "w").close()
    until = time.monotonic() + 240
    while not fold and not os.path.exists(os.path.join(folder, "2")) and time.monotonic() < until:
        console.tick("still there")
        time.sleep(0.05)
    console.line(f"{fold} {time.monotonic() < until}")


@pytest.mark.slow
def test_a_free_place_is_taken_while_another_fold_talks(tmp_path, monkeypatch):
    monkeypatch.setenv("TALKS", str(tmp_path))
    lines: list[Told] = []
    in_processes(talks, [0, 1, 2], 2, {}, False, lines.append)
    assert {told.text for told in lines if told.kind == "line"} == {"0 True", "1 True", "2 True"}


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def fails(fold, device, console):
    console.line(f"fold {fold} begins")
    if fold == 1:
        raise ValueError("expected another fold. Received: 1")
    time.sleep(60)


def dies(fold, device, console):
    os._exit(9)


def test_a_worker_that_fails_ends_all_with_its_message():
    lines: list[Told] = []
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Received: 1"):
        in_processes(fails, [0, 1], 2, {}, False, lines.append)
    assert "fold 1 begins" in {told.text for told in lines} and time.monotonic() - began < 55


def test_a_worker_that_is_killed_is_an_error():
    with pytest.raises(RuntimeError, match="exit code 9"):
        in_processes(dies, [0], 2, {}, False, lambda told: None)


def test_the_time_that_is_left_is_that_of_all_models(tmp_path, monkeypatch):
    from mgkeras.cli import fit as command
    from mgkeras.cli.pool import Cluster

    from mgkeras.training import crossval
    from mgkeras.training.devices import Device
    from mgkeras.training.progress import Clock, Console

    small = with_values(preset("demo"), {"training.folds": 3, "training.epochs": 10})
    runs = [(for_model(small, model), tmp_path / model) for model in MODELS]
    store.write_json(tmp_path / MODELS[0] / "fold_1" / "done.json", {})
    store.write_json(tmp_path / MODELS[3] / "fold_0" / "done.json", {})
    later = []
    monkeypatch.setattr(crossval, "cross_validate", lambda *_, **options: later.append(options["later"]) or tmp_path)
    monkeypatch.setattr(command, "headline", str)
    parts = {"trust": False, "yes": True, "jobs": 1, "only": None, "cluster": Cluster(), "later": 1.5}
    command.fit_runs(None, runs, tmp_path, {}, parts, command.Terminal())
    assert later == [9.5, 6.5, 3.5, 1.5]
    command.fit_runs(None, runs, tmp_path, {}, {**parts, "only": 0}, command.Terminal())
    assert later[4:] == [3.5, 2.5, 1.5, 1.5]  # the first fold of each, of which the last has it
    lines = []
    console = Console(lines.append, lines.append)
    clock = Clock(runs[0][0], console, 2 + later[0])
    clock.begin(0, 4, 8)
    clock.pace(1.0, 6, Device("cpu", "float32", False, ""))
    assert "about 1 min 0 s for a fold, 11 min 30 s for all that is left" in lines[-1]
    clock.begin(2, 4, 8)
    clock.pace(1.0, 6, Device("cpu", "float32", False, ""))
    assert "10 min 30 s for all that is left" in lines[-1]


def test_of_folds_side_by_side_those_that_begin_later_have_less_left():
    from mgkeras.training.crossval import _side_by_side
    from mgkeras.training.fold import FoldJob
    from mgkeras.training.progress import Console

    begun = []
    engine = SimpleNamespace(waits=False, width=lambda: 3, run=lambda work, tasks, *_: begun.extend(tasks))
    tasks = [FoldJob(None, number, preset("demo"), None, None, None) for number in range(8)]
    _side_by_side(tasks, engine, Console(lambda text: None, lambda text: None), 6)
    assert [task.rounds for task in begun] == [5, 5, 5, 4, 4, 4, 3, 3]


def test_after_ten_steps_the_whole_runs_time_is_told_and_days_on_a_cpu_want_a_yes(
    phantom, plain, tmp_path, monkeypatch
):
    from mgkeras.training import progress

    monkeypatch.setattr(progress, "LONG_SECONDS", 0.0)
    many = ["--variants-per-epoch", "34", "--epochs", "1"]
    given = [*arguments(phantom, tmp_path / "run", plain[1]), *many]
    found = CliRunner().invoke(cli, given)
    assert found.exit_code and "more than a day on a CPU wants --yes" in str(found.exception)
    assert "a step takes " in found.output and " for all that is left" in found.output
    assert CliRunner().invoke(cli, [*given, "--yes"]).exit_code == 0
