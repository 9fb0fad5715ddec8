"""Every file of a run's folder cut, flipped, emptied or removed: one sentence, or the same result."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from click.testing import CliRunner

from fedsim.cli.main import main
from fuzz.keys import LONGEST, Trial


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle] + bytes(byte ^ 0x15 for byte in content[middle : middle + 1]) + content[middle + 1 :]
    )


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "cut": _cut,
    "flipped": _flip,
    "emptied": lambda content: b"",
    "removed": None,
}

COMMANDS = {
    "show": ["show", "{run}"],
    "report": ["report", "{run}"],
    "attack": ["attack", "{run}", "--workers", "1"],
    "resume": ["run", "{run}", "--resume", "--workers", "1"],
}

CACHED = (".svg", ".html", ".json.tmp")
"""Kinds of file that are made from the others, and made again."""


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.suffix not in CACHED)


def trials(run: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield every (file, damage, command)."""
    for path in files(run):
        for damage in DAMAGES:
            for command in COMMANDS:
                yield path, damage, command


def call(command: str, run: Path) -> tuple[int, str, str]:
    """Return the exit code, the tables and what is said on stderr; a bug raises."""
    arguments = [part.format(run=run) for part in COMMANDS[command]]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def try_damage(
    run: Path, expected: dict[str, str], scratch: Path, path: Path, damage: str, command: str
) -> Trial:
    """Damage one file of a copy of ``run`` and call ``command`` on it.

    expected: what each command prints of the run as it was
    """
    what = f"{command} with {path.relative_to(run)} {damage}"
    copy = scratch / run.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    victim, change = copy / path.relative_to(run), DAMAGES[damage]
    if change is None:
        victim.unlink()
    else:
        victim.write_bytes(change(victim.read_bytes()))
    try:
        code, tables, said = call(command, copy)
    except Exception:
        return Trial(what, "traceback", traceback.format_exc(limit=-3))
    if code == 0:
        same = tables.replace(str(copy), str(run)) == expected[command]
        return Trial(what, "valid" if same else "silently different")
    line = said.strip().splitlines()[-1] if said.strip() else ""
    if not line.startswith("fedsim: ") or len(line) > LONGEST:
        return Trial(what, "no sentence", said[-300:])
    return Trial(what, "sentence", line)
