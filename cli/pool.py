"""Work on many subjects in as many processes as there are cores; one that dies takes nobody with it."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

FEWEST = 4  # tasks for which processes are started; for fewer that takes longer than the work
AHEAD = 4  # tasks a process that are handed out before the first one's result is taken


def work_on(
    tasks: Sequence[Any], work: Callable[[Any], Any], jobs: int, lost: Callable[[Any, str], Any]
) -> Iterator[Any]:
    """work(task) of each task, in the tasks' order, a few ahead of what has been taken.

    Args:
        tasks: each can be pickled.
        work: a function of a module; it tells its errors in what it returns.
        jobs: processes. With one, or few tasks, there is none but this.
        lost: (task, why) -> what stands for the result of a task that ended its process, out of memory for example.
    """
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
