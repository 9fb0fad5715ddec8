"""What a person sees while a run goes on: one line per round, and the time left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from attacks.views.observations import PROGRESS
from fedsim.core.errors import FedsimError
from fedsim.core.files import read_json
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.run_directory import RunDirectory
from fedsim.sweeps.cells import Cell, Report
from fedsim.sweeps.points import Point, distinct

_POLL_SECONDS = 0.2


LINES = 10
"""Lines that the rounds of a game take, unless all are asked for."""

_SAY_EVERY = 10.0
"""Seconds between two lines about simulations, where output is no terminal."""


@contextmanager
def follow(run: RunDirectory, console: Console, verbose: bool = False) -> Iterator[None]:
    """Say what ``run`` completes while the body runs: a line for a tenth of the rounds, and the time left.

    It watches ``rounds.parquet``, which every engine writes in the same way, from a thread. In a terminal one
    more line, below these, says what goes on.

    verbose: a line for every round
    """
    stop = threading.Event()
    with _status(console) as say:
        watcher = _Watcher(run, console, say, verbose)
        thread = threading.Thread(target=watcher.watch, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=2)


@contextmanager
def _status(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces the line below all others; it does nothing where nobody looks on."""
    if not console.is_terminal or console.quiet:
        yield lambda text: None
        return
    with console.status("starting…") as status:
        yield status.update


class _Watcher:
    def __init__(
        self, run: RunDirectory, console: Console, say: Callable[[str], None], verbose: bool = False
    ) -> None:
        self.run, self.console, self.say = run, console, say
        self.every = 1 if verbose else math.ceil(run.scenario.federation.rounds / LINES)
        self.path = run.path / "rounds.parquet"
        self.seen = self._known()
        self.changed_at = self.path.stat().st_mtime_ns if self.path.exists() else 0
        self.printed = 0
        self.started: float | None = None  # when the first model of this call was there
        self.simulating: tuple[int, int, int] = (0, 0, 0)  # game, done, total as last said
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
        """Say what is new: rounds, and how far the adversary's simulations are."""
        self._look_at_rounds()
        self._look_at_simulations()

    def _look_at_simulations(self) -> None:
        game = max((game for game, _ in self.seen), default=0)
        try:
            note = read_json(self.run.observations(game) / PROGRESS)
        except FedsimError:
            return
        done, total = note["done"], note["total"]
        if done >= total or (game, done, total) == self.simulating:
            return
        text = f"adversary: {total} shadow federations, {100 * done / total:.0f} % simulated{time_left(note)}"
        self.say(text)
        now = time.monotonic()
        # Of each further work, of another world or of the early shadows, that it begins need not be said.
        begun = (game, total) != (self.simulating[0], self.simulating[2]) and (done > 0 or not self.said)
        if not self.console.is_terminal and (begun or now - self.said >= _SAY_EVERY):
            self.said = now
            self.console.print(text, highlight=False)
        self.simulating = (game, done, total)

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
        self.started = self.started or time.monotonic()
        whole = rounds[rounds["party"] == "all"].sort_values(["game", "round"])
        for game, round in zip(whole["game"], whole["round"], strict=True):
            if (game, round) not in self.seen:
                self._take(
                    int(game), int(round), rounds[(rounds["game"] == game) & (rounds["round"] == round)]
                )

    def _take(self, game: int, round: int, rows: pd.DataFrame) -> None:
        """Say a new round where it is its turn, is the last, or something went wrong in it."""
        self.seen.add((game, round))
        self.printed += round > 0
        line = self._line(game, round, rows)
        self.say(line)
        last = round == self.run.scenario.federation.rounds
        if round % self.every == 0 or last or _troubles(rows):
            self.console.print(line, highlight=False)
        if last:
            self.say("the attacks…")

    def _line(self, game: int, round: int, rows: pd.DataFrame) -> str:
        scenario = self.run.scenario
        overall = rows[rows["party"] == "all"].iloc[0]
        parts = [f"round {round}/{scenario.federation.rounds}"]
        if scenario.games > 1:
            parts.insert(0, f"game {game + 1}/{scenario.games}")
        parts.append(f"accuracy {overall['accuracy']:.3f}")
        if math.isfinite(overall["auc"]):
            parts.append(f"AUC {overall['auc']:.3f}")
        parts.append(f"loss {overall['loss']:.3f}")
        if scenario.model.name in LANGUAGE:
            parts.append(f"perplexity {math.exp(overall['loss']):.2f}")
        parts.append(epsilons(rows))
        parts.append(f"{overall['seconds']:.2f} s")
        parts += _troubles(rows)
        left = self._seconds_left()
        if left is not None:
            of_what = "" if scenario.games > 1 else " of training"
            parts.append(f"[dim]{duration(left)}{of_what} left[/dim]")
        return "  ".join(part for part in parts if part)

    def _seconds_left(self) -> float | None:
        if not self.printed or self.started is None:
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
    return [f"[yellow]{escape(f'{row.party} {row.status}')}[/yellow]" for row in odd.itertuples()]


def duration(seconds: float) -> str:
    """Say a time in words: '3 s', '2 min 05 s', '1 h 10 min'."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def time_left(note: Mapping[str, float]) -> str:
    """Say the time that a simulation has left, from `observations.progress_note`; '' before it can be
    told."""
    begun = note["done"] - note["first"]
    if begun <= 0:
        return ""
    left = (note["total"] - note["done"]) * note["seconds"] / begun
    return f"  [dim]{duration(left)} left[/dim]"


@contextmanager
def bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left; yield the function that moves it to (done, in all)."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal  # in a file it would leave empty lines
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move


@contextmanager
def sweep(points: Sequence[Point], workers: int, console: Console) -> Iterator[Callable[[Report], None]]:
    """Print a line for each cell that ends, below them a bar; yield the function that takes the reports."""
    pace = Pace(distinct(points), workers)
    names = {point.cell.key: point.name for point in reversed(points)}
    bar = Progress(
        TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), _Left(pace),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=len(names), completed=len(pace.ended))

        def take(report: Report) -> None:
            now = time.monotonic()
            pace.take(report, now)
            bar.update(task, completed=len(pace.ended), description=f"{len(pace.running)} running")
            if report.state == "running":
                return
            took = duration(pace.took.get(report.key, 0))
            what = took if report.state == "done" else f"[red]failed[/red]: {escape(report.reason)}"
            text = f"{len(pace.ended)}/{len(names)}  {escape(names[report.key])}: {what}"
            console.print(f"{text}  [dim]{pace.words(now)}[/dim]", highlight=False, soft_wrap=True)

        yield take


class Pace:
    """How far a sweep is, and how long the rest will take, by how long its cells took."""

    def __init__(self, all_cells: Sequence[Cell], workers: int) -> None:
        self.cells = {cell.key: cell for cell in all_cells}
        self.workers = workers
        self.running: dict[str, float] = {}  # key → when it was started
        self.took: dict[str, float] = {}  # key → seconds
        for cell in all_cells:
            if cell.finished:
                games = RunDirectory(cell.path).manifest["games"].values()
                self.took[cell.key] = sum(game["seconds"] for game in games)
        self.ended = set(self.took)

    def take(self, report: Report, now: float) -> None:
        """Note a report of the time ``now``, seconds on any clock."""
        if report.state == "running":
            self.running[report.key] = now
            return
        started = self.running.pop(report.key)
        self.ended.add(report.key)
        if report.state == "done":
            self.took[report.key] = now - started

    def left(self, now: float) -> float | None:
        """Return the seconds left, None where no cell has been finished yet."""
        if not self.took:
            return None
        rest = [self._expected(key) - (now - since) for key, since in self.running.items()]
        rest += [self._expected(key) for key in self.cells if key not in self.ended | set(self.running)]
        return max([sum(max(0.0, seconds) for seconds in rest) / self.workers, *rest, 0.0])

    def _expected(self, key: str) -> float:
        """Return what cells of the same scenario took on average, or all cells where there are none."""
        name = self.cells[key].scenario.name
        alike = [took for other, took in self.took.items() if self.cells[other].scenario.name == name]
        known = alike or list(self.took.values())
        return sum(known) / len(known)

    def words(self, now: float) -> str:
        """Say the time left, '' where it is not known yet, or nothing is left."""
        left = self.left(now)
        return "" if left is None or len(self.ended) == len(self.cells) else f"{duration(left)} left"


class _Left(ProgressColumn):
    max_refresh = 1.0

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def render(self, task: Task) -> Text:
        return Text(self.pace.words(time.monotonic()))
