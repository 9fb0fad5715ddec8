"""What a person sees while a run goes on: one line per round, and the time left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from attacks.observer import PROGRESS
from fedsim.errors import FedsimError
from fedsim.files import read_json
from fedsim.results import RunDirectory

_POLL_SECONDS = 0.2


@contextmanager
def follow(run: RunDirectory, console: Console) -> Iterator[None]:
    """Print a line for each round that ``run`` completes while the body runs.

    It watches ``rounds.parquet``, which every engine writes in the same way, from a thread.
    """
    stop = threading.Event()
    watcher = _Watcher(run, console)
    thread = threading.Thread(target=watcher.watch, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2)


class _Watcher:
    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.run, self.console = run, console
        self.path = run.path / "rounds.parquet"
        self.seen = self._known()
        self.changed_at = self.path.stat().st_mtime_ns if self.path.exists() else 0
        self.printed = 0
        self.started = time.monotonic()
        self.simulating: tuple[int, int, float] | None = None  # game, done when first seen, when
        self.said = 0.0

    def _known(self) -> set[tuple[int, int]]:
        if not self.path.exists():
            return set()
        rounds = self.run.table("rounds")
        return set(zip(rounds["game"], rounds["round"], strict=True))

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(_POLL_SECONDS):
            self.look()
        self.look()

    def look(self) -> None:
        """Print what is new: rounds, and how far the adversary's simulations are."""
        self._look_at_rounds()
        self._look_at_simulations()

    def _look_at_simulations(self) -> None:
        game = max((game for game, _ in self.seen), default=0)
        path = self.run.observations(game) / PROGRESS
        try:
            note = read_json(path)
        except FedsimError:
            return
        done, total, now = note["done"], note["total"], time.monotonic()
        if self.simulating is None or self.simulating[0] != game:
            self.simulating = (game, done, now)
            self.said = now
        _, first, since = self.simulating
        if done > first and now - self.said >= 2 and done < total:
            self.said = now
            left = duration((total - done) * (now - since) / (done - first))
            text = f"adversary: {done} of {total} shadow federations simulated  [dim]{left} left[/dim]"
            self.console.print(text, highlight=False)

    def _look_at_rounds(self) -> None:
        """A file in the middle of a kill or a clean-up is looked at again later."""
        try:
            changed_at = self.path.stat().st_mtime_ns
            if changed_at == self.changed_at:
                return
            rounds = self.run.table("rounds")
        except (OSError, FedsimError):
            return
        self.changed_at = changed_at
        whole = rounds[rounds["party"] == "all"].sort_values(["game", "round"])
        for game, round in zip(whole["game"], whole["round"], strict=True):
            if (game, round) not in self.seen:
                rows = rounds[(rounds["game"] == game) & (rounds["round"] == round)]
                self.seen.add((game, round))
                self.printed += round > 0
                self.console.print(self._line(game, round, rows), highlight=False)

    def _line(self, game: int, round: int, rows: pd.DataFrame) -> str:
        scenario = self.run.scenario
        overall = rows[rows["party"] == "all"].iloc[0]
        parts = [f"round {round}/{scenario.federation.rounds}"]
        if scenario.games > 1:
            parts.insert(0, f"game {game + 1}/{scenario.games}")
        parts.append(f"accuracy {overall['accuracy']:.3f}")
        parts.append(f"AUC {overall['auc']:.3f}  loss {overall['loss']:.3f}")
        parts.append(epsilons(rows))
        parts.append(f"{overall['seconds']:.2f} s")
        parts += _troubles(rows)
        left = self._seconds_left()
        if left is not None:
            parts.append(f"[dim]{duration(left)} left[/dim]")
        return "  ".join(part for part in parts if part)

    def _seconds_left(self) -> float | None:
        if not self.printed:
            return None
        scenario = self.run.scenario
        done = sum(1 for _, round in self.seen if round > 0)
        remaining = scenario.games * scenario.federation.rounds - done
        return remaining * (time.monotonic() - self.started) / self.printed


def epsilons(rows: pd.DataFrame) -> str:
    """Say the parties' ε in a few characters: '' where DP is off everywhere."""
    spent = rows.loc[rows["party"] != "all", ["party", "epsilon"]]
    private = spent[spent["epsilon"].map(math.isfinite)]
    if private.empty:
        return ""
    low, high = private["epsilon"].min(), private["epsilon"].max()
    text = f"ε {low:.3g}" if low == high else f"ε {low:.3g}-{high:.3g}"
    return text if len(private) == len(spent) else f"{text} ({len(private)} of {len(spent)} parties)"


def _troubles(rows: pd.DataFrame) -> list[str]:
    odd = rows[~rows["status"].isin(["ok", "not drawn"])]
    return [f"[yellow]{row.party} {row.status}[/yellow]" for row in odd.itertuples()]


def duration(seconds: float) -> str:
    """Say a time in words: '3 s', '2 min 05 s', '1 h 10 min'."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left; yield the function that moves it to (done, in all)."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move
