"""The public face: what a notebook or a script needs to make a run and to look at it.

    import fedsim

    run = fedsim.run("experiments/hospitals.toml", set={"federation.rounds": 10}, dp={"all": 8})
    run.leakage.query("metric == 'auc' and party == 'all'")
    run.report()

With ``workers=1`` everything happens in the caller's process. More workers may be processes, which import
the caller's main module: a script needs ``if __name__ == "__main__":`` around its calls, a notebook does not.
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.core import own_packages
from fedsim.core.errors import InputError
from fedsim.core.run_directory import Manifest, RunDirectory, new_run_path
from fedsim.core.scenario import reading
from fedsim.core.scenario.settings import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from fedsim.report.plots import Plots

Source = str | Path | Mapping[str, Any] | Scenario
DP = str | Mapping[str, float | Literal["off"] | None] | None


def run(
    scenario: Source,
    *,
    set: Mapping[str, Any] | None = None,
    dp: DP = None,
    out: str | Path | None = None,
    workers: int | None = None,
    engine: str = "inprocess",
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Run a scenario, evaluate its attacks, write its report, and return the run.

    scenario: a TOML file, the folder of an earlier run, a nested dict as such a file holds, or a `Scenario`;
        relative paths in a dict are taken from the working directory
    set: settings to change, by dotted key: ``{"federation.rounds": 10}``
    dp: party → target ε, 'all' for every party; 'off', None or inf switches DP-SGD off. Or the same as on the
        command line, 'all=8' or 'all=8,hospital-2=off'
    out: the run's folder, absent or empty; default: ``runs/<name>``, with a number where that is taken
    workers: processes for the parties and cores for the shadows; None: 1, and up to 4
    engine: 'inprocess', 'ray' or 'superlink'; the result is the same to the bit, as with any number of
        workers
    data_dir: a folder with named data sets, used instead of downloads
    progress: whether to write a line for each round to standard error

    Example:
        >>> import fedsim
        >>> run = fedsim.run({"data": {"name": "digits"}, "federation": {"rounds": 2},
        ...                   "adversary": {"attacks": ["loss"]}}, progress=False)  # doctest: +SKIP
        >>> run.rounds[["round", "party", "accuracy"]]  # doctest: +SKIP

    Raises:
        InputError: something in the scenario or the arguments is wrong; nothing was started.
        FedsimError: the federation could not go on.
    """
    from fedsim.runs import play, prepare

    own_packages.check()
    play.check_engine(engine)
    settings = _scenario(scenario, set or {}, _switches(dp))
    prepared = prepare.check(settings, None if data_dir is None else Path(data_dir))
    folder = new_run_path(Path("runs"), settings.name) if out is None else Path(out)
    directory = prepare.prepare(prepared, folder)
    with _rounds_told(directory, progress):
        play.federate(directory, engine, workers)
    finished = Run(directory.path)
    finished.report()
    return finished


def load(folder: str | Path) -> Run:
    """Open the run in ``folder``, finished or not.

    Example:
        >>> import fedsim
        >>> fedsim.load("runs/hospitals").leakage  # doctest: +SKIP

    Raises:
        InputError: it is no run, or was written by another version.
    """
    from fedsim.runs.integrity import open_results

    return Run(open_results(Path(folder)).path)


@dataclass(frozen=True)
class Run:
    """A run: its settings, its tables, its report, and its attacks, to be repeated.

    path: its folder; all else is read from there when it is asked for

    Example:
        >>> run = fedsim.load("runs/hospitals")  # doctest: +SKIP
        >>> run.attack(names=["loss", "lira"], rounds=[1, 2]).leakage  # doctest: +SKIP
    """

    path: Path

    @cached_property
    def _directory(self) -> RunDirectory:
        return RunDirectory.open(self.path)

    @property
    def scenario(self) -> Scenario:
        """The exact scenario, defaults filled in."""
        return self._directory.scenario

    @property
    def manifest(self) -> Manifest:
        """Versions, seed, hashes of the data, engine, machine, wall times, and whether it is complete."""
        return self._directory.manifest

    @property
    def parties(self) -> dict[str, int]:
        """Records of each party, members and held out, by its name."""
        return dict(self.manifest["parties"])

    @property
    def adversary(self) -> str:
        """The malicious party."""
        return str(self.manifest["adversary"])

    @property
    def rounds(self) -> pd.DataFrame:
        """Accuracy, loss, AUC, ε spent and seconds: a row per game, round and party ('all': all together)."""
        return self._table("rounds")

    @property
    def scores(self) -> pd.DataFrame:
        """What each attack says of each candidate: game, attack, candidate, score, threshold; no truth."""
        return self._table("scores")

    @property
    def leakage(self) -> pd.DataFrame:
        """What each attack achieved, with 95 % intervals: a row per attack, party, game and metric."""
        return self._table("leakage")

    @property
    def sources(self) -> pd.DataFrame:
        """How well each observer tells whose a record is: attack, game, metric, value, low, high, n."""
        return self._table("sources")

    def _table(self, name: str) -> pd.DataFrame:
        if not self._directory.has(name):
            done = self.manifest.get("complete")
            reason = "this scenario does not ask for it" if done else "the run has not come that far"
            raise InputError(f"{self.path} has no table '{name}': {reason}")
        return self._directory.table(name)

    @property
    def plot(self) -> Plots:
        """Figures of its tables, drawn with matplotlib: ``run.plot.roc()``."""
        from fedsim.report.plots import Plots

        return Plots(self._directory)

    def report(self) -> Path:
        """Write ``report.html``, one page that needs no network, and return its path."""
        from fedsim.report import write

        return write(self._directory)

    def attack(
        self,
        names: str | Sequence[str] | None = None,
        rounds: str | int | Iterable[int] | None = None,
        *,
        workers: int | None = None,
        progress: bool = True,
    ) -> Run:
        """Repeat attacks from what the adversary kept, replace their scores, and return the run.

        names: attacks (`fedsim attacks list`); default: those of the scenario. Others' scores are kept.
        rounds: rounds whose models they look at, as numbers or as '1,5,10-20,last'; default: the scenario's
        workers: cores for the shadows; None: up to 4
        progress: whether to show a bar of the shadow federations on standard error

        Raises:
            InputError: an unknown attack or round, or a run that has not come to its attacks.
        """
        from fedsim.runs.attack import attack_again

        chosen = [names] if isinstance(names, str) else None if names is None else list(names)
        with _shadows_told(progress) as bar:
            attack_again(self._directory, chosen, workers, bar, _rounds_text(rounds))
        self.report()
        return self

    def _repr_html_(self) -> str:
        """Return a small table for a notebook: each party's guarantee, and the strongest attack on it."""
        title = f"{self.scenario.name}: {'complete' if self.manifest.get('complete') else 'not finished'}"
        return (
            f"<table><caption>{html.escape(title)}</caption><thead>{_cells('th', _HEADINGS)}</thead>"
            f"<tbody>{''.join(_cells('td', row) for row in _summary(self))}</tbody></table>"
            f"<p>{html.escape(_condition(self), quote=False)}</p>"
        )


_HEADINGS = ("party", "DP-SGD", "accuracy", "strongest attack", "AUC (95 %)")


def _scenario(
    source: Source, changes: Mapping[str, Any], dp: Mapping[str, float | Literal["off"] | None]
) -> Scenario:
    """Return the scenario of ``source`` with ``changes``, paths made absolute."""
    document, name, folder = _document(source)
    for key, value in changes.items():
        reading.put(document, key, value, f"set {key}")
    for party, epsilon in dp.items():
        if isinstance(epsilon, bool) or not (epsilon in (None, "off") or isinstance(epsilon, int | float)):
            raise InputError(f"dp {party} = {epsilon!r}: ε must be a number above 0, 'off' or None")
        reading.switch_dp(document, party, epsilon if isinstance(epsilon, int | float) else math.inf)
    return reading.parse(document, name, folder)


def _switches(dp: DP) -> Mapping[str, float | Literal["off"] | None]:
    """Return party → ε, also of a text as the command line has it."""
    if not isinstance(dp, str):
        return dp or {}
    return dict(reading.dp_switch(part.strip()) for part in dp.split(","))


def _document(source: Source) -> tuple[dict[str, Any], str, Path]:
    """Return a scenario's document, to be changed freely, what errors call it, and where its paths start."""
    if isinstance(source, Scenario):
        return source.model_dump(exclude_unset=True, exclude_none=True), "scenario", Path.cwd()
    if isinstance(source, Mapping):
        return _copied(source), "scenario", Path.cwd()
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise InputError(f"a scenario is a path, a dict or a Scenario, not {kind}: {source!r:.80}")
    path = reading.scenario_file(Path(source))
    return reading.read(path), str(path), path.resolve().parent


def _copied(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in document.items()}


def _rounds_text(rounds: str | int | Iterable[int] | None) -> str:
    if rounds is None or isinstance(rounds, str):
        return rounds or ""
    numbers = [rounds] if isinstance(rounds, int) else rounds
    return ",".join(str(number) for number in numbers)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, force_jupyter=False)


@contextlib.contextmanager
def _rounds_told(directory: RunDirectory, progress: bool) -> Iterator[None]:
    if not progress:
        yield
        return
    from fedsim.terminal import live

    with live.follow(directory, _console()):
        yield


@contextlib.contextmanager
def _shadows_told(progress: bool) -> Iterator[Callable[[int, int], object] | None]:
    if not progress:
        yield None
        return
    from fedsim.terminal import live

    with live.bar("shadow federations", _console()) as bar:
        yield bar


def _cells(kind: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(text, quote=False)}</{kind}>' for text in texts)}</tr>"


def _summary(run: Run) -> list[list[str]]:
    """Return a row of texts per party, of what there is yet; see `_HEADINGS`."""
    from fedsim.terminal.run_tables import guarantee

    strongest = _strongest(run)
    final = run._directory.final_rounds() if run._directory.has("rounds") else None
    rows = []
    for party in run.parties:
        label = f"{party} (adversary)" if party == run.adversary else party
        utility = ["", ""]
        if final is not None:
            last = final[final["party"] == party]
            utility = [guarantee(run._directory, party, last), f"{last['accuracy'].mean():.3f}"]
        rows.append([label, *utility, *strongest.get(party, ("", ""))])
    return rows


def _strongest(run: Run) -> dict[str, tuple[str, str]]:
    """Return by party the attack with the largest AUC over all games, and that AUC with its interval."""
    from fedsim.evaluation.results import in_world

    if not run._directory.has("leakage"):
        return {}
    leakage = in_world(run._directory, run.leakage)
    auc = leakage[(leakage["metric"] == "auc") & (leakage["game"] == "all")].dropna(subset=["value"])
    best = auc.loc[auc.groupby("party")["value"].idxmax()]
    return {
        str(row.party): (str(row.attack), f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})")
        for row in best.itertuples()
    }


def _condition(run: Run) -> str:
    """Say under what the figures of the table hold."""
    from fedsim.core.scenario.adversary import OWNS
    from fedsim.evaluation.estimates import speaks_of

    return (
        "The strongest of several attacks on the same records: its AUC errs upwards, .5 is guessing. "
        f"The adversary owns {OWNS[run.scenario.adversary.ladder[0]]} (adversary.worlds). "
        f"Intervals are 95 %, for {speaks_of(run.scenario.games)}."
    )
