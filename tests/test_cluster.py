"""Folds on a Dask cluster of processes on the loopback: the same files as one after the other, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import cli
from test_jobs import arguments, fit, same

from mgkeras.data import cache as caching
from mgkeras.data.volume import ExamError
from mgkeras.errors import InputError
from mgkeras.runs import store
from mgkeras.settings import with_values
from mgkeras.training.cluster import ClusterError, Workers, connected, read_cluster, work_there

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'mgkeras[cluster]'")
QUIET_PAGE = ["--dashboard-address", "127.0.0.1:0"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@contextmanager
def started(*command, **options):
    """A process that is killed at the end."""
    options = {**QUIET, "env": {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}, **options}
    process = subprocess.Popen([sys.executable, "-m", *map(str, command)], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scheduler(port=0):
    """A Dask scheduler as a process, and its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        port = listener.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", port, *QUIET_PAGE]
    with started("distributed.cli.dask_scheduler", *options) as process:
        yield process, address


def worker(address, *more, home):
    options = ["--nthreads", "1", "--no-nanny", *QUIET_PAGE, "--host", "127.0.0.1", "--local-directory", home]
    return started("distributed.cli.dask_worker", address, *options, *more)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The address of a scheduler with two workers, and the workers."""
    home = tmp_path_factory.mktemp("dask")
    with ExitStack() as stack:
        _, address = stack.enter_context(scheduler())
        yield address, [stack.enter_context(worker(address, home=home)) for _ in range(2)]


@pytest.mark.slow
def test_folds_on_two_workers_give_the_same_bytes(two, plain, phantom, tmp_path):
    told = fit(phantom, tmp_path / "run", tmp_path / "cache", "--scheduler", two[0])
    assert "volumes 12/12" in told and len(list((tmp_path / "cache" / "exams").iterdir())) == 12
    assert "guided: fold 1/2" in told and "guided: fold 2/2" in told and "pooled out-of-fold AUC" in told
    same(tmp_path / "run", plain[0])


def test_exams_that_two_workers_prepare_are_those_of_this_machine(two, cohort, small, tmp_path, monkeypatch):
    tiny, counted = with_values(small, {"volume.side": 16}), []
    here = caching.cached(cohort.subjects[:6], tiny, tmp_path / "here")
    caching.cached(cohort.subjects[1:2], tiny, tmp_path / "there")
    monkeypatch.setattr(caching, "_prepared", lambda *_: pytest.fail("made in this process"))
    monkeypatch.setattr(Workers, "parts", lambda self, ones: [ones[:3], ones[3:]])
    monkeypatch.chdir(cohort.path.parent)  # paths are relative, and workers stand elsewhere
    own = [replace(subject, early=Path(os.path.relpath(subject.early))) for subject in cohort.subjects[:6]]
    with connected(two[0], None, print) as dask:
        there = caching.cached(
            own, tiny, tmp_path / "there", lambda *count: counted.append(count), elsewhere=Workers(dask, {}).exams
        )
        assert counted == [(3, 5), (5, 5)]
        for row in range(6):
            assert np.array_equal(here.image[row], there.image[row]) and np.array_equal(here.mask[row], there.mask[row])
        (tmp_path / "broken.nii.gz").write_bytes(b"broken")
        broken = replace(own[0], name="broken", early=tmp_path / "broken.nii.gz")
        with pytest.raises(ExamError, match="broken.nii.gz"):
            caching.cached([broken], tiny, tmp_path / "there", elsewhere=Workers(dask, {}).exams)


def test_dicom_that_two_workers_convert_is_that_of_this_machine(two, tmp_path, monkeypatch):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mgkeras[import]'")
    from miniatures import dicom

    volumes, affine = dicom.phantom_phases(1)[1:]
    for name in ("A1", "A2", "A3"):
        layout = "several-series"
        dicom.save(dicom.exam(name, volumes, affine, layout)[: -1 if name == "A2" else None], tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    for out, more in (("here", []), ("there", ["--scheduler", two[0]])):
        found = CliRunner().invoke(cli, ["import", "dicom", "in", out, *more])
        assert found.exit_code == 0, found.output
    files = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert len(files) == 8 and "slices are missing" in (tmp_path / "there" / "data-sheet.md").read_text()
    for path in files:
        assert (tmp_path / "here" / path).read_bytes() == (tmp_path / "there" / path).read_bytes(), path


def test_masks_of_two_workers_are_those_of_this_machine(two, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(phantom.parent)
    for folder, more in (("here", ["--jobs", "1"]), ("there", ["--scheduler", two[0]])):
        given = ["mask", phantom.name, "--out", os.path.relpath(tmp_path / folder), *more]
        found = CliRunner().invoke(cli, given)
        assert found.exit_code == 0, found.output
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "there").iterdir()) and len(names) == 15
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


@pytest.mark.slow
def test_predictions_and_probes_of_two_workers_are_those_of_this_machine(two, plain, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(phantom.parent)
    rows = {}
    for where, more in (("here", []), ("there", ["--scheduler", two[0]])):
        shutil.rmtree(plain[0] / "probes", ignore_errors=True)
        given = ["predict", plain[0], phantom.name, "--out", tmp_path / where, *more]
        found = CliRunner().invoke(cli, list(map(str, given)))
        assert found.exit_code == 0, found.output
        given = ["evaluate", plain[0], "--cache", plain[1], "--out", tmp_path / "scores", *more]
        found = CliRunner().invoke(cli, [*map(str, given), "--occlusions", "1", "--samples", "100"])
        assert found.exit_code == 0, found.output
        rows[where] = [store.read_rows(tmp_path / where / "predictions.csv")]
        rows[where].append(store.read_rows(plain[0] / "probes" / "subjects.csv"))
    for here, there in zip(rows["here"], rows["there"], strict=True):
        assert [row["subject"] for row in here] == [row["subject"] for row in there] and len(here) == 12
        assert here[0].keys() == there[0].keys()
    for local, other in zip(rows["here"][0], rows["there"][0], strict=True):
        # sums over other numbers of threads are rounded otherwise
        assert float(local["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)


def test_an_exam_that_ends_its_workers_is_lost_alone(two):
    with connected(two[0], None, print) as dask:
        found = list(work_there(dask, ["a", "dies", "b"], upper, lambda task, why: why, apart=True))
    assert found[::2] == ["A", "B"] and "memory runs out" in found[1]


def upper(task):
    """Work in a process of its own, which one task ends."""
    if task == "dies":
        os._exit(9)
    return task.upper()


def ends(task, device, console):
    """Work that fails where its task says so, and else goes on for minutes."""
    if task == "fails":
        raise ValueError("expected another task. Received: this one")
    console.line(str(os.getpid()))
    time.sleep(300)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--nthreads", "2", "--no-nanny"], "Dask workers of one thread.*Received: 2"),
        (["--nthreads", "1", "--nanny"], "dask worker --no-nanny"),
    ],
)
@pytest.mark.slow
def test_workers_that_cannot_train_are_told(options, error, tmp_path):
    with scheduler() as (_, address), worker(address, *options, home=tmp_path), connected(address, None, print) as dask:
        with pytest.raises(RuntimeError, match=error):
            Workers(dask, {}).run(ends, ["fails"], False, print)


def test_no_scheduler_is_told(monkeypatch):
    monkeypatch.setattr("mgkeras.training.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match="expected a Dask scheduler at tcp://127.0.0.1:9"):
        with connected("tcp://127.0.0.1:9", None, print):
            pass


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("system = ", "expected a TOML file"),
        ("jobs = 2", "expected system = one of slurm, pbs, lsf, sge. Received: None"),
        ('system = "slurm"\njobs = 0', "expected jobs = a number from 1. Received: 0"),
    ],
)
def test_what_is_wrong_with_a_clusters_file_is_told(text, error, tmp_path):
    (tmp_path / "slurm.toml").write_text(text)
    with pytest.raises(InputError, match=error):
        read_cluster(tmp_path / "slurm.toml")


def _until(true, seconds=300):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def _holder(folder):
    """The process that has the lock of a fold's folder open, and its parent."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == str(folder / ".lock") for fd in (process / "fd").iterdir()):
                parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
                return int(process.name), int(parent)
        except OSError:
            continue
    return None


@contextmanager
def fitting(*given):
    """`mgkeras fit` as a process, once a fold has finished its first epoch; that fold's folder."""
    with started("mgkeras", *arguments(*given), stderr=subprocess.PIPE, text=True) as process:
        yield process, _until(lambda: next(given[1].glob("fold_*/state.h5"), None)).parent


@pytest.mark.slow
def test_a_fold_whose_worker_is_killed_goes_on_elsewhere_from_its_last_epoch(plain, phantom, tmp_path):
    run = tmp_path / "run"
    with ExitStack() as stack:
        _, address = stack.enter_context(scheduler())
        workers = [stack.enter_context(worker(address, home=tmp_path)) for _ in range(2)]
        process, folder = stack.enter_context(fitting(phantom, run, plain[1], "--scheduler", address))
        _, parent = _until(lambda: _holder(folder))
        assert parent in [worker.pid for worker in workers]
        os.kill(parent, signal.SIGKILL)
        told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told
    assert told.count("subjects to train on") == 3 and "going on from the last finished epoch" in told
    same(run, plain[0])


@pytest.mark.slow
def test_after_a_killed_scheduler_the_same_command_goes_on(plain, phantom, tmp_path):
    run = tmp_path / "run"
    with ExitStack() as stack:
        first, address = stack.enter_context(scheduler())
        for _ in range(2):
            stack.enter_context(worker(address, home=tmp_path))
        process, folder = stack.enter_context(fitting(phantom, run, plain[1], "--scheduler", address))
        first.kill()
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 1 and "expected the scheduler to stay until all is done" in told, told
        assert "Traceback" not in told and not (run / "summary.json").exists()
        _until(lambda: not _holder(folder))
    with scheduler() as (_, address), worker(address, home=tmp_path), worker(address, home=tmp_path):
        fit(phantom, run, plain[1], "--scheduler", address)
    same(run, plain[0])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_folds_on_a_cluster_end_with_the_command(how, two, plain, phantom, tmp_path):
    run = tmp_path / "run"
    with fitting(phantom, run, plain[1], "--scheduler", two[0]) as (process, folder):
        process.send_signal(how)
        process.communicate(timeout=60)
        _until(lambda: not _holder(folder), 60)
    fit(phantom, run, plain[1], "--scheduler", two[0])
    same(run, plain[0])


@pytest.mark.slow
def test_jobs_of_slurm_train_the_folds(plain, phantom, tmp_path, monkeypatch):
    """Stand-ins of sbatch and scancel run a job's script as a process; SLURM itself is not here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        (
            "sbatch",  # as SLURM it keeps the script, which is removed once this has returned
            f'cp "$1" {tmp_path}/job; cp "$1" {tmp_path}/job-$$; '
            f'setsid bash {tmp_path}/job-$$ >{tmp_path}/log 2>&1 & echo "Submitted batch job $!"',
        ),
        ("scancel", 'kill -- "-$1"'),
    ):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    file = tmp_path / "slurm.toml"
    file.write_text(
        'system = "slurm"\njobs = 2\nqueue = "gpu"\nmemory = "4GB"\njob_cpu = 8\nwalltime = "12:00:00"\n'
        'interface = "lo"\njob_extra_directives = ["--gres=gpu:1"]\n'
    )
    told = fit(phantom, tmp_path / "run", plain[1], "--cluster", str(file))
    same(tmp_path / "run", plain[0])
    assert "2 jobs of slurm are asked for" in told
    script = (tmp_path / "job").read_text()
    assert "#SBATCH --gres=gpu:1" in script and "#SBATCH --cpus-per-task=8" in script
    assert "--nthreads 1 " in script and "--no-nanny" in script
