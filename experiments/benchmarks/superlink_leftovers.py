"""Do superlink runs leave anything behind, one after another?

    python experiments/benchmarks/superlink_leftovers.py --runs 10     # about half a minute a run

Runs two rounds of `experiments/hospitals.toml` with two hospitals on Flower's deployment engine, again and
again, and counts after each what was not there before the first: processes with a Flower home of these runs,
listening TCP ports (on a machine where no other program opens any meanwhile), and entries of the runs'
temporary folder. Ends with code 1 where any is left, or where the final models differ.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from fedsim.core.scenario.reading import load
from fedsim.runs import play, prepare

SCENARIO = Path(__file__).resolve().parents[1] / "hospitals.toml"
SETTINGS = (
    "parties.count=2",
    "federation.rounds=2",
    'adversary.attacks=["loss"]',
    'adversary.worlds=["all"]',
)
LISTENS = "0A"  # in /proc/net/tcp


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


def run_once(folder: Path) -> str:
    """Run the small scenario on a SuperLink of its own; return the SHA-256 of its final model."""
    run = prepare.prepare(prepare.check(load(SCENARIO, SETTINGS), None), folder)
    play.federate(run, engine="superlink")
    return run.manifest["games"]["0"]["final_model_sha256"]


@click.command()
@click.option("--runs", default=10, show_default=True)
def main(runs: int) -> None:
    hashes, leftovers = set(), 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temp:
        tempfile.tempdir = temp  # what others do in the common one meanwhile is not counted
        before = processes(), ports(), temporary()
        for number in range(1, runs + 1):
            started = time.monotonic()
            hashes.add(run_once(Path(folder) / f"run-{number}"))
            after = processes(), ports(), temporary()
            left = [now - then for now, then in zip(after, before, strict=True)]
            leftovers += sum(map(len, left))
            counts = ", ".join(
                f"{len(what)} {name}"
                for what, name in zip(left, ("processes", "ports", "files"), strict=True)
            )
            seconds = time.monotonic() - started
            click.echo(f"run {number} of {runs}: {counts} left, {seconds:.0f} s" + "".join(
                f"\n  {entry}" for what in left for entry in sorted(what)
            ))  # fmt: skip
    click.echo(f"{runs} runs: {leftovers} left in all, {len(hashes)} final model(s)")
    raise SystemExit(1 if leftovers or len(hashes) > 1 else 0)


if __name__ == "__main__":
    main()
