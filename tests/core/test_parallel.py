"""Processes that hang, exit or are killed cost their own task alone, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import eventually

from fedsim.core.errors import FedsimError, InputError, plainly
from fedsim.core.parallel import TaskLate, WorkerDied, Workers, in_threads, stop_signals


def square(x: int) -> int:
    return x * x


def act(how: str) -> str:
    """Do what a bad task does; return what a good one does."""
    if how == "exit":
        os._exit(7)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sys.exit":
        sys.exit(5)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if how == "fork and exit":  # a child of its own holds the pipes open
        if os.fork() == 0:
            time.sleep(20)
        os._exit(7)
    if how == "raise":
        raise InputError("a sentence")
    if how == "unpicklable error":
        raise Unpicklable
    if how == "unpicklable value":
        return lambda: 0  # type: ignore[return-value]
    return how


def import_this() -> None:
    """Nothing: that it is called has this module imported, which takes its time."""


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("its lock")
        self.lock = threading.Lock()


BAD: dict[str, tuple[type[BaseException], str]] = {
    "exit": (WorkerDied, "its process ended with code 7"),
    "killed": (WorkerDied, "its process ended with code −9 (often too little memory)"),
    "fork and exit": (WorkerDied, "its process ended with code 7"),
    "sys.exit": (FedsimError, "it called sys.exit(5)"),
    "interrupt": (FedsimError, "KeyboardInterrupt"),
    "hang": (TaskLate, "it took longer than 5 s; its process was ended"),
    "raise": (InputError, "a sentence"),
    "unpicklable error": (FedsimError, "Unpicklable: its lock"),
    "unpicklable value": (FedsimError, "it cannot be handed from one process to another"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_task_fails_alone_with_a_plain_reason(workers: int) -> None:
    tasks = [part for how in BAD for part in (how, f"fine beside {how}")]
    with Workers(workers, import_this) as pool:
        outcomes = list(pool.run(act, [(task,) for task in tasks], timeout=5.0))
    ends = {tasks[outcome.number]: outcome for outcome in outcomes if outcome.state != "started"}
    assert len(outcomes) == 2 * len(tasks)
    for how, (kind, sentence) in BAD.items():
        fine = ends[f"fine beside {how}"]
        assert (fine.state, fine.value) == ("done", f"fine beside {how}")
        error = ends[how].error
        assert type(error) is kind and str(error).startswith(sentence), (how, error)


def test_what_cannot_be_sent_fails_before_a_process_is_asked() -> None:
    with Workers(1) as pool:
        [_, failed] = pool.run(act, [(threading.Lock(),)])
        assert failed.error is not None and "from one process to another" in str(failed.error)
        assert list(pool.map(square, [(3,)])) == [9]


def slow_start(seconds: float) -> None:
    time.sleep(seconds)


def test_start_up_is_not_the_tasks_time() -> None:
    import functools

    with Workers(1, functools.partial(slow_start, 1.5)) as pool:
        assert list(pool.map(square, [(2,), (3,)], timeout=1.0)) == [4, 9]


def broken_start() -> None:
    raise InputError("it cannot start")


def test_a_start_that_fails_is_said_for_each_task_and_ends() -> None:
    with Workers(2, broken_start) as pool:
        ends = [outcome for outcome in pool.run(square, [(1,), (2,), (3,)]) if outcome.state != "started"]
    assert [str(outcome.error) for outcome in ends] == ["it cannot start"] * 3


def test_values_come_in_the_tasks_order_and_the_first_error_is_raised() -> None:
    with Workers(2) as pool:
        assert list(pool.map(square, [(k,) for k in range(9)])) == [k * k for k in range(9)]
        with pytest.raises(InputError, match="a sentence"):
            list(pool.map(act, [("fine",), ("raise",), ("fine",)]))
        assert list(pool.map(act, [("again",)])) == ["again"], "it can be used afterwards"


def test_workers_have_one_thread() -> None:
    with Workers(1) as pool:
        assert list(pool.map(os.getenv, [("OMP_NUM_THREADS",), ("MKL_NUM_THREADS",)])) == ["1", "1"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-9, 9), max_size=12), st.integers(1, 4))
def test_threads_give_what_a_loop_gives(values: list[int], workers: int) -> None:
    outcomes = in_threads(lambda x, stop: x * x, [(value,) for value in values], workers)
    assert {outcome.number: outcome.value for outcome in outcomes} == {k: x * x for k, x in enumerate(values)}


def test_closing_stops_threads() -> None:
    def work(x: int, stop: Callable[[], bool]) -> int:
        while x and not stop():
            time.sleep(0.01)
        return x

    outcomes = in_threads(work, [(0,), (1,), (1,)], 2)
    assert next(outcomes).value == 0
    outcomes.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


# ----------------------------------------------------------------- no orphans
PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from fedsim.core.parallel import Workers, stop_signals
import endless
if __name__ == "__main__":
    try:
        with stop_signals(), Workers(2) as pool:
            for outcome in pool.run(endless.task, [({marker!r}, 1), ({marker!r}, 2)]):
                pass
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(130)
"""
TASK = """
import os, pathlib, time
def task(marker, number):
    pathlib.Path(f"{marker}-{number}").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: str) -> None:
    (tmp_path / "endless.py").write_text(TASK)
    script, marker = tmp_path / "parent.py", str(tmp_path / "pid")
    script.write_text(PARENT.format(folder=str(tmp_path), marker=marker))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    files = [Path(f"{marker}-{number}") for number in (1, 2)]
    assert eventually(lambda: all(file.exists() and file.read_text() for file in files), 60)
    pids = [int(file.read_text()) for file in files]
    process.send_signal(getattr(signal, how))
    assert eventually(lambda: not any(map(alive, pids)), 20)
    output, _ = process.communicate(timeout=60)
    if how != "SIGKILL":
        assert (process.returncode, output) == (130, "stopped\n")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            os.kill(os.getpid(), signal.SIGTERM)  # the second does not disturb the end
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ------------------------------------------------------------ plain error texts
def test_an_error_is_one_short_safe_line() -> None:
    assert plainly(RuntimeError("a\nb\x1b[31m red\x1b[0m \x1b]0;title\x07 <X object at 0x7f3a12bc90d0>")) == (
        "RuntimeError: a b red <X object>"
    )
    assert (
        plainly(InputError("a sentence")) == "a sentence"
        and plainly(KeyboardInterrupt()) == "KeyboardInterrupt"
    )
    assert len(plainly(ValueError("x" * 10**7))) <= 300


@given(st.text())
def test_no_text_gets_through_that_moves_a_cursor(text: str) -> None:
    said = plainly(ValueError(text))
    assert len(said) <= 300 and said.isprintable() == all(c.isprintable() for c in said)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in said)
