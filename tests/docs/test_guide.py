"""Every command of the guide runs, or is at least one that there is; the guide is built without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fedsim.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FAST = ["--set", "federation.rounds=2"]


def commands(page: Path, kind: str) -> list[list[str]]:
    """The fedsim commands of a page's blocks of this kind, comments left out, lines joined."""
    found = []
    for name, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if name == kind:
            lines = text.replace("\\\n", " ").splitlines()
            words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
            found += [line[1:] for line in words if line and line[0] == "fedsim"]
    return found


RUN = [(page.stem, words) for page in PAGES for words in commands(page, "sh")]
SHOWN = [(page.stem, words) for page in PAGES for words in commands(page, "console")]
SHOWN += [("README", words) for words in commands(ROOT / "README.md", "sh")]


def test_there_are_commands_of_both_kinds() -> None:
    assert len(RUN) >= 7 and len(SHOWN) >= 15
    assert {page for page, _ in RUN} >= {"first-run", "own-data", "own-attack"}


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda value: " ".join(value)[:50])
def test_a_command_that_is_shown_is_one_that_there_is(page: str, words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        assert words, f"{page}: a group without a command"
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: fedsim {' '.join(words)}"
        command, words = found, words[1:]
    try:
        command.make_parser(context).parse_args(words)
    except click.UsageError as error:
        raise AssertionError(f"{page}: {error.message}") from error


@pytest.mark.slow
@pytest.mark.xdist_group("guide")
def test_the_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each as it stands, but in two rounds: pages are read from top to bottom."""
    for name in ("experiments", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for page, words in RUN:
        more = FAST if words[0] == "run" else []
        result = CliRunner().invoke(main, [*words, *more])
        assert result.exit_code == 0, f"{page}: fedsim {' '.join(words)}\n{result.output}"
    shown = CliRunner().invoke(main, ["show", "runs/own-attack", "--all"]).output
    assert "better-than-its-class" in shown


def test_what_the_guide_names_is_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"`((?:experiments|docs|tests)/[\w./-]+)`", text):
            assert (ROOT / named).exists(), f"{page.name}: {named}"


@pytest.mark.slow
def test_the_guide_is_built_without_a_warning_and_its_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tour = (tmp_path / "notebook-tour.html").read_text(encoding="utf-8")
    assert ("update-regression" in tour and "image/png" in tour) or "_images" in tour
    assert "--models" in (tmp_path / "cli.html").read_text(encoding="utf-8")
