"""The one way to have processes: single-threaded workers that may die without harm.

What the standard pools do not give, and a federation of other people's code needs: a task has a timeout of
its own, which starts when its worker is ready; a worker that hangs, exits or is killed costs its own task
alone and is replaced; and no worker outlives its parent, however that ends. Neither the number of workers nor
the order in which tasks are finished changes a result: tasks are numbered, and share nothing.

On Linux they are forked from a server of this process's own (Python's "forkserver"), which has imported what
takes seconds and has run nothing else; elsewhere each starts anew.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Literal

from fedsim.core.errors import FedsimError, plainly

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a worker: on more threads small models are many times slower, and may differ in a bit."""

LATE = "its process was ended"
"""How the reason of every `TaskLate` ends."""

START_SECONDS = 600.0
"""A worker that is not ready by then never will be: importing torch takes seconds, at worst a minute."""

MOST_CORES = 4
"""Cores that shadows take unasked; what more of them bring was not measured."""

PRELOADED = ["torch", "pandas", "fedsim.core.parallel"]
"""What a worker finds imported, beside what its ``start`` is defined in: most of what it takes to start."""

_LONGEST_FOLDER = 70  # of temporary files: a socket in a folder in it may have about a hundred characters
_POLL_SECONDS = (
    1.0  # between looks at processes whose end no pipe tells, since a child of theirs holds it open
)


def cores() -> int:
    """Return on how many cores to train shadows where nobody says it: those there are, up to `MOST_CORES`."""
    return min(MOST_CORES, os.cpu_count() or 1)


class WorkerDied(FedsimError):
    """The process of a task ended before the task did."""


class TaskLate(FedsimError):
    """A task took longer than it may, and its process was ended."""


@dataclass(frozen=True)
class Outcome:
    """What has become of a task; number: its place among the tasks of the call."""

    number: int
    state: Literal["started", "done", "failed"]
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """Return the value of a task that is done.

        Raises:
            BaseException: what the task raised; `WorkerDied` or `TaskLate` where it did not come to that.
        """
        if self.error is not None:
            raise self.error
        return self.value


class Workers:
    """Processes, started when first needed, and ended with the ``with`` statement.

    count: processes at most
    start: called once in each, such as an import, before its first task; its time is not the task's
    forked: whether the first is a copy of this process, which must have no threads; it waits for no import
    """

    def __init__(self, count: int, start: Callable[[], object] | None = None, forked: bool = False) -> None:
        self.count = max(1, count)
        self._start = start
        self._idle: list[_Worker] = [_Worker(start, "fork")] if forked else []
        self._busy: list[_Worker] = []

    def __enter__(self) -> Workers:
        atexit.register(self.close)
        return self

    def __exit__(self, *exception: object) -> None:
        atexit.unregister(self.close)
        self.close()

    def begin(self) -> None:
        """Start the processes now: they import while the caller makes up their tasks."""
        self._idle += [_Worker(self._start) for _ in range(self.count - len(self._idle) - len(self._busy))]

    def close(self) -> None:
        """End all processes at once, whatever they are doing."""
        workers = [*self._busy, *self._idle]
        self._busy, self._idle = [], []
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.end()

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], timeout: float | None = None
    ) -> Generator[Outcome]:
        """Yield 'started' and then 'done' or 'failed' of every ``function(*task)``, in the order it happens.

        timeout: seconds that a task may take before its process is ended; None for no limit
        """
        waiting = deque(enumerate(tasks))
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < self.count:
                    number, task = waiting.popleft()
                    try:
                        job = bytes(ForkingPickler.dumps((function, task)))
                    except Exception as error:
                        yield Outcome(number, "started")
                        yield Outcome(number, "failed", error=_unfit(error))
                        continue
                    worker = self._free_worker()
                    self._busy.append(worker)
                    worker.take(number, job, timeout)
                    yield Outcome(number, "started")
                yield from self._collect()
        finally:
            for worker in self._busy:  # nobody waits for them any more
                worker.end()
            self._busy = []

    def map(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], timeout: float | None = None
    ) -> Iterator[Any]:
        """Yield the value of every ``function(*task)``, in the tasks' order.

        Raises:
            BaseException: see `Outcome.result`.
        """
        done: dict[int, Outcome] = {}
        with contextlib.closing(self.run(function, tasks, timeout)) as outcomes:
            for number in range(len(tasks)):
                while number not in done:
                    outcome = next(outcomes)
                    if outcome.state != "started":
                        done[outcome.number] = outcome
                yield done.pop(number).result()

    def _free_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            worker.end()
        return _Worker(self._start)

    def _collect(self) -> Iterator[Outcome]:
        """Wait until something happens to a busy worker, and yield what has become of its task."""
        if not self._busy:
            return
        next_deadline = min(worker.deadline for worker in self._busy) - time.monotonic()
        heard = wait(
            [part for worker in self._busy for part in (worker.connection, worker.process.sentinel)],
            timeout=max(0.0, min(_POLL_SECONDS, next_deadline)),
        )
        for worker in list(self._busy):
            may_hear = worker.connection in heard or not worker.process.is_alive()
            outcome = worker.hear() if may_hear else worker.overdue()
            if outcome is None:
                continue
            self._busy.remove(worker)
            if worker.ended:
                worker.end()
            else:
                self._idle.append(worker)
            yield outcome


class _Worker:
    """A process that does one task after another."""

    def __init__(self, start: Callable[[], object] | None, method: Literal["fork"] | None = None) -> None:
        context: Any = _anew(start) if method is None else get_context(method)
        self.connection, theirs = context.Pipe()
        # Not a daemon, which could have no processes of its own, as a party that trains shadows has.
        self.process = context.Process(target=_serve, args=(theirs,), daemon=False)
        # Ctrl-C reaches the whole process group; a child that inherits the block leaves it to its parent.
        with _blocked(signal.SIGINT, signal.SIGHUP), environment(**SINGLE_THREAD):
            self.process.start()
        theirs.close()
        self.ended = False
        self._ready = False
        variables = {**os.environ, **SINGLE_THREAD}
        self._send(bytes(ForkingPickler.dumps((variables, bytes(ForkingPickler.dumps(start))))))

    def take(self, number: int, job: bytes, timeout: float | None) -> None:
        self._number, self._timeout = number, timeout
        self.deadline = time.monotonic() + START_SECONDS
        if self._ready:
            self._start_clock()
        self._send(job)

    def _start_clock(self) -> None:
        self.deadline = float("inf") if self._timeout is None else time.monotonic() + self._timeout

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died, which `hear` finds out
            self.connection.send_bytes(data)

    def hear(self) -> Outcome | None:
        """Return what has become of the task; None where the process has only become ready for it."""
        try:
            kind, data = self.connection.recv() if self.connection.poll() else ("died", b"")
            value = ForkingPickler.loads(data) if kind == "done" else None
        except (EOFError, OSError):
            kind = "died"
        except Exception as error:
            return Outcome(self._number, "failed", error=_unfit(error))
        if kind == "ready":
            self._ready = True
            self._start_clock()
            return None
        if kind == "done":
            return Outcome(self._number, "done", value)
        self.ended = kind != "raised"
        cause = WorkerDied(self._obituary()) if kind == "died" else _unpacked(*data)
        return Outcome(self._number, "failed", error=cause)

    def overdue(self) -> Outcome | None:
        """Return the failure of a task whose time is up, None where it has time left."""
        if time.monotonic() < self.deadline:
            return None
        self.ended = True
        late = f"it took longer than {self._timeout:g} s" if self._ready else "its process did not start"
        return Outcome(self._number, "failed", error=TaskLate(f"{late}; {LATE}"))

    def _obituary(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        # Linux ends the largest process where memory runs out, by SIGKILL.
        memory = " (often too little memory)" if code == -signal.SIGKILL else ""
        return f"its process ended with code {code}{memory}".replace("code -", "code −")

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.connection.close()


def _anew(start: Callable[[], object] | None) -> Any:
    """Return how multiprocessing starts a worker that has nothing of this process.

    The server imports what the first ``start`` of this process is defined beside.
    """
    if sys.platform != "linux" or len(tempfile.gettempdir()) > _LONGEST_FOLDER:
        return get_context("spawn")
    context = get_context("forkserver")
    module = getattr(getattr(start, "func", start), "__module__", "__main__")
    context.set_forkserver_preload([*PRELOADED, *({module} - {"__main__"})])
    return context


def _serve(connection: Connection) -> None:
    """Do tasks until the parent hangs up; end with it even in the middle of one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends both to its whole group
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    with contextlib.suppress(EOFError, OSError):
        kind, data = _attempt(_begin, connection.recv_bytes())
        if kind == "raised":  # the first task learns why none can be done
            connection.recv_bytes()
            connection.send(("unable", data))
            return
        connection.send(("ready", b""))
        while True:
            connection.send(_attempt(_do, connection.recv_bytes()))


def _begin(job: bytes) -> None:
    variables, start = ForkingPickler.loads(job)
    os.environ.clear()  # those of whom it was forked from may be older
    os.environ.update(variables)
    if (function := ForkingPickler.loads(start)) is not None:
        function()


def _do(job: bytes) -> Any:
    function, task = ForkingPickler.loads(job)
    return function(*task)


def _attempt(function: Callable[[bytes], Any], job: bytes) -> tuple[str, Any]:
    """Return ('done', the pickled value) or ('raised', what `_unpacked` takes)."""
    try:
        value = function(job)
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a task are failures of that task
        return "raised", _packed(error)
    try:
        return "done", bytes(ForkingPickler.dumps(value))
    except Exception as error:
        return "raised", _packed(_unfit(error))


def _packed(error: BaseException) -> tuple[bytes, str]:
    """Return the pickled error, empty where it cannot be or must not be raised again, and what it says."""
    if isinstance(error, SystemExit):
        return b"", f"it called sys.exit({plainly(repr(error.code))})"
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        error.add_note(f"in a process of its own:\n{trace[-10_000:]}")
        if isinstance(error, Exception):
            return bytes(ForkingPickler.dumps(error)), plainly(error)
    return b"", plainly(error)


def _unpacked(data: bytes, text: str) -> BaseException:
    with contextlib.suppress(Exception):  # of a class that only the worker can import
        error = ForkingPickler.loads(data)
        if isinstance(error, Exception):
            return error
    return FedsimError(text)


def _unfit(error: Exception) -> FedsimError:
    return FedsimError(f"it cannot be handed from one process to another: {plainly(error)}")


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_threads(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int
) -> Generator[Outcome]:
    """Yield the outcomes of ``function(*task, stop)`` as they are done, ``workers`` at a time in threads.

    For work that releases the interpreter's lock. ``stop()`` says whether to give up: once the iterator is
    closed, or a task has raised, which is raised here.
    """
    import torch

    stop = threading.Event()
    executor = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        number_of = {
            executor.submit(function, *task, stop.is_set): number for number, task in enumerate(tasks)
        }
        for future in as_completed(number_of):
            yield Outcome(number_of[future], "done", future.result())
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables for the processes that the body starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _blocked(*numbers: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def missing_facilities() -> list[str]:
    """Return what processes and locks here need and this system does not have; Windows lacks all of them."""
    of_signals = [name for name in ("SIGHUP", "SIGKILL", "pthread_sigmask") if not hasattr(signal, name)]
    of_files = [] if importlib.util.find_spec("fcntl") else ["fcntl"]
    return of_signals + of_files


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: raise KeyboardInterrupt, once, in the main thread.

    One that is ignored, as by nohup, or that has a handler of someone else's, stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    replaced = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in replaced:  # `timeout` and terminals send it twice: the second must not disturb the end
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])
