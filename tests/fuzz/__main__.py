"""Try everything and print counts: `python -m tests.fuzz`, in the checkout; it takes about half an hour."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

# Last, so that `attacks` stays the package and does not become the tests of it.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from support.runs import finished_run

from fuzz import folders, keys, tables

ADVERSARY = {"attacks": ["loss", "update-cosine"]}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [keys.try_value(folder, key, value) for key in keys.every_key() for value in keys.VALUES]
        _say("keys and values", found)
        found = [tables.try_table(folder, change, seed) for change in tables.CHANGES for seed in range(5)]
        _say("tables", found)
        run = finished_run(folder, out="run", federation={"rounds": 2}, adversary=ADVERSARY).path
        expected = {command: folders.call(command, run)[1] for command in folders.COMMANDS}
        found = [folders.try_damage(run, expected, folder / "copy", *each) for each in folders.trials(run)]
        _say("files of a run's folder", found)


def _say(what: str, found: list[keys.Trial]) -> None:
    counts = Counter(trial.kind for trial in found)
    print(f"{what}: {len(found)} tried; " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    for trial in found:
        if trial.failed:
            print(f"  {trial.what}: {trial.kind} {trial.detail}")


if __name__ == "__main__":
    main()
