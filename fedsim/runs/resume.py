"""Going on with a run that was stopped, at whatever moment."""

from __future__ import annotations

from pathlib import Path

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import integrity, prepare


def ready(run: RunDirectory, data_dir: Path | None = None) -> RunDirectory:
    """Return the run with its records dealt, and without what killed processes left half written.

    One that was stopped while its records were dealt starts anew, from its own scenario.

    Raises:
        InputError: another process is running it, or its records cannot be read any more.
    """
    integrity.check_usable(run)
    with run.locked():
        files.remove_temporary(run.path)
    if run.manifest.get("prepared"):
        return run
    prepared = prepare.check(run.scenario, data_dir)
    run.forget_records()
    return prepare.prepare(prepared, run)
