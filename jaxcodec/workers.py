"""Work shared by processes, each a fresh Python with libraries of its own, or by threads."""

import collections
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def pool(
    processes: int, environment: dict[str, str], start: Callable[[], None] | None = None
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """An executor whose processes have `environment` and have called `start`; what is not begun at the end is dropped.

    Raises:
      ValueError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(processes, context, _start, (environment, start))
    try:
        yield executor
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError("a process died, for want of memory perhaps: try fewer processes.") from None
    except KeyboardInterrupt:  # a terminal's Ctrl-C reaches them too, a SIGTERM does not
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def map_ahead(executor: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int) -> Iterator[Any]:
    """`function` of each item, in order; `ahead` of them are begun before the one that is waited for."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        pending.append(executor.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start(environment, start):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a word
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ.update(environment)
    if start is not None:
        start()
