"""What takes long says so, in a terminal and in a file."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from fedsim.cli import common


def said(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80)
    console.quiet = quiet
    monkeypatch.setattr(common, "err", lambda: console)
    with common.busy("Reading the records…"):
        time.sleep(2.3)
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_is_told_after_two_seconds(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    text = said(monkeypatch, terminal)
    assert f"Reading the records{'…' if terminal else '...'} 2 s" in text
    assert text.endswith("\x1b[2K") is terminal, "in a terminal the line goes away again"


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, terminal=False, quiet=True) == ""


def test_what_fails_meanwhile_is_raised_and_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(common, "err", lambda: Console(file=stream))
    with pytest.raises(ValueError, match="no"), common.busy("Dealing…"):
        raise ValueError("no")
    assert stream.getvalue() == ""
