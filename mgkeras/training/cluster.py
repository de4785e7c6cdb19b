"""Work on a cluster by Dask, which needs the extra ``cluster`` (distributed, dask-jobqueue).

A fold is a task of a Dask worker. The worker starts a process for it, as ``--jobs`` does, since Dask runs tasks in
threads of the worker: a thread could not be ended, would leave TensorFlow's memory behind, and would share its
settings with the task before. Run and cache lie on a folder that all machines share.
"""

from __future__ import annotations

import functools
import logging
import queue
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from itertools import accumulate
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgkeras.data.cache import cached
from mgkeras.data.cohort import FILE_COLUMNS, Cohort, Subject
from mgkeras.data.io import read_toml
from mgkeras.data.volume import ExamError
from mgkeras.errors import InputError, MgkerasError
from mgkeras.settings import Settings
from mgkeras.training.workers import POLL_SECONDS, Told, Work, WorkerError, end_with_parent, in_processes

if TYPE_CHECKING:
    from distributed import Client

    from mgkeras.inference.score import Score

SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
CONNECT_SECONDS = 30
PART = 50  # ours: exams a task at most, so that a lost worker's are soon made again
OF_A_JOB = {  # what a file may override
    "cores": 1,  # threads of its worker, since a fold uses all cores of its job
    "processes": 1,
    "nanny": False,  # whose children may start no process
    "scheduler_options": {"dashboard_address": "127.0.0.1:0"},  # not for others to see
    "worker_extra_args": ["--dashboard-address", "127.0.0.1:0"],
}

GONE = (
    "expected the scheduler to stay until all is done. Received: it is gone. Repeat the command once it runs again: "
    "what is done is kept, and folds go on from their last epoch"
)


class ClusterError(MgkerasError, RuntimeError):
    """A cluster cannot be used as asked; the message says why and what to do."""


@contextmanager
def connected(scheduler: str | None, file: Path | None, say: Callable[[str], None]) -> Iterator[Client]:
    """A client of a Dask scheduler: of one that runs, or of one whose workers are jobs of a batch system.

    Args:
        scheduler: address, as tcp://HOST:8786.
        file: instead, the TOML file of a batch system; docs/clusters.md tells its keys. Its jobs end with this.
        say: gets a line.

    Raises:
        ClusterError: Dask is not installed, or no scheduler answers.
        InputError: the file cannot be used.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("a cluster needs Dask. Received: none; pip install 'mgkeras[cluster]'") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is told here, once
    if file is None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(f"expected a Dask scheduler at {scheduler}. Received: {error}") from None
        with client:
            say(f"scheduler {scheduler}: {len(client.scheduler_info(n_workers=-1)['workers'])} workers")
            yield client
        return
    system, jobs, options = read_cluster(file)
    import dask_jobqueue

    try:
        cluster = getattr(dask_jobqueue, SYSTEMS[system])(**OF_A_JOB | options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: expected options of dask_jobqueue.{SYSTEMS[system]}. Received: {error}") from None
    with cluster, Client(cluster, set_as_default=False) as client:
        cluster.scale(jobs=jobs)
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # another for each that ends, at its time limit for example
        say(f"{jobs} jobs of {system} are asked for; work begins as they start")
        yield client


def read_cluster(file: Path) -> tuple[str, int, dict[str, Any]]:
    """A batch system's TOML file: its name in SYSTEMS, how many jobs, and the options of dask_jobqueue's class.

    Raises:
        InputError: the file is no TOML, names another system, or no number of jobs.
    """
    try:
        options = read_toml(file)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a TOML file at {file}. Received: {error}") from None
    system, jobs = options.pop("system", None), options.pop("jobs", None)
    if system not in SYSTEMS:
        raise InputError(f"{file}: expected system = one of {', '.join(SYSTEMS)}. Received: {system!r}")
    if not isinstance(jobs, int) or jobs < 1:
        raise InputError(f"{file}: expected jobs = a number from 1. Received: {jobs!r}")
    return system, jobs, options


@dataclass(frozen=True)
class Workers:
    """The workers of a Dask cluster as an engine of folds, see training.workers.Engine.

    Args:
        client: from connected.
        how: the arguments of choose_device, which each worker chooses its own device by.
    """

    client: Client
    how: Mapping[str, Any]
    waits = True

    def width(self) -> int:
        """How many workers there are now, or are asked for."""
        there = len(self.client.scheduler_info(n_workers=-1)["workers"])
        return max(1, there, len(getattr(self.client.cluster, "plan", ())))

    def parts(self, exams: Sequence[Any]) -> list[Sequence[Any]]:
        """The exams in order in parts, some for each worker, since to begin a process for each takes long."""
        size = max(1, min(PART, len(exams) // (4 * self.width())))
        return [exams[start : start + size] for start in range(0, len(exams), size)]

    def exams(self, subjects: Sequence[Subject], settings: Settings, folder: Path) -> Iterator[int]:
        """Makes exams of the cache at ``folder`` on the workers, see data.cache.Elsewhere.

        Raises:
            ExamError, CacheError: as data.cache.cached. WorkerError: exams ended each worker that took them.
        """

        def lost(task: tuple[Sequence[Subject], Settings, Path], why: str) -> int:
            names = ", ".join(subject.name for subject in task[0])
            raise WorkerError(f"expected the exams of {names} to be prepared on the cluster. Received: {why}")

        tasks = [([_absolute(subject) for subject in part], settings, folder) for part in self.parts(subjects)]
        yield from accumulate(work_there(self.client, tasks, _prepare, lost, apart=True))

    def run(self, work: Work, tasks: Sequence[Any], deterministic: bool, told: Callable[[Told], None]) -> None:
        """Calls work(task, device, console) for each task in a process that a worker starts.

        A task whose worker is lost goes to another one. Ctrl-C, or a task that fails, ends all.

        Raises:
            WorkerError: a task failed, with its own message.
            ClusterError: the scheduler is gone.
        """
        topic = f"mgkeras-{uuid.uuid4().hex}"
        messages: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self.client.subscribe_topic(topic, lambda event: messages.put(event[1]))
        begin = functools.partial(_on_worker, work, dict(self.how), deterministic, topic, version("mgkeras"))
        futures = [self.client.submit(begin, task, key=f"{topic}-{place}") for place, task in enumerate(tasks)]
        waiting = dict(zip(map(str, tasks), futures, strict=True))
        try:
            while waiting:
                _pass_on(messages, told)
                for name, future in [task for task in waiting.items() if task[1].done()]:
                    while not messages.empty():  # what it said before
                        _pass_on(messages, told)
                    _check(name, future)
                    del waiting[name]
        finally:
            if self.client.status == "running":
                self.client.cancel(list(waiting.values()), force=True)
                self.client.unsubscribe_topic(topic)


def work_there(
    client: Client,
    tasks: Sequence[Any],
    work: Callable[[Any], Any],
    lost: Callable[[Any, str], Any],
    *,
    apart: bool = False,
) -> Iterator[Any]:
    """work(task) of each task on the workers, in the tasks' order; where a task ends its workers, lost(task, why).

    Args:
        client: from connected.
        tasks: picklable; paths in them are absolute.
        work: a function of a module.
        lost: what stands for the result of a task that ended its process.
        apart: whether each task has a process of its own on its worker, as what uses TensorFlow must.

    Raises:
        ClusterError: the scheduler is gone.
    """
    from distributed import KilledWorker

    futures = client.map(functools.partial(_apart, work) if apart else work, tasks, pure=False)
    try:
        for place, task in enumerate(tasks):
            try:
                yield futures[place].result()
            except (KilledWorker, BrokenProcessPool):
                yield lost(task, "it ended each worker that took it, which happens when memory runs out")
            except CancelledError:
                raise ClusterError(GONE) from None
            futures[place].release()
    finally:
        if client.status == "running":
            client.cancel([future for future in futures if not future.done()])


def scored_there(client: Client, run: Path, cohort: Cohort, kind: str, tta: bool) -> Score:
    """As inference.predict.score_exam, by workers: each takes some exams at a time, since loading models takes long.

    Args:
        client: from connected.
        run: absolute path of its folder.
        cohort: whose subjects are scored, in this order; its paths are absolute.
        kind, tta: as for score_exam.
    """
    from mgkeras.inference.predict import score_some

    parts = Workers(client, {}).parts(cohort.subjects)
    tasks = [(run, part, kind, tta) for part in parts]
    scores = work_there(client, tasks, score_some, lambda task, why: [ExamError(why)] * len(task[1]), apart=True)
    scored = (
        (subject.name, found) for part in zip(parts, scores, strict=True) for subject, found in zip(*part, strict=True)
    )

    def score(subject: Subject) -> Any:
        name, found = next(scored)
        while name != subject.name:  # a subject that was left out
            name, found = next(scored)
        if isinstance(found, ExamError):
            raise found
        return found

    return score


def _absolute(subject: Subject) -> Subject:
    """The same subject for workers, which stand in other folders."""
    paths = {column: path.absolute() for column in FILE_COLUMNS if (path := getattr(subject, column))}
    return replace(subject, **paths)


def _prepare(task: tuple[Sequence[Subject], Settings, Path]) -> int:
    """Makes some exams of the cache; how many they are."""
    cached(*task)
    return len(task[0])


def _apart(work: Callable[[Any], Any], task: Any) -> Any:
    _check_worker()
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
        return pool.submit(work, task).result()


def _pass_on(messages: queue.SimpleQueue[Sequence[str]], told: Callable[[Told], None]) -> None:
    try:
        told(Told(*messages.get(timeout=POLL_SECONDS)))
    except queue.Empty:
        pass


def _check(name: str, future: Any) -> None:
    """Raises what a task that is done raised."""
    if future.status == "finished":
        return
    error = future.exception() if future.status == "error" else None
    if isinstance(error, MgkerasError):
        raise WorkerError(str(error))
    if error is None:  # cancelled
        raise ClusterError(GONE)
    raise WorkerError(f"expected {name} to end well on the cluster. Received: {type(error).__name__}: {error}")


def _on_worker(work: Work, how: dict[str, Any], deterministic: bool, topic: str, release: str, task: Any) -> None:
    """The task as a Dask worker sees it: a process for it, and its messages passed on, until nobody wants it."""
    worker = _check_worker()
    if version("mgkeras") != release:
        raise WorkerError(f"expected mgkeras {release} on {worker.address}. Received: {version('mgkeras')}")
    key = worker.get_current_task()

    def wanted() -> bool:  # false where the client has cancelled it, or is gone
        found = worker.state.tasks.get(key)
        return found is not None and found.state == "executing"

    in_processes(
        work, [task], 1, how, deterministic, lambda message: worker.log_event(topic, astuple(message)), wanted=wanted
    )


def _check_worker() -> Any:
    """This task's worker, which may start a process that uses all its cores."""
    from distributed import get_worker

    worker = get_worker()
    if current_process().daemon:
        raise WorkerError("expected Dask workers that may start processes: `dask worker --no-nanny`. Received: a nanny")
    if worker.state.nthreads > 1:
        raise WorkerError(
            "expected Dask workers of one thread, since a fold uses all cores of its worker: `dask worker --nthreads "
            f"1`. Received: {worker.state.nthreads}"
        )
    return worker
