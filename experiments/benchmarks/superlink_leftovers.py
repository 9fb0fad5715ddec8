"""Do superlink runs leave anything behind, one after another?

    python experiments/benchmarks/superlink_leftovers.py                      # ten, half a minute each
    python experiments/benchmarks/superlink_leftovers.py --runs 50 --page     # results/superlink_leftovers.md

Runs one round of `experiments/hospitals.toml` with two hospitals on Flower's deployment engine, again and
again, and counts after each what was not there before the first: processes with a Flower home of these runs,
listening TCP ports, and entries of the runs' temporary folder. Where Linux allows it all happens in a network
namespace of its own, in which no other program opens a port. Every fifth run fails on purpose: a party's
records are gone. Ends with code 1 where anything is left, or where the final models differ.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click

from fedsim.core.errors import FedsimError
from fedsim.core.scenario.reading import load
from fedsim.engines import superlink
from fedsim.runs import play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
SCENARIO = EXPERIMENTS / "hospitals.toml"
PAGE = EXPERIMENTS / "results" / "superlink_leftovers.md"
SETTINGS = (
    "parties.count=2",
    "federation.rounds=1",
    'adversary.attacks=["loss"]',
    'adversary.worlds=["all"]',
)
LISTENS = "0A"  # in /proc/net/tcp
NETWORK = "FEDSIM_OWN_NETWORK"  # set where this runs in a namespace of its own


def processes() -> set[str]:
    """Return 'pid: command' of the processes whose Flower home lies in the temporary folder."""
    left, home = set(), f"FLWR_HOME={tempfile.gettempdir()}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if home in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                left.add(f"{folder.name}: {command[:100]}")
        except OSError:
            continue
    return left


def ports() -> set[str]:
    """Return the TCP ports, in hexadecimal, that this machine's processes listen on."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _lines(Path("/proc/net") / name)]
    return {line[1].rpartition(":")[2] for line in lines if line[3] == LISTENS}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:] if path.exists() else []


def temporary() -> set[str]:
    """Return what lies in the temporary folder."""
    return {path.name for path in Path(tempfile.gettempdir()).iterdir()}


def run_once(folder: Path, fails: bool) -> str | None:
    """Run the small scenario on a SuperLink of its own; return the SHA-256 of its final model.

    fails: whether a party's records are removed before; the SHA-256 is then None

    Raises:
        RuntimeError: a run went well that should have failed.
    """
    run = prepare.prepare(prepare.check(load(SCENARIO, SETTINGS), None), folder)
    if not fails:
        play.federate(run, engine="superlink")
        return str(run.manifest["games"]["0"]["final_model_sha256"])
    for records in (run.path / "parties").rglob("records.safetensors"):
        records.unlink()
    try:
        superlink.run_game(run, 0)  # below the check that nothing is missing
    except FedsimError:
        return None
    raise RuntimeError("a run without records went well")


@contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """Let all temporary files be made in a folder that nobody else uses."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def left_after(runs: int) -> Iterator[tuple[dict[str, list[str]], float, str | None]]:
    """Yield of each run what it left, by kind, its seconds, and its final model's SHA-256."""
    kinds = {"processes": processes, "ports": ports, "files": temporary}
    with tempfile.TemporaryDirectory() as folder, own_temporary_folder():
        before = {name: look() for name, look in kinds.items()}
        for number in range(1, runs + 1):
            started = time.monotonic()
            sha = run_once(Path(folder) / f"run-{number}", fails=number % 5 == 0)
            left = {name: sorted(look() - before[name]) for name, look in kinds.items()}
            yield left, time.monotonic() - started, sha


def enter_network_of_its_own() -> None:
    """Start this program again in a new network namespace with a loopback, where that can be made."""
    if os.environ.get(NETWORK) or not (shutil.which("unshare") and shutil.which("ip")):
        return
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
    enter = ["unshare", "--map-root-user", "--net"]
    if os.spawnvp(os.P_WAIT, enter[0], [*enter, "true"]) == 0:
        os.environ[NETWORK] = "1"
        os.execvp(enter[0], [*enter, *inside])


def page(asked: int, left: dict[str, int], seconds: list[float], models: int) -> str:
    """Return the page on the runs so far."""
    runs = len(seconds)
    where = "in a network namespace of its own" if os.environ.get(NETWORK) else "among other programs"
    rows = [f"| {name} | {count} |" for name, count in left.items()]
    return "\n".join([
        "# What superlink runs leave behind", "",
        f"{runs} runs one after another, {where}: one round of `hospitals.toml` with two hospitals,",
        "each on a SuperLink of its own with TLS and node keys. Every fifth fails on purpose (a party's",
        f"records are gone). flwr {version('flwr')}; a run took {statistics.median(seconds):.0f} s in the",
        f"median and {max(seconds):.0f} s at most, on a machine that others used too. Made by",
        f"`python experiments/benchmarks/superlink_leftovers.py --runs {asked} --page`.", "",
        f"Different final models among the runs that went well: {models}.", "",
        "| left after any of them | in all |", "|---|---|", *rows, "",
    ])  # fmt: skip


@click.command()
@click.option("--runs", default=10, show_default=True)
@click.option("--page", "write_page", is_flag=True, help=f"Write results/{PAGE.name}.")
def main(runs: int, write_page: bool) -> None:
    enter_network_of_its_own()
    totals, seconds, hashes = dict.fromkeys(("processes", "ports", "files"), 0), [], set()
    for number, (left, duration, sha) in enumerate(left_after(runs), start=1):
        seconds.append(duration)
        hashes |= {sha} - {None}
        for name, entries in left.items():
            totals[name] += len(entries)
        counts = ", ".join(f"{len(entries)} {name}" for name, entries in left.items())
        click.echo(f"run {number} of {runs}: {counts} left, {duration:.0f} s")
        for entry in [entry for entries in left.values() for entry in entries]:
            click.echo(f"  {entry}")
        if write_page:  # as it goes: a long series that is stopped keeps what it has
            PAGE.write_text(page(runs, totals, seconds, len(hashes)), encoding="utf-8")
    click.echo(f"{runs} runs: {sum(totals.values())} left in all, {len(hashes)} final model(s)")
    raise SystemExit(1 if sum(totals.values()) or len(hashes) > 1 else 0)


if __name__ == "__main__":
    main()
