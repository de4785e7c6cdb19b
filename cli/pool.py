"""Work on many subjects in as many processes as there are cores, or on a cluster; one that dies takes nobody along."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.options import gathered

if TYPE_CHECKING:
    from distributed import Client


FEWEST = 4  # tasks for which processes are started; for fewer that takes longer than the work
AHEAD = 4  # tasks a process that are handed out before the first task's result is taken


@dataclass(frozen=True)
class Cluster:
    """The options --scheduler and --cluster; false where neither is given."""

    scheduler: str | None = None
    cluster: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.scheduler or self.cluster)

    def client(self, say: Callable[[str], None]) -> Any:
        """A context manager of the client that the options ask for, or of None where they ask for none."""
        if self.scheduler and self.cluster:
            raise click.UsageError("expected --scheduler or --cluster. Received: both")
        if not self:
            return nullcontext()
        from mgkeras.training.cluster import connected

        return connected(self.scheduler, self.cluster, say)

    def check(self) -> None:
        """Tells at once what is wrong with the options, where jobs are to be asked for only once there is work."""
        if self.scheduler or not self.cluster:
            with self.client(lambda text: None):
                return
        from mgkeras.training.cluster import read_cluster

        read_cluster(self.cluster)


cluster_options = gathered(
    "cluster",
    Cluster,
    click.option(
        "--cluster",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Work in jobs of a batch system, which a TOML file describes; see docs/clusters.md.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Work on the workers of a Dask scheduler, as tcp://HOST:8786."),
)


def work_on(
    tasks: Sequence[Any],
    work: Callable[[Any], Any],
    jobs: int,
    lost: Callable[[Any, str], Any],
    client: Client | None = None,
) -> Iterator[Any]:
    """work(task) of each task, in the tasks' order, a few ahead of what has been taken.

    Args:
        tasks: each can be pickled.
        work: a function of a module; it tells its errors in what it returns.
        jobs: processes. With one, or few tasks, there is none but this.
        lost: (task, why) -> what stands for the result of a task that ended its process, out of memory for example.
        client: of a Dask cluster that works instead; then paths in tasks are absolute.
    """
    if client:
        from mgkeras.training.cluster import work_there

        yield from work_there(client, tasks, work, lost)
        return
    if jobs < 2 or len(tasks) < FEWEST:
        yield from map(work, tasks)
        return
    from concurrent.futures.process import BrokenProcessPool

    done = 0
    while done < len(tasks):
        try:
            for result in _ahead(tasks[done:], work, min(jobs, len(tasks) - done)):
                yield result
                done += 1
        except BrokenProcessPool:  # one process ended, and with it all results that were under way
            try:
                yield next(_ahead(tasks[done : done + 1], work, 1))
            except BrokenProcessPool:
                yield lost(tasks[done], "its process ended, which happens when memory runs out. Try --jobs 1")
            done += 1


def _ahead(tasks: Sequence[Any], work: Callable[[Any], Any], jobs: int) -> Iterator[Any]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from mgkeras.training.workers import end_with_parent

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        waiting: deque = deque()
        for task in tasks:
            with _deaf():  # a task may start a process, which inherits it: Ctrl-C is told by this process alone
                waiting.append(pool.submit(work, task))
            if len(waiting) > AHEAD * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C is not heard meanwhile, nor by processes that are started."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
