"""What was read or run wrongly once: a folder each in `tests/cases/inputs`, tried from a copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from fedsim.cli.main import main
from fedsim.core.run_directory import RunDirectory

INPUTS = Path(__file__).resolve().parents[1] / "cases" / "inputs"

OUTCOME = 'data.categories.outcome=["0", "1"]'
"""Classes declared, so that DP has nothing else to refuse."""


def enter(name: str, folder: Path) -> Path:
    """Copy the inputs of the case into ``folder``; those of faulty clients share a model and a table."""
    for source in (INPUTS / name, INPUTS / "faulty") if name.startswith("b-") else (INPUTS / name,):
        if source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in INPUTS.glob("small.*"):
        shutil.copy(path, folder)
    return folder


def fedsim(*arguments: object) -> Result:
    """Call the command line in this process; a bug raises."""
    return CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)


def finished(*arguments: object) -> RunDirectory:
    """Run a scenario into the folder `run`, which has to go well."""
    result = fedsim("run", *arguments, "--out", "run")
    assert result.exit_code == 0, result.output
    return RunDirectory.open(Path("run"))


def refused(result: Result, *words: str) -> None:
    """Check that the answer is one sentence of these words, with exit code 2."""
    said = [line for line in result.stderr.splitlines() if line.startswith("fedsim: ")]
    assert result.exit_code == 2 and len(said) == 1, result.output
    assert all(word in said[0] for word in words), said[0]


def checked(*arguments: object) -> str:
    """Return what the check of a scenario says, in one line of single blanks."""
    result = fedsim("scenario", "check", *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", **variables},
    )
